"""Sentences of finding under the figures on activations and weights, made from the numbers that are drawn."""

import numpy as np
import pandas as pd

from binaryvit.analysis.activations import distinct_values
from binaryvit.analysis.activations.figures import within


def of_histograms(histograms: pd.DataFrame, counted_on: str) -> str:
    """Where the pre-sign activations lie, on average and in the extreme layers."""
    counts = histograms.assign(
        inside=histograms["count"].where((histograms["bin_left"] >= -1) & (histograms["bin_right"] <= 1), 0),
        beyond=histograms["count"].where(np.isinf(histograms["bin_left"]) | np.isinf(histograms["bin_right"]), 0),
    )
    sums = counts.groupby(["label", "layer"], sort=False)[["inside", "beyond", "count"]].sum()
    layers = sums["inside"] / sums["count"]
    of_runs = sums.groupby("label", sort=False).sum()
    runs = of_runs["inside"] / of_runs["count"]
    (low_run, low_layer), (high_run, high_layer) = layers.idxmin(), layers.idxmax()
    edge = histograms["bin_right"][np.isfinite(histograms["bin_right"])].max()
    return (
        f"On {counted_on}, {_span(runs, '{:.1%}')} of the pre-sign activations lie inside the window, so that their "
        f"sign passes a gradient on. Between layers that share goes from {layers.min():.1%} ({low_layer} of {low_run}) "
        f"to {layers.max():.1%} ({high_layer} of {high_run}). Of all activations, "
        f"{of_runs['beyond'].sum() / of_runs['count'].sum():.2%} lie beyond ±{edge:g}."
    )


def of_signs(signs: pd.DataFrame) -> str:
    """Balance, dead channels, entropy and shifts: by variant, and where they are worst."""
    weighted = signs[["entropy", "mean_absolute_shift"]].mul(signs["channels"], axis=0)
    sums = weighted.assign(dead=signs["dead"], channels=signs["channels"]).groupby(signs["label"], sort=False).sum()
    means = sums.div(sums["channels"], axis=0)
    width = (signs["share_positive_high"] - signs["share_positive_low"]).groupby(signs["label"], sort=False).mean()
    lowest = signs.loc[signs["entropy"].idxmin()]
    if sums["dead"].sum():
        most = signs.loc[(signs["dead"] / signs["channels"]).idxmax()]
        dead = (
            f"{_span(means['dead'], '{:.2%}')} of the channels are dead, their sign being the same for every token of "
            f"every image; the most in one layer are {most['dead']} of {most['channels']}, in {most['layer']} of "
            f"{most['label']}."
        )
    else:
        dead = f"Of {sums['channels'].sum():,} channels none is dead: each sign changes at least once."
    return (
        f"Within its channel a sign carries {_span(means['entropy'], '{:.2f}')} bits on average, where balanced ones "
        f"would carry 1; the least in {lowest['layer']} of {lowest['label']} ({lowest['entropy']:.2f} bits). {dead} "
        f"The share of +1 in the middle 80 % of a layer's channels spreads over {_span(100 * width, '{:.0f}')} points "
        f"(mean of layers). The learned shifts are {_span(means['mean_absolute_shift'], '{:.3f}')} in size on average, "
        "the window reaching from -1 to 1."
    )


def of_weights(latent: pd.DataFrame, flips: pd.DataFrame, scales: pd.DataFrame, layers: pd.DataFrame) -> str:
    """How near the latent weights are to their thresholds, how many flip, and how scales and signs are spread."""
    near = pd.Series({label: within(frame)[0.5] for label, frame in latent.groupby("label", sort=False)})
    epochs = flips.groupby("label", sort=False)["flip_rate"]
    inside = np.average(layers["share_inside_window"], weights=layers["weights"])
    positive = np.average(scales["share_positive"], weights=scales["weights"])
    flipped = f"In the first epoch {_span(epochs.first(), '{:.1%}')} of the signs flipped"
    if flips["epoch"].nunique() > 1:
        flipped += f", in the last {_span(epochs.last(), '{:.1%}')}"
    return (
        f"{_span(near, '{:.1%}')} of the latent weights are nearer to their threshold than half the scale of their "
        f"row. {flipped}. {inside:.2%} of the latent weights lie inside (-1, 1), where the estimator lets their "
        f"gradient pass; {positive:.1%} of the binary weights are +1. The mean scale of a layer is "
        f"{scales['mean_scale'].min():.3f} to {scales['mean_scale'].max():.3f}."
    )


