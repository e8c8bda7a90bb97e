"""Executes a notebook through papermill, or trains by the plain command, in a separate process."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.files import LIBRARY_PARENT, write_text_atomically
from binaryvit.studies.notebooks import failure_of, portable
from binaryvit.studies.processes import Job, Processes
from binaryvit.training.launch import errors_in, train_command
from binaryvit.training.memory import HUGE_PAGES

_PYTHON = (sys.executable, "-P", "-m")  # -P: no module in the working folder shadows another

# Kernels that start at the same time may be given the same ports, and all but one of them die before their first cell
# (https://github.com/nteract/papermill/issues/511); nothing of the notebook has run then.
_STARTS, _DIED_AT_START = 3, "Kernel died before replying"


class ExecutionFailed(BinaryViTError):
    """A notebook or a training that did not reach its end; the text is the error's own sentence."""


@dataclass(frozen=True)
class Executor:
    """Executes in the folder of a study.

    Attributes:
        folder: the working folder of every process.
        names: texts, such as the path of a data folder, and what replaces them in stored notebooks.
        processes: where the processes are started.
    """

    folder: Path
    names: Mapping[str, str]
    processes: Processes

    def execute(self, notebook: Path, output: Path, parameters: Mapping[str, Any], job: Job) -> None:
        """Executes `notebook` through papermill and stores it at `output` once it has reached its end.

        One that failed is stored next to it as <name>.failed.ipynb. Raises ExecutionFailed with the error's sentence,
        KeyboardInterrupt when it was interrupted.
        """
        failed = output.with_suffix(".failed.ipynb")
        with tempfile.TemporaryDirectory(prefix="binaryvit-") as temporary:
            executed, given, errors = (Path(temporary) / name for name in ("out.ipynb", "parameters.yaml", "errors"))
            given.write_text(yaml.safe_dump(dict(parameters), sort_keys=False), encoding="utf-8")
            command = [*_PYTHON, "papermill", str(notebook), str(executed), "--parameters_file", str(given)]
            command += ["--kernel", "python3", "--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-"]
            for _ in range(_STARTS):
                code = self.processes.run(command, self.folder, job, errors=errors, kernel=True)
                complaint = errors.read_text(encoding="utf-8", errors="replace")
                if code == 0 or _DIED_AT_START not in complaint:
                    break
            document = portable(executed, notebook, self.folder, self.names)
        if document is not None:
            write_text_atomically(output if code == 0 else failed, document)
        if code != 0 or document is None:
            raise ExecutionFailed(failure_of(document, complaint, code))
        failed.unlink(missing_ok=True)

    def train(self, config: TrainingConfig, job: Job, *, output: str, study: str, run_id: str) -> None:
        """Trains `config` into the folder `output`, seen from the working folder, by `binaryvit train`.

        Raises ExecutionFailed with the error's sentence, KeyboardInterrupt when it was interrupted.
        """
        said = [""]

        def say(line: str) -> None:
            said.append(line)
            job.say(line)

        with train_command(config, output, study, run_id) as command:
            code = self.processes.run([*_PYTHON, *command], self.folder, Job(job.environment, job.lock, say))
        if code != 0:
            unforeseen = f"The training process ended with an error: {said[-1]}"
            killed = "The training process died without an error, most likely because memory ran out."
            raise ExecutionFailed(next(iter(errors_in(said)), killed if code < 0 else unforeseen))


@contextmanager
def process_environment() -> Iterator[dict[str, str]]:
    """Environment variables with which processes and the kernel "python3" use this interpreter and this library.

    No kernel has to be registered, and a user's kernel of the same name is ignored.
    """
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as folder:
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
        }
        write_text_atomically(Path(folder) / "kernels" / "python3" / "kernel.json", json.dumps(spec))
        # A notebook that reproduces has this variable; with it training would draw a bar instead of lines.
        inherited = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
        yield (
            inherited
            | HUGE_PAGES
            | {
                "JUPYTER_PATH": _joined(os.pathsep, folder, os.environ.get("JUPYTER_PATH")),
                "PYTHONPATH": _joined(os.pathsep, str(LIBRARY_PARENT), os.environ.get("PYTHONPATH")),
                "IPYTHONDIR": str(Path(folder) / "ipython"),  # no start-up files of the user, no shared history
                # Otherwise every notebook would store warnings about its debugger and missing widgets.
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "PYTHONWARNINGS": _joined(",", os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"),
            }
        )


def _joined(separator: str, *values: str | None) -> str:
    return separator.join(filter(None, values))
