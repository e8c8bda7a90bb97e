"""How the time of packed inference grows with the size of the image, the depth and the batch."""

import time
from typing import Any

import pandas as pd
import timm
import torch

from binaryvit.models.cost import Cost, cost
from binaryvit.models.ladder import BINARYVIT
from binaryvit.packed import PackedModel, pack

IMAGE_SIZES = {"small": (96, 160, 224, 288, 384), "micro": (32, 48, 64)}
DEPTHS = (0.5, 1.0, 2.0)
"""As parts of the model's own."""
BATCH_SIZES = (1, 2, 4, 8, 16)


def measure_scaling(family: str = "small", repetitions: int = 15, threads: int = 1) -> pd.DataFrame:
    """Measures a family's BinaryViT at other sizes, in turns.

    Returns:
        One row per model and turn: what (image size, depth, batch size), value, batch_size,
        threads, repetition, seconds (per image), and of an image gop (1e9 binary multiplications and additions) and
        elementwise_gop (1e9 operations on floats, as `cost` counts them).
    """
    variant = BINARYVIT[family]
    depths = [len(stage.blocks) for stage in timm.create_model(variant).stages]
    cases = (
        [("image size", size, 1, dict(img_size=size)) for size in IMAGE_SIZES[family]]
        + [("depth", part, 1, dict(depths=tuple(max(1, round(part * depth)) for depth in depths))) for part in DEPTHS]
        + [("batch size", size, size, {}) for size in BATCH_SIZES]
    )
    made = [(what, value, batch, *_made(variant, arguments, threads)) for what, value, batch, arguments in cases]
    rows = []
    for repetition in range(repetitions):
        for what, value, batch_size, packed, counted in made:
            images = torch.randn(batch_size, *packed.input_size)
            packed(images)
            begun = time.perf_counter()
            packed(images)
            seconds = (time.perf_counter() - begun) / batch_size
            gops = 2e-9 * counted.bops, 1e-9 * counted.elementwise
            rows.append((what, value, batch_size, threads, repetition, seconds, *gops))
    columns = ["what", "value", "batch_size", "threads", "repetition", "seconds", "gop", "elementwise_gop"]
    return pd.DataFrame(rows, columns=columns)


def summarize_scaling(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per model: ms per image (median, lowest, highest), and the Gop/s of its binary products."""
    of_model = measured.groupby(["threads", "what", "value", "gop", "elementwise_gop"], sort=False)["seconds"]
    table = pd.DataFrame({
        "ms/image": 1000 * of_model.median(), "lowest": 1000 * of_model.min(), "highest": 1000 * of_model.max(),
    }).reset_index()  # fmt: skip
    return table.assign(**{"Gop/s": 1000 * table["gop"] / table["ms/image"]})


def _made(variant: str, arguments: dict[str, Any], threads: int) -> tuple[PackedModel, Cost]:
    model = timm.create_model(variant, **arguments).eval()
    return pack(model, threads), cost(model)
