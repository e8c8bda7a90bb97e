"""Whole models on many images: packed logits against those of the evaluation mode.

By default, two random images of one variant (test_engine.py has the others). The counts in docs/fidelity.md come from:

    BINARYVIT_EXACT_IMAGES=1000 pytest -s tests/packed/test_exactness.py     # random images, both families
    BINARYVIT_CIFAR10=FOLDER pytest -s tests/packed/test_exactness.py        # the test split, micro family
    BINARYVIT_CIFAR10=FOLDER BINARYVIT_RUNS=FOLDER pytest -s ...             # and the weights of the runs in a folder

BINARYVIT_EXACT_SEED chooses other random models and images.
"""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from helpers.compilers import needs_compiler
from helpers.scattered import images_for, scattered
from PIL import Image
from torch import Tensor, nn

from binaryvit.data.images import to_rgb
from binaryvit.data.sources import open_source
from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Preprocessing
from binaryvit.models.ladder import LADDER
from binaryvit.models.weights_file import load_inference_weights, read_weights_file
from binaryvit.packed.classify import prepare
from binaryvit.packed.engine import PackedModel, pack

IMAGES = int(os.environ.get("BINARYVIT_EXACT_IMAGES", 0))
SEED = int(os.environ.get("BINARYVIT_EXACT_SEED", 0))
CIFAR10, RUNS = os.environ.get("BINARYVIT_CIFAR10"), os.environ.get("BINARYVIT_RUNS")
STORED = sorted(Path(RUNS).rglob("weights.safetensors")) if RUNS else []
MICRO, SMALL = LADDER["micro"][1:], LADDER["small"][1:]
BATCH = 25

pytestmark = needs_compiler
needs_cifar10 = pytest.mark.skipif(CIFAR10 is None, reason="BINARYVIT_CIFAR10 names no folder")


@torch.inference_mode()
def assert_agreement(name: str, model: nn.Module, packed: PackedModel, batches: Iterable[Tensor]) -> None:
    """Bit-equal logits for all images; prints how many, the largest relative difference and how often classes agree."""
    assert packed.instructions != "PyTorch"
    expected, logits = map(torch.cat, zip(*((model(images), packed(images)) for images in batches), strict=True))
    relative = (logits - expected).abs().amax(1) / expected.abs().amax(1)
    same_class, equal = logits.argmax(1) == expected.argmax(1), (logits == expected).all(1)
    print(
        f"\n{name}: {len(equal)} images, logits of {equal.sum()} bit-equal, largest relative difference "
        f"{relative.max():.1g}, same class for {same_class.sum()}, {len(logits.argmax(1).unique())} classes chosen"
    )
    assert equal.all()


@pytest.mark.parametrize("variant", [*MICRO, *SMALL] if IMAGES else MICRO[-1:])
def test_random_images(variant: str) -> None:
    model = scattered(variant, SEED)
    count = IMAGES or 2
    batches = (images_for(model, min(BATCH, count - start)) for start in range(0, count, BATCH))
    assert_agreement(variant, model, pack(model), batches)


@needs_cifar10
@pytest.mark.parametrize("variant", MICRO)
def test_cifar10_with_scattered_parameters(variant: str) -> None:
    model = scattered(variant, SEED)
    assert_agreement(variant, model, pack(model), cifar10(Preprocessing.of(model, crop_pct=1.0)))


@needs_cifar10
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_cifar10_with_trained_weights(path: Path) -> None:
    model = load_inference_weights(path)
    try:
        packed = pack(model)
    except BinaryViTError as error:  # a model of 32 bits
        pytest.skip(str(error))
    description = read_weights_file(path).description
    batches = cifar10(description.preprocessing or Preprocessing.of(model, crop_pct=1.0))
    assert_agreement(f"{path.parent.name} ({description.variant})", model, packed, batches)


def cifar10(prepared: Preprocessing) -> Iterator[Tensor]:
    """The test split, as a model takes it."""
    images = _cifar10_images()
    for start in range(0, len(images), 100):
        yield prepare(images[start : start + 100], prepared)


@lru_cache
def _cifar10_images() -> list[Image.Image]:
    return [to_rgb(row["image"]) for row in open_source("cifar10", CIFAR10).splits["test"]]
