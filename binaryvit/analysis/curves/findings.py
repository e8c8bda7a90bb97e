"""Sentences of finding under the curves, made from the numbers that are drawn."""

import pandas as pd

from binaryvit.models.ladder import LADDER

_TEACHERS = {teacher for teacher, *_ in LADDER.values()}


def of_curves(table: pd.DataFrame) -> str:
    """Which models still rose at the end, so that more epochs may change their order."""
    gains = {}
    for label, model in table.groupby("label", sort=False):
        top1 = model.groupby("epoch")["top1"].mean()
        if len(top1) > 1:
            gains[label] = top1.iloc[-1] - top1.iloc[-2]
    if not gains:
        return "One epoch has no course."
    rising = [label for label, gain in gains.items() if gain > 0]
    if not rising:
        return f"No model's accuracy rose in its last epoch ({len(gains)} models)."
    most = max(rising, key=gains.__getitem__)
    return (
        f"Accuracy still rose in the last epoch for {len(rising)} of {len(gains)} models, most for {most} "
        f"({gains[most]:+.2f} points): none of these is trained to its end."
    )


def of_flips(table: pd.DataFrame) -> str:
    """How many weights flip at first and at last, and where most do."""
    means = table.groupby(["label", "epoch"], sort=False)["flip_rate"].mean()
    first, last = (means.groupby("label", sort=False).agg(which) for which in ("first", "last"))
    together = table[["flip_rate", "lr"]].corr(method="spearman").iloc[0, 1]
    blocks = table.groupby(["label", "block"])["flip_rate"].mean()
    label, block = blocks.idxmax()
    return (
        f"Between {first.min():.1%} and {first.max():.1%} of a model's binary weights flip in the first epoch, between "
        f"{last.min():.1%} and {last.max():.1%} in the last; over all blocks and epochs flip rate and learning rate go "
        f"together with a rank correlation of {together:+.2f}. Most flip in block {block} of {label}, "
        f"{blocks.max():.1%} an epoch."
    )


def of_levels(table: pd.DataFrame) -> str:
    """How many levels ended at zero or below, and where the others ended."""
    last = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    on = last.loc[last["level"] > 0, "level"]
    sentence = f"At the end {len(last) - len(on)} of {len(last)} levels are at zero or below: attention there is off."
    if len(on):
        sentence += f" The others lie between {on.min():.2g} and {on.max():.2g}, from 0.005 at the start."
    return sentence


def of_shifts(table: pd.DataFrame) -> str:
    """Where shifts moved most."""
    last = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    most = last.loc[last["mean_absolute_shift"].idxmax()]
    return (
        f"At the end shifts are {last['mean_absolute_shift'].mean():.3f} away from 0 in the mean over blocks and "
        f"models, most in block {most['block']} of {most['label']} ({most['mean_absolute_shift']:.3f})."
    )
