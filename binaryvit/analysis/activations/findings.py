"""What the numbers on activations and weights say: for each figure its claim, which is its title, and a finding."""

import pandas as pd

from binaryvit.analysis.activations.layer_kinds import kind_of

_NEARLY_BALANCED = 0.9  # bits from which a sign is called nearly balanced
_NEARLY_ALL = 0.9  # share of the values looked at from which nearly all are said to differ


def of_histograms(histograms: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: where the pre-sign activations lie."""
    in_window = (histograms["bin_left"] >= -1) & (histograms["bin_right"] <= 1)
    counts = histograms.assign(inside=histograms["count"].where(in_window, 0), kind=histograms["layer"].map(kind_of))
    runs, kinds = (
        sums["inside"] / sums["count"]
        for sums in (counts.groupby(by, sort=False)[["inside", "count"]].sum() for by in ("label", "kind"))
    )
    claim = f"{_percent(runs)} of the pre-sign activations lie where the sign passes a gradient"
    return claim, (
        f"By kind of layer it is {_ends(kinds, '{:.0%}')}. Between the models the share differs by "
        f"{100 * (runs.max() - runs.min()):.0f} points: {_ends(runs, '{:.1%}')}."
    )


def of_signs(signs: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how much a sign says, and how many never change."""
    sums = signs[["entropy", "mean_absolute_shift"]].mul(signs["channels"], axis=0).assign(channels=signs["channels"])
    runs, kinds = (
        means["entropy"] / means["channels"]
        for means in (sums.groupby(by, sort=False).sum() for by in (signs["label"], signs["layer"].map(kind_of)))
    )
    balanced = "Signs are nearly balanced: each" if runs.min() > _NEARLY_BALANCED else "A channel's sign"
    claim = f"{balanced} carries {_number(runs, '{:.2f}')} of at most 1 bit"
    shift = sums["mean_absolute_shift"].sum() / sums["channels"].sum()
    dead, channels = signs["dead"].sum(), signs["channels"].sum()
    return claim, (
        f"By kind of layer it is {_ends(kinds, '{:.2f}')} bits, and {dead:,} of {channels:,} channels are dead: their "
        f"sign is the same for every token of every image. The learned shifts are {shift:.3f} in size on average; they "
        "start at 0."
    )


def of_weights(latent: pd.DataFrame, flips: pd.DataFrame, layers: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how far training moved the weights."""
    weighted = (layers["flipped"] * layers["weights"]).groupby(layers["label"], sort=False).sum()
    flipped = weighted / layers.groupby("label", sort=False)["weights"].sum()
    claim = f"Training left {_percent(1 - flipped)} of the initial signs as they were"
    near = {when: 100 * within(own, 0.5) / own["run"].nunique() for when, own in latent.groupby("when")}
    epochs = flips.groupby("label", sort=False)["flip_rate"]
    last = f", in the last {_percent(epochs.last(), '{:.1%}')}" if flips["epoch"].nunique() > 1 else ""
    return claim, (
        f"In the first epoch {_percent(epochs.first(), '{:.1%}')} of the signs flipped{last}. Before training "
        f"{near['initial']:.0f} % of the latent weights were nearer to their threshold than half the scale of their "
        f"row, now {near['trained']:.0f} % are."
    )


def of_distinct_values(values: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: what shortcuts add to the products' few values in the model as it is."""
    products, sums = (values[values["step"].str.endswith(end)] for end in ("binary product", "+ shortcut"))
    share = (sums["median"] / sums["observations"]).groupby(sums["label"], sort=False).median()
    used = (products["median"] / products["bound"]).median()
    if share.min() > _NEARLY_ALL:
        claim = "With their shortcuts, nearly all values of a channel differ, in every variant alike"
    else:
        claim = f"With its shortcut, {_percent(share)} of a layer's values differ"
    return claim, (
        f"A binary product takes {products['median'].min():,.0f} to {products['median'].max():,.0f} values in the "
        f"median channel, {100 * used:.0f} % of what its length allows. Real-valued shortcuts from the full-precision "
        "stem hide this; the next figure counts without them."
    )


def of_one_bit(values: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: what a block makes of one bit a channel, and what the classifier is left with."""
    steps = values.pivot_table("median", "label", "step", aggfunc="median", sort=False)
    read = steps["head: pooled"]
    claim = f"From one bit a channel, the classifier reads {_number(read, '{:,.0f}')} values"
    products = values.loc[values["bound"].notna(), "median"]
    pooled = steps["pooling branches"].dropna() if "pooling branches" in steps else pd.Series()
    branches = f"; the pooling branches make {_number(pooled, '{:,.0f}')}" if len(pooled) else ""
    return claim, (
        f"It reads {_ends(read, '{:,.0f}')}. Inside a block, a binary product makes {products.min():,.0f} to "
        f"{products.max():,.0f} values, a one-bit shortcut multiplies them by "
        f"{_ratio(steps, 'MLP 1: + shortcut', 'MLP 1: batch norm')}, and one that averages channels by "
        f"{_ratio(steps, 'MLP 2: + shortcut', 'MLP 2: batch norm')}{branches}."
    )


def within(latent: pd.DataFrame, distance: float) -> float:
    """The sum of the shares of latent weights nearer to their threshold than a distance, an edge of the bins."""
    near = (latent["bin_left"] >= -distance) & (latent["bin_right"] <= distance)
    return float(latent.loc[near, "share"].sum())


def _ratio(steps: pd.DataFrame, after: str, before: str) -> str:
    return _number(steps[after] / steps[before], "{:.1f}")


def _number(numbers: pd.Series, form: str) -> str:
    """The range of a number."""
    return " to ".join(dict.fromkeys(form.format(number) for number in (numbers.min(), numbers.max())))


def _percent(shares: pd.Series, form: str = "{:.0%}") -> str:
    return _number(shares, form).replace("%", " %")


def _ends(numbers: pd.Series, form: str) -> str:
    """The range of a number, with what has the least and the most of it."""
    low, high = (form.format(number).replace("%", " %") for number in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} ({numbers.idxmin()}) to {high} ({numbers.idxmax()})"
