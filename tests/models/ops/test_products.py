"""Products of two binary factors are exact integers, and their gradients those of the products they stand for."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.units import assert_outcomes_match, outcome, randomized
from hypothesis import given
from hypothesis import strategies as st

from binaryvit.models.layers import BinaryConv2d, BinaryLinear
from binaryvit.models.ops import precision, products
from binaryvit.models.quantizers import sign

HALF = [torch.bfloat16, torch.float16]


@given(rows=st.integers(1, 20), terms=st.integers(1, 300), columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_products_of_signs_are_exact(rows: int, terms: int, columns: int, seed: int) -> None:
    x, weight, expected = signs_and_their_product(rows, terms, columns, seed)
    for has_fast_int8, autocast in itertools.product((True, False), repeat=2):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            patch.setattr(products, "_HAS_FAST_INT8", has_fast_int8)
            assert torch.equal(products.sign_product(x, weight).long(), expected)


def test_the_largest_sums_of_signs_are_exact_under_autocast(device: torch.device) -> None:
    """bfloat16 holds every integer up to 256 only."""
    ones = torch.ones(3, 771, dtype=torch.int8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert (products.sign_product(ones, ones) == 771).all()


def signs_and_their_product(rows: int, terms: int, columns: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = products.int8_sign(torch.randn(rows, terms, generator=generator))
    weight = products.int8_sign(torch.randn(columns, terms, generator=generator))
    return x, weight, (x.unsqueeze(1).long() * weight.long()).sum(2)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_a_type_is_called_exact_as_long_as_it_holds_every_integer(dtype: torch.dtype) -> None:
    terms = next(2**power for power in range(30) if not precision.is_exact(dtype, 2**power + 1))
    assert precision.is_exact(dtype, terms)
    integers = torch.arange(terms - 256, terms + 1)
    assert torch.equal(integers.to(dtype).long(), integers)
    assert torch.tensor(terms + 1).to(dtype).long() != terms + 1


def test_int8_signs_take_zero_as_positive() -> None:
    assert products.int8_sign(torch.tensor([-1.5, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]


@pytest.mark.parametrize("kind", [BinaryLinear, BinaryConv2d])
def test_a_layer_on_signs_is_the_general_layer(kind: type) -> None:
    layer = randomized(kind(40, 24, activation_bits=1))
    plain = copy.deepcopy(layer)
    plain.activation_bits = 32
    shapes = {BinaryLinear: ((3, 7, 40), (3, 7, 24)), BinaryConv2d: ((3, 40, 6, 6), (3, 24, 3, 3))}[kind]
    x, gradient = sign(torch.randn(shapes[0], dtype=torch.float64)), torch.randn(shapes[1], dtype=torch.float64)
    expected = outcome(plain, x, gradient)
    assert_outcomes_match(outcome(layer, x, gradient), expected, within=1e-12)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("terms", [16, 256, 300, 2048])
def test_under_autocast_products_of_signs_are_as_without(half: torch.dtype, terms: int) -> None:
    x, y = sign(torch.randn(2, 3, 5, terms)), sign(torch.randn(2, 3, terms, 4))
    x[..., 0, :], y[..., 0] = 1, 1  # the largest sum there is
    level, weight = torch.tensor(0.0123), 0.0371 * sign(torch.randn(6, terms))
    attended = torch.where(torch.rand(x.shape) < 0.9, level, 0.0)
    with torch.autocast("cpu", half):
        found = products.sign_matmul(x, y), products.level_matmul(attended, level, y), products.sign_linear(x, weight)
    assert torch.equal(found[0], x @ y)
    assert torch.equal(found[1], ((attended != 0).double() @ y.double()).float() * level)
    assert torch.equal(found[2], F.linear(x.double(), sign(weight).double()).float() * weight[:, 0].abs())


def test_the_gradients_of_a_product_with_a_level_are_those_of_the_product() -> None:
    level = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.where(torch.rand(2, 5, 7) < 0.5, level.detach(), 0.0).requires_grad_()
    y, gradient = sign(torch.randn(2, 7, 4, dtype=torch.float64)).requires_grad_(), torch.randn(2, 5, 4).double()
    expected = torch.autograd.grad(x @ y, (x, y), gradient)
    found = torch.autograd.grad(products.level_matmul(x, level, y), (x, y), gradient)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_single_row_of_signs_needs_no_second_dimension() -> None:
    layer, x = BinaryLinear(8, 4, 1, 1), torch.randn(8).sign()
    x.requires_grad_()
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    layer(x).sum().backward()
    assert x.grad.shape == (8,)
