"""What a model gains over another of its study, image by image and seed by seed."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from binaryvit.analysis.paired import PairedDifference, paired_difference
from binaryvit.records.predictions import read_predictions
from binaryvit.studies.rows import Row, record_of
from binaryvit.studies.study import State


def difference(before: Row, after: Row) -> PairedDifference | None:
    """How much more often `after` is right than `before`, over the seeds that both have finished.

    A teacher has one seed and is compared with every seed of a student. None when they share no seed, or a run stored
    no predictions. Raises BinaryViTError when stored predictions cannot be used.
    """
    return _difference([before], [after])


def extra_gain(step: tuple[Row, Row], other: tuple[Row, Row]) -> PairedDifference | None:
    """How many points more one `step`, from a model to another, gains than the `other` step; see `difference`."""
    return _difference([step[0], other[1]], [step[1], other[0]])


def steps(rows: Sequence[Row]) -> dict[str, PairedDifference]:
    """Of each binary row that follows a binary row, by its label: the difference to the row before."""
    binary = [row for row in rows if not row.is_teacher]
    found = {after.label: difference(before, after) for before, after in pairwise(binary)}
    return {label: step for label, step in found.items() if step is not None}


def _difference(before: Sequence[Row], after: Sequence[Row]) -> PairedDifference | None:
    """How many more right answers the models in `after` give together than those in `before`."""
    answers = [(row, _right_answers(row)) for row in (*before, *after)]
    seeds = sorted(set.intersection(*(set(right) for row, right in answers if not row.is_teacher)))
    if not seeds or not all(right for _, right in answers):
        return None
    right = [[right[row.runs[0].config.seed if row.is_teacher else seed] for row, right in answers] for seed in seeds]
    sums = [(np.sum(each[: len(before)], axis=0), np.sum(each[len(before) :], axis=0)) for each in right]
    return paired_difference(*zip(*sums, strict=True))


def _right_answers(row: Row) -> dict[int, np.ndarray]:
    """Of each finished seed, whether each evaluated image was classified right: bool (images,)."""
    answers = {}
    for run in row.runs:
        record = record_of(run) if run.state is State.DONE else None
        if record is not None and record.predictions is not None:
            predictions = read_predictions(run.folder)
            answers[run.config.seed] = (predictions["predicted"] == predictions["label"]).to_numpy()
    return answers
