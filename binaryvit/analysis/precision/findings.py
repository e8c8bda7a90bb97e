"""What the numbers on precision say: for each figure its claim, which is its title, and a finding of two sentences."""

import pandas as pd

from binaryvit.analysis.labels import block_of, in_words
from binaryvit.analysis.wording import span


def of_precisions(table: pd.DataFrame, model: str) -> tuple[str, str]:
    """Claim and finding: what one bit costs a model in accuracy, and what it saves."""
    rows = table.set_index("precision")
    top1 = rows["top1"].dropna()
    if not {"W1A1", "W32A32"} <= set(top1.index):
        claim = f"{model}: top-1 reaches {', '.join(f'{accuracy:.1f}% at {name}' for name, accuracy in top1.items())}"
        return claim, "A comparison needs both W1A1 and W32A32."
    binary, real = rows.loc["W1A1"], rows.loc["W32A32"]
    fewer_bytes, fewer_ops, less_work = (
        f"{real[cost] / binary[cost]:.2g}" for cost in ("bytes", "ops", "ops_elementwise")
    )
    points = binary["top1"] - real["top1"] if pd.isna(binary["difference"]) else binary["difference"]
    claim = (
        f"With W1A1 in place of W32A32, {model} {'gains' if points > 0 else 'loses'} {abs(points):.1f} points of top-1 "
        f"and saves {fewer_bytes} times the bytes and {fewer_ops} times the OPs"
    )
    elementwise = f"With elementwise work counted, W1A1 has {less_work} times fewer OPs."
    compared = rows[rows["difference_seeds"] > 0]
    if compared.empty:
        return claim, f"Without stored predictions of the same seeds, nothing is said about chance. {elementwise}"
    changes = ", ".join(
        f"{row.Index} {row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f}; n = {row.difference_seeds})"
        for row in compared.itertuples()
    )
    over = "over the n seeds that both have, with its 95% interval (n = 1: for the choice of images alone)"
    return claim, f"Top-1 against W32A32 in points, {over}: {changes}. {elementwise}"


def of_agreement(table: pd.DataFrame, model: str) -> tuple[str, str]:
    """Claim and finding: where the precision with the least agreement loses most, and how near two trainings are."""
    stream = table[~table["layer"].str.endswith((".attn", ".mlp"))]
    means = stream.groupby(["precision", "seed"], sort=False)["cka"].mean()
    is_reference = means.index.get_level_values("precision") == "W32A32"
    compared = means[~is_reference].groupby("precision", sort=False).mean()
    worst = compared.idxmin()
    along = stream[stream["precision"] == worst].groupby("layer", sort=False)["cka"].mean()
    falls = -along.diff()
    claim = f"{model}: at {worst}, the residual stream's CKA with full precision is {span(along, '{:.2f}')}"
    if falls.max() > 0:
        place = along.index.get_loc(falls.idxmax())
        where = in_words(block_of(along.index[place]) or along.index[place])
        falls_from = f"falls most across {where}, from {along.iloc[place - 1]:.2f} to {along.iloc[place]:.2f}"
        claim = f"{model}: at {worst}, the residual stream's agreement with full precision {falls_from}"
    values = ", ".join(f"{value:.2f} for {name}" for name, value in compared.items())
    finding = f"Mean linear CKA (centred kernel alignment) with W32A32 is {values}."
    if is_reference.any():
        agreed = f"agree to {means[is_reference].mean():.2f}"
        return claim, f"{finding} Two seeds of W32A32, whose initial weights differ, {agreed}."
    return claim, f"{finding} With one seed of W32A32, the agreement of two trainings is not known."
