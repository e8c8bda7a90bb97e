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


def flips(run: StoredRun) -> pd.DataFrame:
    """The share of all binary weights whose sign an epoch changed: columns epoch, flip_rate."""
    rates = read_table(run.folder, "weight_flips.csv")
    rates = rates.merge(read_table(run.folder, "latent_layers.csv")[["layer", "weights"]], on="layer")
    rates["flipped"] = rates["flip_rate"] * rates["weights"]
    sums = rates.groupby("epoch", as_index=False)[["flipped", "weights"]].sum()
    return pd.DataFrame({"epoch": sums["epoch"], "flip_rate": sums["flipped"] / sums["weights"]})


@torch.no_grad()
def changed_weights(model: nn.Module, initial: nn.Module) -> pd.DataFrame:
    """One row per binary layer: its signs and scales against those of the untrained model.

    Columns layer, weights (their number), share_positive (of the signs), flipped (share of signs that differ from the
    initial ones), mean_scale (of the rows), scale_ratio (mean_scale over the initial one). `model` may have no latent
    weights any more. Raises BinaryViTError for a model without binary weights.
    """
    rows = []
    before = binary_layers(initial)
    for name, layer in binary_layers(model).items():
        weight, untrained = (each.effective_weight().detach().flatten(1).double() for each in (layer, before[name]))
        scale = weight.abs().mean()
        rows.append(
            {
                "layer": name,
                "weights": weight.numel(),
                "share_positive": (weight > 0).double().mean().item(),
                "flipped": ((weight > 0) != (untrained > 0)).double().mean().item(),
                "mean_scale": scale.item(),
                "scale_ratio": (scale / untrained.abs().mean()).item(),
            }
        )
    if not rows:
        raise BinaryViTError(f"This {type(model).__name__} has no binary weights; choose a model with weight_bits=1.")
    return pd.DataFrame(rows)
