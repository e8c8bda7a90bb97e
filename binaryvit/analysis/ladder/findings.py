"""Sentences of finding under tables and figures, made from the numbers so that they hold whatever came out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from binaryvit.analysis.paired import PairedDifference
from binaryvit.analysis.steps import difference, steps
from binaryvit.analysis.wording import listed, two_digits
from binaryvit.studies.rows import Row, describe_scale


def of_ablation(rows: Sequence[Row]) -> str:
    """How far the ladder comes, and which steps count."""
    current = [row for row in rows if row.values and not row.stale]
    binary = [row for row in current if not row.is_teacher]
    if not binary:
        return "Nothing can be said yet: no binary model of this study is finished and current."
    best = max(binary, key=top1)
    teachers = [row for row in current if row.is_teacher]
    sentences = [price(teacher, best) for teacher in teachers]
    sentences = sentences or [f"The best binary model of the ladder is {best.label} with {top1(best):.2f}% top-1."]
    gains = steps(rows)
    return " ".join([*sentences, *([of_steps(gains)] if gains else [])])


def top1(row: Row) -> float:
    """Accuracy in percent, the mean over the seeds."""
    return row.measured("top1").mean


def price(teacher: Row, best: Row) -> str:
    """How far the best binary model is from its teacher in accuracy, size and operations."""
    gap, small, large = difference(teacher, best), best.model_cost, teacher.model_cost
    if gap is None:
        accuracy = f"reaches {top1(best):.2f}%"
    elif not gap.is_resolved:
        accuracy = f"is as accurate as its full-precision teacher within what this study resolves, {gap} points"
    elif gap.points > 0:
        accuracy = f"is above its full-precision teacher, which is no ceiling here, by {gap} points"
    else:
        less = f"{-gap.points:.2f} ({-gap.high:.2f} to {-gap.low:.2f})"
        accuracy = f"is below its full-precision teacher by {less} points"
    fewer_bytes, fewer_ops, less_work = (
        two_digits(getattr(large, name) / getattr(small, name)) for name in ("bytes", "ops", "ops_elementwise")
    )
    return (
        f"The best binary model of the ladder, {best.label}, {accuracy}, with {fewer_bytes} times fewer "
        f"bytes and {fewer_ops} times fewer OPs ({less_work} times with elementwise work)."
    )


def of_steps(steps: Mapping[str, PairedDifference]) -> str:
    """Which step gains most, which lose, and which are not resolved."""
    most = max(steps, key=lambda label: steps[label].points)
    parts, also = ["No step gains"], ""
    if steps[most].points > 0:
        also = "also " * (not steps[most].is_resolved)
        parts = [f"The step that gains most is {most}, by {steps[most]} points{', which is not resolved' * bool(also)}"]
    others = {label: step for label, step in steps.items() if label != most or step.points <= 0}
    lost = [f"{label} loses, {step}" for label, step in others.items() if step.is_resolved and step.points < 0]
    small = [f"{label}, {step}" for label, step in others.items() if not step.is_resolved]
    return "; ".join([*parts, *lost, *([f"{also}not resolved: {' and '.join(small)}"] if small else [])]) + "."


def of_comparison(
    rows: Sequence[Row], comparable: Mapping[str, Row], published: Mapping[str, Mapping[str, Any]]
) -> str:
    """How accuracies reached here stand to the published ones.

    Args:
        rows: the study's rows.
        comparable: those of them, by variant, that are of the published figures' scale.
        published: published figures of the same models, by variant.
    """
    if not comparable:
        return (
            f"This study ({describe_scale(rows)}) is not of the published figures' scale, so none of its accuracies "
            "stands in this table."
        )
    sentences = [
        f"{row.label} reaches {top1(row):.2f}% here and {published[variant]['top1']:.1f}% as published "
        f"({published[variant]['certainty']}): {top1(row) - published[variant]['top1']:+.2f} points."
        for variant, row in comparable.items()
        if variant in published and row.values and not row.stale
    ]
    return " ".join(sentences) or "None of these models has a published figure to compare with."


def of_accuracy_against_operations(points: pd.DataFrame) -> str:
    """Which models no other one beats in both accuracy and OPs, and what elementwise work or bytes change."""
    best = _unbeaten(points, "ops").sort_values("ops")
    named = ", ".join(f"{point.label} ({point.top1:.2f}%, {point.ops / 1e6:,.2f} M OPs)" for point in best.itertuples())
    if len(points) == 1:
        return f"Only one model is finished: {named}."
    are = "is" if len(best) == 1 else "are"
    finding = f"Of {len(points)} models, {len(best)} {are} beaten by no other in both accuracy and OPs: {named}."
    beaten = best[~best["label"].isin(_unbeaten(points, "ops_elementwise")["label"])]
    by_bytes = f"none beats {listed(_unbeaten(points, 'bytes').sort_values('bytes')['label'])}"
    if beaten.empty:
        return f"{finding} By bytes in place of OPs, {by_bytes}."
    return (
        f"{finding} With elementwise work counted, another one beats {listed(beaten['label'])}; by bytes in place of "
        f"OPs, {by_bytes}."
    )


def _unbeaten(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The models that no other is as good as in both accuracy and a cost, and better in one."""
    beaten = [
        (
            (points["top1"] >= point["top1"])
            & (points[cost] <= point[cost])
            & ((points["top1"] > point["top1"]) | (points[cost] < point[cost]))
        ).any()
        for _, point in points.iterrows()
    ]
    return points[~np.array(beaten)]
