"""What the numbers on precision say: for each figure its claim, which is its title, and a finding of two sentences."""

import math

import pandas as pd


def of_precisions(table: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: what one bit costs in accuracy, and what it saves."""
    rows = table.set_index("precision")
    top1 = rows["top1"].dropna()
    claim = f"Top-1 reaches {', '.join(f'{accuracy:.1f} % at {name}' for name, accuracy in top1.items())}"
    sentences = []
    if {"W1A1", "W32A32"} <= set(top1.index):
        binary, real = rows.loc["W1A1"], rows.loc["W32A32"]
        claim = (
            f"One bit for weights and activations: {binary['top1'] - real['top1']:+.1f} points, "
            f"{real['bytes'] / binary['bytes']:.0f} times less memory, {real['ops'] / binary['ops']:.0f} times fewer "
            "operations"
        )
    if "W32A32" in top1:
        full = top1["W32A32"]
        what = {"W1A32": "one-bit weights alone", "W32A1": "one-bit activations alone", "W1A1": "both"}
        changes = [f"{text} {top1[name] - full:+.2f} points" for name, text in what.items() if name in top1]
        bound = 100 * 1.96 * math.sqrt(2 * full / 100 * (1 - full / 100) / rows.loc["W32A32", "images"])
        sentences = [f"Against W32A32: {', '.join(changes)}."] if changes else []
        sentences.append(
            f"The choice of images alone makes two models differ by up to {bound:.2f} points (95 %)"
            + ("; chance in training is not measured." if rows["seeds"].max() == 1 else ".")
        )
    return claim, " ".join(sentences)


def of_agreement(table: pd.DataFrame) -> tuple[str, str]:
    """Claim and finding: which precision keeps the residual stream closest, and how near two trainings are."""
    branches = table["layer"].str.endswith((".attn", ".mlp"))
    stream = table[~branches].groupby(["precision", "seed"], sort=False)["cka"].mean()
    in_branches = table[branches].groupby(["precision", "seed"], sort=False)["cka"].mean()
    other_seeds = stream[stream.index.get_level_values("precision") == "W32A32"]
    compared = stream.drop(other_seeds.index).groupby("precision", sort=False).mean()
    best, worst = compared.idxmax(), compared.idxmin()
    claim = f"{best} keeps full precision's features best" + (f", {worst} least" if best != worst else "")
    finding = (
        "Mean linear CKA of the residual stream with W32A32 is "
        f"{', '.join(f'{value:.2f} for {name}' for name, value in compared.items())}; in the branches it is "
        f"{in_branches.min():.2f} to {in_branches.max():.2f}."
    )
    if len(other_seeds):
        return claim, f"{finding} Two seeds of W32A32 agree to {other_seeds.mean():.2f}, the yardstick for all of them."
    return claim, f"{finding} There is one seed of W32A32, so how far two trainings of it would agree is not known."
