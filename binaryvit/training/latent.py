"""The latent weights, which only training has, and how often their signs change."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.models.layers import binary_layers

# Bins of (latent weight that the sign is taken of) / (scale of its row), in which rows are comparable.
HISTOGRAM_EDGES = np.concatenate([[-np.inf], np.linspace(-4, 4, 65), [np.inf]])


@torch.no_grad()
def weight_signs(model: nn.Module) -> dict[str, Tensor]:
    """Which binary weights are +1 (zero counts as +1), per layer: packed bits, uint8."""
    return {
        name: torch.from_numpy(np.packbits((layer.centred_weight() >= 0).flatten().cpu().numpy()))
        for name, layer in binary_layers(model).items()
    }


def flip_rates(model: nn.Module, before: Mapping[str, Tensor]) -> tuple[dict[str, float], float | None]:
    """Share of binary weights whose sign differs from `before`: per layer, and of all weights together.

    The total is None for a model without binary weights.
    """
    flips = {name: int(np.unpackbits((now ^ before[name]).numpy()).sum()) for name, now in weight_signs(model).items()}
    sizes = {name: layer.weight.numel() for name, layer in binary_layers(model).items()}
    rates = {name: flips[name] / sizes[name] for name in flips}
    return rates, sum(flips.values()) / sum(sizes.values()) if sizes else None


@torch.no_grad()
def latent_histograms(model: nn.Module) -> pd.DataFrame:
    """How far latent weights are from their threshold: counts per layer and bin of W_c / s.

    Columns layer, bin_left (inclusive), bin_right (exclusive), count; the outermost bins are unbounded.
    """
    rows = []
    for name, layer in binary_layers(model).items():
        ratio = (layer.centred_weight() / layer.scale).nan_to_num(0).flatten().double().cpu().numpy()  # 0/0: a dead row
        counts, _ = np.histogram(ratio, HISTOGRAM_EDGES)
        rows += zip([name] * len(counts), HISTOGRAM_EDGES[:-1], HISTOGRAM_EDGES[1:], counts, strict=True)
    return pd.DataFrame(rows, columns=["layer", "bin_left", "bin_right", "count"])


@torch.no_grad()
def latent_layers(model: nn.Module) -> pd.DataFrame:
    """One row per binary layer: what its latent weights look like.

    Columns layer, weights (their number), mean_scale (mean of s over rows), share_positive (of W_c >= 0),
    share_inside_window (of |W_c| < 1, which the straight-through estimator gives a gradient), mean_distance (of |W_c|).
    """
    rows = []
    for name, layer in binary_layers(model).items():
        centred = layer.centred_weight().double()
        rows.append(
            {
                "layer": name,
                "weights": centred.numel(),
                "mean_scale": layer.scale.double().mean().item(),
                "share_positive": (centred >= 0).double().mean().item(),
                "share_inside_window": (centred.abs() < 1).double().mean().item(),
                "mean_distance": centred.abs().mean().item(),
            }
        )
    columns = ["layer", "weights", "mean_scale", "share_positive", "share_inside_window", "mean_distance"]
    return pd.DataFrame(rows, columns=columns)
