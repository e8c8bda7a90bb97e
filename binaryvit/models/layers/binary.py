"""The binarizer of activations, and layers with one-bit weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binaryvit.models.bits import unpack_weight
from binaryvit.models.ops.products import sign_linear
from binaryvit.models.quantizers import binarize_activation, binarize_weight, centre_rows, weight_scale


class BinaryActivation(nn.Module):
    """Learnable per-channel shift, then the sign (see `quantizers.binarize_activation`); 32 bits: the shift alone."""

    def __init__(self, channels: int, activation_bits: int = 1):
        super().__init__()
        self.activation_bits = activation_bits
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits == 32:
            return x + self.shift
        return binarize_activation(x, self.shift)

    def extra_repr(self) -> str:
        return f"{self.shift.numel()}, activation_bits={self.activation_bits}"


class _BinaryWeight(nn.Module):
    """What binary linear layers and convolutions share: a latent weight that the forward pass uses in one bit.

    A layer whose weight was fixed (`fix_weight`) holds the binary weight s * sign(W) itself and no latent weight; it
    computes the same outputs and can't be trained.
    """

    weight: nn.Parameter
    weight_bits: int
    is_fixed = False

    def centred_weight(self) -> Tensor:
        """What the sign is taken of, in the shape of the weight."""
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        """s, one number per output channel, broadcastable to the weight."""
        return weight_scale(self.weight)

    def effective_weight(self) -> Tensor:
        """The weight the forward pass multiplies with: s * sign(W), or W itself for 32 bits."""
        if self.weight_bits == 32 or self.is_fixed:
            return self.weight
        return binarize_weight(self.centred_weight(), self.scale)

    def fix_weight(self, binary_weight: Tensor) -> None:
        """Replaces the latent weight by a binary weight; for inference only."""
        self.weight = nn.Parameter(binary_weight, requires_grad=False)
        self.is_fixed = True

    def free_weight(self) -> None:
        """Makes the weight a latent one again, to be binarized and trained."""
        self.weight.requires_grad_(True)
        self.is_fixed = False

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class BinaryLinear(_BinaryWeight, nn.Linear):
    """Linear layer without bias whose weight is s * sign(W - mean_row(W)), s = mean_row(|W|) per output channel.

    With activation_bits=1 its input must be signs, in {-1, +1}, as `BinaryActivation` gives them.
    """

    def __init__(self, in_features: int, out_features: int, weight_bits: int = 1, activation_bits: int = 32):
        super().__init__(in_features, out_features, bias=False)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def centred_weight(self) -> Tensor:
        return centre_rows(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        multiply = sign_linear if self.weight_bits == self.activation_bits == 1 else F.linear
        return multiply(x, self.effective_weight())


class BinaryConv2d(_BinaryWeight, nn.Conv2d):
    """Convolution without bias or padding, NCHW, whose weight is s * sign(W); unlike the linear's, not centred.

    With activation_bits=1 its input must be signs, in {-1, +1}, as `BinaryActivation` gives them. It then is the linear
    layer on the windows that it is equal to.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 2,
        stride: int = 2,
        weight_bits: int = 1,
        activation_bits: int = 32,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def centred_weight(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        if not self.weight_bits == self.activation_bits == 1:
            return F.conv2d(x, weight, stride=self.stride)
        windows = F.unfold(x, self.kernel_size, stride=self.stride).transpose(1, 2)
        products = sign_linear(windows, weight.flatten(1))
        return products.transpose(1, 2).unflatten(2, (-1, (x.shape[3] - self.kernel_size[1]) // self.stride[1] + 1))


def binary_layers(model: nn.Module) -> dict[str, BinaryLinear | BinaryConv2d]:
    """The layers of a model whose weights are one bit, by module path; empty for a full-precision model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BinaryWeight) and module.weight_bits == 1
    }


def prepare_binary_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Makes a model's binary layers ready for the weights in a state dict, before it is loaded.

    `<layer>.weight.bits` and `.scale` (see `weights_file`) are replaced by the binary weight they stand for, and the
    layer then has no latent weight (`BinaryLinear.fix_weight`). A layer without one that is given a latent weight has
    it from then on.
    """
    for name, layer in binary_layers(model).items():
        packed = (f"{name}.weight.bits", f"{name}.weight.scale")
        if all(part in state_dict for part in packed):
            bits, scale = (state_dict.pop(part) for part in packed)
            state_dict[f"{name}.weight"] = unpack_weight(bits, scale, layer.weight.shape)
            layer.fix_weight(state_dict[f"{name}.weight"].to(layer.weight))
        elif layer.is_fixed and f"{name}.weight" in state_dict and not _is_binary(state_dict[f"{name}.weight"]):
            layer.free_weight()


def _is_binary(weight: Tensor) -> bool:
    """Whether each row of a weight (out, ...) has one magnitude, as s * sign(W) has: a fixed layer's own weight."""
    magnitudes = weight.flatten(1).abs()
    return bool((magnitudes == magnitudes[:, :1]).all())
