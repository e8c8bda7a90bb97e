import pytest
import torch
import torch.nn.functional as F

from binaryvit.training import numerics
from binaryvit.training.bfloat16 import bfloat16_products_in_float32


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


PRODUCTS = {
    "mm": (torch.mm, (random(3, 70), random(70, 5))),
    "addmm": (torch.addmm, (random(5), random(3, 70), random(70, 5))),
    "bmm": (torch.bmm, (random(2, 3, 70), random(2, 70, 5))),
    "baddbmm": (torch.baddbmm, (random(2, 3, 5), random(2, 3, 70), random(2, 70, 5))),
    "convolution": (F.conv2d, (random(2, 8, 6, 6), random(4, 8, 3, 3), random(4))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_bfloat16_is_the_one_in_float32_rounded_once(name):
    product, factors = PRODUCTS[name]
    expected = product(*(factor.float() for factor in factors)).bfloat16()
    with bfloat16_products_in_float32():
        assert torch.equal(product(*factors), expected)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "convolution"])
def test_a_product_into_given_memory_is_the_same(name):
    product, factors = PRODUCTS[name]
    with bfloat16_products_in_float32():
        expected = product(*factors)
        out = torch.empty_like(expected)
        assert product(*factors, out=out) is out
    assert torch.equal(out, expected)


def test_gradients_pass_through_a_product_in_float32():
    product, factors = PRODUCTS["convolution"]
    wide = [factor.float().requires_grad_() for factor in factors]
    narrow = [factor.clone().requires_grad_() for factor in factors]
    product(*wide).sum().backward()
    with bfloat16_products_in_float32():
        product(*narrow).sum().backward()
    for ours, theirs in zip(narrow, wide, strict=True):
        assert torch.equal(ours.grad, theirs.grad.bfloat16())


def test_other_types_are_computed_as_before_and_all_are_afterwards(monkeypatch):
    widened = []
    monkeypatch.setattr("binaryvit.training.bfloat16._widen", lambda value: widened.append(value) or value.float())
    product, factors = PRODUCTS["mm"]
    wide = [factor.double() for factor in factors]
    expected = product(*wide)
    with bfloat16_products_in_float32():
        assert torch.equal(product(*wide), expected)
        assert not widened
        product(*factors)
        assert len(widened) == 2
    product(*factors)
    assert len(widened) == 2


@pytest.mark.parametrize("has_instructions", [True, False])
def test_training_computes_them_so_where_the_cpu_lacks_instructions(monkeypatch, has_instructions):
    product, factors = PRODUCTS["bmm"]
    widened = []
    monkeypatch.setattr("binaryvit.training.bfloat16._widen", lambda value: widened.append(value) or value.float())
    monkeypatch.setattr(numerics, "multiplies_bfloat16", lambda: has_instructions)
    with numerics.chosen_numerics():
        product(*factors)
        assert numerics.current_numerics()["cpu_bfloat16_products_in_float32"] is not has_instructions
    assert bool(widened) is not has_instructions
