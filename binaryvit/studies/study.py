"""A study: the runs that its file names, resolved to their configurations.

Nothing here trains or writes; `binaryvit.studies.states` says what is done, `binaryvit.studies.runner` does the rest.
"""

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from binaryvit.config import NOT_IN_KEY, PRETRAINED, RECIPES, TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.records.run_record import RUNS_FOLDER
from binaryvit.studies.study_file import Row, Student, read_study_file

STUDY_FILE = "study.yaml"


class State(StrEnum):
    """The state of a run, judged by its folder."""

    DONE = "done"
    STALE = "stale"  # finished, with another configuration, data or training code than today's
    FAILED = "failed"
    RUNNING = "running"  # a living process holds its lock
    MISSING = "missing"  # not started, or interrupted


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: what it trains, where, and its state with the reason in words.

    A path inside `config` is relative to the study's output folder, which is where the run executes.

    Attributes:
        teacher_id: the run it learns from; None for a teacher, and for a student of the labels.
        is_control: not a step of the ladder, but something to compare a step with.
        has_notebook: trained by the notebook, which is kept; else by `binaryvit train`.
    """

    id: str
    label: str
    config: TrainingConfig
    teacher_id: str | None
    folder: Path
    state: State = State.MISSING
    reason: str = "not run yet"
    is_control: bool = False
    has_notebook: bool = True

    @property
    def model_id(self) -> str:
        """The id without the seed, which the runs of a model share."""
        return self.id.removesuffix(f"-seed{self.config.seed}")

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of the weights and of the activations of the model's binary layers: 1 unless its arguments differ."""
        return tuple(self.config.model_args.get(name, 1) for name in ("weight_bits", "activation_bits"))

    @property
    def lock(self) -> Path:
        """The lock file that is held while the run trains."""
        return self.folder.with_name(f"{self.folder.name}.lock")


@dataclass(frozen=True)
class Study:
    """A study file with its runs resolved, in the order they are trained and shown.

    The teacher comes first, then the ladder with the first seed, with the second, and so on, then the controls in the
    same way: a study that was cut short still holds a whole ladder.

    `output` is the folder everything is written to. `data_dir` is the local copy of the data, seen from the current
    folder; None when there is none.
    """

    name: str
    title: str
    path: Path
    output: Path
    data_dir: Path | None
    analysis: tuple[str, ...]
    runs: tuple[PlannedRun, ...] = field(repr=False)

    @property
    def data_config(self) -> TrainingConfig:
        """A configuration to load the study's data with, from the current folder. All rows share their data."""
        return self.runs[0].config.model_copy(update={"data_dir": self.data_dir and str(self.data_dir)})

    @property
    def ladder(self) -> tuple[PlannedRun, ...]:
        """The runs that are steps of the ladder: the teacher and its students, without the controls."""
        return tuple(run for run in self.runs if not run.is_control)


def load_study(path: str | Path, output: str | Path | None = None, **execution: Any) -> Study:
    """Reads a study file (or the study.yaml in the folder `path`) and resolves its runs.

    `output`: folder for all that the study produces; default: the file's own. `execution`: fields of TrainingConfig
    that change where and how fast runs happen, not their numbers: data_dir, data_label, workers, threads.

    Raises BinaryViTError, a sentence for each problem, when the file or a configuration it resolves to is wrong.
    """
    path = Path(path)
    path = path / STUDY_FILE if path.is_dir() else path
    output = path.parent if output is None else Path(output)
    file = read_study_file(path)
    if wrong := execution.keys() - NOT_IN_KEY:
        raise BinaryViTError(f"{', '.join(sorted(wrong))} would change the study's numbers: write it into {path}.")

    data_dir = execution.pop("data_dir", None)
    if data_dir is None and file.data != "digits" and os.path.isdir(file.data):
        data_dir = file.data  # a folder of that name here, which the runs would not see from theirs
    shared = {"data": file.data, "data_label": file.data_label} | file.recipe | execution
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
        shared["data_dir"] = _seen_from(output, data_dir)

    def resolve(row: Row, seed: int, kind: str, **facts: Any) -> PlannedRun:
        name = row.id or row.variant
        folder = output / RUNS_FOLDER / f"{name}-seed{seed}"
        fields = RECIPES[kind] | shared | row.recipe | {"variant": row.variant, "seed": seed}
        for place_of in ("teacher", "init_from"):  # paths in the file start at the file
            if isinstance(place := fields.get(place_of), str) and not place.startswith(PRETRAINED):
                fields[place_of] = _seen_from(output, path.parent / place)
        if isinstance(row, Student) and row.teacher == "none":
            facts["teacher_id"] = fields["teacher"] = fields["teacher_variant"] = None
        elif facts["teacher_id"] is not None:
            fields["teacher"] = f"{RUNS_FOLDER}/{facts['teacher_id']}"
        try:
            return PlannedRun(folder.name, row.label or name, TrainingConfig(**fields), folder=folder, **facts)
        except BinaryViTError as error:
            raise BinaryViTError("\n".join(f"{path}: {name}: {line}" for line in str(error).splitlines())) from None

    runs = [] if file.teacher is None else [resolve(file.teacher, file.teacher.seed, "teacher", teacher_id=None)]
    teacher_id = runs[0].id if runs else None
    for rows in (file.variants, file.controls):
        for seed in dict.fromkeys(seed for row in rows for seed in file.seeds_of(row)):
            runs += [
                resolve(
                    row,
                    seed,
                    "student",
                    teacher_id=teacher_id,
                    is_control=rows is file.controls,
                    has_notebook=file.notebooks == "all" or seed == file.seeds_of(row)[0],
                )
                for row in rows
                if seed in file.seeds_of(row)
            ]
    return Study(file.name, file.title, path, output, data_dir and Path(data_dir), tuple(file.analysis), tuple(runs))


def _seen_from(folder: Path, place: str | Path) -> str:
    """The path of a place for a process whose working folder is `folder`, also where that lies behind a link."""
    return os.path.relpath(place, os.path.realpath(folder))
