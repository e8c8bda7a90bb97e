"""Binary weights as bits: a row becomes bytes, its first sign in the highest bit, 1 for +1, padded with zeros."""

import numpy as np
import torch
from torch import Tensor, nn

from binaryvit.models.quantizers import sign


def bits_shape(shape: torch.Size) -> torch.Size:
    """The shape of the bits of a weight (out, ...): rows and bytes per row."""
    return torch.Size([shape[0], -(-shape[1:].numel() // 8)])


def pack_weight(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A binary layer's signs as bits (out, bytes per row) uint8, and its scales (out,) float32."""
    weight = layer.weight.detach()
    signs = weight if layer.is_fixed else sign(layer.centred_weight().detach())
    scale = layer.effective_weight().detach().abs().flatten(1)[:, 0]
    bits = np.packbits((signs.flatten(1) > 0).cpu().numpy(), axis=1)
    return torch.from_numpy(bits), scale.float()


def unpack_weight(bits: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """The binary weight s * sign(W) in float32. Raises ValueError as `unpack_signs`, or if scales are missing."""
    if scale.shape != shape[:1]:
        raise ValueError(f"scales of shape {tuple(scale.shape)} for a weight of shape {tuple(shape)}")
    signs = unpack_signs(bits, shape)
    return (scale.float().cpu().unsqueeze(1) * signs.flatten(1)).reshape(shape)


def unpack_signs(bits: Tensor, shape: torch.Size) -> Tensor:
    """The float32 weight of -1 and +1 in `shape` that the bits stand for; raises as `unpack_bits`."""
    return unpack_bits(bits, shape).float() * 2 - 1


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bits of a weight as 0 and 1 (uint8) in its `shape`.

    Raises:
        ValueError: they belong to another shape, or bits past the end of a row are set.
    """
    if bits.dtype != torch.uint8 or bits.shape != bits_shape(shape):
        raise ValueError(f"bits of shape {tuple(bits.shape)} for a weight of shape {tuple(shape)}")
    check_padding(bits, shape)
    unpacked = np.unpackbits(bits.cpu().numpy(), axis=1, count=shape[1:].numel())
    return torch.from_numpy(unpacked).reshape(shape)


def check_padding(bits: Tensor, shape: torch.Size) -> None:
    """Raises ValueError if bits past the end of a row are set: readers rely on zeros there."""
    unused = bits.shape[1] * 8 - shape[1:].numel()
    if (bits[:, -1] & (2**unused - 1)).any():
        raise ValueError("bits past the end of a row are set")
