"""What the curves say: for each figure its claim, which is its title, and a finding of at most two sentences."""

import pandas as pd

from binaryvit.analysis.labels import in_words, is_pyramid, most_seeds
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.wording import listed, span, two_digits
from binaryvit.models.ladder import TEACHERS

_FEWEST = 4  # epochs that make a trend
_FAR = 4  # times the median of its seeds, from which a level is named


def of_curves(table: pd.DataFrame) -> tuple[str, str]:
    """From when on the binary models stand in the order in which they end; which models still rose at the end."""
    binary = table[~table["variant"].isin(TEACHERS.values())]
    means = (binary if len(binary) else table).groupby(["label", "epoch"], sort=False)["top1"].mean()
    gains = means.groupby("label", sort=False).diff().groupby("label", sort=False).last().dropna()
    rising = gains[gains > 0]
    finding = "No model's accuracy rose in its last epoch."
    if len(rising):
        finding = (
            f"Accuracy still rose in the last epoch in {len(rising)} of {len(gains)} models, most in "
            f"{rising.idxmax()} ({rising.max():+.2f} points): more epochs may change the order."
        )
    if binary["label"].nunique() < 2:
        return "Accuracy and loss over training", finding
    ranks = binary.groupby(["epoch", "label"], sort=False)["top1"].mean().unstack().dropna().rank(axis=1)
    unlike = ranks.index[(ranks != ranks.iloc[-1]).any(axis=1)]
    if unlike.empty:
        when = "from the first epoch on"
    elif unlike.max() == ranks.index[-2]:
        when = "only in the last epoch"
    else:
        when = f"from epoch {unlike.max() + 1} on"
    return f"By mean accuracy, the binary models stand in their final order {when}", finding


def of_flips(table: pd.DataFrame) -> tuple[str, str]:
    """Whether fewer weights flip at the end than at first, and where most do."""
    medians = table.groupby(["label", "epoch"], sort=False)["model_flip_rate"].median()
    first, last = (medians.groupby("label", sort=False).agg(which) for which in ("first", "last"))
    if table["epoch"].nunique() < _FEWEST:
        claim = "Which share of the binary weights flips, epoch by epoch"
    elif (last < first).all():
        claim = (
            f"{span(first, '{:.0%}')} of a model's binary weights flip in the first epoch, {span(last, '{:.1%}')} in "
            "the last"
        )
    else:
        claim = "Not all models flip fewer binary weights in the last epoch than in the first"
    blocks = table.groupby(["label", "block"])["flip_rate"].mean()
    label, block = blocks.idxmax()
    return claim, f"Most flip in {in_words(block)} of {label}: {blocks.max():.1%} per epoch."


def of_levels(table: pd.DataFrame) -> tuple[str, str]:
    """Where levels end: off, or at which multiple of where they started."""
    last = _last(table)
    off = is_off(last["level"])
    ratio = (last["level"] / last["initial"])[~off]
    ends = f"end at {span(ratio, two_digits)} times their initial value."
    if not off.any():
        last = last.assign(ratio=ratio)
        return _of_ratios(last), f"All {len(last)} levels, of every seed, {ends}{_far_from_other_seeds(last)}"
    models = last["label"]
    seeds = ", in some seeds" * bool(set(last["run"][off]) != set(last["run"][models.isin(models[off])]))
    claim = f"Training switches attention off in {models[off].nunique()} of {models.nunique()} models{seeds}"
    finding = f"{off.sum()} of {len(last)} levels end at zero or below, where attention is off."
    return claim, finding + (f" The others {ends}" if len(ratio) else "")


def _far_from_other_seeds(last: pd.DataFrame) -> str:
    """Which seeds' levels end far above the median of their model's seeds, which the lines of the figure hide."""
    last = last.assign(median=last.groupby(["label", "block"])["ratio"].transform("median"))
    far = [
        f"{in_words(block)} of seed {seed} ({', '.join(f'{row.label}: {row.ratio:.0f}' for row in own.itertuples())})"
        for (block, seed), own in last[last["ratio"] > _FAR * last["median"]].groupby(["block", "seed"], sort=False)
    ]
    return f" Far above the other seeds {'is' if len(far) == 1 else 'are'} {listed(far)}." if far else ""


def _of_ratios(last: pd.DataFrame) -> str:
    """Where levels end that are all above zero, from a row per run and block with its level's ratio to its start.

    Like the lines of the figure, the numbers are medians of seeds.
    """
    seeds = " (medians of seeds)" if most_seeds(last) > 1 else ""
    last = last.groupby(["label", "block"], sort=False, as_index=False)["ratio"].median()
    pyramid = is_pyramid(last["label"], last["block"])
    ends = f"{span(last['ratio'], two_digits)} times their start"
    if pyramid.any() and not pyramid.all():
        pyramids, columnar = (span(last.loc[own, "ratio"], two_digits) for own in (pyramid, ~pyramid))
        ends = f"{columnar} times their start in columnar models, {pyramids} in pyramids"
    return f"Attention levels end at {ends}{seeds}"


def of_shifts(table: pd.DataFrame) -> tuple[str, str]:
    """How far shifts move, against the window of the gradient, when, and where most."""
    last = _last(table)
    last = last.groupby(["label", "block"], sort=False, as_index=False)["mean_absolute_shift"].median()
    most = last.loc[last["mean_absolute_shift"].idxmax()]
    means = table.groupby(["label", "epoch"])["mean_absolute_shift"].mean().unstack("label")
    half = (means >= means.ffill().iloc[-1] / 2).idxmax().max()  # the epoch by which even the last model has that
    moved = span(last["mean_absolute_shift"], two_digits)
    small = ", little against the ±1 within which a gradient passes" * bool(last["mean_absolute_shift"].max() < 1 / 4)
    return f"In training a block's thresholds move by {moved} on average{small}", (
        f"Every model has made half of its final shift by epoch {half} of {table['epoch'].max()}; the shift is largest "
        f"in {in_words(most['block'])} of {most['label']} ({most['mean_absolute_shift']:.3f})."
    )


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
