"""Encoded images of one split, and how they become RGB pixels."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from binaryvit.errors import BinaryViTError

PIXEL_CACHE_BYTES = 2**30
"""Splits whose decoded pixels take no more than this are decoded once and kept in memory."""

_CHUNK = 64  # encoded images read at once


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """The labelled images of one split.

    Attributes:
        name: the split's name in the data set.
        table: Hugging Face data set; each entry of `image_column` is {"bytes": ..., "path": ...}, not decoded.
        image_column: name of the column with the images.
        labels: int64 (images,), class indices.
        rows: int64 (images,), the row of the split each image is; not 0, 1, ... when only a part is used.
        folders: where image files lie, which relative paths start at the first; none when the bytes are in the table,
            and then nothing outside the table is ever read.
    """

    name: str
    table: datasets.Dataset
    image_column: str
    labels: np.ndarray
    rows: np.ndarray
    folders: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, indices: np.ndarray) -> "ImageSplit":
        """The split reduced to some of its images."""
        return replace(self, labels=self.labels[indices], rows=self.rows[indices])

    def encoded(self, indices: Sequence[int]) -> list[bytes]:
        """The image files as they are stored.

        Raises:
            BinaryViTError: one is missing.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        column = self.table.select_columns([self.image_column])[rows.tolist()][self.image_column]
        return [self._file(int(row), image) for row, image in zip(rows, column, strict=True)]

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """The images as RGB (see `to_rgb`). The first call decodes the whole split if it fits into memory.

        Raises:
            BinaryViTError: one cannot be read; the split and the row are named.
        """
        if self.pixels is not None:
            return [Image.fromarray(self.pixels[index]) for index in indices]
        return list(self._decoded(indices))

    @cached_property
    def pixels(self) -> list[np.ndarray] | None:
        """All images as uint8 (height, width, 3), or None when they would take more than PIXEL_CACHE_BYTES.

        Decoded on first use, in one process, so that worker processes started later share it.
        """
        pixels: list[np.ndarray] = []
        taken = 0
        for start in range(0, len(self), _CHUNK):
            for image in self._decoded(range(start, min(start + _CHUNK, len(self)))):
                pixels.append(np.asarray(image))
                taken += pixels[-1].nbytes
                if taken > PIXEL_CACHE_BYTES:
                    return None
            if taken / len(pixels) * len(self) > PIXEL_CACHE_BYTES:
                return None
        return pixels

    def _decoded(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        for index, data in zip(indices, self.encoded(indices), strict=True):
            yield self._decode(index, data)

    def _decode(self, index: int, data: bytes) -> Image.Image:
        try:
            return to_rgb(Image.open(io.BytesIO(data)))
        except Exception as error:  # decoders raise nearly anything on broken bytes
            reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
            place = self._place(int(self.rows[index]))
            raise BinaryViTError(f"{place} cannot be used ({reason}): replace or remove it.") from error

    def _file(self, row: int, image: dict | None) -> bytes:
        if image and image["bytes"]:
            return image["bytes"]
        if image and self.folders and image["path"]:
            file = Path(os.path.abspath(self.folders[0] / image["path"]))  # links inside of it may lead anywhere
            if not any(file.is_relative_to(os.path.abspath(folder)) for folder in self.folders):
                raise BinaryViTError(f"{self._place(row)} lies outside the data set: replace or remove it.")
            try:
                return file.read_bytes()
            except OSError as error:
                raise BinaryViTError(
                    f"{self._place(row)} cannot be read ({error.strerror}): was the folder changed in the meantime?"
                ) from error
        raise BinaryViTError(f"{self._place(row)} is empty: replace or remove it.")

    def _place(self, row: int) -> str:
        path = self.table.select_columns([self.image_column])[row][self.image_column] if self.folders else None
        return f"Image {row} of split '{self.name}'" + (f" ({path['path']})" if path else "")


def is_image_file(path: str | Path) -> bool:
    """Whether a path has the name of an image file and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an opened image of any kind to 8-bit RGB.

    Grey is repeated over the channels, palettes are looked up, CMYK and the like are converted, transparency is
    dropped without blending (as timm and torchvision do), 16-bit grey keeps its upper 8 bits, of an animation the
    first frame is taken. EXIF orientation is not applied, as is usual for ImageNet.

    Raises:
        ValueError: more pixels than PIL's limit against decompression bombs, or floating-point or 32-bit grey values
            whose range is not known.
        Exception: whatever PIL raises on broken data.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(f"{image.width}x{image.height} pixels are more than the {limit} that PIL takes as safe")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; store 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit grey values are out of the 16-bit range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
