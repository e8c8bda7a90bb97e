"""What the numbers on activations and weights say: for each figure its claim, which is its title, and a finding."""

import pandas as pd

from binaryvit.analysis.activations.layer_kinds import kind_of
from binaryvit.analysis.wording import listed, span

NEAR = 0.5  # of a layer's initial scale: so near to 0 a latent weight is said to be near its flip
_ANOTHER_SHARE = 0.1  # relative change from which a share is called another one
_NEARLY_BALANCED = 0.9  # bits from which a sign is called nearly balanced
_NEARLY_ALL = 0.9  # share of the values looked at from which nearly all are said to differ


def of_histograms(histograms: pd.DataFrame) -> tuple[str, str]:
    """Whether most pre-sign activations lie where the sign passes a gradient."""
    kind = histograms["layer"].map(kind_of)
    kinds, runs, both = (shares_inside(histograms, by) for by in (kind, "label", [kind, "label"]))
    lowest = both.groupby(level=0, sort=False).min()
    outside = lowest.index[lowest <= 0.5]
    where = "in every kind of layer and model"
    if len(outside):
        where = f"in every model in all kinds of layers but {listed(outside)}"
    claim = f"Most pre-sign activations lie within ±1, where a gradient passes, {where}"
    if len(outside) == len(lowest):
        claim = f"Within ±1, where a gradient passes, lie {span(both, '{:.0%}')} of a model's pre-sign activations"
    return claim, f"By kind of layer the share is {_ends(kinds, '{:.0%}')}, by model {span(runs, '{:.0%}')}."


def of_signs(signs: pd.DataFrame) -> tuple[str, str]:
    """How much a sign says, and how many never change."""
    medians = signs.groupby([signs["layer"].map(kind_of), "label"])["entropy"].median()
    lowest = medians.unstack().idxmin()  # the kind of layer, by model
    kind = min(lowest.mode(), key=lambda name: medians[name].min())
    least = "nearly balanced, least" if medians.min() > _NEARLY_BALANCED else "least balanced"
    models = (lowest == kind).sum()
    where = "every model" if models == len(lowest) else f"{models} of {len(lowest)} models"
    sums = (signs["entropy"] * signs["channels"]).groupby(signs["label"]).sum()
    bits = sums / signs.groupby("label")["channels"].sum()
    bits_there = span(medians[kind][lowest == kind], "{:.2f}")
    place = kind if " of " in kind else f"the input of {kind}"
    claim = f"In {where} signs are {least} at {place}: {bits_there} bits in the median layer"
    return claim, (
        f"On average over a model's channels, a sign carries {span(bits, '{:.2f}')} bits. {signs['dead'].sum():,} of "
        f"{signs['channels'].sum():,} channels are dead: their sign is the same for every token of every image."
    )


def of_latent_weights(latent: pd.DataFrame) -> tuple[str, str]:
    """Whether training moved latent weights away from their threshold, or towards it."""
    near = shares_near(latent)
    claim = "Training leaves as many latent weights near 0, where their sign flips, as there were"
    if abs(near["trained"] / near["initial"] - 1) > _ANOTHER_SHARE:
        does, way = ("spreads", "falls") if near["trained"] < near["initial"] else ("gathers", "rises")
        shares = f"from {near['initial']:.0%} to {near['trained']:.0%}"
        claim = f"Training {does} latent weights: the share near 0, where signs flip, {way} {shares}"
    ends = pd.Series({label: shares_near(own)["trained"] for label, own in latent.groupby("label", sort=False)})
    return claim, (
        f"Near is nearer than {NEAR} times a layer's mean scale before training; by model, "
        f"{_ends(ends, '{:.0%}')} of the latent weights end there."
    )


def of_flipped_signs(layers: pd.DataFrame) -> tuple[str, str]:
    """How many weights ended with another sign than they were initialized with."""
    weighted = (layers["flipped"] * layers["weights"]).groupby(layers["label"], sort=False).sum()
    runs = weighted / layers.groupby("label", sort=False)["weights"].sum()
    kinds = layers.groupby(layers["layer"].map(kind_of))["flipped"].median()
    ends = span(layers["flipped"], "{:.0%}")
    return f"{ends} of a layer's weights end with another sign than they started with (by chance: 50%)", (
        f"Of a model's weights {span(runs, '{:.0%}')} end with another sign. By kind of layer, the median is "
        f"{_ends(kinds, '{:.0%}')}."
    )


