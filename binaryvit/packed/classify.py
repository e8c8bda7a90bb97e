"""Classifies image files with a deployed model."""

import json
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
from binaryvit.models.weights_file import Description, Preprocessing
from binaryvit.packed.engine import PackedModel
from binaryvit.packed.file import read_packed

_BATCH_SIZE = 16


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
        """The file's name, then one class per line."""
        lines = [f"  {guess.probability:7.2%}  {guess.name}" for guess in self.guesses]
        return "\n".join([str(self.file), *lines])

    def as_json(self) -> str:
        """One line of JSON: `file`, and `classes` (`index`, `name`, `probability`) or `problem`."""
        found = {"classes": [asdict(guess) for guess in self.guesses]}
        return json.dumps({"file": str(self.file)} | ({"problem": self.problem} if self.problem else found))


class Classifier:
    """A packed model that takes image files.

    Args:
        path: a packed file, or the weights of a run.
        threads: how many compute; None: as many as PyTorch uses.

    Raises:
        BinaryViTError: the file can't be read (see `file.read_packed`), or its model takes no RGB images.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        packed = read_packed(path)
        self._model = PackedModel(packed.skeleton, packed.tensors, threads)
        self._names = _class_names(packed.description, packed.skeleton.num_classes)
        self._preprocessing = packed.description.preprocessing or Preprocessing.of(packed.skeleton)
        if self._preprocessing.input_size[0] != 3:
            raise BinaryViTError(f"{path} takes images of {self._preprocessing.input_size[0]} channels, not RGB.")

    def classify(self, files: Sequence[str | Path], top: int = 5) -> Iterator[Answer]:
        """An answer for each file, in order; a file that is not an image does not stop the others.

        Args:
            files: image files of any kind and size.
            top: how many classes an answer names at most.
        """
        for start in range(0, len(files), _BATCH_SIZE):
            batch = [Path(file) for file in files[start : start + _BATCH_SIZE]]
            opened = [_open(file) for file in batch]
            guesses = self._guesses([image for image in opened if not isinstance(image, str)], top)
            for file, image in zip(batch, opened, strict=True):
                yield Answer(file, problem=image) if isinstance(image, str) else Answer(file, next(guesses))

    @torch.inference_mode()
    def _guesses(self, images: list[Image.Image], top: int) -> Iterator[tuple[Guess, ...]]:
        if not images:
            return
        logits = self._model(prepare(images, self._preprocessing))
        likely = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
        for indices, probabilities in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
            yield tuple(
                Guess(index, self._names[index], probability)
                for index, probability in zip(indices, probabilities, strict=True)
            )


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
    """The files among `places`; a folder is replaced by the image files in and below it, unless it has none."""
    files: list[Path] = []
    for place in map(Path, places):
        found = filter(is_image_file, sorted(place.rglob("*"))) if place.is_dir() else ()
        files += [path for path in found if path.is_file()] or [place]
    return files


def _open(file: Path) -> Image.Image | str:
    """The image in RGB, or a sentence on why there is none."""
    if file.is_dir():
        return f"The folder {file} holds no image files."
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except FileNotFoundError:
        return f"There is no file {file}."
    except UnidentifiedImageError:
        return f"{file} is not an image file."
    except Exception as error:  # decoders raise nearly anything on broken bytes
        return f"{file} cannot be used as an image: {str(error).rstrip('.')}."


def _class_names(description: Description, classes: int) -> tuple[str, ...]:
    return description.class_names or tuple(str(index) for index in range(classes))
