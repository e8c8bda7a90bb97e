"""What became of a model's binary parts epoch by epoch, one row per epoch and layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from binaryvit.models.layers import AttentionBinarizer, BinaryActivation

FLIPS_FILE = "weight_flips.csv"
LEVELS_FILE = "attention_levels.csv"
SHIFTS_FILE = "activation_shifts.csv"
COLUMNS = {
    FLIPS_FILE: ("epoch", "layer", "flip_rate"),
    LEVELS_FILE: ("epoch", "layer", "level"),
    SHIFTS_FILE: ("epoch", "layer", "mean_absolute_shift"),
}


@torch.no_grad()
def attention_levels(model: nn.Module) -> dict[str, float]:
    """The learned level a of each layer that binarizes attention probabilities to {0, a}."""
    levels = {name: module.level for name, module in model.named_modules() if isinstance(module, AttentionBinarizer)}
    return dict(zip(levels, torch.stack([*levels.values()]).tolist(), strict=True)) if levels else {}


@torch.no_grad()
def activation_shifts(model: nn.Module) -> dict[str, float]:
    """The mean over channels of |b|, of each layer that adds a shift b before it takes a sign."""
    shifts = {
        name: module.shift.abs().mean()
        for name, module in model.named_modules()
        if isinstance(module, BinaryActivation)
    }
    return dict(zip(shifts, torch.stack([*shifts.values()]).tolist(), strict=True)) if shifts else {}


def append_epoch(
    tables: dict[str, list[dict[str, Any]]], epoch: int, model: nn.Module, flips: Mapping[str, float]
) -> list[str]:
    """Adds an epoch's rows (numbered from 1) to the tables of `COLUMNS`, in place.

    Returns the layers whose attention level fell to zero or below for the first time.
    """
    levels = attention_levels(model)
    known = {row["layer"] for row in tables.get(LEVELS_FILE, []) if row["level"] <= 0}
    measured = {FLIPS_FILE: flips, LEVELS_FILE: levels, SHIFTS_FILE: activation_shifts(model)}
    for file, values in measured.items():
        rows = [dict(zip(COLUMNS[file], (epoch, layer, value), strict=True)) for layer, value in values.items()]
        tables.setdefault(file, []).extend(rows)
    return [layer for layer, level in levels.items() if level <= 0 and layer not in known]
