"""How many images a second one CPU core decodes and augments, and how many cores keep a GPU busy."""

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, count

import datasets
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import IMAGENET_DEFAULT_MEAN

from binaryvit.config import TrainingConfig
from binaryvit.data.batches import Batch, eval_loader, train_loader
from binaryvit.data.data_set import Data
from binaryvit.data.images import PIXEL_CACHE_BYTES, ImageSplit
from binaryvit.threads import torch_threads

PHOTOGRAPH_SIZE = (500, 375)
"""Width and height of ImageNet's usual photograph."""

_JPEG_QUALITY = 97  # files of 100 kB on average; ImageNet's have some 110
_DIFFERENT_PHOTOGRAPHS = 32
_BATCH_SIZE = 32

PIPELINES = ("student", "teacher", "evaluation")


def photographs() -> Data:
    """JPEG files of ImageNet's usual size, cut from scikit-learn's two photographs, as a data set without end.

    32 different files stand in rows enough that the decoded images do not fit into memory, so that each is decoded
    when it is asked for, as with ImageNet.
    """
    width, height = PHOTOGRAPH_SIZE
    files = []
    for number in range(_DIFFERENT_PHOTOGRAPHS):
        scene = Image.fromarray(load_sample_images().images[number % 2])
        left = (scene.width - width) * number // (_DIFFERENT_PHOTOGRAPHS - 1)
        top = (scene.height - height) * number // (_DIFFERENT_PHOTOGRAPHS - 1)
        file = io.BytesIO()
        scene.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=_JPEG_QUALITY)
        files.append({"bytes": file.getvalue(), "path": None})
    table = datasets.Dataset.from_dict(
        {"image": files}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    rows = np.arange(2 * PIXEL_CACHE_BYTES // (3 * width * height)) % len(files)
    split = ImageSplit("train", table, "image", rows % 2, rows)
    return Data("photographs", "photographs", "embedded", ("china", "flower"), split, replace(split, name="test"), "")


def measure_loading(image_size: int = 224, images: int = 256, repetitions: int = 5) -> pd.DataFrame:
    """Measures this process, with one thread, doing what one data-loading process of a training does.

    "student" and "teacher" are the paper's recipes: decoding, random resized crop, flip, for the teacher RandAugment
    and random erasing. "evaluation" decodes, resizes and takes the centre. Normalization and mixup follow on the
    model's device.

    Args:
        image_size: pixels the model sees.
        images: how many are loaded in each repetition, rounded up to whole batches of 32.
        repetitions: interleaved, so that what else the machine does falls on all pipelines alike.

    Returns:
        One row per pipeline and repetition: pipeline, image_size, batch_size, repetition, images, seconds,
        images_per_second.
    """
    data = photographs()
    batches = math.ceil(images / _BATCH_SIZE)
    rows = []
    with torch_threads(1):
        loaders = {name: _loader(name, data, image_size) for name in PIPELINES}
        for repetition in range(repetitions):
            for name, loader in loaders.items():
                begun = time.perf_counter()
                loaded = sum(len(next(loader)[0]) for _ in range(batches))
                seconds = time.perf_counter() - begun
                rows.append((name, image_size, _BATCH_SIZE, repetition, loaded, seconds, loaded / seconds))
    columns = ["pipeline", "image_size", "batch_size", "repetition", "images", "seconds", "images_per_second"]
    return pd.DataFrame(rows, columns=columns)


def summarize_loading(measured: pd.DataFrame, needs: Sequence[float] = ()) -> pd.DataFrame:
    """One row per pipeline: the median, lowest and highest images/s of one core, and cores for what a GPU takes.

    `needs`: images/s that a training processes on one GPU; each adds a column "cores for X/s". The training process
    itself wants one more.
    """
    rates = measured.groupby("pipeline", sort=False)["images_per_second"]
    table = pd.DataFrame({"images/s": rates.median(), "lowest": rates.min(), "highest": rates.max()})
    for need in needs:
        table[f"cores for {need:g}/s"] = cores_needed(need, table["images/s"])
    return table.reset_index()


def cores_needed(images_per_second: float, images_per_second_per_core: pd.Series) -> pd.Series:
    """Whole cores that load at least `images_per_second` when one core loads `images_per_second_per_core`."""
    return np.ceil(images_per_second / images_per_second_per_core).astype(int)


def _loader(pipeline: str, data: Data, image_size: int) -> Iterator[Batch]:
    """Endless batches; the first is loaded here, since it finds out that the images do not fit into memory."""
    recipe = TrainingConfig.for_teacher if pipeline == "teacher" else TrainingConfig.for_student
    config = recipe(variant="deit_small_patch16_224", batch_size=_BATCH_SIZE, warmup_epochs=0, workers=0)
    size = (3, image_size, image_size)
    if pipeline == "evaluation":
        loader = eval_loader(data, config, size)
    else:
        loader = train_loader(data, config, size, IMAGENET_DEFAULT_MEAN)
    batches = chain.from_iterable(map(loader.epoch, count()))
    next(batches)
    return batches
