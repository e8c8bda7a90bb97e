"""A study's missing runs as shell commands, one per run, for any scheduler on machines that share the folder."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping

from binaryvit.studies.study import PlannedRun, State, Study


def pending_runs(runs: Iterable[PlannedRun], stage: str | None = None) -> list[PlannedRun]:
    """Those of `runs` (a study's, with their states) that have to be trained, a teacher before its students.

    Stale runs and runs that a process is training now are left out. `stage`: "teacher" for the run that others
    learn from, "students" for all others, None for both.
    """
    runs = list(runs)
    teachers = {run.teacher_id for run in runs}
    return [
        run
        for run in runs
        if run.state in (State.MISSING, State.FAILED)
        and (stage is None or (stage == "teacher") == (run.id in teachers))
    ]


def command_of(study: Study, run: PlannedRun, options: Mapping[str, object] | None = None) -> str:
    """The shell command that brings one run to its end; `options` are those of `binaryvit reproduce`, by name.

    It works from any folder, on any machine that sees the repository and the environment in the same place. If it is
    executed twice at once, the second waits for the first and trains nothing; executed again, it goes on from the last
    checkpoint. It exits with 0 once the run is done.
    """
    words = [sys.executable, "-P", "-m", "binaryvit.cli", "reproduce", os.path.abspath(study.path), "--only", run.id]
    words += ["--output", os.path.abspath(study.output)]
    for name, value in (options or {}).items():
        value = os.path.abspath(os.path.expanduser(str(value))) if name == "data_dir" else str(value)
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)
