"""The packed file: a model with 1-bit weights and activations in the bytes that its cost table counts.

A safetensors file with the description of `weights_file` (`packed` is true) and two tensors:

- `bits` (uint8): for each binary layer, the bits of its rows (`models.bits`), then its scales.
- `numbers` (float32): everything else in `packed_tensors`.

Both are flattened and joined in the order of the state dict; the shapes follow from the description. Stored under their
own names, 1,400 tensors would need 2% more bytes for the names alone.

**What is folded.** A batch norm's running statistics, gamma and beta are two numbers, its weight and bias, and a
scale's sign and exponent are in the weight of the norm after it. Nothing else can be folded without flipping signs: the
model rounds the scaled integer to float32 before it normalizes it, so scale and weight stay two factors, and of the
scale only the mantissa's 23 bits remain, three bytes per output channel.

**Bytes.** `cost` counts 1 bit per binary weight and 4 bytes per other parameter, as if scales folded away. A file has
these bytes, the three of each scale, and a header of less than 400: for `binaryvit_small_patch4_224` 1.8% more than
the table's 7.83 MB, for `binaryvit_micro_patch2_32` 3.9% of 0.53 MB. Its rows are shorter, so it has more scales per
weight. (Rows are padded to whole bytes; in both families they are whole bytes already. Class names and preprocessing
add their text, some 200 bytes for ten classes.)
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.bits import bits_shape, check_padding
from binaryvit.models.description import VERSION, Description
from binaryvit.models.layers import TokenBatchNorm, binary_layers
from binaryvit.models.weights_file import WeightsFile, model_of, read_weights_file, write_weights_file
from binaryvit.packed.tensors import check_one_bit, packed_tensors, restored

_FIRST_VERSION = 3  # before, each block had tensors of its own
_MANTISSA, _ONE = 0x7FFFFF, 0x3F800000  # of a float32's bits: its mantissa; those of 1.0


@dataclass(frozen=True)
class PackedFile:
    """A model for deployment, read and checked.

    Attributes:
        description: variant, arguments, class names, preprocessing.
        skeleton: the model without storage (on the meta device): names, shapes, structure.
        tensors: exactly those that `packed_tensors` gives for such a model; the padding of bits is zero.
    """

    description: Description
    skeleton: nn.Module
    tensors: Mapping[str, Tensor]

    def model(self) -> nn.Module:
        """The model in floating point, in evaluation mode: bit for bit the logits of the one that was packed."""
        return restored(copy.deepcopy(self.skeleton), dict(self.tensors))


def save_packed(model: nn.Module, path: str | Path, description: Description) -> None:
    """Writes a model packed, atomically.

    Args:
        model: of `description`, trained.

    Raises:
        BinaryViTError: it has 32-bit weights or activations, or numbers that are not finite.
    """
    tensors = packed_tensors(model)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BinaryViTError(f"{name} of the model holds numbers that are not finite, so it is not stored.")
    for name in binary_layers(model):
        scale, norm = f"{name}.weight.scale", _norm_after(name)
        tensors[scale], tensors[norm] = _fold_exponent(tensors[scale], tensors[norm])
    joined = {
        name: torch.cat([tensors[part].flatten() for part in parts]) for name, parts in _joined(_shapes(model)).items()
    }
    write_weights_file(path, description.model_copy(update={"version": VERSION, "packed": True}), joined)


def read_packed(path: str | Path) -> PackedFile:
    """Reads a packed file, or packs what a run stored.

    The file need not be trusted: the model it describes is first built without storage, and the file must hold exactly
    its tensors.

    Raises:
        BinaryViTError: the file is missing, truncated, of another kind or version, does not fit its own description,
            holds numbers that are not finite, or is of a model with 32-bit weights or activations.
    """
    file = read_weights_file(path)
    if file.description.packed and file.description.version < _FIRST_VERSION:
        raise BinaryViTError(f"{path} is a packed file of an older layout, which is no longer read: export it again.")
    skeleton = file.skeleton()
    check_one_bit(skeleton)
    tensors = _separated(file, skeleton) if file.description.packed else packed_tensors(model_of(file))
    return PackedFile(file.description, skeleton, tensors)


def _separated(file: WeightsFile, skeleton: nn.Module) -> dict[str, Tensor]:
    """What `save_packed` joined, checked."""
    shapes = _shapes(skeleton)
    joined = _joined(shapes)
    lengths = {name: torch.Size([sum(shapes[part].numel() for part in parts)]) for name, parts in joined.items()}
    file.check(skeleton, lengths, {torch.float32})
    tensors: dict[str, Tensor] = {}
    for name, parts in joined.items():
        # Copied, because what was read may be a view into the file.
        pieces = file.tensors[name].clone().split([shapes[part].numel() for part in parts])
        tensors |= {part: piece.view(shapes[part]) for part, piece in zip(parts, pieces, strict=True)}
    for name, layer in binary_layers(skeleton).items():
        tensors[f"{name}.weight.scale"] = _from_mantissa(tensors[f"{name}.weight.scale"])
        try:
            check_padding(tensors[f"{name}.weight.bits"], layer.weight.shape)
        except ValueError as error:
            raise file.misfit(error) from error
    return tensors


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a model's tensors in the file, by name, in the order of its state dict."""
    statistics = {
        f"{name}.batch_norm.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, TokenBatchNorm)
        for buffer, _ in module.batch_norm.named_buffers()
    }
    binary = {f"{name}.weight" for name in binary_layers(model)}
    shapes = {}
    for name, tensor in model.state_dict().items():
        if name in binary:
            shapes |= {f"{name}.bits": bits_shape(tensor.shape), f"{name}.scale": torch.Size([len(tensor), 3])}
        elif name not in statistics:
            shapes[name] = tensor.shape
    return shapes


def _joined(names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of the file, and which ones each of them joins."""
    joined: dict[str, list[str]] = {"bits": [], "numbers": []}
    for name in names:
        joined["bits" if name.endswith((".weight.bits", ".weight.scale")) else "numbers"].append(name)
    return joined


def _norm_after(layer: str) -> str:
    """The name of the weight of the norm after a binary layer."""
    return f"{layer.rpartition('.')[0]}.norm.batch_norm.weight"


def _fold_exponent(scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A scale's mantissa as three bytes (out, 3), lowest first, and the norm's weight times its power of two.

    Both products stay what they are to the last bit, as powers of two do not round. A scale of zero, of a row of
    zeros, becomes 1 and the weight zero.
    """
    bits = scale.contiguous().view(torch.int32)
    mantissa = torch.where(scale > 0, bits & _MANTISSA, 0)
    power = torch.where(scale > 0, scale, 0) / (mantissa | _ONE).view(torch.float32)
    parts = torch.stack([mantissa >> shift & 0xFF for shift in (0, 8, 16)], dim=1)
    return parts.to(torch.uint8), weight * power


def _from_mantissa(parts: Tensor) -> Tensor:
    """The scales in [1, 2) of the bytes that `_fold_exponent` makes."""
    low, middle, high = parts.int().unbind(1)
    return (low | middle << 8 | high << 16 | _ONE).view(torch.float32)
