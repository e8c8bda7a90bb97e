"""From a study's runs to the rows of a table, all of one scale.

A scale is a data set, an evaluation split, an image size and a recipe. Finished runs of different scales are refused,
so that values of different scales never share a table or an axis.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pandas as pd
import timm

from binaryvit.config import NOT_IN_KEY, TrainingConfig, completed
from binaryvit.errors import BinaryViTError
from binaryvit.models.cost import Cost, cost
from binaryvit.models.ladder import variant_style
from binaryvit.records.run_record import RunRecord, read_record
from binaryvit.studies.states import plan
from binaryvit.studies.study import PlannedRun, State, Study
from binaryvit.training.build import create_model

NOT_RUN, NOTHING = "not run", "-"
# What a table says of a run without a number. One that is training has none yet: a table is the same before and while.
_STATE_WORDS = {State.MISSING: NOT_RUN, State.RUNNING: NOT_RUN, State.STALE: "stale", State.FAILED: "failed"}

# What rows and seeds of a table may differ in. Everything else in a configuration belongs to the recipe, which must be
# the same for all binary variants (the teacher has its own).
MAY_DIFFER = (NOT_IN_KEY - {"init_from"}) | {
    "variant",
    "model_args",
    "seed",
    "teacher_variant",
    "weights_dtype",
    "compile",
    "processes",
}


@dataclass(frozen=True)
class Row:
    """One model of a study with all its seeds.

    `values` are the records its numbers come from: those of finished runs or, if there are none, of stale ones.
    """

    label: str
    runs: tuple[PlannedRun, ...]
    values: tuple[RunRecord, ...]
    stale: bool
    num_classes: int
    is_teacher: bool  # the others learn from it

    @property
    def config(self) -> TrainingConfig:
        return self.runs[0].config

    @property
    def variant(self) -> str:
        return self.config.variant

    @property
    def model_cost(self) -> Cost:
        """Counted on an instance of the model."""
        return model_cost(self.config, self.num_classes)

    @property
    def missing(self) -> str:
        """The state of the runs without a number: "not run", "1 failed, 2 not run"; empty when there are none."""
        words = [_STATE_WORDS[run.state] for run in self.runs if run.state is not State.DONE]
        if len(set(words)) == 1 and len(words) == len(self.runs):
            return words[0]
        return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))

    def measured(self, name: str) -> "Measured":
        """Mean and spread over the seeds: of "top1" with the stored weights, or "top5" after the last epoch."""
        numbers = [record.weights.top1 if name == "top1" else record.result.top5 for record in self.values]
        return Measured.of([number for number in numbers if number is not None])


@dataclass(frozen=True)
class Measured:
    """A mean over seeds with its sample standard deviation (NaN with fewer than two)."""

    mean: float
    std: float
    seeds: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Measured":
        series = pd.Series(numbers, dtype=float)
        return cls(float(series.mean()), float(series.std(ddof=1)), len(series))

    def __str__(self) -> str:
        if self.seeds > 1:
            return f"{self.mean:.2f} ± {self.std:.2f} (n = {self.seeds})"
        return f"{self.mean:.2f}" if self.seeds else NOTHING


def model_cost(config: TrainingConfig, num_classes: int) -> Cost:
    """The cost of the model a configuration trains, counted on an instance of it."""
    return _count(config.variant, json.dumps(config.model_args), config.image_size, num_classes)


@cache
def _count(variant: str, model_args: str, image_size: int | None, num_classes: int) -> Cost:
    config = TrainingConfig(variant=variant, model_args=json.loads(model_args), image_size=image_size)
    return cost(create_model(config, num_classes))


def labelled_runs(study: Study) -> list[tuple[str, tuple[PlannedRun, ...]]]:
    """The study's models, each by its label in tables and figures with the runs of all its seeds."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan(study):
        groups.setdefault(run.model_id, []).append(run)
    labelled = []
    for name, runs in groups.items():
        is_unnamed = runs[0].label == name == runs[0].config.variant
        labelled.append((variant_style(name).label if is_unnamed else runs[0].label, tuple(runs)))
    return labelled


