"""Where data comes from: embedded digits, the Hugging Face hub, or a local folder of parquet files or class folders."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets.folder import make_dataset

from binaryvit.data.images import is_image_file
from binaryvit.data.sampling import evenly_spaced_per_class
from binaryvit.errors import BinaryViTError

EVAL_SPLITS = ("validation", "valid", "val", "test")
"""Names of evaluation splits, in the order they are looked for. The hub's ImageNet hides its test labels."""

_DIGITS_EVAL = 360
# The end of a file name that numbers its shard: train-00000-of-00004, train-0; older data sets of the hub add a hash.
_SHARD = re.compile(r"(^|-)\d+(-of-\d+(-[0-9a-f]{8,})?)?$")


@dataclass(frozen=True)
class Source:
    """A data set as found: its splits by name, and a description of where they came from, without this machine's paths.

    Image files lie in one of `folders`, and their relative paths start at the first; none where the tables hold the
    images themselves.
    """

    description: str
    splits: dict[str, datasets.Dataset]
    folders: tuple[Path, ...] = ()


def open_source(data: str, data_dir: str | Path | None = None, data_config: str | None = None) -> Source:
    """Opens a data set by its name; images stay encoded.

    Args:
        data: "digits", the path of a local folder, or a name on the Hugging Face hub, where no folder has that name.
        data_dir: a local folder that holds the data set called `data`; then the hub is not asked.
        data_config: which configuration of the data set, where it has several; in a folder the subfolder of that name.

    Raises:
        BinaryViTError: it does not exist, is gated, cannot be reached or cannot be read; the text says what to do.
    """
    if data == "digits":
        if data_dir is not None:
            raise BinaryViTError("The data set 'digits' comes with scikit-learn: leave data_dir out.")
        return _digits()
    folder = Path(os.path.expanduser(data_dir if data_dir is not None else data))
    if folder.is_dir():
        inner = folder / data_config if data_config and (folder / data_config).is_dir() else folder
        files = [*inner.glob("*.parquet"), *inner.glob("*/*.parquet")]
        name = folder.resolve().name
        return _parquet_folder(inner, name, files) if files else _class_folders(inner, name)
    if data_dir is not None or data.startswith((".", "~", os.sep)):
        raise BinaryViTError(f"The data folder {folder} does not exist: correct data_dir or data.")
    return _hub(data, data_config)


def _digits() -> Source:
    """scikit-learn's 1797 handwritten digits (8x8, 0..16; UCI), as 8-bit PGM files: value round(255 v / 16).

    Every fifth image of each class is for evaluation: 360, and 1437 for training.
    """
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=[str(name) for name in digits.target_names])
    )
    evaluation = evenly_spaced_per_class(digits.target, _DIGITS_EVAL)
    training = np.setdiff1d(np.arange(len(levels)), evaluation)

    def split(rows: np.ndarray) -> datasets.Dataset:
        images = [{"bytes": _pgm(levels[row]), "path": None} for row in rows]
        return datasets.Dataset.from_dict({"image": images, "label": digits.target[rows]}, features=features)

    return Source("scikit-learn", {"train": split(training), "test": split(evaluation)})


def _pgm(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PPM")
    return file.getvalue()


def _class_folders(folder: Path, name: str) -> Source:
    """<folder>/<split>/<class>/**/<image file>; the classes of each split are in alphabetical order."""
    splits = {}
    for split in _subfolders(folder):
        classes = _subfolders(folder / split)
        if not classes:
            continue
        index_of = {name: index for index, name in enumerate(classes)}
        files = make_dataset(str(folder / split), index_of, is_valid_file=is_image_file, allow_empty=True)
        filled = {label for _, label in files}
        if empty := [name for name, label in index_of.items() if label not in filled]:
            raise BinaryViTError(
                f"Of the class folders in {folder / split}, some hold no images ({', '.join(empty)}): fill or remove "
                "them."
            )
        features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=classes))
        images = [{"bytes": None, "path": str(Path(path).relative_to(folder))} for path, _ in files]
        columns = {"image": images, "label": [label for _, label in files]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    if not splits:
        raise BinaryViTError(
            f"The data folder {folder} holds neither parquet files nor class folders: "
            "it should look like train/cat/1.jpg and val/cat/2.jpg."
        )
    return Source(f"local folder: {name}", splits, (folder,))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _parquet_folder(folder: Path, name: str, files: list[Path]) -> Source:
    """train.parquet, data/train-00000-of-00004.parquet or train/0000.parquet, each split with its own features.

    Read split by split, because `load_dataset` of a folder gives all splits the class names of the first.
    """
    files_of: dict[str, list[Path]] = {}
    for file in sorted(files):
        files_of.setdefault(_SHARD.sub("", file.stem) or file.parent.name, []).append(file)
    splits = {}
    for split, paths in files_of.items():
        if len(places := sorted({path.parent.name for path in paths})) > 1:
            raise BinaryViTError(
                f"Split '{split}' lies in several folders of {folder} ({', '.join(places)}), as where a data set has "
                "several configurations: set data_config to one of them, or give its folder as data_dir."
            )
        try:
            splits[split] = datasets.Dataset.from_parquet([str(path) for path in paths])
        except Exception as error:  # arrow, datasets and the file system each have their own
            raise BinaryViTError(
                f"The parquet files of split '{split}' in {folder} cannot be read ({_reason(error)}): copy them again."
            ) from error
    return Source(f"local folder: {name}", splits)


def _hub(name: str, data_config: str | None) -> Source:
    try:
        splits = dict(datasets.load_dataset(name, data_config))
        # Of data sets made of image files the tables hold paths into the caches, each of which can be moved.
        config = datasets.config
        caches = (
            config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE
        )  # fmt: skip
        return Source(f"Hugging Face hub: {name}", splits, tuple(map(Path, caches)))
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise BinaryViTError(
                f"The data set '{name}' is gated: accept its terms at https://huggingface.co/datasets/{name}, then run "
                "`hf auth login` or set HF_TOKEN; or give a local copy as data_dir."
            ) from error
        raise BinaryViTError(
            f"There is no data set '{name}' on the Hugging Face hub, nor a folder of that name: correct `data`, log in "
            "with `hf auth login` if it is private, or give a local copy as data_dir."
        ) from error
    except OSError as error:
        raise BinaryViTError(
            f"The data set '{name}' is not on this machine and the Hugging Face hub cannot be reached "
            f"({_reason(error)}): connect once to download it, or give a local copy as data_dir."
        ) from error
    except Exception as error:  # an unknown configuration, a broken download, a format datasets does not know
        raise BinaryViTError(
            f"The data set '{name}' cannot be loaded ({_reason(error)}): see whether data_config is right."
        ) from error


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).strip().splitlines()[0].rstrip(".")
