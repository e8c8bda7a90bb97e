"""Binary weights against those before training, from what a run left in its folder; no data are needed."""

import pandas as pd
import torch
from torch import nn

from binaryvit.analysis.stored import StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import binary_layers
from binaryvit.records.run_record import read_table
from binaryvit.training.build import create_model
from binaryvit.training.latent import latent_histograms


def initial_model(run: StoredRun) -> nn.Module:
    """The run's model as its seed made it, before the first step."""
    return create_model(run.config, run.record.data.num_classes)


def latent_distribution(run: StoredRun) -> pd.DataFrame:
    """The latent weights in units of their row's scale, all layers together, before and after training.

    Columns when ("initial", "trained"), bin_left, bin_right, share (of all binary weights).
    """
    of = {"initial": latent_histograms(initial_model(run)), "trained": read_table(run.folder, "latent_weights.csv")}
    tables = []
    for when, layers in of.items():
        counts = layers.groupby(["bin_left", "bin_right"], as_index=False)["count"].sum()
        share = counts["count"] / counts["count"].sum()
        tables.append(counts.assign(when=when, share=share)[["when", "bin_left", "bin_right", "share"]])
    return pd.concat(tables, ignore_index=True)


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
