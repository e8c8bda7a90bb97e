"""Executing one notebook through papermill in a process of its own, and storing it free of this machine's paths."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import yaml

from binaryvit.config import RECIPES, TrainingConfig, suggestion
from binaryvit.errors import BinaryViTError
from binaryvit.files import LIBRARY_PARENT, find_upwards, write_text_atomically
from binaryvit.training.memory import HUGE_PAGES
from binaryvit.training.recipes import configure, recipe_of

# What an interrupted kernel gets to end its step and to store a checkpoint.
_GRACE_SECONDS = 60
_INJECTED = "injected-parameters"  # papermill's tag of the cell it adds


class NotebookFailed(BinaryViTError):
    """A notebook that did not reach its end; the text is the error's own sentence."""


def find_notebook(name: str, start: Path) -> Path:
    """The file notebooks/<name> in the folder `start` or the nearest one above it.

    Raises BinaryViTError when there is none.
    """
    if notebook := find_upwards(Path("notebooks") / name, start):
        return notebook
    raise BinaryViTError(
        f"There is no notebooks/{name} in {start} or any folder above it: "
        "keep the study file inside a copy of the repository, or give the notebooks' folder."
    )


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuses parameters the notebook does not have: papermill only warns, and the default would be used instead."""
    known = list(declared_parameters(notebook))
    for name in parameters:
        if name not in known:
            raise BinaryViTError(f"{notebook.name} has no parameter {name!r}{suggestion(name, known)}")


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """The notebook's parameters by name, as papermill finds them. Raises BinaryViTError when it is no notebook."""
    try:
        return papermill.inspect_notebook(str(notebook))
    except Exception as error:  # each of papermill, nbformat and json has its own
        raise BinaryViTError(f"{notebook} is not a readable notebook: {error}") from error


def training_parameters(notebook: Path, config: TrainingConfig, **names: str) -> dict[str, Any]:
    """The parameters with which the training notebook arrives at `config`: its own ones, the rest in `settings`.

    `names`: output, study and run_id. Raises BinaryViTError when the notebook does not know one of them.
    """
    declared = declared_parameters(notebook)
    defaults = TrainingConfig(**{"variant": config.variant, **RECIPES[recipe_of(config.variant)]}).model_dump(
        mode="json"
    )
    parameters: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if name in declared:
            parameters[name] = value  # also when it is the recipe's: the notebook's default may be another
        if value != defaults[name] and (value is None or name not in declared):
            settings[name] = value  # there None is a value, as a parameter it means the recipe's
    if configure(settings, **{name: value for name, value in parameters.items() if name not in settings}) != config:
        raise BinaryViTError(f"{notebook.name} cannot be given this configuration through its parameters.")
    parameters |= {"settings": settings, **names}
    check_parameters(notebook, parameters)
    return parameters


@contextmanager
def kernel_environment() -> Iterator[dict[str, str]]:
    """Environment variables with which the kernel "python3" is this interpreter and imports this copy of the library.

    Nothing has to be registered, and a kernel of the same name that the user registered is not taken.
    """
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as folder:
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
        }
        write_text_atomically(Path(folder) / "kernels" / "python3" / "kernel.json", json.dumps(spec))
        # Inherited where this runs inside a notebook; training draws a bar where it is set, and lines elsewhere.
        inherited = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
        yield (
            inherited
            | HUGE_PAGES
            | {
                "JUPYTER_PATH": os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")])),
                "PYTHONPATH": os.pathsep.join(filter(None, [str(LIBRARY_PARENT), os.environ.get("PYTHONPATH")])),
                "IPYTHONDIR": str(Path(folder) / "ipython"),  # no start-up files of the user's, no shared history
                # Else every notebook would hold a warning about its debugger, and one about missing widgets.
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "PYTHONWARNINGS": ",".join(
                    filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"])
                ),
            }
        )


