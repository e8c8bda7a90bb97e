"""Bringing a study to its end: what is missing is trained, then the analysis notebooks are executed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.files import write_text_atomically
from binaryvit.studies.analysis_notebooks import analysis_notebooks, execute_analysis
from binaryvit.studies.notebooks import TRAIN_NOTEBOOK, find_notebook, training_parameters
from binaryvit.studies.processes import Say
from binaryvit.studies.run_queue import RunQueue
from binaryvit.studies.states import state_of
from binaryvit.studies.study import STUDY_FILE, PlannedRun, State, Study, load_study
from binaryvit.studies.workshop import open_workshop


def say_aloud(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # in one piece, so that lines of several threads do not mix


@dataclass(frozen=True)
class Outcome:
    """How a reproduction ended: the runs that are not as the study says, and the analysis notebooks that failed."""

    runs: tuple[PlannedRun, ...]
    failed_analysis: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every run is done and every notebook was executed."""
        return not self.failed_analysis and all(run.state is State.DONE for run in self.runs)


def select(study: Study, only: Iterable[str]) -> list[PlannedRun]:
    """The runs called `only` and the teachers they need, in the study's order; all runs when `only` is empty.

    Raises BinaryViTError for an id that the study does not have.
    """
    ids = [run.id for run in study.runs]
    chosen = set(only)
    for unknown in chosen.difference(ids):
        raise BinaryViTError(f"The study {study.name} has no run {unknown!r}{suggestion(unknown, ids)}")
    chosen |= {run.teacher_id for run in study.runs if run.id in chosen}
    return [run for run in study.runs if not only or run.id in chosen]


def fingerprint_if_needed(study: Study, runs: Sequence[PlannedRun], check_data: bool) -> str | None:
    """The data's fingerprint. They are loaded only to train a run, on request, or if they come with a package."""
    if (
        check_data
        or study.data_config.data == "digits"
        or any(run.state in (State.MISSING, State.FAILED) for run in runs)
    ):
        return load_data(study.data_config).fingerprint
    return None


def reproduce(
    study: Study,
    *,
    only: Sequence[str] = (),
    rerun_stale: bool = False,
    check_data: bool = False,
    jobs: int | None = None,
    say: Say = say_aloud,
) -> Outcome:
    """Trains what is missing or failed before, the teacher first, then executes the analysis notebooks.

    A finished run is skipped; a stale one is left as it is and reported, or with `rerun_stale` moved aside and trained
    again, unless weights it needs from elsewhere cannot be read; a failed one is reported and the rest goes on. Several
    processes may do this at once.

    Args:
        only: ids of the runs to train; their teacher comes along, and no analysis is executed.
        check_data: whether to load the data and compare them with those on record, also when nothing is trained.
        jobs: how many runs, or notebooks, at a time; default: as many as there are GPUs for, 1 on a CPU.

    Raises BinaryViTError when nothing can start: an unknown id, no notebooks, data that cannot be loaded.
    """
    chosen = select(study, only)
    notebook = find_notebook(TRAIN_NOTEBOOK, study.path.parent)
    analysis = [] if only else analysis_notebooks(study)
    for run in chosen:
        training_parameters(notebook, run.config, output="", study="", run_id="")
    _write_study_file(study)
    states = [state_of(study, run) for run in chosen]
    fingerprint = fingerprint_if_needed(study, states, check_data or rerun_stale)
    with open_workshop(study, jobs, say) as workshop:
        queue = RunQueue(workshop, notebook, chosen, fingerprint, rerun_stale)
        runs = queue.settle_all(_trainable_at_once(states, rerun_stale))
        failed = execute_analysis(workshop, analysis)
    return Outcome(tuple(runs), failed)


def analyse(study: Study, *, jobs: int | None = None, say: Say = say_aloud) -> tuple[str, ...]:
    """Executes the analysis notebooks alone, which makes the study's tables and figures again from what is stored.

    Nothing is trained. The data are needed only if a measurement is missing or outdated. `jobs`: as
    in `reproduce`. Returns the names of the notebooks that failed. Raises BinaryViTError when there is no notebook of a
    name.
    """
    notebooks = analysis_notebooks(study)
    _write_study_file(study)
    with open_workshop(study, jobs, say) as workshop:
        return execute_analysis(workshop, notebooks)


def _write_study_file(study: Study) -> None:
    """Puts a copy of the study file next to what it produces, where that is another folder."""
    copy = study.output / STUDY_FILE
    if copy.exists():
        if copy.samefile(study.path):
            return
        if (other := load_study(copy).name) != study.name:
            raise BinaryViTError(
                f"{study.output} holds the study {other!r}: choose another --output for {study.name!r}."
            )
    write_text_atomically(copy, study.path.read_text(encoding="utf-8"))


def _trainable_at_once(runs: Iterable[PlannedRun], rerun_stale: bool) -> int:
    """How many of the runs can be trained at the same time, at most: all but the teachers that others wait for."""
    settled = (State.DONE,) if rerun_stale else (State.DONE, State.STALE)
    pending = [run for run in runs if run.state not in settled]
    teachers = {run.teacher_id for run in pending}
    return sum(run.id not in teachers for run in pending)
