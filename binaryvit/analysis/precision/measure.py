"""What one bit costs: one architecture with weights and activations of 1 or 32 bits, and where its features differ."""

import math
from collections.abc import Sequence

import pandas as pd

from binaryvit.analysis import cells
from binaryvit.analysis.device import on_best_device
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.labels import PRECISIONS, bits_of, evaluated_on, precision_rows
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.paired import PairedDifference
from binaryvit.analysis.precision import figures, findings
from binaryvit.analysis.precision.capture import layer_agreement
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.steps import difference
from binaryvit.analysis.stored import OpenStudy, StoredRun, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.records.notes import sha256_of
from binaryvit.studies.rows import Row
from binaryvit.studies.study import State

_VERSION = 1  # of the measuring code in this file
REFERENCE = "W32A32"


def drawings(opened: OpenStudy, images: int = 500) -> list[Drawing]:
    """All figures on precision; there is none where its runs are not finished, and `missing` says which."""
    return [drawing for drawing in (accuracy(opened), agreement(opened, images)) if drawing]


def accuracy(opened: OpenStudy) -> Drawing | None:
    """Accuracy, size and operations at each precision; None where fewer than two are finished.

    Raises BinaryViTError when the study trains no model at several precisions.
    """
    table = precisions(opened)
    rows = _rows(opened)
    if table["top1"].count() < 2:
        return None
    records = [record for row in rows if not row.stale for record in row.values]
    on = evaluated_on(records[0])
    claim, finding = findings.of_precisions(table, variant_style(rows[0].variant).label)
    return Drawing(
        opened,
        "precision",
        {"precisions": table},
        lambda: figures.accuracy_size_operations(table, rows[0].variant, on, claim),
        tuple(record.id for record in records),
        finding,
    )


def agreement(opened: OpenStudy, images: int = 500) -> Drawing | None:
    """Features against those of full precision; None where the runs are not finished.

    The other precisions are of the reference's seed. Full precision has a line for its second seed, which says how far
    two trainings agree.

    Args:
        opened: a study that trains a model at several precisions.
        images: how many evaluation images features are compared on.

    Raises BinaryViTError when the study has no such model, or a measurement is missing and its data are not at hand.
    """
    compared, reference = _compared_runs(opened)
    if reference is None or all(bits_of(run) == REFERENCE for run in compared):
        return None
    table = agreement_with_reference(opened, compared, reference, images)
    on = evaluated_on(reference.record, images)
    claim, finding = findings.of_agreement(table, variant_style(reference.variant).label)
    return Drawing(
        opened,
        "precision_agreement",
        {"agreement": table},
        lambda: figures.agreement(table, reference.variant, on, claim),
        (*(run.id for run in compared), reference.id),
        finding,
    )


def precisions(opened: OpenStudy) -> pd.DataFrame:
    """Accuracy, size and operations of the study's model at each precision it is trained at.

    One row per precision: precision ("W1A32": 1-bit weights, 32-bit activations), label, state, seeds, top1 (percent,
    mean over seeds; NaN where no run is finished), difference (to W32A32 in points, over the seeds that both have; of
    W32A32 itself 0), low and high (ends of its 95% interval), difference_seeds, bytes, bops, flops, ops,
    ops_elementwise (of one image), and runs (their ids).

    Raises BinaryViTError when the study has no model at several precisions.
    """
    lines = []
    for row, change in _with_differences(opened):
        records = [] if row.stale else row.values
        own = 0.0 if _precision(row) == REFERENCE and records else math.nan
        costs = ("bytes", "bops", "flops", "ops", "ops_elementwise")
        lines.append(
            {
                "precision": _precision(row),
                "label": row.label,
                "state": "stale" if row.stale else row.missing or "done",
                "seeds": len(records),
                "top1": row.measured("top1").mean if records else math.nan,
                "difference": change.points if change else own,
                "low": change.low if change else own,
                "high": change.high if change else own,
                "difference_seeds": change.seeds if change else 0,
                **{name: getattr(row.model_cost, name) for name in costs},
                "runs": " ".join(run.id for run in row.runs),
            }
        )
    return pd.DataFrame(lines)


def precisions_as_text(opened: OpenStudy) -> pd.DataFrame:
    """The table of `precisions` as people read it. Raises BinaryViTError as that does."""
    return pd.DataFrame(
        [
            {
                "precision": _precision(row),
                "top-1 (%)": cells.accuracy(row, "top1"),
                f"against {REFERENCE}": cells.step_text(row, change),
                **cells.costs(row.model_cost),
            }
            for row, change in _with_differences(opened)
        ]
    )


def missing(opened: OpenStudy) -> str:
    """Which runs of the comparison are not finished, and how to train them; empty when all are."""
    waiting = [run for row in _rows(opened) for run in row.runs if run.state is not State.DONE]
    if not waiting:
        return ""
    named = ", ".join(f"{run.id} ({run.state})" for run in waiting)
    sentences = [f"Not finished, and missing in what follows: {named}."]
    if _compared_runs(opened)[1] is None:
        sentences.append(f"Without {REFERENCE} there is nothing to compare features with.")
    command = f"binaryvit reproduce {opened.study.path.name} --only {' '.join(run.id for run in waiting)}"
    return " ".join([*sentences, f"To train them, in the study's folder: `{command}`, and the data's own options."])


def agreement_with_reference(
    opened: OpenStudy, runs: Sequence[StoredRun], reference: StoredRun, images: int = 500
) -> pd.DataFrame:
    """`capture.layer_agreement` of runs with a reference run over evaluation images, stored ones reused.

    Columns run, precision and seed precede its own.
    """
    settings = {"images": images, "reference": reference.id, "weights of the reference": sha256_of(reference.weights)}

    def measure(run: StoredRun) -> pd.DataFrame:
        models = (on_best_device(each.model()) for each in (run, reference))
        return layer_agreement(*models, evaluation_batches(opened, run, images))

    table = measured(opened, "precision_agreement", _VERSION, settings, runs, measure)
    table.insert(1, "precision", table["run"].map({run.id: bits_of(run) for run in runs}))
    table.insert(2, "seed", table["run"].map({run.id: run.record.seed for run in runs}))
    return table


def _precision(row: Row) -> str:
    return PRECISIONS[row.runs[0].bits]


def _rows(opened: OpenStudy) -> list[Row]:
    rows = precision_rows(opened)
    if len(rows) < 2:
        raise BinaryViTError(
            f"The study {opened.study.name} trains no model at several precisions: give {opened.study.path} rows of "
            "one variant with model_args weight_bits and activation_bits."
        )
    return rows


def _with_differences(opened: OpenStudy) -> list[tuple[Row, PairedDifference | None]]:
    """The rows, each with its difference to full precision, where it has one."""
    rows = _rows(opened)
    reference = next((row for row in rows if _precision(row) == REFERENCE), None)
    return [(row, difference(reference, row) if reference not in (None, row) else None) for row in rows]


def _compared_runs(opened: OpenStudy) -> tuple[list[StoredRun], StoredRun | None]:
    """The finished runs to compare with the reference, its second seed last, and the reference."""
    done = {_precision(row): [run for run in row.runs if run.state is State.DONE] for row in _rows(opened)}
    if not done.get(REFERENCE):
        return [], None
    first, *others = done.pop(REFERENCE)
    chosen = [run.id for runs in done.values() for run in runs if run.config.seed == first.config.seed]
    chosen += [run.id for run in others[:1]]
    runs = {run.id: run for run in stored_runs(opened.study, [*chosen, first.id])}
    return [runs[name] for name in chosen], runs[first.id]
