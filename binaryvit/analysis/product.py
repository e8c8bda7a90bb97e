"""A figure with its numbers and the finding they support."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from binaryvit.analysis import figure_files
from binaryvit.analysis.display import show_figure
from binaryvit.analysis.stored import OpenStudy
from binaryvit.errors import BinaryViTError
from binaryvit.records.notes import Note, csv_of, sha256_of_text
from binaryvit.records.run_record import read_record

FIGURES_FOLDER = "figures"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a study.

    Attributes:
        opened: the study.
        name: stem of its files.
        inputs: all numbers in the figure, as named tables.
        draw: makes the figure from them.
        runs: ids of the runs they come from.
        finding: what the numbers show, in sentences.
    """

    opened: OpenStudy
    name: str
    inputs: dict[str, pd.DataFrame]
    draw: Callable[[], Figure]
    runs: tuple[str, ...]
    finding: str

    @classmethod
    def of(
        cls,
        opened: OpenStudy,
        name: str,
        inputs: dict[str, pd.DataFrame],
        said: tuple[str, str],
        draw: Callable[[str], Figure],
    ) -> "Drawing":
        """A figure of the runs that its first input names. `said`: its title, which `draw` takes, and its finding."""
        claim, finding = said
        runs = next(iter(inputs.values())).get("run", pd.Series(dtype=str))
        return cls(opened, name, inputs, lambda: draw(claim), tuple(runs.unique()), finding)

    @property
    def file_names(self) -> list[str]:
        """The names of its files."""
        return [f"{self.name}.pdf", f"{self.name}.png"]

    def source(self) -> dict[str, Any]:
        """What the figure is made from: study, runs with the commit each was trained at, sha256 of each input.

        It does not depend on when the figure is drawn, so its files don't either. Raises BinaryViTError when one of the
        runs is no finished run of the study.
        """
        study = self.opened.study
        folders = {run.id: run.folder for run in study.runs}
        commits = {}
        for name in self.runs:
            record = read_record(folders[name]) if name in folders else None
            if record is None:
                raise BinaryViTError(f"The figure {self.name} names {name}, which is no finished run of {study.name}.")
            commits[name] = record.git.commit
        inputs = {name: sha256_of_text(csv_of(table)) for name, table in sorted(self.inputs.items())}
        return {"study": study.name, "runs": commits, "inputs": inputs}

    def write(self) -> list[Path]:
        """Writes the figure as PDF and PNG into the study's figures/, with a note on its source; returns both paths."""
        stem = self.opened.study.output / FIGURES_FOLDER / self.name
        source = self.source()
        paths = figure_files.save(self.draw(), stem, source)
        Note.of(source, paths).write(stem.with_name(f"{stem.name}.json"))
        return paths

    def show(self) -> tuple[Image, Markdown]:
        """The figure and its finding, as a notebook shows them: `display(*drawing.show())`."""
        return show_figure(self.draw()), Markdown(self.finding)
