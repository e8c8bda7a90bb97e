"""The PyTorch step of a binary unit against its modules."""

import copy

import pytest
import torch
from helpers.units import assert_outcomes_match, outcome, randomized, step, unfused

from binaryvit.models.layers import BinaryBlock, BinaryUnit
from binaryvit.models.ops import reference


@pytest.mark.parametrize(("inside", "outside"), [(8, 32), (32, 8), (12, 12)])
@pytest.mark.parametrize("tokens", [5, 64])
def test_a_fused_unit_is_its_modules(inside: int, outside: int, tokens: int, device: torch.device) -> None:
    unit = randomized(BinaryUnit(inside, outside, 1, 1)).to(device)
    modules = unfused(unit)
    x = torch.randn(3, tokens, inside, dtype=torch.float64, device=device)
    assert step(unit, x) is reference.binary_unit
    assert step(modules, x) is None
    gradient = torch.randn(3, tokens, outside, dtype=torch.float64, device=device)
    expected = outcome(modules, x, gradient)
    assert_outcomes_match(outcome(unit, x, gradient), expected, within=1e-9)


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


@pytest.mark.slow
def test_a_compiled_block_is_one_graph_and_the_eager_block() -> None:
    block = randomized(BinaryBlock(16, 2, 32, grid_size=4, reduction=2), torch.float32)
    compiled = copy.deepcopy(block)
    compiled.compile(dynamic=False, fullgraph=True)
    x, gradient = torch.randn(4, 16, 16), torch.randn(4, 16, 16)
    expected = outcome(block, x, gradient)
    assert_outcomes_match(outcome(compiled, x, gradient), expected, within=2e-4)
