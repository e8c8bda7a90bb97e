"""Notebook files: where they are, which parameters they take, and what is stored of an executed one."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill

from binaryvit.config import RECIPES, TrainingConfig
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.files import LIBRARY_PARENT, find_upwards
from binaryvit.training.recipes import configure, recipe_of

TRAIN_NOTEBOOK = "train.ipynb"
_INJECTED = "injected-parameters"  # papermill's tag of the cell it adds


def find_notebook(name: str, start: Path) -> Path:
    """The file notebooks/<name> in the folder `start` or the nearest one above it.

    Raises BinaryViTError when there is none.
    """
    if notebook := find_upwards(Path("notebooks") / name, start):
        return notebook
    raise BinaryViTError(
        f"There is no notebooks/{name} in {start} or any folder above it: keep the study file inside a copy of the "
        "repository."
    )


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """The notebook's parameters by name, as papermill finds them. Raises BinaryViTError when it is no notebook."""
    try:
        return papermill.inspect_notebook(str(notebook))
    except Exception as error:  # papermill, nbformat and json each raise their own
        raise BinaryViTError(f"{notebook} is not a readable notebook: {error}") from error


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuses parameters the notebook does not have; papermill would only warn and run with the defaults."""
    known = list(declared_parameters(notebook))
    for name in parameters:
        if name not in known:
            raise BinaryViTError(f"{notebook.name} has no parameter {name!r}{suggestion(name, known)}")


def training_parameters(notebook: Path, config: TrainingConfig, **names: str) -> dict[str, Any]:
    """The parameters that make the training notebook train `config`: those it declares, the rest in `settings`.

    `names`: output, study and run_id. Raises BinaryViTError when the notebook does not know one of them.
    """
    declared = declared_parameters(notebook)
    recipe = RECIPES[recipe_of(config.variant)]
    defaults = TrainingConfig(**{"variant": config.variant, **recipe}).model_dump(mode="json")
    fields = config.model_dump(mode="json")
    # Fields at the recipe's value are given too: the notebook's default may differ. As a parameter, None means the
    # recipe's value; in the settings it means None.
    parameters = {name: value for name, value in fields.items() if name in declared}
    settings = {
        name: value
        for name, value in fields.items()
        if value != defaults[name] and (value is None or name not in declared)
    }
    if configure(settings, **parameters) != config:
        raise BinaryViTError(f"{notebook.name} cannot be given this configuration through its parameters.")
    parameters |= {"settings": settings, **names}
    check_parameters(notebook, parameters)
    return parameters


def portable(executed: Path, source: Path, folder: Path, names: Mapping[str, str]) -> str | None:
    """The content of an executed notebook without this machine's paths and without times; equal runs give equal texts.

    `source`: the notebook that was executed, in `folder`. `names`: more texts to replace, such as a path to the data.
    None when papermill left no complete notebook.
    """
    try:
        document = nbformat.read(executed, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError):
        return None
    document.metadata.get("papermill", {}).update(input_path=source.name, output_path=source.name)
    for node in (document, *document.cells):
        for name in ("start_time", "end_time", "duration"):
            node.metadata.get("papermill", {}).pop(name, None)
        node.metadata.pop("execution", None)
    for cell in document.cells:
        if _INJECTED in cell.metadata.get("tags", []):
            cell["id"] = _INJECTED  # papermill draws a random one
    return _without_places(nbformat.writes(document) + "\n", source, folder, names)


def _without_places(text: str, source: Path, folder: Path, names: Mapping[str, str]) -> str:
    places = {str(place): "." for place in (folder.resolve(), source.parent.parent, LIBRARY_PARENT)}
    places |= {sys.prefix: ".", sys.base_prefix: ".", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(Path(place).parts) > 1:  # a home folder "/" is part of too many words
            text = re.sub(rf"(?<![\w.]){re.escape(place)}(?![\w.-])", places[place], text)
    for name, replacement in names.items():
        if len(Path(name).parts) > 1:  # and so is a data folder "."
            text = text.replace(name, replacement)
    return text


def failure_of(document: str | None, complaint: str, code: int) -> str:
    """Why a notebook failed, in one sentence: its own error or, without one, what papermill complained about last."""
    if "DeadKernelError" in complaint or "Kernel died" in complaint:
        return (
            "The notebook's Python process died without an error, most likely because memory ran out: "
            "make batch_size or workers smaller, then start again."
        )
    cells = json.loads(document)["cells"] if document else []
    for output in reversed([output for cell in cells for output in cell.get("outputs", [])]):
        if output["output_type"] == "error":
            name, text = output["ename"], output["evalue"]
            return text if name == BinaryViTError.__name__ else f"{name}: {text}"
    lines = complaint.strip().splitlines() or [f"papermill ended with code {code} and said nothing."]
    return lines[-1]
