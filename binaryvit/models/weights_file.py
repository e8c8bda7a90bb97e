"""The weights of a model in a file: one bit per binary weight, floats for the rest, and what is needed to use them.

The file is safetensors. Its metadata hold, under `FORMAT`, the JSON of a `Description`: how to rebuild the model, how
to prepare its images, what its classes are called. The tensors come in one of two forms:

- **As trained** (this module; what a run stores): the model's state dict, with a binary weight as `<name>.bits` (uint8,
  see `bits`) and `<name>.scale` (float32, one number per output channel). Floats are float32 or float16. The running
  statistics are there, so the model can be analysed and recalibrated. A full-precision model has no bits.
- **Packed** (`binaryvit.packed.file`; what is deployed): without running statistics, in two tensors.

Version 2 added class names, preprocessing and the second form; version 3 changed the second form. The first form is
read in all three versions, the second in version 3 alone.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically
from binaryvit.models.bits import bits_shape, pack_weight
from binaryvit.models.layers import binary_layers
from binaryvit.models.shapes import image_size, input_channels

FORMAT = "binaryvit-inference-weights"
VERSION = 3
_DEEPEST = 200  # blocks of a model, ten times those of a usual one; each takes milliseconds and memory to describe
_LARGEST_IMAGE = 1024  # of models that are not ours, some of which enumerate all pairs of places
# Words in the names of a timm model's arguments that are numbers of weights, and neither of layers nor of places.
_WIDTHS = ("num_classes", "dim", "chan", "width", "hidden", "num_features")
# Arguments of timm.create_model that read or fetch other files.
LOADING_ARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Preprocessing(_Strict):
    """How an image becomes a model's input, in the terms of `timm.data.create_transform`.

    The shorter side is resized to floor(size / crop_pct), the centre of input_size (channels, height, width) is cut
    out, values in 0..1 are normalized with mean and std per channel.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = Field(gt=0, le=1)
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

    @model_validator(mode="after")
    def _fits_its_channels(self) -> Self:
        channels, height, width = self.input_size
        if min(self.input_size) < 1 or max(height, width) > 2**15 * self.crop_pct:
            raise ValueError("input_size must be (channels, height, width) of an image, also divided by crop_pct")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError("mean and std need one number per channel, std a positive one")
        return self

    @classmethod
    def of(cls, model: nn.Module, crop_pct: float | None = None) -> Self:
        """What timm knows of a model's images, at the size it was built for; `crop_pct` None: timm's.

        Raises BinaryViTError for a model of other channels than timm knows.
        """
        settings, channels = resolve_data_config({}, model=model), input_channels(model)
        if channels != len(settings["mean"]):
            raise BinaryViTError(
                f"The model takes images of {channels} channels, and timm knows how to prepare those of "
                f"{len(settings['mean'])}; say how these are prepared."
            )
        return cls(
            input_size=(channels, *image_size(model)),
            mean=settings["mean"],
            std=settings["std"],
            crop_pct=settings["crop_pct"] if crop_pct is None else crop_pct,
            interpolation=settings["interpolation"],
        )


class Description(_Strict):
    """What a weights file says of itself.

    Attributes:
        variant: timm name of the model.
        model_args: the other arguments of `timm.create_model`; JSON values.
        class_names: by class index; None where they are not known.
        preprocessing: of its images; None in files of version 1.
        packed: whether its tensors are in the packed form.
    """

    version: Literal[1, 2, 3] = VERSION
    variant: str
    model_args: dict[str, JsonValue]
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    packed: bool = False


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

        Only names that timm knows and arguments that load nothing are accepted, and no sizes that the stored tensors
        can't have, so that a forged description fetches, opens and allocates nothing.

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
        variant, arguments = self.description.variant, self.description.model_args
        try:
            if not timm.is_model(variant):
                raise ValueError("no model of this library or timm has that name")
            if loading := sorted(LOADING_ARGS & arguments.keys()):
                raise ValueError(f"its arguments {', '.join(loading)} would load other files")
            stored = sum(tensor.nbytes for tensor in self.tensors.values())
            # No size exceeds the number of weights, each of which takes at least a bit; and a layer or block, with
            # its norms and scales, at least 100 bytes.
            is_ours = timm.models.model_entrypoint(variant).__module__.startswith("binaryvit.")
            _check_bounds(arguments, is_ours, largest=8 * stored, deepest=min(stored // 100, _DEEPEST))
            arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
            with torch.device(device):
                return timm.create_model(variant, **arguments).eval()
        except Exception as error:  # whatever a constructor does with unforeseen arguments
            raise BinaryViTError(
                f"{self.path} describes a model that can't be built here, {_brief(f'{variant!r}: {error}')}"
            ) from error

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
            _check_use(self.description, skeleton)
        except ValueError as error:
            raise self.misfit(error) from error

    def misfit(self, error: Exception) -> BinaryViTError:
        """The sentence for content that contradicts the description."""
        described = f"{self.description.variant} it describes: {error}"
        return BinaryViTError(f"{self.path} does not fit the {_brief(described)}.")


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
    return WeightsFile(path, _parse(path, metadata[FORMAT]), tensors)


def write_weights_file(path: str | Path, description: Description, tensors: dict[str, Tensor]) -> None:
    """Writes a weights file, atomically; equal models give equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in random order.
    metadata = {FORMAT: json.dumps(description.model_dump(mode="json"), sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _parse(path: Path, text: str) -> Description:
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole of it"
        if where == "version":
            raise BinaryViTError(
                f"{path} is not of a version that this library reads (1 to {VERSION}); "
                "use the version of the library that wrote it."
            ) from error
        reason = _brief(f"{where}: {first['msg']}")
        raise BinaryViTError(f"The description in {path} is damaged ({reason}); write the file again.") from error


def _brief(text: str) -> str:
    """A text from a file, cut to what fits a sentence."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _check_bounds(model_args: dict[str, Any], is_ours: bool, largest: int, deepest: int) -> None:
    """Refuses sizes that the stored tensors can't have, before a model of them is even described.

    What a number means to a model that is not ours is known of few names; any other could be of layers or of places.
    """
    stages = max((len(value) for value in model_args.values() if isinstance(value, list)), default=1)
    for name, value in model_args.items():
        values = value if isinstance(value, list) else [value]
        if is_ours and "depth" in name and not isinstance(value, list):
            values *= stages  # one number stands for all stages
        if any(isinstance(number, (list, dict)) for number in values):
            raise ValueError(f"{name}={value!r} is no number, text or list of these")
        if is_ours:
            limit = deepest if "depth" in name else largest
        elif name == "img_size":
            limit = min(largest, 2 * _LARGEST_IMAGE)  # the sum of two sides
        else:
            limit = largest if any(word in name for word in _WIDTHS) else deepest
        if sum(abs(number) for number in values if isinstance(number, (int, float))) > limit:
            raise ValueError(f"{name}={value!r} is more than the file holds")


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
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float64).item()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _check_use(description: Description, skeleton: nn.Module) -> None:
    classes = getattr(skeleton, "num_classes", None)
    if description.class_names is not None and len(description.class_names) != classes:
        raise ValueError(f"it names {len(description.class_names)} classes and distinguishes {classes}")
    if description.preprocessing is not None and skeleton.pretrained_cfg.get("fixed_input_size"):
        wanted = (input_channels(skeleton), *image_size(skeleton))
        if description.preprocessing.input_size != wanted:
            raise ValueError(f"its images have the size {description.preprocessing.input_size} instead of {wanted}")
