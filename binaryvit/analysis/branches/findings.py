"""What the numbers on branches say: for each figure its claim, which is its title, and a finding of two sentences.

They are about models of one bit where there are any; those of other precisions are drawn beside them.
"""

import math

import pandas as pd

from binaryvit.analysis.branches.capture import ADDED_TO_STREAM
from binaryvit.analysis.wording import listed, span
from binaryvit.models.ladder import BASELINES

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
    """Claim and finding: what is left without all products, and without all shortcuts, and which groups cost most.

    A baseline's CLS token sees the image through attention products alone. Without them it is at chance whatever it
    learned, so the claim leaves it out.
    """
    table = _of_one_bit(table)
    accuracy = table.pivot_table("accuracy", "removed", "column")
    blind = table.loc[table["variant"].isin(BASELINES.values()), "column"].unique()
    seeing = accuracy.drop(columns=blind) if len(blind) < accuracy.shape[1] else accuracy
    intact, products = (_dashed(seeing.loc[name]) for name in ("nothing", _ALL[0]))
    pooled = " that pool their tokens" * bool(seeing.shape[1] < accuracy.shape[1])
    claim = (
        f"Without their products, binary models{pooled} keep {products}% of {intact}% top-1 "
        f"(chance: {table['chance'].iloc[0]:g}%)"
    )
    finding = f"Without shortcuts and poolings {_dashed(accuracy.loc[_ALL[1]])}% are left"
    if len(blind):
        finding += f"; {listed(blind)} sees the image through attention products alone, so without them it must guess"
    single = accuracy.drop(index=["nothing", *_ALL]).sub(accuracy.loc["nothing"]).median(axis=1)
    most, least = (_alike(costs, unresolved(table)) for costs in (single, -single))
    return claim, (
        f"{finding}. By the median of the models that have a part, the {listed(most)} cost most "
        f"({span(single[most], '{:+.1f}')} points) and the {listed(least)} least ({span(single[least], '{:+.1f}')})"
    )


def _dashed(accuracies: pd.Series) -> str:
    return span(accuracies, "{:.0f}").replace(" to ", "–")


def _alike(costs: pd.Series, unresolved: float) -> list:
    """The names of the lowest cost, and of those that can't be told from it."""
    return list(costs.index[costs < costs.min() + unresolved])


def unresolved(table: pd.DataFrame) -> float:
    """Below how many points two accuracies of the table can't be told apart: the widest of their intervals, as if they
    were independent. They are of the same images, so this is more than enough.
    """
    return math.sqrt(2) * (table["high"] - table["low"]).max() / 2


def of_stages(table: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: which stage's branches cost most, model by model, by the mean of its seeds."""
    table = table.assign(stage=table["part"].str.replace("stages.", "stage "))
    accuracy = table.pivot_table("accuracy", ["label", "removed"], "stage", sort=False)
    most, products = [], []
    for label, left in accuracy.groupby("label", sort=False):
        change = left.droplevel("label")
        change = change - change.loc["nothing"]
        costs = change.drop(index=["nothing", *_ALL], errors="ignore").stack()
        alike = pd.DataFrame(_alike(costs, unresolved(table)), columns=["group", "stage"])
        parts = [f"{group} of {listed(stages)}" for group, stages in alike.groupby("group", sort=False)["stage"]]
        most.append(f"{listed(parts)} in {label}")
        products.append(f"{', '.join(change.loc[_ALL[0]].map('{:+.0f}'.format))} in {label}")
    return f"Of single parts these cost most: {'; '.join(most)}", (
        f"Without all products of {listed(accuracy.columns)}, accuracy changes by {listed(products)}"
    )


def _of_one_bit(table: pd.DataFrame) -> pd.DataFrame:
    one_bit = table["bits"] == "W1A1"
    return table[one_bit] if one_bit.any() else table
