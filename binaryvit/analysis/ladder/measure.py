"""The tables of a study, and accuracy against operations."""

from pathlib import Path

import pandas as pd

from binaryvit.analysis.ladder import findings, tables
from binaryvit.analysis.ladder.figures import accuracy_against_operations
from binaryvit.analysis.product import Drawing
from binaryvit.studies.rows import read_ladder
from binaryvit.studies.study import Study

_DRAWN = ["variant", "label", "ops", "top1", "top1_std", "seeds"]


def products(study: Study, published: str | Path | None = None) -> list[tables.Table | Drawing]:
    """The ablation, the comparison with published models, and the figure, where there is anything to draw.

    `published` is the file of published figures; None: the nearest published.csv. Raises BinaryViTError when there is
    none, or the study's runs are not of one scale.
    """
    models = tables.read_published(published or tables.find_published(study.output))
    ablation = tables.ablation(study)
    return [ablation, tables.comparison(study, models), *drawings(study, ablation, models)]


def drawings(study: Study, ablation: tables.Table, published: pd.DataFrame) -> list[Drawing]:
    """Accuracy against operations of the study's current runs; nothing when there are none.

    Published models are drawn only beside a study of their scale.

    Args:
        study: the study.
        ablation: its ablation.
        published: what `tables.read_published` returns.
    """
    drawn = ablation.numbers["seeds"].gt(0) & ablation.numbers["state"].ne("stale")
    points = ablation.numbers.loc[drawn, _DRAWN]
    if points.empty:
        return []
    rows = read_ladder(study)
    records = [record for row, is_drawn in zip(rows, drawn, strict=True) if is_drawn for record in row.values]
    evaluated_on = f"{records[0].data.eval_images:,} images of {records[0].data.label}"
    others = published[["ops", "top1", "certainty"]] if tables.is_imagenet(rows) else None
    inputs = {"points": points.assign(evaluated_on=evaluated_on)} | ({} if others is None else {"published": others})
    return [
        Drawing(
            name="accuracy_against_operations",
            inputs=inputs,
            draw=lambda: accuracy_against_operations(points, evaluated_on, others),
            runs=tuple(record.id for record in records),
            finding=findings.of_accuracy_against_operations(points),
        )
    ]
