"""Executing notebooks with this copy of the library, and reading what they show."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
import pytest
from nbformat import NotebookNode

from binaryvit.studies.execution import process_environment


@contextmanager
def kernels_of_this_checkout() -> Iterator[None]:
    """Within it, kernels are of this interpreter and import this copy of the library, outside JupyterLab."""
    with process_environment() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("JPY_SESSION_NAME", raising=False)
        yield


def execute(
    notebook: str | Path, to: str | Path = "out.ipynb", cwd: Path | None = None, **parameters: Any
) -> NotebookNode:
    """Executes a notebook as papermill's command does, without its progress bar."""
    return papermill.execute_notebook(
        str(notebook), str(to), parameters, kernel_name="python3", progress_bar=False, cwd=cwd and str(cwd)
    )


def outputs(document: NotebookNode, kind: str) -> list[str]:
    """All outputs of a MIME type in an executed notebook."""
    return [output["data"][kind] for output in _all_outputs(document) if kind in output.get("data", {})]


def printed(document: NotebookNode, stream: str = "stdout") -> str:
    """What an executed notebook wrote to a stream."""
    return "".join(output["text"] for output in _all_outputs(document) if output.get("name") == stream)


def _all_outputs(document: NotebookNode) -> list[NotebookNode]:
    return [output for cell in document.cells for output in cell.get("outputs", [])]
