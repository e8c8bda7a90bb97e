"""The images that stored models are shown: a split's for measuring, shareable ones for pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import Data, load_data
from binaryvit.data.images import to_rgb
from binaryvit.data.sampling import evenly_spaced_per_class
from binaryvit.data.transforms import eval_transform, normalize
from binaryvit.errors import BinaryViTError

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_PHOTOGRAPHERS = "china.jpg by danielbuechele and flower.jpg by vultilion (flickr, CC BY 2.0), from scikit-learn"
_PLACES = {"": 0.5, ", left": 0.0, ", right": 1.0}  # where in a photograph the square is cut from

Images = int | Sequence[str | Path]  # how many of the images that may be shared, or files


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


def evaluation_batches(
    opened: OpenStudy, run: StoredRun, images: int, batch_size: int = 100, split: Literal["eval", "train"] = "eval"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of the evaluation split as the run's model takes them: the same ones always, each class in its proportion.

    With split="train" they are of the training split, prepared in the same way, without augmentation. All are taken
    where the split has no more than `images`. The data are loaded when this is called, once for all runs of a study.

    Returns:
        Tuples of images (batch, 3, height, width) float32, normalized, and labels (batch,) int64.

    Raises:
        BinaryViTError: the data are not at hand, or not those the run was made with.
    """
    data = _load_once(opened.study.data_config.model_dump_json())
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


@lru_cache(maxsize=1)  # decoding a split takes longer than looking at some hundred images of it
def _load_once(config: str) -> Data:
    return load_data(TrainingConfig.model_validate_json(config))


def example_images(run: StoredRun, images: Images = 2) -> ExampleImages:
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
    images: Images,
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


@lru_cache(maxsize=1)  # every run is shown the same
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