def execute(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    folder: Path,
    environment: dict[str, str],
    pass_fds: Sequence[int] = (),
    names: dict[str, str] | None = None,
) -> None:
    """Executes `notebook` in `folder` and stores it at `output` once it reached its end.

    One that failed is stored beside it as <name>.failed.ipynb. The kernel's standard output appears on ours.
    `pass_fds`: descriptors the process inherits. `names`: texts, such as a data folder's path, and what replaces them
    in the stored notebook.

    Raises NotebookFailed with the error's sentence. On KeyboardInterrupt the notebook is interrupted first, and has
    time to store what it must.
    """
    failed = output.with_suffix(".failed.ipynb")
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as temporary:
        executed = Path(temporary) / "executed.ipynb"
        given = Path(temporary) / "parameters.yaml"
        given.write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "papermill", str(notebook), str(executed), "--parameters_file", str(given)]
        command += ["--kernel", "python3", "--cwd", str(folder.resolve())]
        command += ["--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-"]
        with open(Path(temporary) / "errors.txt", "w+", encoding="utf-8") as errors:
            # In a session of its own, so that Ctrl-C reaches this process only, which then ends it in order.
            child = subprocess.Popen(
                command,
                env=environment,
                pass_fds=pass_fds,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = child.wait()
            finally:
                _end(child)
            errors.seek(0)
            complaint = errors.read()
        try:
            document = _clean(executed, output, notebook, folder, names or {})
        except (OSError, ValueError, nbformat.ValidationError):  # papermill died before or while it wrote
            document = None
        if code == 0 and document is not None:
            write_text_atomically(output, document)
            failed.unlink(missing_ok=True)
            return
        if document is not None:
            write_text_atomically(failed, document)
        raise NotebookFailed(_reason(document, complaint, code))


def _end(child: subprocess.Popen) -> None:
    """Ends papermill and its kernel if they still run: asks, then insists. Another Ctrl-C hurries it."""
    if child.poll() is not None:
        return
    print("Stopping the run, which first stores where it is (Ctrl-C again: at once).", file=sys.stderr, flush=True)
    # The kernel goes first and by itself: papermill, when interrupted, gives it five seconds only.
    for end, seconds in (
        (_interrupt_kernel, _GRACE_SECONDS),
        (lambda papermill: papermill.send_signal(signal.SIGINT), 15),
        (lambda papermill: papermill.terminate(), 5),
        (lambda papermill: papermill.kill(), None),
    ):
        try:
            end(child)
            child.wait(seconds)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt, psutil.NoSuchProcess):
            continue


def _interrupt_kernel(papermill: subprocess.Popen) -> None:
    kernels = [child for child in psutil.Process(papermill.pid).children() if child.is_running()]
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    if not kernels:  # it has not started one yet
        papermill.send_signal(signal.SIGINT)


def _clean(executed: Path, output: Path, notebook: Path, folder: Path, names: dict[str, str]) -> str:
    """The executed notebook without this machine's paths and without times: equal content gives an equal file."""
    document = nbformat.read(executed, as_version=4)
    document.metadata.get("papermill", {}).update(input_path=notebook.name, output_path=output.name)
    for node in (document, *document.cells):
        for name in ("start_time", "end_time", "duration"):
            node.metadata.get("papermill", {}).pop(name, None)
        node.metadata.pop("execution", None)
    for cell in document.cells:
        if _INJECTED in cell.metadata.get("tags", []):
            cell["id"] = _INJECTED  # papermill draws it anew each time
    text = nbformat.writes(document) + "\n"
    places = {str(place): "." for place in (folder.resolve(), notebook.parent.parent, LIBRARY_PARENT)}
    places |= {sys.prefix: ".", sys.base_prefix: ".", str(Path.home()): "~"}
    # A home folder "/" or a data folder "." is part of too many words.
    places = {path: short for path, short in places.items() if len(Path(path).parts) > 1}
    for path in sorted(places, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.]){re.escape(path)}(?![\w.-])", places[path], text)
    for name, replacement in names.items():
        if len(Path(name).parts) > 1:
            text = text.replace(name, replacement)
    return text


def _reason(document: str | None, complaint: str, code: int) -> str:
    """The sentence of the error that ended a notebook, from its output or else from papermill's complaint."""
    if "DeadKernelError" in complaint or "Kernel died" in complaint:
        return (
            "The notebook's Python process died without an error, most likely because memory ran out: "
            "make batch_size or workers smaller, then start again."
        )
    outputs = (
        [output for cell in json.loads(document)["cells"] for output in cell.get("outputs", [])] if document else []
    )
    for output in reversed(outputs):
        if output["output_type"] == "error":
            name, text = output["ename"], output["evalue"]
            return text if name == BinaryViTError.__name__ else f"{name}: {text}"
    lines = complaint.strip().splitlines() or [f"papermill ended with code {code} and said nothing."]
    return lines[-1]
