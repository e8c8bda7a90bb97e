"""The three binarizers of BinaryViT: activations, weights, attention probabilities.

Each function's docstring states its forward and its backward. In all of them sign(0) = sign(-0.0) = +1, for one bit
cannot hold a third value; at zero `torch.sign` would give 0.

Every backward recomputes what it needs from the function's inputs, which the graph holds anyway, rather than storing
another float copy of an activation.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# The attention level is kept at or above this. The largest probability of a row is at least 1 / keys, so even with
# 10,000 keys a level this small binarizes every probability of any weight to "on".
MINIMUM_ATTENTION_LEVEL = 1e-6


def at_least_float32(x: Tensor) -> Tensor:
    """Widens float16 and bfloat16 to float32; float32 and float64 pass unchanged.

    Under autocast, matrix products come out in half precision, where adding a shift would move values across zero.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sign(x: Tensor) -> Tensor:
    """The sign of x in {-1, +1} with sign(0) = +1, in the dtype of x. Not differentiable; see the binarizers."""
    return (x >= 0).to(x.dtype) * 2 - 1


class _BinarizeActivation(Function):
    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, shift)
        return sign(x + shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, shift = ctx.saved_tensors
        gradient = gradient * (2 - 2 * (x + shift).abs()).clamp_(min=0)
        return gradient, gradient.flatten(0, -2).sum(0)


def binarize_activation(x: Tensor, shift: Tensor) -> Tensor:
    """Adds a learnable per-channel shift b and takes the sign.

    Forward: sign(x + b) in {-1, +1}, no scale.

    Backward (the piecewise polynomial of Bi-Real Net, Liu et al. 2018): with u = x + b,
    d sign(u) / du = max(0, 2 - 2|u|), so 2 at u = 0 and nothing outside (-1, 1). The shift receives the same
    gradient, summed over all tokens.

    Args:
        x: activations, shape (..., C); half precision is widened to float32 first.
        shift: b, shape (C,).

    Returns:
        Tensor of the shape of x.
    """
    return _BinarizeActivation.apply(at_least_float32(x), shift)


class _BinarizeWeight(Function):
    @staticmethod
    def forward(ctx, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return scale * sign(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient * (weight.abs() < 1), None


def binarize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Replaces a latent weight by one bit and a scale per output channel.

    Forward: s * sign(W).

    Backward: the straight-through estimator of clip(W, -1, 1): the gradient with respect to the binary weight passes
    unchanged, not multiplied by s, where |W| < 1 strictly, and is zero elsewhere. No gradient flows through s.

    Args:
        weight: W, the latent weight the sign is taken of (centred already, where the layer centres it).
        scale: s, broadcastable to W; see `weight_scale`.
    """
    return _BinarizeWeight.apply(weight, scale)


def centre_rows(weight: Tensor) -> Tensor:
    """Subtracts from each row of a linear layer's weight (out, in) its mean; gradients flow through the centring."""
    return weight - weight.mean(dim=1, keepdim=True)


def weight_scale(weight: Tensor) -> Tensor:
    """The scale s of each output channel: the mean of |W| over the other dimensions, W uncentred, detached.

    Shape (out, 1, ...), broadcastable to W. After XNOR-Net (Rastegari et al. 2016), there the optimal L1 scale.
    """
    return weight.detach().abs().mean(dim=tuple(range(1, weight.ndim)), keepdim=True)


class _BinarizeAttention(Function):
    @staticmethod
    def forward(ctx, probabilities: Tensor, level: Tensor) -> Tensor:
        ctx.save_for_backward(probabilities, level)
        level = level.clamp(min=MINIMUM_ATTENTION_LEVEL)
        return level * (probabilities / level > 0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, level = ctx.saved_tensors
        ratio = probabilities / level.clamp(min=MINIMUM_ATTENTION_LEVEL)
        inside = (ratio >= 0) & (ratio <= 1)
        rounding_error = (ratio > 0.5).to(ratio.dtype) - ratio
        slope = torch.where(inside, rounding_error, (ratio > 1).to(ratio.dtype))
        return gradient * inside, (gradient * slope).sum().to(level.dtype)


def binarize_attention(probabilities: Tensor, level: Tensor) -> Tensor:
    """Rounds attention probabilities to the two levels {0, a} (BiT, Liu et al. 2022).

    Forward: a * clip(round(P / a), 0, 1), that is a where P > a / 2, else 0 (a tie rounds to even, to 0).

    Backward, with q = P / a: dP passes where 0 <= q <= 1 and is zero elsewhere; da sums over all elements the
    gradient times (round(q) - q) where 0 <= q <= 1, 1 where q > 1, 0 where q < 0. No LSQ gradient scale.

    Training may drive a to zero or below, where the formula has no meaning. The forward then computes with
    MINIMUM_ATTENTION_LEVEL in its place, while the gradient still reaches the parameter, so it can come back.

    Args:
        probabilities: P, any shape, float32 or wider (half precision is widened, so that da accumulates in float32).
        level: a, zero-dimensional.
    """
    return _BinarizeAttention.apply(at_least_float32(probabilities), level)
