"""What the numbers on branches say: for each figure its claim, which is its title, and a finding of two sentences.

They are about models of one bit where there are any; those of other precisions are drawn beside them.
"""

import math

import pandas as pd

from binaryvit.analysis.branches.capture import ADDED_TO_STREAM
from binaryvit.analysis.wording import listed, span

_ALL = ("all products", "all shortcuts and poolings")


def of_norms(norms: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: how large the branches that are smallest, and largest, in most models are."""
    norms = _of_one_bit(norms)
    medians = norms.groupby(["label", "kind"], sort=False)["ratio"].median().unstack()
    sizes, counts = [], []
    for which, kinds in (("smallest", medians.idxmin(axis=1)), ("largest", medians.idxmax(axis=1))):
        kind = kinds.mode()[0]
        plural = kind if kind.endswith("s") else f"whole {kind}es"
        added_to = "the residual stream" if kind in ADDED_TO_STREAM else "their shortcut"
        sizes.append((plural, f"{span(medians[kind], '{:.2g}')} times", added_to))
        counts.append(f"the {plural} are {which} in {(kinds == kind).sum()} of {len(kinds)} models")
    (small, least, below), (large, most, beside) = sizes
    also = f" that of {beside}" * (beside != below)
    bits = "binary models" if (norms["bits"] == "W1A1").all() else "these models"
    claim = f"In {bits}, {small} have {least} the norm of {below}, {large} {most}{also} (medians)"
    finding = f"By the median of a model's additions, {', '.join(counts)}."
    off = int(norms["ratio"].isna().sum())
    return claim, finding + (f" Attention that is off, {off} of its products, is left out." if off else "")


def of_accuracies(table: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: what is left without all products, and without all shortcuts, and which group costs most."""
    accuracy = _of_one_bit(table).pivot_table("accuracy", "removed", "column")
    intact, products, shortcuts = (span(accuracy.loc[name], "{:.0f}") for name in ("nothing", *_ALL))
    claim = (
        f"Without their products, binary models fall from {intact}% top-1 to {products}%, without shortcuts and "
        f"poolings to {shortcuts}% (chance: {table['chance'].iloc[0]:g}%)"
    )
    single = accuracy.drop(index=["nothing", *_ALL]).sub(accuracy.loc["nothing"]).median(axis=1)
    return claim, (
        f"Of single parts, the {single.idxmin()} cost most ({single.min():+.1f} points in the median model) and the "
        f"{single.idxmax()} least ({single.max():+.1f})."
    )


def unresolved(table: pd.DataFrame) -> float:
    """Below how many points two accuracies of the table can't be told apart: the widest of their intervals, as if they
    were independent. They are of the same images, so this is more than enough.
    """
    return math.sqrt(2) * (table["high"] - table["low"]).max() / 2


def of_stages(table: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: which stage's branches cost most."""
    intact = table[table["removed"] == "nothing"].groupby("column")["accuracy"].mean()
    change = table.assign(change=table["accuracy"] - table["column"].map(intact))
    median = change.pivot_table("change", "removed", "part", aggfunc="median")
    median.columns = median.columns.str.replace("stages.", "stage ")
    single = median.drop(index=["nothing", *_ALL]).stack()
    group, stage = single.idxmin()
    alike = [name for name, cost in single[group].items() if cost < single.min() + unresolved(table)]
    products = change[change["removed"] == "all products"].groupby(["column", "part"], sort=False)["change"].mean()
    by_model = products.groupby(products.index.get_level_values("column").str.rsplit(", ", n=1).str[0], sort=False)
    by_stage = [f"{', '.join(own.map('{:+.0f}'.format))} in {label}" for label, own in by_model]
    return f"Of single parts, the {group} of {listed(alike)} cost most", (
        f"Without those of {stage} accuracy changes by {median.loc[group, stage]:+.0f} points in the median model, "
        f"without all products of {listed(median.columns)} by {listed(by_stage)}."
    )


def _of_one_bit(table: pd.DataFrame) -> pd.DataFrame:
    one_bit = table["bits"] == "W1A1"
    return table[one_bit] if one_bit.any() else table
