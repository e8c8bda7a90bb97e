"""The finished runs of a study as models to look into, and images to show them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from binaryvit.config import TrainingConfig, suggestion
from binaryvit.data.batches import Data, load_data
from binaryvit.data.images import to_rgb
from binaryvit.data.sampling import evenly_spaced_per_class
from binaryvit.data.transforms import eval_transform, normalize
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.run import RECORD_FILE, RUNS_FOLDER, RunRecord
from binaryvit.studies.rows import read_rows, record_of
from binaryvit.studies.study import PlannedRun, State, Study
from binaryvit.training.build import input_settings

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_PHOTOGRAPHERS = "china.jpg by danielbuechele and flower.jpg by vultilion (flickr, CC BY 2.0), from scikit-learn"
_PLACES = {"": 0.5, ", left": 0.0, ", right": 1.0}  # where in a photograph the square is cut from


@dataclass(frozen=True)
class StoredRun:
    """A finished run of a study: its record, and its model from the stored weights.

    Attributes:
        id: name of the run in its study.
        label: how tables and figures call it; with the seed where the model has several.
        variant: timm name of the model.
        folder: the run's folder.
        record: its run.json.
    """

    id: str
    label: str
    variant: str
    folder: Path
    record: RunRecord

    @property
    def weights(self) -> Path:
        """The file with the inference weights."""
        return self.folder / self.record.weights.file

    @property
    def config(self) -> TrainingConfig:
        """The configuration it was trained with."""
        return TrainingConfig(**self.record.config)

    @property
    def is_binary(self) -> bool:
        """Whether the model has weights or activations of one bit."""
        bits = [self.record.config["model_args"].get(name, 1) for name in ("weight_bits", "activation_bits")]
        return 1 in bits and any(self.variant in binary for _, *binary in LADDER.values())

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode, on the CPU. Raises BinaryViTError when its weights are missing."""
        return load_inference_weights(self.weights)

    def input_settings(self) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
        """Input size (3, height, width) of the model, mean and deviation per channel of what its images become."""
        return input_settings(self.model(), self.record.config["image_size"])


@dataclass(frozen=True, eq=False)
class ExampleImages:
    """Images to show beside what a model makes of them.

    Attributes:
        pixels: uint8 (images, height, width, 3), of the model's size, for showing.
        inputs: float32 (images, 3, height, width), the same normalized for the model.
        names: what each is called.
        credit: whose they are.
    """

    pixels: np.ndarray
    inputs: Tensor
    names: tuple[str, ...]
    credit: str


def stored_runs(study: Study, ids: Sequence[str] | None = None) -> list[StoredRun]:
    """The finished, current runs of a study in the study's order: those of the ladder (`Study.ladder`), or of `ids`.

    Raises BinaryViTError for an empty selection, an id the study does not have (it says so when another study has), a
    chosen run that is not done, no finished run at all, and a finished run without its weights.
    """
    rows = read_rows(study)
    planned = {run.id: run for row in rows for run in row.runs}
    if ids is None:
        ids = [run.id for run in study.ladder if planned[run.id].state is State.DONE]
    else:
        _check_selection(study, ids, planned)
    found = []
    for row in rows:
        for run in row.runs:
            if run.id in ids:
                label = row.label if len(row.runs) == 1 else f"{row.label}, seed {run.config.seed}"
                found.append(StoredRun(run.id, label, row.variant, run.folder, record_of(run)))
    if not found:
        raise BinaryViTError(
            f"The study {study.name} has no finished run to look into: `binaryvit reproduce {study.path}` trains them."
        )
    for run in found:
        if not run.weights.is_file():
            raise BinaryViTError(
                f"The run {run.id} has no weights, {os.path.relpath(run.weights)} is missing: put the file back, or "
                f"move the run's folder away and train it again with `binaryvit reproduce {study.path}`."
            )
    return sorted(found, key=lambda run: [*planned].index(run.id))


def _check_selection(study: Study, ids: Sequence[str], planned: dict[str, PlannedRun]) -> None:
    if isinstance(ids, str):
        raise BinaryViTError(f"The runs must be a list of ids, not the text {ids!r}: write [{ids!r}].")
    if not ids:
        raise BinaryViTError(f"No run is selected: choose some of {', '.join(planned)}, or None for all.")
    for name in ids:
        if name not in planned:
            raise BinaryViTError(
                f"The study {study.name} has no run {name!r}{_other_study(study, name) or suggestion(name, [*planned])}"
            )
        if planned[name].state is not State.DONE:
            raise BinaryViTError(
                f"The run {name} cannot be looked into: it is {planned[name].state} ({planned[name].reason})."
            )


