import pytest
import torch
import torch.nn.functional as F

from binaryvit.training import bfloat16, numerics
from binaryvit.training.bfloat16 import bfloat16_products_in_float32


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


MATRIX_PRODUCTS = {
    "mm": (torch.mm, (random(3, 70), random(70, 5)), {}),
    "addmm": (torch.addmm, (random(5), random(3, 70), random(70, 5)), {"beta": 2, "alpha": 0.5}),
    "bmm": (torch.bmm, (random(2, 3, 70), random(2, 70, 5)), {}),
    "baddbmm": (torch.baddbmm, (random(2, 3, 5), random(2, 3, 70), random(2, 70, 5)), {"beta": 2, "alpha": 0.5}),
}
CONVOLUTIONS = {
    "convolution": (F.conv2d, (random(2, 8, 6, 6), random(4, 8, 3, 3), random(4)), {}),
    "without a bias": (F.conv2d, (random(2, 8, 6, 6), random(8, 1, 3, 3)), {"groups": 8, "padding": 1}),
}
PRODUCTS = MATRIX_PRODUCTS | CONVOLUTIONS


@pytest.fixture
def widened(monkeypatch):
    """What was widened to float32, as it comes: where the CPU's own product is the same, it shows which was taken."""
    values, widen = [], bfloat16._widen
    monkeypatch.setattr(bfloat16, "_widen", lambda value: values.append(value) or widen(value))
    return values


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_bfloat16_is_the_one_in_float32_rounded_once(name, widened):
    product, factors, settings = PRODUCTS[name]
    expected = product(*(factor.float() for factor in factors), **settings).bfloat16()
    with bfloat16_products_in_float32():
        assert torch.equal(product(*factors, **settings), expected) and widened


@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
def test_a_product_into_given_memory_is_the_same(name, widened):
    product, factors, settings = MATRIX_PRODUCTS[name]
    expected = product(*factors, **settings)
    with bfloat16_products_in_float32():
        for out in (torch.empty_like(expected), expected.new_empty(0), torch.empty_like(expected.mT).mT):
            assert product(*factors, **settings, out=out) is out and widened
            assert torch.equal(out, product(*factors, **settings))
        with pytest.raises(RuntimeError):
            product(*factors, **settings, out=expected.float())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_pass_through_a_product_in_float32(name, widened):
    product, factors, settings = CONVOLUTIONS[name]
    wide = [factor.float().requires_grad_(place > 0) for place, factor in enumerate(factors)]  # images need none
    narrow = [factor.clone().requires_grad_(place > 0) for place, factor in enumerate(factors)]
    product(*wide, **settings).sum().backward()
    with bfloat16_products_in_float32():
        result = product(*narrow, **settings).sum()
        widened.clear()
        result.backward()
        assert widened
    for ours, theirs in zip(narrow[1:], wide[1:], strict=True):
        assert torch.equal(ours.grad, theirs.grad.bfloat16())


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_types_are_computed_as_before(name, widened):
    product, factors, settings = PRODUCTS[name]
    wide = [factor.double() for factor in factors]
    with bfloat16_products_in_float32():
        inside = product(*wide, **settings)
        with pytest.raises(RuntimeError):
            product(*factors[:-1], factors[-1].float(), **settings)
    assert torch.equal(inside, product(*wide, **settings)) and not widened


def test_it_ends_with_the_context_also_when_nested_and_after_an_error(widened):
    product, factors, _ = PRODUCTS["mm"]

    def is_widened() -> bool:
        widened.clear()
        product(*factors)
        return bool(widened)

    with bfloat16_products_in_float32():
        with pytest.raises(ZeroDivisionError), bfloat16_products_in_float32():
            assert is_widened()
            1 / 0  # noqa: B018
        assert is_widened() and bfloat16.multiplies_in_float32()
    assert not is_widened() and not bfloat16.multiplies_in_float32()


@pytest.mark.parametrize("has_instructions", [True, False])
def test_training_computes_them_so_where_the_cpu_lacks_instructions(monkeypatch, widened, has_instructions):
    product, factors, _ = PRODUCTS["bmm"]
    monkeypatch.setattr(numerics, "multiplies_bfloat16", lambda: has_instructions)
    with numerics.chosen_numerics():
        product(*factors)
        assert numerics.current_numerics()["cpu_bfloat16_products_in_float32"] is bool(widened)
    assert bool(widened) is not has_instructions
    assert numerics.current_numerics()["cpu_bfloat16_products_in_float32"] is False
