"""Binary weights against those before training, from what a run left in its folder; no data are needed."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from binaryvit.analysis.stored import StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import binary_layers
from binaryvit.records.run_record import read_table
from binaryvit.training.build import create_model
from binaryvit.training.latent import latent_histograms, latent_layers
from binaryvit.training.train import HISTOGRAM_FILE, LATENT_LAYERS_FILE

# In units of a layer's initial scale; the initializer spreads weights evenly between -2 and 2.
LATENT_EDGES = np.concatenate([[-np.inf], np.linspace(-10, 10, 81), [np.inf]])


def initial_model(run: StoredRun) -> nn.Module:
    """The run's model as its seed made it, before the first step."""
    return create_model(run.config, run.record.data.num_classes)


def latent_distribution(run: StoredRun) -> pd.DataFrame:
    """The latent weights before and after training, in units of the mean scale that their layer started with.

    A run keeps them as histograms in units of each row's own scale, and each layer's mean scale. The bins are placed as
    if all rows of a layer had the mean scale, and within a bin weights are taken as spread evenly; all beyond the
    outermost edges is in the last bins.

    Columns when ("initial", "trained"), bin_left, bin_right, share (of all binary weights).
    """
    untrained = initial_model(run)
    started = latent_layers(untrained).set_index("layer")["mean_scale"]
    ended = read_table(run.folder, LATENT_LAYERS_FILE).set_index("layer")["mean_scale"]
    factors = {"initial": started / started, "trained": ended / started}
    of = {"initial": latent_histograms(untrained), "trained": read_table(run.folder, HISTOGRAM_FILE)}
    tables = []
    for when, layers in of.items():
        counts = sum(_rebinned(layer, factors[when][name]) for name, layer in layers.groupby("layer"))
        bins = {"when": when, "bin_left": LATENT_EDGES[:-1], "bin_right": LATENT_EDGES[1:]}
        tables.append(pd.DataFrame({**bins, "share": counts / counts.sum()}))
    return pd.concat(tables, ignore_index=True)


def _rebinned(layer: pd.DataFrame, factor: float) -> np.ndarray:
    """The counts of one layer's histogram, its edges times a factor, in the bins of LATENT_EDGES."""
    below = layer["count"].cumsum().iloc[:-1]  # how many weights lie below each edge between two bins
    inner = np.interp(LATENT_EDGES[1:-1], factor * layer["bin_right"].iloc[:-1], below)
    return np.diff(inner, prepend=0, append=layer["count"].sum())


@torch.no_grad()
def changed_weights(model: nn.Module, initial: nn.Module) -> pd.DataFrame:
    """One row per binary layer: columns layer, weights (their number), flipped (share that has not its initial sign).

    `model` may have no latent weights any more. Raises BinaryViTError for a model without binary weights.
    """
    rows = []
    before = binary_layers(initial)
    for name, layer in binary_layers(model).items():
        now, untrained = (each.effective_weight() > 0 for each in (layer, before[name]))
        flipped = (now != untrained).double().mean().item()
        rows.append({"layer": name, "weights": now.numel(), "flipped": flipped})
    if not rows:
        raise BinaryViTError(f"This {type(model).__name__} has no binary weights; choose a model with weight_bits=1.")
    return pd.DataFrame(rows)
