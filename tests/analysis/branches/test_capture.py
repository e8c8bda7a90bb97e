"""Branch norms and ablations against models written out without hooks, and nothing left behind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.scattered import scattered
from torch import nn

from binaryvit.analysis.branches.capture import BINARY_GROUPS, GROUPS, REAL_GROUPS, branch_norms, group_members, zeroed
from binaryvit.analysis.branches.recalibration import reestimated_statistics
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import add_shortcut, grid_to_tokens, tokens_to_grid

PYRAMID = dict(
    variant="binaryvit_micro_patch2_32", img_size=16, num_classes=3, embed_dims=(4, 8), depths=(1, 2), num_heads=(1, 2),
    mlp_ratios=(2, 4), reductions=(2, 1),
)  # fmt: skip
COLUMNAR = dict(
    variant="reactdeit_micro_patch4_32", img_size=8, patch_size=2, num_classes=3, embed_dims=4, depths=2, num_heads=2,
    mlp_ratios=2,
)  # fmt: skip


@pytest.fixture(params=[PYRAMID, COLUMNAR], ids=["pyramid", "columnar"])
def model(request):
    return scattered(**request.param).double()


def images_for(model, count=6):
    return torch.randn(count, 3, model.img_size, model.img_size, dtype=torch.float64)


# The whole model once more, without its own forward methods. `without` says which groups are left out where, `norms`
# receives every addition.


class Written:
    def __init__(self, model, without=(), within=""):
        self.model, self.without, self.within, self.norms = model, without, within, {}
        self.paths = {module: path for path, module in model.named_modules()}

    def keeps(self, group, module):
        path = self.paths[module]
        return group not in self.without or not (path + ".").startswith(self.within + "." if self.within else "")

    def added(self, module, kind, branch, shortcut):
        self.norms.setdefault((self.paths[module], kind), []).append((branch, shortcut))
        return branch + shortcut

    def products(self, module, group, products, shortcut):
        branch = module.norm(products * self.keeps(group, module))
        shortcut = add_shortcut(torch.zeros_like(branch), shortcut) * self.keeps("inner shortcuts", module)
        return module.act(self.added(module, group, branch, shortcut))

    def unit(self, unit, x, group):
        products = F.linear(unit.binarize(x), unit.linear.effective_weight())
        return self.products(unit, group, products, x)

    def attention(self, attn, x):
        z = x
        if attn.reduction > 1:
            z = grid_to_tokens(F.avg_pool2d(tokens_to_grid(x, attn.grid_size), attn.reduction))
            z = self.unit(attn.reduce, z, "attention linears")
        q, k, v = (self.unit(unit, y, "attention linears") for unit, y in ((attn.q, x), (attn.k, z), (attn.v, z)))
        heads = [y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
                 for y in (attn.binarize_q(q), attn.binarize_k(k), attn.binarize_v(v))]  # fmt: skip
        scores = heads[0] @ heads[1].transpose(-2, -1) * attn.softmax_scale
        context = (attn.binarize_attn(scores.softmax(dim=-1)) @ heads[2]).transpose(1, 2).flatten(2)
        up = k + v
        if attn.reduction > 1:
            grid = tokens_to_grid(up, attn.grid_size // attn.reduction)
            up = grid_to_tokens(F.interpolate(grid, scale_factor=attn.reduction, mode="nearest"))
        return self.unit(attn.proj, self.products(attn, "attention products", context, q + up), "attention linears")

    def block(self, block, x):
        keeps = self.keeps("residual shortcuts", block)
        x = self.added(block, "attention branch", block.affine1(self.attention(block.attn, block.norm1(x))), x * keeps)
        y = block.norm2(x)
        ffn = self.unit(block.mlp.fc2, self.unit(block.mlp.fc1, y, "FFN linears"), "FFN linears")
        x_second, x = x, self.added(block, "FFN branch", block.affine2(ffn), x * keeps)
        if block.pool is not None:
            pooled = block.pool(y) * self.keeps("pooling branches", block.pool)
            self.norms.setdefault((self.paths[block], "pooling branches"), []).append((pooled, x_second))
            x = x + pooled
        return x

    def merge(self, merge, x):
        x = merge.norm_in(x)
        grid = tokens_to_grid(merge.binarize(x), merge.grid_size)
        products = grid_to_tokens(F.conv2d(grid, merge.proj.effective_weight(), stride=2))
        average = grid_to_tokens(F.avg_pool2d(tokens_to_grid(x, merge.grid_size), 2))
        return self.products(merge, "merges", products, average)

    @torch.no_grad()
    def __call__(self, x):
        for index, stage in enumerate(self.model.stages):
            x = self.merge(stage.embed, x) if index else stage.embed(x)
            if self.model.cls_token is not None:
                x = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1)
            x = x + stage.pos_embed
            for block in stage.blocks:
                x = self.block(block, x)
        x = self.model.norm(x)
        return self.model.head(x[:, 0] if self.model.global_pool == "token" else x.mean(dim=1))


def snapshot(model):
    """Everything a hook or a context could leave: state, modes, momenta, hooks."""
    modules = [
        (m.training, getattr(m, "momentum", None), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    modules, tensors = snapshot(model)
    return modules == before[0] and all(torch.equal(tensor, before[1][name]) for name, tensor in tensors.items())


def test_the_written_model_is_the_model(model):
    images = images_for(model)
    torch.testing.assert_close(Written(model)(images), model(images))


def test_norms_are_those_of_the_written_models_additions(model):
    batches = [(images_for(model, 5), None), (images_for(model, 2), None)]
    written = Written(model)
    for images, _ in batches:
        written(images)
    before = snapshot(model)
    table = branch_norms(model, batches)
    assert unchanged(model, before)
    assert set(zip(table["layer"], table["kind"], strict=True)) == set(written.norms)
    for row in table.itertuples():
        branch, shortcut = (
            torch.cat([pair[side].flatten() for pair in written.norms[row.layer, row.kind]]) for side in (0, 1)
        )
        assert row.elements == branch.numel()
        assert row.branch == pytest.approx(branch.square().mean().sqrt().item(), rel=1e-9)
        assert row.shortcut == pytest.approx(shortcut.square().mean().sqrt().item(), rel=1e-9)
        assert row.ratio == pytest.approx(row.branch / row.shortcut)


def test_norms_come_in_the_order_of_computing():
    table = branch_norms(scattered(**PYRAMID).double(), [(torch.randn(2, 3, 16, 16).double(),)])
    kinds = table[table["layer"].str.startswith("stages.0")]["kind"].tolist()
    linears, branches = ["attention linears"] * 4, ["FFN linears", "FFN linears", "FFN branch", "pooling branches"]
    assert kinds == [*linears, "attention products", "attention linears", "attention branch", *branches]
    assert table["layer"].iloc[11] == "stages.1.embed" and table["kind"].iloc[11] == "merges"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("within", ["", "stages.1", "stages.1.blocks.0"])
def test_zeroing_one_group_leaves_the_written_model_without_it(group, within):
    model = scattered(**PYRAMID).double()
    if group == "merges" and within.endswith("blocks.0"):
        with pytest.raises(BinaryViTError, match="no merges in stages"), zeroed(model, [group], within):
            pass
        return
    images, before = images_for(model), snapshot(model)
    intact = model(images)
    with zeroed(model, [group], within):
        without = model(images)
    torch.testing.assert_close(without, Written(model, [group], within)(images))
    assert not torch.allclose(without, intact)
    assert unchanged(model, before) and torch.equal(model(images), intact)


@pytest.mark.parametrize(
    "groups", [BINARY_GROUPS, REAL_GROUPS, GROUPS, GROUPS[::-1], ("residual shortcuts", "pooling branches")]
)
def test_groups_together(groups):
    model = scattered(**PYRAMID).double()
    images = images_for(model)
    with zeroed(model, groups):
        torch.testing.assert_close(model(images), Written(model, groups)(images))


def test_a_model_without_poolings_and_affines():
    model = scattered(**COLUMNAR).double()
    groups = [group for group in GROUPS if group_members(model, group)]
    assert set(GROUPS) - set(groups) == {"merges", "pooling branches"}
    images = images_for(model)
    for group in groups:
        with zeroed(model, [group]):
            torch.testing.assert_close(model(images), Written(model, [group])(images))


def test_members_are_named_by_module_path():
    model = scattered(**PYRAMID).double()
    assert list(group_members(model, "FFN linears", "stages.0")) == [
        "stages.0.blocks.0.mlp.fc1", "stages.0.blocks.0.mlp.fc2",
    ]  # fmt: skip
    assert list(group_members(model, "merges")) == ["stages.1.embed"]
    assert len(group_members(model, "attention linears")) == 5 + 4 + 4
    assert len(group_members(model, "inner shortcuts")) == 13 + 6 + 3 + 1


@pytest.mark.parametrize(
    ("groups", "within", "sentence"),
    [
        ([], "", "at least one of attention products"),
        ("merges", "", "as a list"),
        (["pooling branch"], "", "did you mean 'pooling branches'"),
        (["merges"], "stages.0", "no merges in stages.0"),
        (["merges"], "stages.7", "no part 'stages.7'"),
    ],
)
def test_wrong_selections_are_refused(groups, within, sentence):
    with pytest.raises(BinaryViTError, match=sentence), zeroed(scattered(**PYRAMID).double(), groups, within):
        pass


def test_a_model_without_branches_is_refused():
    with pytest.raises(BinaryViTError, match="no branches to measure in Linear"):
        branch_norms(nn.Linear(3, 3), [(torch.randn(1, 3),)])
    with pytest.raises(BinaryViTError, match="and images"):
        branch_norms(scattered(**PYRAMID).double(), [])


def test_hooks_are_removed_after_an_error(model):
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), zeroed(model, ["inner shortcuts", "residual shortcuts"]):
        raise ZeroDivisionError
    assert unchanged(model, before)


# --- batch-norm statistics estimated again ----------------------------------------------------------------------------


def test_reestimated_statistics_are_pytorchs_own(model):
    batches = [(images_for(model, 4), None) for _ in range(3)]
    reference = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([images for images, _ in batches], reference)
    before, images = snapshot(model), images_for(model)
    with reestimated_statistics(model, batches):
        torch.testing.assert_close(model(images), reference.eval()(images))
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor)
        assert not torch.allclose(model.norm.batch_norm.running_mean, before[1]["norm.batch_norm.running_mean"])
    assert unchanged(model, before)


def test_one_batchs_statistics_are_its_mean_and_unbiased_variance():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(10, 3) * 3 + 1
    with reestimated_statistics(model, [(x,)]):
        torch.testing.assert_close(model[0].running_mean, x.mean(0))
        torch.testing.assert_close(model[0].running_var, x.var(0))
        torch.testing.assert_close(model[1].running_mean, torch.zeros(3), atol=1e-6, rtol=0)
        # The same images are now normalized as in training, up to the unbiased variance.
        torch.testing.assert_close(model[0](x).var(0), torch.ones(3), atol=1e-4, rtol=0)


def test_an_ablation_with_its_own_statistics_has_normalized_branches():
    """The point of the estimation: a constant branch is at the mean of its batch norm, whatever that was before."""
    model = scattered(**PYRAMID).double()
    images = images_for(model)
    seen = {}
    norm = model.stages[0].blocks[0].attn.norm
    with zeroed(model, ["attention products"]), reestimated_statistics(model, [(images,)]):
        handle = norm.register_forward_hook(lambda _, inputs, output: seen.update(out=output))
        model(images)
        handle.remove()
    torch.testing.assert_close(seen["out"], norm.batch_norm.bias.expand_as(seen["out"]))


@pytest.mark.parametrize(
    ("batches", "sentence"), [([], "no images to estimate"), ([(torch.randn(1, 3),)], "A batch of one image")]
)
def test_too_few_images_are_refused_and_change_nothing(batches, sentence):
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    before = snapshot(model)
    with pytest.raises(BinaryViTError, match=sentence), reestimated_statistics(model, batches):
        pass
    assert unchanged(model, before)
