"""The weights of a model in a file: one bit per binary weight, floats for the rest, and what is needed to use them.

The file is safetensors. Its metadata hold, under `FORMAT`, the JSON of a `Description`: how to rebuild the model, how
to prepare its images, what its classes are called. The tensors come in one of two forms:

- **As trained** (this module; what a run stores): the model's state dict, with a binary weight as `<name>.bits` (uint8,
  see `bits`) and `<name>.scale` (float32, one number per output channel). Floats are float32 or float16. The running
  statistics are there, so the model can be analysed and recalibrated. A full-precision model has no bits.
- **Packed** (`binaryvit.packed.file`; what is deployed): without running statistics, in two tensors.

The first form is read in all versions of the description, the second in version 3 alone.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically
from binaryvit.models.bits import bits_shape, pack_weight
from binaryvit.models.description import Description, Preprocessing, brief
from binaryvit.models.layers import BinaryAttention, binary_layers

FORMAT = "binaryvit-inference-weights"
_MOST_PAIRS = 2**30  # of query and key in an image, over all blocks: seconds; DeiT-S has half a million


@dataclass(frozen=True)
class WeightsFile:
    """A weights file as read: nothing in it is trusted yet but the form of its description.

    Attributes:
        path: of the file.
        description: what it says of itself.
        tensors: as they are stored, by name.
    """

    path: Path
    description: Description
    tensors: dict[str, Tensor]

    def skeleton(self) -> nn.Module:
        """The described model without storage, in evaluation mode.

        A forged description fetches, opens and allocates nothing; see `Description.build`.

        Raises:
            BinaryViTError: there is no such model.
        """
        return self._build("meta")

    def filled(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """The skeleton with a state dict, in evaluation mode. Only for a file that `check` has passed."""
        model.load_state_dict(tensors, assign=True)
        if any(buffer.is_meta for buffer in model.buffers()):  # some timm models compute what they do not store
            model = self._build("cpu")
            model.load_state_dict(tensors)
        return model.eval()

    def _build(self, device: str) -> nn.Module:
        try:
            model = self.description.build(sum(tensor.nbytes for tensor in self.tensors.values()), device)
            _check_attention(model)
            return model
        except Exception as error:  # whatever a constructor does with unforeseen arguments
            reason = brief(f"{self.description.variant!r}: {error}")
            raise BinaryViTError(f"{self.path} describes a model that can't be built here, {reason}") from error

    def check(self, skeleton: nn.Module, shapes: dict[str, torch.Size], floats: set[torch.dtype]) -> None:
        """Checks the file against the model it describes.

        Args:
            skeleton: the model.
            shapes: of the tensors the file must hold, by name.
            floats: types that floats may have; names that end in "bits" are uint8, counters int64.

        Raises:
            BinaryViTError: names, shapes or types differ, a number is not finite, or class names and preprocessing are
                those of another model.
        """
        try:
            _check_tensors(self.tensors, shapes, floats)
            self.description.check_use(skeleton)
        except ValueError as error:
            raise self.misfit(error) from error

    def misfit(self, error: Exception) -> BinaryViTError:
        """The sentence for content that contradicts the description."""
        described = f"{self.description.variant} it describes: {error}"
        return BinaryViTError(f"{self.path} does not fit the {brief(described)}.")


def save_inference_weights(
    model: nn.Module,
    path: str | Path,
    variant: str,
    model_args: dict[str, Any],
    float_dtype: torch.dtype = torch.float32,
    class_names: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Writes what inference and analysis need of a trained model, atomically.

    Args:
        model: built by `timm.create_model(variant, **model_args)`, and trained.
        variant, model_args, class_names, preprocessing: see `Description`.
        float_dtype: of what is not binary; float16 halves a full-precision model and changes its logits.
    """
    tensors = dict(model.state_dict())
    for name, layer in binary_layers(model).items():
        del tensors[f"{name}.weight"]
        tensors[f"{name}.weight.bits"], tensors[f"{name}.weight.scale"] = pack_weight(layer)
    # Scales stay float32: they are few, and the packed weights then rebuild exactly.
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith(".scale"):
            stored = tensor.to(float_dtype)
            tensors[name] = stored if stored.isfinite().all() else tensor  # float16 ends at 65,504
    description = Description(
        variant=variant, model_args=model_args, class_names=class_names, preprocessing=preprocessing
    )
    write_weights_file(path, description, tensors)


