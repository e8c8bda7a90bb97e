"""Finished runs as models to look into: those of a study, or any that are given by their folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.files import LIBRARY_PARENT, find_upwards
from binaryvit.models.ladder import BINARY_VARIANTS, variant_style
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.run_record import RECORD_FILE, RUNS_FOLDER, RunRecord, read_record
from binaryvit.studies.rows import labelled_runs, record_of
from binaryvit.studies.study import PlannedRun, State, Study, load_study
from binaryvit.training.build import input_settings
from binaryvit.training.teacher import run_identity


@dataclass(frozen=True)
class StoredRun:
    """A finished run of a study: its record, and its model from the stored weights.

    Attributes:
        id: name of the run in its study.
        label: how tables and figures call it; with the seed where the model has several.
        variant: timm name of the model.
        folder: the run's folder.
        record: its run.json.
    """

    id: str
    label: str
    variant: str
    folder: Path
    record: RunRecord

    @property
    def weights(self) -> Path:
        """The file with the inference weights."""
        return self.folder / self.record.weights.file

    @property
    def config(self) -> TrainingConfig:
        """The configuration it was trained with."""
        return TrainingConfig(**self.record.config)

    @property
    def is_binary_transformer(self) -> bool:
        """Whether the model is a binary variant of the ladder, with weights or activations of one bit."""
        bits = [self.record.config["model_args"].get(name, 1) for name in ("weight_bits", "activation_bits")]
        return 1 in bits and self.variant in BINARY_VARIANTS

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode, on the CPU. Raises BinaryViTError when its weights are missing."""
        return load_inference_weights(self.weights)

    def input_settings(self) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
        """Input size (3, height, width) of the model, mean and deviation per channel of what its images become."""
        return input_settings(self.model(), self.record.config["image_size"])


@dataclass(frozen=True)
class OpenStudy:
    """A study opened to look into: what every figure is made from.

    Attributes:
        study: the study.
        ids: which of its runs; None: those that suit the figure.
        write: whether new measurements may take the place of stored ones that were made with other settings, and
            `notebook.show` writes what it shows into the study's folder.
    """

    study: Study
    ids: tuple[str, ...] | None = None
    write: bool = False

    def runs(self, weights: bool = True) -> list[StoredRun]:
        """The chosen runs, or the finished ones of the ladder; see `stored_runs`."""
        return stored_runs(self.study, self.ids, weights)

    def teacher(self) -> StoredRun | None:
        """The run that the study's binary models learned from; None when it is not one of the study's."""
        ids = {run.teacher_id for run in self.study.runs} - {None}
        return stored_runs(self.study, sorted(ids))[0] if ids else None


def open_study(
    study: str | Path,
    runs: Sequence[str | Path] | None = None,
    data_dir: str | Path | None = None,
    write: bool = False,
) -> OpenStudy:
    """Opens a study, or any finished runs by their folders.

    Args:
        study: its folder or file. A relative path may start in the current folder, in any above it, or in the
            repository that this library is in. Not read when the runs are folders.
        runs: ids of the study's runs, or folders of finished runs as train.ipynb leaves them; None: see `OpenStudy`.
        data_dir: a local copy of the data, needed where something is to be measured.
        write: see `OpenStudy`.

    Raises BinaryViTError when there is no such study or run.
    """
    if runs and any((Path(run) / RECORD_FILE).is_file() or os.sep in str(run) for run in runs):
        opened = study_of_folders(runs, data_dir)
        return OpenStudy(opened, tuple(run.id for run in opened.runs), write)
    found = find_upwards(study, Path.cwd()) or find_upwards(study, LIBRARY_PARENT) or study
    return OpenStudy(load_study(os.path.relpath(found), data_dir=data_dir), runs and tuple(runs), write)


