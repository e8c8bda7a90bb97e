"""The tables that grow during a run: one row per epoch, and one per epoch and layer for the binary parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from binaryvit.files import write_text_atomically
from binaryvit.models.layers import BinaryActivation, attention_levels
from binaryvit.records.run_record import METRICS_FILE

Rows = list[dict[str, Any]]

METRICS = (
    "epoch", "lr", "train_loss", "distillation_loss", "label_loss", "train_top1",
    "eval_loss", "top1", "top5", "images_per_second", "flip_rate", "seconds",
)  # fmt: skip

FLIPS_FILE = "weight_flips.csv"
LEVELS_FILE = "attention_levels.csv"
SHIFTS_FILE = "activation_shifts.csv"
LAYER_TABLES = {
    FLIPS_FILE: ("epoch", "layer", "flip_rate"),
    LEVELS_FILE: ("epoch", "layer", "level"),
    SHIFTS_FILE: ("epoch", "layer", "mean_absolute_shift"),
}


@torch.no_grad()
def activation_shifts(model: nn.Module) -> dict[str, float]:
    """The mean over channels of |b|, of each layer that adds a shift b before it takes a sign."""
    shifts = {
        name: module.shift.abs().mean()
        for name, module in model.named_modules()
        if isinstance(module, BinaryActivation)
    }
    return dict(zip(shifts, torch.stack([*shifts.values()]).tolist(), strict=True)) if shifts else {}


def best_epoch(metrics: Rows) -> dict[str, Any]:
    """The row of the epoch with the highest top-1, the first of equals."""
    return max(metrics, key=lambda row: row["top1"])


def write_tables(run_dir: Path, metrics: Rows, layers: Mapping[str, Rows]) -> None:
    """Writes metrics.csv, and those of `LAYER_TABLES` that the model has rows for."""
    tables = {METRICS_FILE: (METRICS, metrics)}
    tables |= {file: (LAYER_TABLES[file], rows) for file, rows in layers.items() if rows}
    for file, (columns, rows) in tables.items():
        write_text_atomically(run_dir / file, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False))


def append_layers(tables: dict[str, Rows], epoch: int, model: nn.Module, flips: Mapping[str, float]) -> list[str]:
    """Adds an epoch's rows (numbered from 1) to the tables of `LAYER_TABLES`, in place.

    Returns the layers whose attention level fell to zero or below for the first time.
    """
    levels = {f"{layer}.binarize_attn": level for layer, level in attention_levels(model).items()}
    known = {row["layer"] for row in tables.get(LEVELS_FILE, []) if row["level"] <= 0}
    measured = {FLIPS_FILE: flips, LEVELS_FILE: levels, SHIFTS_FILE: activation_shifts(model)}
    for file, values in measured.items():
        rows = [dict(zip(LAYER_TABLES[file], (epoch, layer, value), strict=True)) for layer, value in values.items()]
        tables.setdefault(file, []).extend(rows)
    return [layer for layer, level in levels.items() if level <= 0 and layer not in known]
