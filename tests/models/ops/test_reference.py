"""The fast paths of training against the modules they stand for."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.units import outcome, randomized, unfused
from hypothesis import given
from hypothesis import strategies as st

from binaryvit.models import layers
from binaryvit.models.layers import BinaryBlock, BinaryLinear, BinaryUnit, PoolingBranches
from binaryvit.models.ops import reference
from binaryvit.models.quantizers import sign
from binaryvit.training.build import blocks_of


@pytest.mark.parametrize(("inside", "outside"), [(8, 32), (32, 8), (12, 12)])
@pytest.mark.parametrize("tokens", [5, 64])
def test_a_fused_unit_is_its_modules(inside: int, outside: int, tokens: int, device: torch.device) -> None:
    unit = randomized(BinaryUnit(inside, outside, 1, 1)).to(device)
    modules = unfused(unit)
    x = torch.randn(3, tokens, inside, dtype=torch.float64, device=device)
    assert unit._is_fusible(x)
    assert not modules._is_fusible(x)
    gradient = torch.randn(3, tokens, outside, dtype=torch.float64, device=device)
    expected = outcome(modules, x, gradient)
    for name, value in outcome(unit, x, gradient).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_fused_unit_keeps_its_input_and_half_a_float_per_output() -> None:
    unit, x = BinaryUnit(64, 256, 1, 1), torch.randn(2, 128, 64, requires_grad=True)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unit(x)
    parameters = sum(parameter.nbytes for parameter in unit.parameters())
    assert sum(size for size, _ in kept.values()) <= 4 * x.numel() + 2 * (2 * 128 * 256) + 2 * parameters


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_the_forward_product_stays_exact(precision: torch.dtype) -> None:
    unit = randomized(BinaryUnit(512, 512, 1, 1), torch.float32)
    x, gradient = torch.randn(2, 64, 512), torch.randn(2, 64, 512)
    expected = outcome(unit, x, gradient)
    with torch.autocast("cpu", precision):
        found = unit(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected["output"], rtol=1e-5, atol=1e-5)


def test_modules_are_used_where_someone_could_tell() -> None:
    unit, x = BinaryUnit(8, 8, 1, 1), torch.randn(2, 3, 8)
    assert unit._is_fusible(x)
    assert not BinaryUnit(8, 8, 1, 32)._is_fusible(x)
    assert not BinaryUnit(8, 8, 32, 1)._is_fusible(x)
    assert not unit._is_fusible(x[:1, :1]), "a single token has no statistics: PyTorch's own error says so"
    with torch.no_grad():
        assert not unit._is_fusible(x)
    watched = BinaryUnit(8, 8, 1, 1)
    watched.act.register_full_backward_hook(lambda *_: None)
    assert not watched._is_fusible(x)
    cumulative = BinaryUnit(8, 8, 1, 1)
    cumulative.norm.batch_norm.momentum = None
    assert not cumulative._is_fusible(x)
    assert not unit.eval()._is_fusible(x)
    assert not torch.nn.SyncBatchNorm.convert_sync_batchnorm(BinaryUnit(8, 8, 1, 1))._is_fusible(x)


@given(rows=st.integers(1, 20), terms=st.integers(1, 300), columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_products_of_signs_are_exact(rows: int, terms: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = reference.int8_sign(torch.randn(rows, terms, generator=generator))
    weight = reference.int8_sign(torch.randn(columns, terms, generator=generator))
    expected = (x.unsqueeze(1).long() * weight.long()).sum(2)
    assert torch.equal(reference.sign_product(x, weight).long(), expected)


def test_float16_holds_every_product_of_2048_signs() -> None:
    integers = torch.arange(-2048, 2049)
    assert torch.equal(integers.to(reference._exact_float(2048)).long(), integers)
    assert reference._exact_float(2049) == torch.float32


def test_int8_signs_take_zero_as_positive() -> None:
    assert reference.int8_sign(torch.tensor([-1.5, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]


def test_a_sign_linear_layer_is_the_linear_layer() -> None:
    layer = randomized(BinaryLinear(40, 24, activation_bits=1))
    plain = copy.deepcopy(layer)
    plain.activation_bits = 32
    x = sign(torch.randn(3, 7, 40, dtype=torch.float64))
    gradient = torch.randn(3, 7, 24, dtype=torch.float64)
    expected = outcome(plain, x, gradient)
    for name, value in outcome(layer, x, gradient).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_cross_convolution_and_its_gradients(device: torch.device) -> None:
    grid = torch.randn(2, 6, 7, 5, dtype=torch.float64, device=device, requires_grad=True)
    taps = torch.randn(9, 6, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    kernel = torch.zeros(6, 1, 5, 5, dtype=torch.float64, device=device)
    for tap, (row, column) in zip(taps, reference.CROSS, strict=True):
        kernel[:, 0, row, column] = tap
    expected = F.conv2d(grid, kernel, bias, padding=2, groups=6)
    found = reference.cross_convolution(grid, taps, bias)
    gradient = torch.randn_like(found)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (grid, taps, bias), gradient),
        torch.autograd.grad(expected, (grid, taps, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_pooling_branches_are_four_average_poolings_under_autocast_too() -> None:
    branches = randomized(PoolingBranches(4, 6), torch.float32)
    x = torch.randn(2, 36, 4)
    grid = layers.tokens_to_grid(x, 6)
    expected = sum(
        branches.affines[name](
            layers.grid_to_tokens(F.avg_pool2d(grid, size, stride=1, padding=[side // 2 for side in size]))
        )
        for name, size in layers.POOLING_WINDOWS.items()
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = branches(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_a_compiled_block_is_one_graph_and_the_eager_block() -> None:
    block = randomized(BinaryBlock(16, 2, 32, grid_size=4, reduction=2), torch.float32)
    compiled = copy.deepcopy(block)
    compiled.compile(dynamic=False, fullgraph=True)
    x, gradient = torch.randn(4, 16, 16), torch.randn(4, 16, 16)
    expected = outcome(block, x, gradient)
    for name, value in outcome(compiled, x, gradient).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-4, atol=2e-4, msg=name)


def test_fused_units_are_what_eager_training_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("binaryvit_micro_patch2_32")
    used = []
    fuse = BinaryUnit._fused
    monkeypatch.setattr(BinaryUnit, "_fused", lambda self, x: used.append(self) or fuse(self, x))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    units = [module for block in blocks_of(model) for module in block.modules() if isinstance(module, BinaryUnit)]
    assert len(used) == len(units)
