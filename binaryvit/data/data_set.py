"""Data sets by name, checked and fingerprinted."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from binaryvit.config import TrainingConfig
from binaryvit.data.images import ImageSplit
from binaryvit.data.sampling import evenly_spaced_per_class
from binaryvit.data.sources import EVAL_SPLITS, open_source
from binaryvit.errors import BinaryViTError

FINGERPRINT_IMAGES = 4096


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for training.

    Attributes:
        name: of the data set; for a folder, the last part of its path.
        label: its name in tables.
        source: where it came from, without paths of this machine.
        class_names: by class index.
        train, eval: the two splits that are used; never the same one. Where nothing is trained, the first is empty.
        fingerprint: sha256 (hexadecimal) of the content, see `fingerprint`; "" where it was left out.
    """

    name: str
    label: str
    source: str
    class_names: tuple[str, ...]
    train: ImageSplit
    eval: ImageSplit
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, tuple[str, int]]:
        """Name and number of images of what is trained on and what is evaluated on."""
        return {"train": (self.train.name, len(self.train)), "eval": (self.eval.name, len(self.eval))}


def load_data(config: TrainingConfig, *, fingerprinted: bool = True, to_train: bool = True) -> Data:
    """Finds, checks and fingerprints the data set of a training configuration; images are decoded later.

    Unless given, the training split is `train`, and the evaluation split is the first of `EVAL_SPLITS` that exists.
    With holdout_images, the evaluation images are a part of the training split, which then trains without them. Unless
    given, the image column is the only column of images, else the one called "image"; the label column is the only one
    of class labels, else the one called "label". Labels without names are 0, 1, ..., or strings in alphabetical order.
    max_train_images and max_eval_images choose a fixed part that keeps the classes' proportions.

    Args:
        config: data, data_dir, data_label, data_config, image_column, label_column, train_split, eval_split,
            max_train_images, max_eval_images and holdout_images of a training configuration.
        fingerprinted: whether to read the images for the fingerprint, which takes seconds.
        to_train: without it, a split to train on is not needed; the evaluation split says which classes there are.

    Raises:
        BinaryViTError: no such data set, split or column; the two splits are one; a label outside the classes;
            fewer than two classes; an empty split.
    """
    to_train = to_train or config.holdout_images is not None
    source = open_source(config.data, config.data_dir, config.data_config)
    train_name, eval_name = _split_names(config, source.splits, to_train)
    first = source.splits[train_name if to_train else eval_name]
    image_column, label_column = _column_names(config, first)
    class_names = _class_names(first, label_column)

    def split(name: str, limit: int | None) -> ImageSplit:
        table = source.splits[name]
        labels = _labels(name, table, label_column, class_names)
        rows = np.arange(len(labels))
        if limit is not None and limit < len(labels):
            rows = evenly_spaced_per_class(labels, limit)
        return ImageSplit(
            name, _encoded_table(name, table, image_column), image_column, labels[rows], rows, source.folders
        )

    train = split(train_name, config.max_train_images) if to_train else None
    if config.holdout_images is None:
        evaluation = split(eval_name, config.max_eval_images)
    else:
        train, evaluation = _hold_out(train, config.holdout_images)
    name = _name_of(config.data)
    return Data(
        name=name,
        label=config.data_label or name,
        source=source.description,
        class_names=class_names,
        train=evaluation.part(np.arange(0)) if train is None else train,
        eval=evaluation,
        fingerprint=fingerprint(class_names, [part for part in (train, evaluation) if part is not None])
        if fingerprinted
        else "",
    )


