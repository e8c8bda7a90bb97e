"""Sentences of finding about precision, made from the numbers so that they hold whatever came out."""

import math

import pandas as pd


def of_precisions(table: pd.DataFrame, evaluated_on: str) -> str:
    """What one bit costs in accuracy, and what it saves."""
    rows = table.set_index("precision")
    top1 = rows["top1"].dropna()
    reached = ", ".join(f"{name} {accuracy:.2f} %" for name, accuracy in top1.items())
    sentences = [f"On {evaluated_on}: {reached}."]
    if "W32A32" in top1:
        full = top1["W32A32"]
        what = {"W1A32": "one-bit weights alone", "W32A1": "one-bit activations alone", "W1A1": "both"}
        changes = [f"{text} {top1[name] - full:+.2f} points" for name, text in what.items() if name in top1]
        if changes:
            bound = 100 * 1.96 * math.sqrt(2 * full / 100 * (1 - full / 100) / rows.loc["W32A32", "images"])
            sentences.append(
                f"Against W32A32, {', '.join(changes)}; accuracies of two models differ by up to {bound:.2f} points "
                "(95 %) through the choice of images alone, and one training each says nothing about chance in it."
            )
    if {"W1A1", "W32A32"} <= set(rows.index):
        binary, real = rows.loc["W1A1"], rows.loc["W32A32"]
        sentences.append(
            f"W1A1 takes {real['bytes'] / binary['bytes']:.1f} times less memory than W32A32 and "
            f"{real['ops'] / binary['ops']:.1f} times fewer operations (BOPs / 64 + FLOPs), "
            f"{real['ops_elementwise'] / binary['ops_elementwise']:.1f} times fewer with elementwise work."
        )
    return " ".join(sentences)


def of_agreement(table: pd.DataFrame, evaluated_on: str) -> str:
    """Where features leave those of full precision: from beginning to end, and the largest single fall."""
    sentences = [f"Linear CKA with W32A32 on {evaluated_on}:"]
    ends = {}
    for precision, own in table.groupby("precision", sort=False):
        stream = own[~own["layer"].str.endswith((".attn", ".mlp"))].reset_index(drop=True)
        falls = stream["cka"].diff()
        worst = falls.idxmin()
        ends[precision] = stream["cka"].iloc[-1]
        sentences.append(
            f"{precision} goes from {stream['cka'].iloc[0]:.3f} ({stream['layer'].iloc[0]}) to {ends[precision]:.3f} "
            f"({stream['layer'].iloc[-1]}) and falls most between {stream['layer'][worst - 1]} and "
            f"{stream['layer'][worst]} ({falls[worst]:+.3f});"
        )
    branches = table[table["layer"].str.endswith((".attn", ".mlp"))].copy()
    branches["part"] = branches["layer"].str.rsplit(".", n=1).str[-1].map({"attn": "attention", "mlp": "FFN"})
    means = branches.groupby("part")["cka"].mean()
    sentences.append(
        f"over all of them, attention branches have a mean of {means['attention']:.3f} and FFN branches of "
        f"{means['FFN']:.3f}. The logits agree least with full precision's in {min(ends, key=ends.get)}."
    )
    return " ".join(sentences)
