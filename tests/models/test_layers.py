"""Layers against direct, slow formulations of the same thing."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.units import randomized

import binaryvit  # noqa: F401 - registers the models
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import (
    Affine,
    AttentionBinarizer,
    BinaryAttention,
    BinaryBlock,
    BinaryConv2d,
    BinaryLinear,
    BinaryPatchMerging,
    BinaryUnit,
    FullPrecisionPatchMerging,
    PoolingBranches,
    RPReLU,
    TokenBatchNorm,
    add_shortcut,
    grid_to_tokens,
    tokens_to_grid,
)
from binaryvit.models.ops.synchronized import SynchronizedBatchNorm, synchronize


def test_token_batch_norm_is_over_all_tokens_of_all_images():
    norm = TokenBatchNorm(3).double().train()
    x = torch.randn(4, 5, 3, dtype=torch.float64) * 2 + 1
    flat = x.reshape(20, 3)
    expected = (x - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.batch_norm.running_mean, 0.1 * flat.mean(0))
    torch.testing.assert_close(norm.batch_norm.running_var, 0.9 + 0.1 * flat.var(0, unbiased=True))


def test_synchronized_norms_have_the_same_parameters_and_compute_the_same_in_evaluation():
    unit = randomized(BinaryUnit(4, 4, 1, 1), torch.float32).eval()
    x, names, parameters = torch.randn(2, 3, 4), list(unit.state_dict()), list(unit.parameters())
    expected = unit(x)
    assert isinstance(synchronize(unit).norm.batch_norm, SynchronizedBatchNorm)
    assert list(unit.state_dict()) == names and all(a is b for a, b in zip(unit.parameters(), parameters, strict=True))
    assert torch.equal(unit(x), expected)


def test_rprelu_is_prelu_between_two_shifts():
    act = randomized(RPReLU(6))
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    expected = F.prelu((x - act.shift_in).reshape(-1, 6), act.slope).reshape(x.shape) + act.shift_out
    output = act(x)
    torch.testing.assert_close(output, expected)
    actual = torch.autograd.grad(output.square().sum(), [x, *act.parameters()])
    torch.testing.assert_close(actual, torch.autograd.grad(expected.square().sum(), [x, *act.parameters()]))


def test_rprelu_at_exactly_zero_takes_the_slopes_side():
    act = RPReLU(1)
    x = torch.zeros(1, 1, 1, requires_grad=True)
    act(x).sum().backward()
    assert x.grad.item() == 0.25
    assert act.slope.grad.item() == 0


def test_initial_values():
    act, main, branches = RPReLU(4), Affine(4, 0.1), PoolingBranches(4, 5)
    assert act.slope.tolist() == [0.25] * 4 and not act.shift_in.any() and not act.shift_out.any()
    assert main.alpha.tolist() == pytest.approx([0.1] * 4) and not main.beta.any()
    assert not any(parameter.any() for parameter in branches.parameters())
    attention = BinaryAttention(8, 2, 4)
    assert attention.binarize_attn.level.item() == pytest.approx(0.005)
    assert not attention.binarize_q.shift.any() and not attention.q.binarize.shift.any()


def test_widening_concatenates_and_narrowing_averages_neighbours():
    x = torch.arange(4.0)
    assert add_shortcut(torch.ones(8), x).tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert add_shortcut(torch.ones(4), x).tolist() == [1, 2, 3, 4]
    assert add_shortcut(torch.ones(2), x).tolist() == [1.5, 3.5]


@pytest.mark.parametrize("bits", [(1, 1), (1, 32), (32, 1), (32, 32)])
def test_binary_unit(bits):
    unit = randomized(BinaryUnit(6, 12, *bits)).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    shifted, weight = x + unit.binarize.shift, unit.linear.weight
    if bits[1] == 1:
        shifted = torch.where(shifted >= 0, 1.0, -1.0).double()
    if bits[0] == 1:
        rows = []
        for row in weight:
            rows.append(row.abs().mean() * torch.where(row - row.mean() >= 0, 1.0, -1.0).double())
        weight = torch.stack(rows)
    # In evaluation with fresh statistics the norm is gamma * y / sqrt(1 + eps) + beta.
    norm = unit.norm.batch_norm
    main = shifted @ weight.T / (1 + 1e-5) ** 0.5 * norm.weight + norm.bias
    expected = unit.act(main + torch.cat([x, x], dim=-1))
    torch.testing.assert_close(unit(x), expected)


def test_binary_convolution_is_not_centred():
    conv = BinaryConv2d(2, 3).double()
    with torch.no_grad():
        conv.weight.copy_(torch.rand(conv.weight.shape) + 0.1)  # all positive: centring would change signs
    assert torch.equal(conv.effective_weight() > 0, torch.ones(3, 2, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(
        conv.effective_weight()[:, 0, 0, 0], torch.stack([w.mean() for w in conv.weight.detach()])
    )
    linear = BinaryLinear(4, 2).double()
    with torch.no_grad():
        linear.weight.copy_(torch.rand(2, 4) + 0.1)
    assert (linear.effective_weight() < 0).any()


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_head_by_head(reduction):
    """The whole attention with loops over images and heads, as the method states it."""
    dim, heads, grid = 8, 2, 4
    attention = randomized(BinaryAttention(dim, heads, grid, reduction)).eval()
    attention.binarize_attn.level.data.fill_(0.11)
    x = torch.randn(2, grid * grid, dim, dtype=torch.float64)
    signs = lambda t: torch.where(t >= 0, 1.0, -1.0).double()  # noqa: E731
    for image in range(2):
        tokens = x[image : image + 1]
        z = tokens
        if reduction > 1:
            cells = tokens.reshape(1, grid // 2, 2, grid // 2, 2, dim).mean(dim=(2, 4)).reshape(1, -1, dim)
            z = attention.reduce(cells)
        q, k, v = attention.q(tokens), attention.k(z), attention.v(z)
        contexts = []
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            sq = signs(q + attention.binarize_q.shift)[0, :, own]
            sk = signs(k + attention.binarize_k.shift)[0, :, own]
            sv = signs(v + attention.binarize_v.shift)[0, :, own]
            p = torch.softmax(sq @ sk.T / (dim / heads) ** 0.5, dim=1)
            contexts.append(torch.where(p > 0.055, 0.11, 0.0).double() @ sv)
        context = torch.cat(contexts, dim=1)[None]
        up = lambda t: t  # noqa: E731
        if reduction > 1:
            up = lambda t: grid_to_tokens(F.interpolate(tokens_to_grid(t, 2), scale_factor=2, mode="nearest"))  # noqa: E731
        out = attention.act(attention.norm(context) + q + up(k) + up(v))
        torch.testing.assert_close(attention(tokens), attention.proj(out))


def test_merging_keeps_positions():
    """Token (row, column) of the merged grid comes from its own 2 x 2 cell."""
    merging = BinaryPatchMerging(2, 4, 4).eval()
    x = torch.zeros(1, 16, 2)
    x[0, 2 * 4 + 3] = 100.0  # row 2, column 3 -> row 1, column 1 of the merged 2 x 2 grid
    change = (merging(x) - merging(torch.zeros(1, 16, 2))).abs().sum(dim=-1)[0]
    assert change.nonzero().flatten().tolist() == [3]


def test_a_fixed_weight_is_used_as_it_is_and_not_trained():
    linear = BinaryLinear(6, 3)
    binary = linear.effective_weight().detach()
    expected = linear(torch.eye(6)).detach()
    linear.fix_weight(binary)
    assert torch.equal(linear(torch.eye(6)), expected)
    assert not linear.weight.requires_grad


@pytest.mark.parametrize(
    ("variant", "arguments", "levels"),
    [
        ("binaryvit_micro_patch2_32", {}, [1 / 16] * 5),
        ("binaryvit_micro_patch2_32", {"attention_level": 0.005}, [0.005] * 5),
        ("binaryvit_micro_patch2_32", {"img_size": 64}, [1 / 64] * 5),
        ("reactdeit_micro_patch4_32", {}, [1 / 65] * 3),  # with the CLS token
        ("reactdeit_micro_patch4_32_avg_pool", {}, [1 / 64] * 3),
        ("binaryvit_small_patch4_224", {"depths": (1, 1, 1, 1)}, [0.005] * 4),
    ],
)
def test_attention_levels_start_at_the_papers_or_at_one_over_the_keys(variant, arguments, levels):
    model = timm.create_model(variant, **arguments)
    found = [module.level.item() for module in model.modules() if isinstance(module, AttentionBinarizer)]
    assert found == pytest.approx(levels)


@pytest.mark.parametrize("level", [0, -0.1, 1.5, "key", True, [0.1]])
def test_an_impossible_attention_level_is_refused(level):
    with pytest.raises(BinaryViTError, match=r"attention_level=.* is not possible"):
        timm.create_model("binaryvit_micro_patch2_32", attention_level=level)


def test_full_precision_merging_is_a_product_with_each_square_of_tokens():
    merge = randomized(FullPrecisionPatchMerging(2, 4, 4)).eval()
    x = torch.randn(3, 16, 2, dtype=torch.float64)
    grid = tokens_to_grid(merge.norm_in(x), 4)
    squares = [grid[:, :, row : row + 2, column : column + 2] for row in (0, 2) for column in (0, 2)]
    expected = torch.stack([torch.einsum("bchw,ochw->bo", square, merge.proj.weight) for square in squares], dim=1)
    torch.testing.assert_close(merge(x), merge.norm(expected))


def test_all_attention_dropped_leaves_zeros():
    attention = BinaryAttention(8, 2, 4, attention_level=0.1, attn_drop=1.0).train()
    kept = attention.attn_drop(attention.binarize_attn(torch.rand(2, 2, 16, 16)))
    assert not attention._context(kept, torch.ones(2, 2, 16, 4)).any()


@pytest.mark.parametrize("widths", [(64, 96), (96, 64)])
def test_a_unit_whose_shortcut_fits_no_width_is_refused(widths):
    with pytest.raises(BinaryViTError, match="to be a multiple of the other"):
        BinaryUnit(*widths, 1, 1)


@pytest.mark.parametrize("dropping", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_dropped_attention_is_used_as_dropout_leaves_it(training, dropping):
    attention = BinaryAttention(8, 2, 4, attention_level=0.1, attn_drop=0.5).double().train(training)
    attention.attn_drop.train(dropping)
    kept = attention.attn_drop(attention.binarize_attn(torch.rand(2, 2, 16, 16, dtype=torch.float64)))
    values = torch.randn(2, 2, 16, 4, dtype=torch.float64).sign()
    torch.testing.assert_close(attention._context(kept, values), kept @ values)


def test_pooling_branches_stay_where_paths_are_dropped():
    block = randomized(BinaryBlock(4, 2, 8, 4, drop_path=1.0)).train()
    x = torch.randn(2, 16, 4, dtype=torch.float64)
    torch.testing.assert_close(block(x), x + block.pool(block.norm2(x)))