def fingerprint(class_names: Sequence[str], splits: Sequence[ImageSplit]) -> str:
    """sha256 (hexadecimal) of the data that is used.

    It covers the class names, the splits' sizes, every label in its order, and the encoded bytes of up to
    FINGERPRINT_IMAGES evenly spaced images per split (all of them in smaller splits). It does not cover the other
    images, nor where the files lie and what they, the splits and the columns are called.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([list(class_names), [len(split) for split in splits]]).encode())
    for split in splits:
        digest.update(split.labels.astype("<i8").tobytes())
        count = min(FINGERPRINT_IMAGES, len(split))
        for indices in np.array_split(np.arange(count) * len(split) // count, -(-count // 256)):
            for data in split.encoded(indices):
                digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _hold_out(split: ImageSplit, images: int) -> tuple[ImageSplit, ImageSplit]:
    """A split without `images` of its images, each class in its proportion, and these; the same ones always."""
    if images >= len(split):
        raise BinaryViTError(
            f"holdout_images={images} leaves nothing of the {len(split)} training images: make it smaller."
        )
    held = evenly_spaced_per_class(split.labels, images)
    kept = np.setdiff1d(np.arange(len(split)), held)
    return split.part(kept), replace(split.part(held), name=f"{split.name} (held out)")


def _split_names(config: TrainingConfig, splits: dict[str, datasets.Dataset], to_train: bool) -> tuple[str, str | None]:
    """The names of the splits to train and to evaluate on; no second one where training images are held out for it."""
    train = config.train_split or "train"
    evaluation = config.eval_split or next((name for name in EVAL_SPLITS if name in splits), None)
    wanted = [("train_split", train)] * to_train + [("eval_split", evaluation)] * (config.holdout_images is None)
    there = ", ".join(splits)
    for field, name in wanted:
        if name is None:
            raise BinaryViTError(
                f"The data set '{config.data}' has no split named {', '.join(EVAL_SPLITS[:-1])} or {EVAL_SPLITS[-1]} "
                f"to evaluate on: set {field} to one of those it has: {there}."
            )
        if name not in splits:
            raise BinaryViTError(
                f"The data set '{config.data}' has no split '{name}': set {field} to one of those it has: {there}."
            )
        if not len(splits[name]):
            raise BinaryViTError(f"The split '{name}' of the data set '{config.data}' has no images.")
    if to_train and train == evaluation and config.holdout_images is None:
        raise BinaryViTError(f"The split '{train}' is trained on, so it cannot be evaluated on: set eval_split.")
    return train, evaluation


def _column_names(config: TrainingConfig, table: datasets.Dataset) -> tuple[str, str]:
    found = []
    for field, given, kind in (
        ("image_column", config.image_column, datasets.Image),
        ("label_column", config.label_column, datasets.ClassLabel),
    ):
        usual = field.removesuffix("_column")
        of_kind = [name for name, feature in table.features.items() if isinstance(feature, kind)]
        name = given or (of_kind[0] if len(of_kind) == 1 else usual)
        if name not in table.features:
            raise BinaryViTError(
                f"Which column of the data set '{config.data}' holds the {usual}s is not clear: set {field} to one of "
                f"{', '.join(table.features)}."
            )
        found.append(name)
    return found[0], found[1]


def _encoded_table(split: str, table: datasets.Dataset, column: str) -> datasets.Dataset:
    feature = table.features.get(column)
    is_struct = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    if not (isinstance(feature, datasets.Image) or is_struct or is_binary):
        raise BinaryViTError(f"The column '{column}' of split '{split}' does not hold images: set image_column.")
    return table.cast_column(column, datasets.Image(decode=False))


def _class_names(table: datasets.Dataset, column: str) -> tuple[str, ...]:
    feature = table.features[column]
    is_plain = isinstance(feature, datasets.Value)
    values = [value for value in table.unique(column) if value is not None] if is_plain else []
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
    elif values and all(isinstance(value, str) for value in values):
        names = tuple(sorted(values))
    elif values and all(isinstance(value, int) for value in values) and max(values) < len(table):
        names = tuple(str(index) for index in range(max(values) + 1))
    else:
        raise BinaryViTError(
            f"The column '{column}' holds neither class names nor class indices 0, 1, ...: set label_column."
        )
    if len(names) < 2:
        raise BinaryViTError(f"The data have only one class ({', '.join(names)}): training needs at least two.")
    return names


def _labels(split: str, table: datasets.Dataset, column: str, class_names: tuple[str, ...]) -> np.ndarray:
    """Class indices of all rows; labels with names go by their names, so splits may number them differently."""
    if column not in table.features:
        raise BinaryViTError(
            f"The split '{split}' has no column '{column}' with labels: it has {', '.join(table.features)}."
        )
    feature = table.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else class_names
    index_of: dict[str | int, int] = {name: index for index, name in enumerate(class_names)}
    index_of |= {number: index_of[name] for number, name in enumerate(names) if name in index_of}
    values = table.select_columns([column])[:][column]
    labels = [index_of.get(value, -1) for value in values]
    if min(labels) < 0:
        row = labels.index(-1)
        value = values[row]
        if isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        raise BinaryViTError(
            f"Image {row} of split '{split}' has the label {value!r}, which is none of the {len(class_names)} classes "
            f"of the training split: correct the data, or choose other splits (labels of -1 mean they are kept secret)."
        )
    return np.array(labels, dtype=np.int64)


def _name_of(data: str) -> str:
    """A data set's name; for a folder, the last part of its path, because paths belong to one machine."""
    folder = Path(os.path.expanduser(data))
    return folder.resolve().name if folder.is_dir() else data
