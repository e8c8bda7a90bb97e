"""The tables of a study, and accuracy against operations."""

from pathlib import Path

import pandas as pd

from binaryvit.analysis.labels import evaluated_on
from binaryvit.analysis.ladder import figures, findings, tables
from binaryvit.analysis.ladder.published import comparison, is_imagenet, published_figures
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy
from binaryvit.studies.rows import read_rows

_DRAWN = ["variant", "label", "bops", "ops", "ops_elementwise", "bytes", "top1", "top1_std", "seeds"]


def products(opened: OpenStudy) -> list[tables.Table | Drawing]:
    """The ablation, the comparison with published models, and the figure, where there is anything to draw.

    Raises BinaryViTError when there is no published.csv, or the study's runs are not of one scale.
    """
    drawing = accuracy_against_operations(opened)
    return [tables.ablation(opened), comparison(opened), *([drawing] if drawing else [])]


def accuracy_against_operations(opened: OpenStudy, published: str | Path | None = None) -> Drawing | None:
    """Accuracy against operations and size of the ladder and of the study's other architectures; None without runs.

    Published models are drawn only with a study of their scale; `published` is their file, None: the nearest.
    """
    ladder = tables.whole_ladder(opened)
    variants = {row.variant for row in ladder}
    others = [row for row in read_rows(opened.study) if row.variant not in variants]
    rows = [row for row in (*ladder, *others) if row.values and not row.stale]
    if not rows:
        return None
    points = pd.DataFrame([tables.numbers_of(row) for row in rows])[_DRAWN]
    records = [record for row in rows for record in row.values]
    on = evaluated_on(records[0])
    inputs: dict[str, pd.DataFrame] = {"points": points.assign(evaluated_on=on)}
    known = None
    if is_imagenet(rows):
        known = inputs["published"] = published_figures(opened, published)[["ops", "bytes", "top1", "certainty"]]
    return Drawing(
        opened,
        "accuracy_against_operations",
        inputs,
        lambda: figures.accuracy_against_operations(points, on, known),
        tuple(record.id for record in records),
        findings.of_accuracy_against_operations(points),
    )