def of_distinct_values(values: pd.DataFrame) -> str:
    """What shortcuts add to the products' few values in the model as it is."""
    products = values[values["bound"].notna()]
    used = (products["median"] / products["bound"]).median()
    sums = values[values["step"].str.endswith("+ shortcut")]
    share = (sums["median"] / sums["observations"]).groupby(sums["label"], sort=False).median()
    sentences = [
        f"In the median channel of a layer, a binary product takes {products['median'].min():,.0f} to "
        f"{products['median'].max():,.0f} values, {used:.0%} of what its length allows (median of layers); "
        f"{_one_to_one(values)} Behind the addition of the shortcut, {_span(share, '{:.1%}')} of the values looked at "
        "are different ones (median of layers)."
    ]
    if share.min() > 0.9:
        sentences += [
            "The real-valued stream from the full-precision stem thus hides what the binary steps can tell apart, in "
            "every variant alike; the next figure counts without it."
        ]
    return " ".join(sentences)


def of_one_bit(values: pd.DataFrame) -> str:
    """By what factor each kind of step multiplies the values that the step before it left."""
    steps = values.pivot_table("median", "label", "step", aggfunc="median", sort=False)
    products = values.loc[values["bound"].notna(), "median"]
    sentences = [
        f"From one bit per channel, a binary product makes {products.min():,.0f} to {products.max():,.0f} values; "
        f"adding a shortcut of one bit multiplies them by {_ratio(steps, 'MLP 1: + shortcut', 'MLP 1: batch norm')}, "
        f"adding the shortcut of the second MLP layer, a mean of several channels, by "
        f"{_ratio(steps, 'MLP 2: + shortcut', 'MLP 2: batch norm')}; {_one_to_one(values)}"
    ]
    if "pooling branches" in steps:
        pooled = steps["pooling branches"].dropna()
        sentences += [f"The pooling branches make {_span(pooled, '{:,.0f}')} values of the same bits. {_gain(values)}"]
    sentences += [
        f"The affine multiplies the number of values by {_ratio(steps, 'MLP: affine', 'MLP 2: RPReLU')}.",
        f"What the classifier reads takes {_listed(steps['head: pooled'])} values per channel.",
    ]
    return " ".join(sentences)


def _gain(values: pd.DataFrame) -> str:
    """What the pooling branches add to the MLP, in blocks where the images suffice to see it."""
    medians = values.pivot_table("median", ["label", "block"], "step", sort=False).dropna(subset="pooling branches")
    looked_at = values.groupby(["label", "block"])["observations"].max()
    seen = medians[medians["MLP: affine"] < looked_at.loc[medians.index] / 2]
    if seen.empty:
        return "The MLP's own values already are nearly all different, so what they add to it cannot be counted."
    return (
        f"In the {len(seen)} of {len(medians)} blocks where less than half of the MLP's own values are different, they "
        f"multiply their number by {_range(seen[distinct_values.ADDED] / seen['MLP: affine'])}."
    )


def _one_to_one(values: pd.DataFrame) -> str:
    """Whether norm and activation add or lose values."""
    medians = values.pivot_table("median", ["label", "block"], "step", sort=False)
    norm = medians["MLP 1: batch norm"] / medians["MLP 1: binary product"]
    act = medians["MLP 1: RPReLU"] / medians["MLP 1: + shortcut"]
    if norm.min() == norm.max() == 1 and min(act.min(), 1 / act.max()) > 0.99:
        return "batch norm and RPReLU add none."
    return f"batch norm and RPReLU change their number by factors of {_range(norm)} and {_range(act)}."


def _ratio(steps: pd.DataFrame, after: str, before: str) -> str:
    return _span(steps[after] / steps[before], "{:.2f}")


def _range(numbers: pd.Series) -> str:
    return " to ".join(dict.fromkeys(f"{number:.2f}" for number in (numbers.min(), numbers.max())))


def _span(numbers: pd.Series, form: str) -> str:
    """The range of a number over the runs, with the runs at its ends."""
    low, high = form.format(numbers.min()), form.format(numbers.max())
    return low if low == high else f"{low} ({numbers.idxmin()}) to {high} ({numbers.idxmax()})"


def _listed(numbers: pd.Series) -> str:
    return ", ".join(f"{value:,.0f} ({label})" for label, value in numbers.items())