def study_of_folders(folders: Sequence[str | Path], data_dir: str | Path | None = None) -> Study:
    """A study of finished runs, wherever their folders lie; what is measured and drawn goes beside these.

    A run is called as its folder. The teacher of another one is known as such when it is among them.

    Raises BinaryViTError for a folder without a finished run, two of one name, and runs on different data.
    """
    records: dict[Path, RunRecord] = {}
    for folder in map(Path, folders):
        record = read_record(folder)
        if record is None:
            raise BinaryViTError(
                f"{folder} holds no finished run: give folders as train.ipynb leaves them, with a {RECORD_FILE}, "
                "or ids of runs of a study, not both."
            )
        if any(folder.name == other.name for other in records):
            raise BinaryViTError(f"Two of the runs' folders are called {folder.name}: rename one, or give it once.")
        records[folder] = record
    fingerprints = {record.key.data: folder for folder, record in records.items()}
    if len(fingerprints) > 1:
        raise BinaryViTError(
            f"{' and '.join(map(str, fingerprints.values()))} were trained on different data: look at them one by one."
        )
    output = Path(os.path.relpath(os.path.commonpath([folder.resolve().parent for folder in records])))
    variants = [record.config["variant"] for record in records.values()]
    planned = []
    for folder, record in records.items():
        config = TrainingConfig(**record.config)
        label = variant_style(config.variant).label if variants.count(config.variant) == 1 else folder.name
        reason = f"top-1 {record.weights.top1:.2f}%, given by its folder"
        teacher = _teacher_among(records, record, config)
        planned.append(PlannedRun(folder.name, label, config, teacher, folder, State.DONE, reason))
    title = "Runs given by their folders"
    return Study(output.resolve().name, title, output, output, data_dir and Path(data_dir), (), tuple(planned))


def _teacher_among(records: dict[Path, RunRecord], student: RunRecord, config: TrainingConfig) -> str | None:
    """The name of the folder that holds a run's teacher: the one that gives the student its key."""
    if config.teacher is None or config.init_from is not None:  # the key then holds more than the folders tell
        return None
    made = (
        folder.name
        for folder, teacher in records.items()
        if config.key(run_identity(teacher.key)) == student.key.config
    )
    return next(made, None)


def stored_runs(study: Study, ids: Sequence[str] | None = None, weights: bool = True) -> list[StoredRun]:
    """The finished, current runs of a study in the study's order: those of the ladder (`Study.ladder`), or of `ids`.

    With `weights=False` no run needs weights: enough for what training noted in the runs' tables.

    Raises BinaryViTError for an empty selection, an id the study does not have (it says so when another study has), a
    chosen run that is not done, no finished run at all, and a finished run without its weights.
    """
    models = labelled_runs(study)
    planned = {run.id: run for _, runs in models for run in runs}
    if ids is None:
        done = (name for name, run in planned.items() if run.state is State.DONE)
        ids = {run.id for run in study.ladder}.intersection(done)
    else:
        _check_selection(study, ids, planned)
    found = []
    for label, runs in models:
        for run in runs:
            if run.id in ids:
                called = label if len(runs) == 1 else f"{label}, seed {run.config.seed}"
                found.append(StoredRun(run.id, called, run.config.variant, run.folder, record_of(run)))
    if not found:
        raise BinaryViTError(
            f"The study {study.name} has no finished run to look into: `binaryvit reproduce {study.path}` trains them."
        )
    for run in found:
        if weights and not run.weights.is_file():
            raise BinaryViTError(
                f"The run {run.id} has no weights, {os.path.relpath(run.weights)} is missing: put the file back, or "
                f"move the run's folder away and train it again with `binaryvit reproduce {study.path}`."
            )
    return found


def _check_selection(study: Study, ids: Sequence[str], planned: dict[str, PlannedRun]) -> None:
    if isinstance(ids, str):
        raise BinaryViTError(f"The runs must be a list of ids, not the text {ids!r}: write [{ids!r}].")
    if not ids:
        raise BinaryViTError(f"No run is selected: choose some of {', '.join(planned)}, or None for all.")
    for name in ids:
        if name not in planned:
            raise BinaryViTError(
                f"The study {study.name} has no run {name!r}{_other_study(study, name) or suggestion(name, [*planned])}"
            )
        if planned[name].state is not State.DONE:
            raise BinaryViTError(
                f"The run {name} cannot be looked into: it is {planned[name].state} ({planned[name].reason})."
            )


def _other_study(study: Study, name: str) -> str:
    """The end of a sentence when a study beside this one has a finished run of that name."""
    places = {study.output.resolve().parent, study.path.resolve().parent.parent}
    others = [path.parents[2] for place in places for path in place.glob(f"*/{RUNS_FOLDER}/*/{RECORD_FILE}")
              if path.parent.name == name]  # fmt: skip
    return f": it is a run of the study in {os.path.relpath(sorted(others)[0])}." if others else ""
