"""What a weights file says of the model in it: how to build it, how to prepare its images, what its classes are called.

None of it is trusted: a description may be forged to fetch, open or allocate something.

Version 2 added class names, preprocessing and packed files; version 3 changed the latter.
"""

from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from timm.data import resolve_data_config
from torch import nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.shapes import image_size, input_channels

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

        Raises BinaryViTError for a model of other channels than timm knows, or of images too large for any use.
        """
        settings, channels = resolve_data_config({}, model=model), input_channels(model)
        if channels != len(settings["mean"]):
            raise BinaryViTError(
                f"The model takes images of {channels} channels, and timm knows how to prepare those of "
                f"{len(settings['mean'])}; say how these are prepared."
            )
        try:
            return cls(
                input_size=(channels, *image_size(model)),
                mean=settings["mean"],
                std=settings["std"],
                crop_pct=settings["crop_pct"] if crop_pct is None else crop_pct,
                interpolation=settings["interpolation"],
            )
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise BinaryViTError(f"The model's images can't be prepared: {brief(reason)}.") from error


class Description(_Strict):
    """What a weights file says of the model in it.

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

    @classmethod
    def parse(cls, text: str, path: Path) -> Self:
        """The description that `text`, from the file `path`, holds. Raises BinaryViTError when it is damaged."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole of it"
            if where == "version":
                raise BinaryViTError(
                    f"{path} is not of a version that this library reads (1 to {VERSION}); "
                    "use the version of the library that wrote it."
                ) from error
            reason = brief(f"{where}: {first['msg']}")
            raise BinaryViTError(f"The description in {path} is damaged ({reason}); write the file again.") from error

    def build(self, stored: int, device: str) -> nn.Module:
        """The described model on `device`, in evaluation mode.

        Only names that timm knows and arguments that load nothing are accepted, and no sizes that `stored` bytes can't
        hold, so that a forged description fetches, opens and allocates nothing.

        Raises ValueError or whatever a constructor does with unforeseen arguments.
        """
        if not timm.is_model(self.variant):
            raise ValueError("no model of this library or timm has that name")
        if loading := sorted(LOADING_ARGS & self.model_args.keys()):
            raise ValueError(f"its arguments {', '.join(loading)} would load other files")
        # No size exceeds the number of weights, each of which takes at least a bit; and a layer or block, with its
        # norms and scales, at least 100 bytes.
        is_ours = timm.models.model_entrypoint(self.variant).__module__.startswith("binaryvit.")
        _check_bounds(self.model_args, is_ours, largest=8 * stored, deepest=min(stored // 100, _DEEPEST))
        arguments = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.model_args.items()
        }
        with torch.device(device):
            return timm.create_model(self.variant, **arguments).eval()

    def check_use(self, model: nn.Module) -> None:
        """Raises ValueError when class names or preprocessing are not those of `model`, which it describes."""
        classes = getattr(model, "num_classes", None)
        if self.class_names is not None and len(self.class_names) != classes:
            raise ValueError(f"it names {len(self.class_names)} classes and distinguishes {classes}")
        if self.preprocessing is not None and model.pretrained_cfg.get("fixed_input_size"):
            wanted = (input_channels(model), *image_size(model))
            if self.preprocessing.input_size != wanted:
                raise ValueError(f"its images have the size {self.preprocessing.input_size} instead of {wanted}")


def brief(text: str) -> str:
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