def of_distinct_values(values: pd.DataFrame) -> tuple[str, str]:
    """What shortcuts add to the products' few values in the model as it is."""
    products, sums = (values[values["step"].str.endswith(end)] for end in ("binary product", "+ shortcut"))
    used = (products["median"] / products["bound"]).median()
    claim = f"A channel takes {span(products['median'], '{:,.0f}')} values after a binary product"
    return f"{claim}, after its shortcut {_counted(sums)}", (
        f"A product takes {used:.0%} of the values that its length allows. Real-valued shortcuts from the "
        "full-precision stem hide this; the next figure counts without them."
    )


def of_one_bit(values: pd.DataFrame) -> tuple[str, str]:
    """What a block makes of one bit a channel."""
    steps = values.pivot_table("median", "label", "step", aggfunc="median", sort=False)
    ratio = steps["FFN 2: + shortcut"] / steps["FFN 2: batch norm"]
    products = values.loc[values["bound"].notna(), "median"]
    first = values[values["step"].isin(["query: + shortcut", "FFN 1: + shortcut"])]
    built = values[values["step"].isin(["context: + q + k + v", "FFN 2: + shortcut"])]
    least = "at least " * bool(_are_nearly_all(built))  # where nearly all differ, more could have
    claim = f"Fed only signs, a channel takes {span(first['median'], '{:,.0f}')} values after query or FFN 1"
    return f"{claim} with its shortcut, after context or FFN 2 with theirs {_counted(built)}", (
        f"A binary product makes {span(products, '{:,.0f}')} values; the second shortcut of the FFN, which averages "
        f"channels, multiplies them by {least}{span(ratio, '{:.0f}')}."
    )


def _counted(values: pd.DataFrame) -> str:
    """How many values differ; where nearly all do, how many differ depends on how many were looked at."""
    return "nearly as many as are looked at" if _are_nearly_all(values) else span(values["median"], "{:,.0f}")


def _are_nearly_all(values: pd.DataFrame) -> bool:
    return (values["median"] / values["observations"]).groupby(values["label"]).median().min() > _NEARLY_ALL


def of_values_read(table: pd.DataFrame) -> tuple[str, str]:
    """What the classifier is left with where the final tokens are signs."""
    read = table.groupby("label", sort=False)["median"].median()
    cls = table.groupby("label", sort=False)["tokens"].first() == 1
    claim = f"If final tokens were signs, a channel would take {span(read[~cls], '{:,g}')} values in their mean"
    if cls.any() and not cls.all():
        claim += f", {span(read[cls], '{:,g}')} in a CLS token"
    elif cls.all():
        claim = f"If the CLS token were signs, a channel would take {span(read, '{:,g}')} values"
    return claim, (
        f"The classifier then reads {_ends(read, '{:,g}')}. A mean of N tokens takes at most N + 1 values, so a "
        "pyramid, which ends with fewer tokens, has fewer."
    )


def shares_inside(
    histograms: pd.DataFrame, by: str | pd.Series | list[str | pd.Series], window: float = 1
) -> pd.Series:
    """Which share of pre-sign activations lies within ±window, an edge of the bins, by columns or Series.

    The mean of layers: each counts as much as any other, however many tokens it has.
    """
    inside = (histograms["bin_left"] >= -window) & (histograms["bin_right"] <= window)
    layer = [histograms["run"], histograms["layer"]]
    share = histograms["count"].where(inside, 0).groupby(layer).transform("sum")
    share /= histograms["count"].groupby(layer).transform("sum")
    once = ~histograms.duplicated(["run", "layer"])
    return histograms.assign(share=share)[once].groupby(by, sort=False)["share"].mean()


def shares_near(latent: pd.DataFrame) -> dict[str, float]:
    """Which share of the latent weights lies within NEAR of its threshold, by when: "initial", "trained"."""
    return {when: within(own, NEAR) / own["run"].nunique() for when, own in latent.groupby("when")}


def within(latent: pd.DataFrame, distance: float) -> float:
    """The sum of the shares of latent weights nearer to their threshold than a distance, an edge of the bins."""
    near = (latent["bin_left"] >= -distance) & (latent["bin_right"] <= distance)
    return float(latent.loc[near, "share"].sum())


def _ends(numbers: pd.Series, form: str) -> str:
    """The range of a number, with what has the least and the most of it."""
    low, high = (form.format(number) for number in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} ({numbers.idxmin()}) to {high} ({numbers.idxmax()})"