def load_inference_weights(path: str | Path) -> nn.Module:
    """The model of a file of `save_inference_weights`, in evaluation mode.

    Stored as float32, it gives bit for bit the logits of the model that was saved. Its binary layers hold the binary
    weight itself (`layers.BinaryLinear.fix_weight`), so it can be analysed and run, but not trained.

    Raises:
        BinaryViTError: the file is missing, truncated, of another kind or version, or does not fit its own description.
    """
    return model_of(read_weights_file(path))


def model_of(file: WeightsFile) -> nn.Module:
    """The model of a weights file that was read; see `load_inference_weights`."""
    if file.description.packed:
        raise BinaryViTError(f"{file.path} is packed for deployment; open it with binaryvit.packed.")
    model = file.skeleton()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name in binary_layers(model):
        shape = shapes.pop(f"{name}.weight")
        shapes |= {f"{name}.weight.bits": bits_shape(shape), f"{name}.weight.scale": shape[:1]}
    file.check(model, shapes, {torch.float32, torch.float16})
    # Copied, because what was read may be a view into the file.
    tensors = {name: tensor.to(dtypes.get(name, tensor.dtype), copy=True) for name, tensor in file.tensors.items()}
    try:
        return file.filled(model, tensors)
    except ValueError as error:
        raise file.misfit(error) from error


def read_weights_file(path: str | Path) -> WeightsFile:
    """Reads a weights file in either form, without building anything; safetensors bounds what is allocated by its size.

    Raises:
        BinaryViTError: the file is missing, truncated, or of another kind or version.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file without an error of its own
        raise BinaryViTError(f"There is no file {path} with inference weights; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise BinaryViTError(
                    f"{path} holds no inference weights of this library; load it with "
                    "models.external_checkpoint.load_checkpoint."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except PermissionError as error:
        raise BinaryViTError(f"{path} may not be read; check its permissions.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise BinaryViTError(f"{path} is truncated or damaged, or no safetensors file; write it again.") from error
    return WeightsFile(path, Description.parse(metadata[FORMAT], path), tensors)


def write_weights_file(path: str | Path, description: Description, tensors: dict[str, Tensor]) -> None:
    """Writes a weights file, atomically; equal models give equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in random order.
    metadata = {FORMAT: json.dumps(description.model_dump(mode="json"), sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _check_attention(model: nn.Module) -> None:
    """Refuses an image size whose attention alone would take far longer than any model in use: without weights of
    its own, its cost is not bounded by the file."""
    sides = [(each.grid_size, each.reduction) for each in model.modules() if isinstance(each, BinaryAttention)]
    if (pairs := sum(side**4 // reduction**2 for side, reduction in sides)) > _MOST_PAIRS:
        raise ValueError(f"an image would take {pairs:,} pairs of query and key, and {_MOST_PAIRS:,} are the most")


def _check_tensors(tensors: dict[str, Tensor], shapes: dict[str, torch.Size], floats: set[torch.dtype]) -> None:
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ValueError(f"{missing[0]} is missing")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"that has no {unknown[0]}")
    whole = {"bits": torch.uint8, "num_batches_tracked": torch.int64}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(shapes[name])}")
        kind = whole.get(name.rpartition(".")[2])
        if tensor.dtype not in ({kind} if kind else floats):
            raise ValueError(f"{name} is of type {tensor.dtype}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"{name} holds negative variances")
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float64).item()):
            raise ValueError(f"{name} holds numbers that are not finite")