def _other_study(study: Study, name: str) -> str:
    """The end of a sentence when a study beside this one has a finished run of that name."""
    places = {study.output.resolve().parent, study.path.resolve().parent.parent}
    others = [path.parents[2] for place in places for path in place.glob(f"*/{RUNS_FOLDER}/*/{RECORD_FILE}")
              if path.parent.name == name]  # fmt: skip
    return f": it is a run of the study in {os.path.relpath(sorted(others)[0])}." if others else ""


def evaluation_batches(
    study: Study, run: StoredRun, images: int, batch_size: int = 100, split: Literal["eval", "train"] = "eval"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of the evaluation split as the run's model takes them: the same ones always, each class in its proportion.

    With split="train" they are of the training split, prepared in the same way, without augmentation. All are taken
    where the split has no more than `images`. The data are loaded when this is called, once for all runs of a study.

    Returns:
        Tuples of images (batch, 3, height, width) float32, normalized, and labels (batch,) int64.

    Raises:
        BinaryViTError: the data are not at hand, or not those the run was made with.
    """
    data = _data_of(study)
    if data.fingerprint != run.record.key.data:
        raise BinaryViTError(
            f"The data at hand (fingerprint {data.fingerprint[:12]}) are not those of the run {run.id} "
            f"({run.record.key.data[:12]}): give the same copy as data_dir."
        )
    source = getattr(data, split)
    chosen = evenly_spaced_per_class(source.labels, min(images, len(source)))
    input_size, mean, std = run.input_settings()
    transform = eval_transform(run.config, input_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            pixels = torch.stack([transform(image) for image in source.images(rows)])
            yield normalize(pixels, mean, std), torch.from_numpy(source.labels[rows])

    return batches()


def _data_of(study: Study) -> Data:
    return _load_once(study.data_config.model_dump_json())


@lru_cache(maxsize=1)  # decoding a split takes longer than looking at some hundred images of it
def _load_once(config: str) -> Data:
    return load_data(TrainingConfig.model_validate_json(config))


def example_images(run: StoredRun, images: int | Sequence[str | Path] = 2) -> ExampleImages:
    """Images that may be shown and shared: digits for a run on the digits, else scikit-learn's two photographs.

    Or, as paths, image files of one's own. All are brought to the model's size as in evaluation.

    Args:
        run: whose model they are made for.
        images: how many (of the photographs there are six square parts), or which files.

    Raises:
        BinaryViTError: none are asked for, more than there are, or a file is no image.
    """
    return images_for(run.config, run.input_settings(), images)


def images_for(
    config: TrainingConfig,
    settings: tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]],
    images: int | Sequence[str | Path],
) -> ExampleImages:
    """`example_images` for any model: `config` names data and crop, `settings` are the model's `input_settings`."""
    if not isinstance(images, int):
        found = {Path(path).name: _open(path) for path in images}
        credit = "your own images"
    elif config.data == "digits":
        found, credit = _digits(images), "scikit-learn's handwritten digits"
    else:
        found, credit = _photographs(images), _PHOTOGRAPHERS
    count = images if isinstance(images, int) else len(images)
    if count < 1 or len(found) < count:
        raise BinaryViTError(
            f"{count} example images are asked for, and there are {len(found)}: choose at least one, and no name twice."
        )
    input_size, mean, std = settings
    transform = eval_transform(config, input_size)
    tensors = torch.stack([transform(image) for image in found.values()])
    return ExampleImages(tensors.permute(0, 2, 3, 1).numpy(), normalize(tensors, mean, std), tuple(found), credit)


def check_images(run: StoredRun, images: Tensor) -> None:
    """Refuses images that do not have the size the run's model takes, with a sentence that names both sizes.

    Args:
        run: the run.
        images: (batch, 3, height, width).
    """
    wanted = run.input_settings()[0]
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
        raise BinaryViTError(
            f"The images have the shape {tuple(images.shape)}, but {run.id} takes images of shape {wanted}: "
            "give their files to example_images, which brings them to that size."
        )


def _digits(count: int) -> dict[str, Image.Image]:
    split = load_data(TrainingConfig(variant="deit_micro_patch4_32", data="digits")).eval
    chosen = evenly_spaced_per_class(split.labels, max(0, min(count, len(split))))
    pictures = split.images(chosen)
    return {f"digit {split.labels[row]} (image {row})": picture for row, picture in zip(chosen, pictures, strict=True)}


def _photographs(count: int) -> dict[str, Image.Image]:
    """Squares as high as the photograph: first the middle of each, then the left and right ends."""
    squares = {}
    for place, share in _PLACES.items():
        for name in _PHOTOGRAPHS:
            picture = Image.fromarray(load_sample_image(name))
            left = round(share * (picture.width - picture.height))
            squares[f"{Path(name).stem}{place}"] = picture.crop((left, 0, left + picture.height, picture.height))
    return dict([*squares.items()][: max(0, count)])


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise BinaryViTError(f"{path} cannot be used as an image: {error}") from error
