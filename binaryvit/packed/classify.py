"""Classifies image files with a deployed model."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from binaryvit.data.images import is_image_file, to_rgb
from binaryvit.data.transforms import normalize
from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Description, Preprocessing
from binaryvit.models.shapes import input_channels
from binaryvit.packed.engine import PackedModel
from binaryvit.packed.export import find_weights
from binaryvit.packed.file import read_packed

_BATCH_SIZE = 16
_BATCH_PIXELS = 2**23  # of all images that are held at a time: 100 MB of float32


@dataclass(frozen=True)
class Guess:
    """A class an image may belong to, with its probability in 0..1; without class names, `name` is the index."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """The answer for one file: its most likely classes first, or a sentence on why there are none."""

    file: Path
    guesses: tuple[Guess, ...] = ()
    problem: str | None = None

    def as_text(self) -> str:
        """The file's name, then one class per line; what is not printable in a name is written as Python would."""
        lines = [str(self.file), *(f"  {guess.probability:7.2%}  {guess.name}" for guess in self.guesses)]
        return "\n".join(map(_printable, lines))

    def as_json(self) -> str:
        """One line of JSON: `file`, and `classes` (`index`, `name`, `probability`) or `problem`."""
        found = {"classes": [asdict(guess) for guess in self.guesses]}
        return json.dumps({"file": str(self.file)} | ({"problem": self.problem} if self.problem else found))


class Classifier:
    """A packed model that takes image files.

    Args:
        path: a packed file, the weights of a run, or a finished run's folder.
        threads: how many compute; None: as many as PyTorch uses.

    Raises:
        BinaryViTError: there are no such weights, they can't be read (see `file.read_packed`), or their model takes no
            RGB images or has no classes.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        packed = read_packed(find_weights(path))
        skeleton = packed.skeleton
        if skeleton.num_classes < 1 or not skeleton.global_pool:
            raise BinaryViTError(
                f"{path} gives features, not classes: take a model of num_classes above 0 that pools its tokens."
            )
        self._model = PackedModel(skeleton, packed.tensors, threads)
        self._names = _class_names(packed.description, skeleton.num_classes)
        if (channels := input_channels(skeleton)) != 3:
            raise BinaryViTError(f"{path} takes images of {channels} channels, not RGB.")
        self._preprocessing = packed.description.preprocessing or Preprocessing.of(skeleton)
        self._batch_size = max(1, min(_BATCH_SIZE, _BATCH_PIXELS // math.prod(self._preprocessing.input_size[1:])))

    def classify(self, files: Sequence[str | Path], top: int = 5) -> Iterator[Answer]:
        """An answer for each file, in order; a file that cannot be used as an image does not stop the others.

        Args:
            files: image files of any kind and size.
            top: how many classes an answer names at most.
        """
        for start in range(0, len(files), self._batch_size):
            batch = [Path(file) for file in files[start : start + self._batch_size]]
            # Opened and resized one after the other: only what the model takes is held for a whole batch.
            opened = [_open(file, self._preprocessing) for file in batch]
            guesses = self._guesses([image for image in opened if not isinstance(image, str)], top)
            for file, image in zip(batch, opened, strict=True):
                if isinstance(image, str):
                    yield Answer(file, problem=image)
                elif found := next(guesses):
                    yield Answer(file, found)
                else:
                    yield Answer(file, problem=f"The model's outputs for {file} are not finite: it can't be trusted.")

    @torch.inference_mode()
    def _guesses(self, images: list[Tensor], top: int) -> Iterator[tuple[Guess, ...]]:
        """The classes of each image; none where probabilities can't be said."""
        if not images:
            return
        logits = self._model(torch.cat(images))
        likely = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
        for indices, probabilities in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
            yield tuple(
                Guess(index, self._names[index], probability)
                for index, probability in zip(indices, probabilities, strict=True)
                if math.isfinite(probability)
            )


def _printable(text: str) -> str:
    """A text that could command a terminal or begin a line of its own, with escapes in place of such characters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def prepare(images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """RGB images of any size as a model takes them, (images, 3, height, width) float32."""
    transform = create_transform(
        preprocessing.input_size,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        use_prefetcher=True,
    )
    pixels = torch.stack([torch.as_tensor(transform(image)) for image in images])
    return normalize(pixels, preprocessing.mean, preprocessing.std)


def image_files(places: Sequence[str | Path]) -> list[Path]:
    """The files among `places`; a folder is replaced by the image files in and below it, unless it has none.

    Of a folder those are taken that training would take (`is_image_file`), hidden ones and those in hidden folders not.
    """
    files: list[Path] = []
    for place in map(Path, places):
        found = sorted(place.rglob("*")) if os.path.isdir(place) else ()
        files += [path for path in found if _is_taken(path, place)] or [place]
    return files


def _is_taken(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return is_image_file(path) and not hidden and os.path.isfile(path)


def _open(file: Path, preprocessing: Preprocessing) -> Tensor | str:
    """The image as a model takes it (1, 3, height, width), or a sentence on why there is none."""
    if os.path.isdir(file):
        return f"The folder {file} holds no image files such as .jpg or .png; name files of other kinds one by one."
    try:
        with Image.open(file) as image:
            _check_resized(image, preprocessing)
            return prepare([to_rgb(image)], preprocessing)
    except FileNotFoundError:
        return f"There is no file {file}."
    except UnidentifiedImageError:
        return f"{file} is not an image file."
    except Exception as error:  # decoders raise nearly anything on broken bytes
        return f"{file} cannot be used as an image: {str(error).rstrip('.') or type(error).__name__}."


def _check_resized(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Refuses an image so narrow that, with its shorter side as long as the model's, it would take gigabytes."""
    _, height, width = preprocessing.input_size
    enlarged = max(height / image.height, width / image.width) / preprocessing.crop_pct
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.height * image.width * enlarged**2 > limit:
        raise ValueError(
            f"{image.width}x{image.height} pixels would be resized to more than the {limit} that PIL takes as safe"
        )


def _class_names(description: Description, classes: int) -> tuple[str, ...]:
    return description.class_names or tuple(str(index) for index in range(classes))