def read_rows(study: Study) -> list[Row]:
    """The study's models, each with its seeds and the records its numbers may be taken from, in the study's order.

    Raises BinaryViTError when finished runs differ in data, image size or evaluation split, or steps of the ladder in
    their recipe: they cannot share a table.
    """
    models = labelled_runs(study)
    runs = [run for _, of_model in models for run in of_model]
    done = {run.id: record_of(run) for run in runs if run.state is State.DONE}
    teachers = {run.teacher_id for run in study.runs}
    steps = {run.id for run in study.ladder}
    _refuse_differences(done.values(), scale_of)
    for alike in (teachers, steps - teachers):
        _refuse_differences([done[name] for name in done if name in alike], lambda record: _recipe(record.config))
    stale = {run.id: record for run in runs if run.state is State.STALE and (record := record_of(run)) is not None}
    stale = {run.id: stale[run.id] for run in runs if run.id in stale and _recipe(stale[run.id].config) == _plan(run)}
    scale = next((scale_of(record) for record in (*done.values(), *stale.values())), {})
    rows = []
    for label, of_model in models:
        finished = [done[run.id] for run in of_model if run.id in done]
        outdated = [stale[run.id] for run in of_model if run.id in stale and scale_of(stale[run.id]) == scale]
        rows.append(
            Row(
                label,
                of_model,
                tuple(finished or outdated),
                bool(outdated and not finished),
                scale.get("classes") or timm.get_pretrained_cfg(of_model[0].config.variant).num_classes,
                of_model[0].id in teachers,
            )
        )
    return rows


def read_ladder(study: Study) -> list[Row]:
    """The rows of `read_rows` that are steps of the ladder (`Study.ladder`)."""
    steps = {run.id for run in study.ladder}
    return [row for row in read_rows(study) if row.runs[0].id in steps]


def record_of(run: PlannedRun) -> RunRecord | None:
    """The record of a finished or stale run; None when there is none that can be read."""
    if run.state not in (State.DONE, State.STALE):
        return None
    try:
        return read_record(run.folder)
    except BinaryViTError:  # damaged; the state's reason says so
        return None


def scale_of(record: RunRecord) -> dict[str, Any]:
    """What two accuracies must share to be comparable."""
    own_size = timm.get_pretrained_cfg(record.config["variant"]).input_size[-1]
    return {
        "data": record.data.label,
        "fingerprint of the data": record.data.fingerprint,
        "evaluation split": record.data.eval_split,
        "evaluation images": record.data.eval_images,
        "classes": record.data.num_classes,
        "image size": record.config["image_size"] or own_size,
        "evaluation crop": record.config["eval_crop"],
    }


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in completed(config).items() if name not in MAY_DIFFER}


def _plan(run: PlannedRun) -> dict[str, Any]:
    return _recipe(run.config.model_dump(mode="json"))


def _refuse_differences(records: Iterable[RunRecord], properties: Callable[[RunRecord], dict[str, Any]]) -> None:
    for first, other in pairwise(records):
        one, two = properties(first), properties(other)
        for name in one | two:
            if one.get(name) != two.get(name):
                raise BinaryViTError(
                    f"{first.id} and {other.id} cannot share a table, because their scales differ: {name} is "
                    f"{one.get(name)!r} for the first and {two.get(name)!r} for the second. "
                    "Train one of them again, or make two studies."
                )


def describe_scale(rows: Sequence[Row]) -> str:
    """The data and scale of a table, for its caption: data, image size, evaluation images, epochs, seeds."""
    records = [record for row in rows for record in row.values]
    config = rows[-1].config
    if records:
        scale = scale_of(records[0])
        size, label, images = scale["image size"], scale["data"], f"{scale['evaluation images']:,} evaluation images"
    else:
        size = config.image_size or timm.get_pretrained_cfg(config.variant).input_size[-1]
        label, images = config.data_label or config.data, "no run finished yet"
    training = {row.is_teacher: f"{row.config.epochs} epochs, {_seeds(row)}" for row in _fullest_last(rows)}
    own = training.get(False, training.get(True))
    of_teacher = f" (teacher: {training[True]})" if len(set(training.values())) > 1 else ""
    return f"{label}, {size}x{size} pixels, {rows[0].num_classes:,} classes, {images}, {own}{of_teacher}"


def _fullest_last(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: len(row.values))


def _seeds(row: Row) -> str:
    """The seeds that are finished, and of how many; those that are planned when none is."""
    planned = [run.config.seed for run in row.runs]
    finished = sorted(record.seed for record in row.values) or planned
    of_all = f" of {len(planned)}" if len(finished) < len(planned) else ""
    return f"seed{'s' * (len(finished) > 1)} {', '.join(map(str, finished))}{of_all}"
