"""The frozen teacher of a run: where it comes from, and what identifies its content."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binaryvit.config import PRETRAINED, TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.models.external_checkpoint import load_checkpoint
from binaryvit.models.quantizers import at_least_float32
from binaryvit.models.shapes import image_size
from binaryvit.models.weights_file import model_of, read_weights_file
from binaryvit.records.run_record import RunKey, RunRecord, read_record
from binaryvit.training.build import input_settings, pretrained_model


def run_identity(key: RunKey) -> str:
    """Identity of a teacher that is a run of ours: what determined its numbers."""
    return f"run:{key.config}:{key.data}:{key.training_version}"


def identity(place: str, role: str = "teacher") -> str:
    """What identifies the content of a teacher, or of weights in another `role`: its run's key, its file's SHA-256, or
    its timm name.

    Raises `BinaryViTError` when there is nothing at `place`.
    """
    if place.startswith(PRETRAINED):
        return place
    path = Path(place)
    if path.is_dir():
        return run_identity(finished_run(path, role).key)
    try:
        with open(path, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise BinaryViTError(
            f"The {role} {place!r} cannot be read ({error.strerror}): give the folder of a finished run, a weights "
            f"file, or {PRETRAINED}NAME for timm's pretrained weights."
        ) from None


def key_of(config: TrainingConfig) -> str:
    """The key of a configuration whose teacher and initial weights, if it has them, exist."""
    teacher, initial = config.teacher, config.init_from
    return config.key(teacher and identity(teacher), initial and identity(initial, "init_from"))


def load_teacher(place: str, variant: str | None, class_names: Sequence[str]) -> nn.Module:
    """The teacher at `place`, in evaluation mode; `variant` names the model of a checkpoint that is not ours.

    Raises `BinaryViTError` when it can't be loaded or has other classes than the data, `class_names`.
    """
    own_names = None
    if place.startswith(PRETRAINED):
        model = pretrained_model(place.removeprefix(PRETRAINED))
    elif variant is not None:
        if Path(place).is_dir():
            raise BinaryViTError(
                f"teacher_variant={variant!r} is for checkpoints that do not say what model they are of, and the "
                f"teacher {place!r} is a folder: leave teacher_variant out."
            )
        model = timm.create_model(variant, num_classes=len(class_names))
        load_checkpoint(model, place)
    else:
        path = Path(place)
        try:
            file = read_weights_file(path / finished_run(path).weights.file if path.is_dir() else path)
        except BinaryViTError as error:
            raise BinaryViTError(
                f"{error} A teacher that is a checkpoint of another kind needs teacher_variant, the timm name of its "
                "model."
            ) from error
        model, own_names = model_of(file), file.description.class_names
    check_classes(f"The teacher {place!r}", model.num_classes, own_names, class_names)
    return model.requires_grad_(False).float().eval()


def check_classes(owner: str, num_classes: int, own_names: Sequence[str] | None, class_names: Sequence[str]) -> None:
    """Refuses a model whose classes are not those of the data: in number, or the same ones in another order.

    Classes of other names may be the same ones ("tench" for "n01440764"), so they are only warned of.

    Raises `BinaryViTError`, which begins with `owner`.
    """
    choose = "choose one that was trained on these data, or the data it was trained on."
    if num_classes != len(class_names):
        raise BinaryViTError(
            f"{owner} distinguishes {num_classes} classes and the data have {len(class_names)}: {choose}"
        )
    pairs = zip(own_names or class_names, class_names, strict=True)
    unlike = [
        f"class {index} {own!r} and the data call it {name!r}" for index, (own, name) in enumerate(pairs) if own != name
    ]
    if unlike and set(own_names) == set(class_names):
        raise BinaryViTError(f"{owner} has the classes of the data in another order; it calls {unlike[0]}: {choose}")
    if unlike:
        warnings.warn(f"{owner} calls {unlike[0]}: are they the same, and in the same order?", stacklevel=3)


class Teacher(nn.Module):
    """A frozen model's probabilities for images that were prepared for another model.

    Args:
        model: the teacher.
        mean, std: per channel; they normalized the images.
    """

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model = model
        self.size = image_size(model)
        own_mean, own_std = (torch.tensor(values).view(-1, 1, 1) for values in input_settings(model)[1:])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.is_normalized = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self.register_buffer("factor", std / own_std, persistent=False)
        self.register_buffer("offset", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to probabilities (B, classes), at least in float32."""
        with torch.inference_mode():
            if images.shape[-2:] != self.size:
                images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
            if not self.is_normalized:
                images = images * self.factor + self.offset
            probabilities = at_least_float32(self.model(images)).softmax(dim=-1)
        return probabilities.clone()  # autograd cannot save inference-mode tensors


def finished_run(folder: Path, role: str = "teacher") -> RunRecord:
    """The record of the run in `folder`. Raises `BinaryViTError` when it is not finished."""
    record = read_record(folder)
    if record is None:
        raise BinaryViTError(f"The {role} {str(folder)!r} is not a finished run: train it first.")
    return record
