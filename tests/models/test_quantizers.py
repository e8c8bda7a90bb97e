"""Each binarizer against its formula, written here a second time, and what the golden numbers can't pin."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from binaryvit.models.quantizers import (
    MINIMUM_ATTENTION_LEVEL,
    binarize_activation,
    binarize_attention,
    binarize_weight,
    centre_rows,
    sign,
    weight_scale,
)


def tensors(*shape: int, low: float = -3.0, high: float = 3.0):
    """Float64 tensors of a shape, often holding the values at which something changes."""
    special = [value for value in (-1.0, -0.5, -0.0, 0.0, 0.5, 1.0) if low <= value <= high]
    elements = st.one_of(st.floats(low, high, allow_nan=False, allow_subnormal=False), st.sampled_from(special))
    return arrays.arrays("float64", shape, elements=elements).map(torch.from_numpy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_sign_of_both_zeros_is_plus_one(dtype):
    values = torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=dtype)
    assert sign(values).tolist() == [-1, 1, 1, 1]
    assert sign(values).dtype == dtype
    x = values.reshape(4, 1)
    assert binarize_activation(x, torch.zeros(1, dtype=dtype)).flatten().tolist() == [-1, 1, 1, 1]
    assert binarize_weight(x, torch.ones(4, 1, dtype=dtype)).flatten().tolist() == [-1, 1, 1, 1]


@given(tensors(2, 5, 3), tensors(3), tensors(2, 5, 3))
def test_activation(x, shift, upstream):
    x.requires_grad_(), shift.requires_grad_()
    output = binarize_activation(x, shift)
    output.backward(upstream)
    u = (x + shift).detach()
    assert torch.equal(output, torch.where(u < 0, -1.0, 1.0).double())
    # The four pieces of the polynomial, as published.
    slope = torch.zeros_like(u)
    slope[(u >= -1) & (u <= 0)] = 2 + 2 * u[(u >= -1) & (u <= 0)]
    slope[(u > 0) & (u <= 1)] = 2 - 2 * u[(u > 0) & (u <= 1)]
    torch.testing.assert_close(x.grad, upstream * slope)
    torch.testing.assert_close(shift.grad, (upstream * slope).sum(dim=(0, 1)))


def test_the_activation_gradient_at_zero_is_two():
    x = torch.zeros(1, 1, requires_grad=True)
    binarize_activation(x, torch.zeros(1)).sum().backward()
    assert x.grad.item() == 2


def test_shifting_in_half_precision_would_flip_signs():
    """1 - 0.999 is positive, but 0 in bfloat16 once the shift is rounded to it; the shift is added in float32."""
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    shift = torch.tensor([-1.001])
    assert binarize_activation(x, shift).item() == -1
    assert sign(x + shift.bfloat16()).item() == 1


@given(tensors(4, 6), tensors(4, 6))
def test_linear_weight(weight, upstream):
    weight.requires_grad_()
    output = binarize_weight(centre_rows(weight), weight_scale(weight))
    output.backward(upstream)
    w = weight.detach()
    centred = w - w.mean(1, keepdim=True)
    scale = w.abs().mean(1, keepdim=True)
    torch.testing.assert_close(output, scale * torch.where(centred < 0, -1.0, 1.0).double())
    passed = torch.where((centred > -1) & (centred < 1), upstream, 0.0)  # not multiplied by the scale
    torch.testing.assert_close(weight.grad, passed - passed.mean(1, keepdim=True))


def test_the_weight_gradient_stops_exactly_at_one():
    just_inside = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    weight = torch.tensor([[-1.0, 1.0, -just_inside, just_inside, 0.0]], requires_grad=True)
    binarize_weight(weight, weight_scale(weight)).backward(torch.full((1, 5), 3.0))
    assert weight.grad.tolist() == [[0, 0, 3, 3, 3]]


@given(tensors(3, 2, 2, 2))
def test_scales_average_each_output_channel_and_carry_no_gradient(weight):
    scale = weight_scale(weight.requires_grad_())
    assert scale.shape == (3, 1, 1, 1)
    assert not scale.requires_grad
    expected = torch.stack([channel.abs().mean() for channel in weight.detach()])
    torch.testing.assert_close(scale.flatten(), expected)


@given(tensors(2, 3, 4, low=0.0, high=1.0), st.floats(1e-3, 1.0), tensors(2, 3, 4))
def test_attention(probabilities, level, upstream):
    level = torch.tensor(level, dtype=torch.float64, requires_grad=True)
    output = binarize_attention(probabilities.requires_grad_(), level)
    output.backward(upstream)
    a, p = level.item(), probabilities.detach()
    q = p / a
    torch.testing.assert_close(output.detach(), a * q.round().clip(0, 1))
    torch.testing.assert_close(probabilities.grad, torch.where(q <= 1, upstream, 0.0))
    slope = torch.where(q > 1, torch.ones_like(q), q.round() - q)
    torch.testing.assert_close(level.grad, (upstream * slope).sum())


def test_attention_at_the_level_itself_and_at_half_of_it():
    level = torch.tensor(0.25, requires_grad=True)
    probabilities = torch.tensor([0.25, 0.125], requires_grad=True)  # q = 1 and, a tie that rounds to even, q = 0.5
    output = binarize_attention(probabilities, level)
    assert output.tolist() == [0.25, 0]
    output.backward(torch.tensor([1.0, 0.0]))
    assert probabilities.grad.tolist() == [1, 0]  # q = 1 is inside
    assert level.grad.item() == 0  # round(1) - 1


def test_outside_of_probabilities_the_level_gets_nothing_from_below():
    level = torch.tensor(0.25, requires_grad=True)
    x = torch.tensor([-0.1], requires_grad=True)
    binarize_attention(x, level).sum().backward()
    assert (x.grad.item(), level.grad.item()) == (0, 0)


@pytest.mark.parametrize("value", [0.0, -0.3])
def test_a_level_driven_to_zero_still_gets_a_gradient(value):
    level = torch.tensor(value, requires_grad=True)
    output = binarize_attention(torch.tensor([0.2, 0.8]), level)
    assert output.tolist() == pytest.approx([MINIMUM_ATTENTION_LEVEL] * 2)
    output.sum().backward()
    assert level.grad.item() == 2


def test_the_levels_gradient_accumulates_in_float32():
    """4096 gradients of 1 sum to 4096; in float16 the running sum would stop at 2048."""
    level = torch.tensor(0.005, requires_grad=True)
    probabilities = torch.ones(4096, dtype=torch.float16)
    output = binarize_attention(probabilities, level)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert level.grad.item() == 4096
