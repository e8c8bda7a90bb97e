"""Executing the analysis notebooks of a study."""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.studies.notebooks import check_parameters, declared_parameters, find_notebook
from binaryvit.studies.processes import Share
from binaryvit.studies.study import Study
from binaryvit.studies.workshop import Workshop


def analysis_notebooks(study: Study) -> list[Path]:
    """The study's analysis notebooks, each known to take the study as its parameter."""
    notebooks = [find_notebook(name, study.path.parent) for name in study.analysis]
    for notebook in notebooks:
        check_parameters(notebook, {"study": ""})
    return notebooks


def execute_analysis(workshop: Workshop, notebooks: Sequence[Path]) -> tuple[str, ...]:
    """Executes the analysis notebooks into the study's folder; returns the names of those that failed."""
    executed = set()

    def work(notebook: Path, share: Share) -> None:
        if _analyse(workshop, notebook, share):
            executed.add(notebook)

    workshop.executor.processes.in_parallel(partial(next, iter(notebooks), None), work, workshop.shares(len(notebooks)))
    return tuple(notebook.name for notebook in notebooks if notebook not in executed)


def _analyse(workshop: Workshop, notebook: Path, share: Share) -> bool:
    """Executes an analysis notebook; says so and returns False when it fails."""
    study, say = workshop.study, workshop.say
    output = study.output / notebook.name
    waiting = False
    while True:
        with hold(study.output / f"{notebook.stem}.lock") as lock:
            if lock is not None:
                try:
                    job = workshop.job(notebook.name, share, lock)
                    workshop.executor.execute(notebook, output, _analysis_parameters(study, notebook), job)
                except BinaryViTError as error:
                    say(f"{notebook.name}: FAILED: {error}")
                    return False
                say(f"{notebook.name}: executed, see {os.path.relpath(output)}")
                return True
        if not waiting:
            waiting = True
            say(f"{notebook.name}: another process is executing it; waiting for it to end")
        workshop.executor.processes.check()
        time.sleep(workshop.poll_seconds)


def _analysis_parameters(study: Study, notebook: Path) -> dict[str, Any]:
    """The parameters a notebook gets, of those it takes; its working folder is the study's."""
    given = {"study": ".", "write": True, "data_dir": study.runs[0].config.data_dir}
    declared = declared_parameters(notebook)
    return {name: value for name, value in given.items() if name in declared and value is not None}
