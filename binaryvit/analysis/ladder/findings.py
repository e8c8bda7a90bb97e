"""Sentences of finding under tables and figures, made from the numbers so that they hold whatever came out."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from binaryvit.models.ladder import LADDER
from binaryvit.studies.rows import Row, describe_scale


def of_ablation(rows: Sequence[Row]) -> str:
    """What the ablation shows, for whatever numbers came."""
    current = [row for row in rows if row.values and not row.stale]
    binary = [row for row in current if not row.is_teacher]
    if not current:
        return "Nothing can be said yet: no run of this study is finished and current."
    top1 = {row.label: row.measured("top1").mean for row in current}
    sentences = []
    if binary:
        best = max(binary, key=lambda row: top1[row.label])
        sentences.append(f"The best binary variant is {best.label} with {top1[best.label]:.2f} % top-1.")
        for teacher in (row for row in current if row.is_teacher):
            gap = top1[teacher.label] - top1[best.label]
            side = "above" if gap >= 0 else "below"
            sentences.append(f"The teacher's {top1[teacher.label]:.2f} % are {abs(gap):.2f} points {side} it.")
    steps = [
        (after.label, top1[after.label] - top1[before.label])
        for before, after in pairwise(rows)
        if before in binary and after in binary
    ]
    if steps:
        sentences += _steps(steps)
        sentences += _order(binary)
        sentences += _sampling_error(binary, steps)
    absent = [row.label for row in rows if row not in current]
    if absent:
        sentences.append(f"Without a current result, and left out of these sentences: {', '.join(absent)}.")
    return " ".join(sentences)


def _steps(steps: Sequence[tuple[str, float]]) -> list[str]:
    (gained, gain), (lost, loss) = max(steps, key=lambda step: step[1]), min(steps, key=lambda step: step[1])
    sentences = []
    if gain > 0:
        sentences.append(f"The step that gains most is {gained} ({gain:+.2f} points).")
    if loss < 0:
        sentences.append(f"The step that loses most is {lost} ({loss:+.2f} points).")
    return sentences or ["No step changes the accuracy."]


def _order(binary: Sequence[Row]) -> list[str]:
    """Whether the accuracies rise along the ladder, as they do in the paper; nothing for other sets of models."""
    family = next((names[1:] for names in LADDER.values() if binary[0].variant in names), ())
    places = [family.index(row.variant) if row.variant in family else -1 for row in binary]
    if -1 in places or places != sorted(set(places)):
        return []
    down = [
        f"{after.label} below {before.label}"
        for before, after in pairwise(binary)
        if after.measured("top1").mean < before.measured("top1").mean
    ]
    if down:
        return [f"The order differs from the paper's, in which each row is above the one before: {', '.join(down)}."]
    return ["The order is the paper's: each row reaches at least the one before."]


def _sampling_error(binary: Sequence[Row], steps: Sequence[tuple[str, float]]) -> list[str]:
    """Which steps are too small for the number of evaluation images.

    Two accuracies p measured on N images each differ by chance by up to 1.96 sqrt(2 p (1 - p) / N) in 95 % of cases,
    if the two models' errors were independent; the largest such bound among the rows is used.
    """
    images = binary[0].values[0].data.eval_images
    shares = [row.measured("top1").mean / 100 for row in binary]
    bound = 100 * max(1.96 * math.sqrt(2 * share * (1 - share) / images) for share in shares)
    small = [label for label, step in steps if abs(step) < bound]
    about = f"what sampling {images:,} evaluation images explains (±{bound:.2f} points at 95 %)"
    few = (
        ""
        if min(len(row.values) for row in binary) > 1
        else " Rows with one seed say nothing about chance in training."
    )
    if small:
        return [f"Not larger than {about}: {', '.join(small)}.{few}"]
    return [f"Every step is larger than {about}.{few}"]


def of_comparison(
    rows: Sequence[Row],
    comparable: Mapping[str, Row],
    published: Mapping[str, Mapping[str, Any]],
    unpublished: int,
) -> str:
    """How accuracies reached here stand to the published ones.

    Args:
        rows: the study's rows.
        comparable: those of them, by variant, that are of the published figures' scale.
        published: published figures of the same models, by variant.
        unpublished: how many steps of the ladder have none.
    """
    absent = f"For {unpublished} steps of the ladder no published figure could be read."
    if not comparable:
        return (
            f"This study ({describe_scale(rows)}) is not of the published figures' scale, so none of its accuracies "
            f"stands in this table. {absent}"
        )
    sentences = [
        f"{row.label} reaches {row.measured('top1').mean:.2f} % here and {published[variant]['top1']:.1f} % as "
        f"published ({published[variant]['certainty']}): "
        f"{row.measured('top1').mean - published[variant]['top1']:+.2f} points."
        for variant, row in comparable.items()
        if variant in published and row.values and not row.stale
    ]
    return " ".join([*sentences, absent])


def of_accuracy_against_operations(points: pd.DataFrame) -> str:
    """Which models no other one beats in both accuracy and operations."""
    best = [
        point
        for point in points.itertuples()
        if not any(
            other.top1 >= point.top1 and other.ops <= point.ops and (other.top1 > point.top1 or other.ops < point.ops)
            for other in points.itertuples()
        )
    ]
    best.sort(key=lambda point: point.ops)
    named = ", ".join(f"{point.label} ({point.top1:.2f} %, {point.ops / 1e6:,.2f} M OPs)" for point in best)
    return f"Of {len(points)} models, {len(best)} are beaten by no other in both accuracy and operations: {named}."
