"""The tables of a study, made from its run records, and the way from each cell back to the run it comes from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from binaryvit.analysis import cells
from binaryvit.analysis.display import show_table
from binaryvit.analysis.ladder import findings
from binaryvit.analysis.paired import PairedDifference
from binaryvit.analysis.steps import difference
from binaryvit.analysis.stored import OpenStudy
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.records.notes import Note
from binaryvit.records.predictions import PREDICTIONS_FILE
from binaryvit.records.run_record import RECORD_FILE
from binaryvit.studies.rows import NOTHING, Row, describe_scale, read_ladder, record_of
from binaryvit.studies.states import plan
from binaryvit.studies.study import PlannedRun, State, Study

TABLES_FOLDER = "tables"
_COSTS = ("parameters", "binary_weights", "bytes", "bops", "flops", "ops", "ops_elementwise")

_SOURCE_COLUMNS = (
    "row", "column", "run", "state", "commit", "uncommitted_changes", "config_key", "data_fingerprint",
    "training_version", "read_from",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table in its two forms, and where its cells come from.

    Attributes:
        opened: the study.
        name: stem of its files.
        caption: what it shows, on which data and scale.
        numbers: a row a model, full precision, NaN where there is nothing; for programs (CSV).
        text: the same rows as people read them (notebook, Markdown, LaTeX).
        sources: a row for each (row, column, run): run id, state, commit, key and what was read.
        finding: what the numbers show, in sentences made from them.
    """

    opened: OpenStudy
    name: str
    caption: str
    numbers: pd.DataFrame
    text: pd.DataFrame
    sources: pd.DataFrame
    finding: str

    def show(self) -> tuple[HTML, Markdown]:
        """The table and its finding, as a notebook shows them: `display(*table.show())`."""
        return show_table(self.text, self.caption), Markdown(self.finding)

    def contents(self) -> dict[str, str]:
        """The table's files by name: <name>.csv, .md, .tex and .sources.csv."""
        return {
            f"{self.name}.csv": self.numbers.to_csv(index=False),
            f"{self.name}.md": self.to_markdown(),
            f"{self.name}.tex": self.to_latex(),
            f"{self.name}.sources.csv": self.sources.to_csv(index=False),
        }

    def write(self) -> list[Path]:
        """Writes the files into the study's tables/, with <name>.json, a note on them; returns the files' paths."""
        folder, contents = self.opened.study.output / TABLES_FOLDER, self.contents()
        paths = [folder / name for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            write_text_atomically(path, content)
        commits = self.sources.groupby("run", sort=False)["commit"].first()
        Note.of({"runs": commits.where(commits.notna(), None).to_dict()}, paths).write(folder / f"{self.name}.json")
        return paths

    def to_markdown(self) -> str:
        """The caption, a Markdown table, and the finding."""
        cells = self.text.map(lambda text: text.replace("|", r"\|"))
        lines = [[*cells.columns], ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.caption}**\n\n{table}\n\n{self.finding}\n\nSource of each cell: {self.name}.sources.csv\n"

    def to_latex(self) -> str:
        """A tabular for the booktabs package; caption and origin of each row are comments above it."""
        origin = [column for column in ("runs", "seen in") if column in self.text]
        comments = [f"{self.caption} Needs \\usepackage{{booktabs}}."]
        comments += [f"{row.iloc[0]}: {'; '.join(row[origin])}" for _, row in self.text.iterrows()]
        styler = self.text.drop(columns=origin).style.hide(axis="index").format(escape="latex")
        columns = "l" + "r" * (len(styler.columns) - 1)
        body = styler.format_index(axis="columns", escape="latex").to_latex(hrules=True, column_format=columns)
        return "".join(f"% {comment}\n" for comment in comments) + body


def states(study: Study) -> pd.DataFrame:
    """Every run of the study, what state it is in, and why."""
    return pd.DataFrame(
        [{"run": run.id, "state": str(run.state), "reason": run.reason} for run in plan(study)],
        columns=["run", "state", "reason"],
    )


def ablation(opened: OpenStudy) -> Table:
    """The ladder of a study, as the paper's Table 3: accuracy, size and operations, a row for each step.

    Raises BinaryViTError when the study's runs are not of one scale.
    """
    rows = whole_ladder(opened)
    gains = [None, *(difference(before, after) for before, after in pairwise(rows))]
    numbers = pd.DataFrame([numbers_of(row, gain) for row, gain in zip(rows, gains, strict=True)])
    text = pd.DataFrame([_text(row, gain) for row, gain in zip(rows, gains, strict=True)])
    several = any(gain and gain.seeds > 1 for gain in gains)
    caption = (
        f"Ablation on {describe_scale(rows)}. Difference: top-1 against the row before, in points, with its 95% "
        f"interval over images{' and seeds of the students' * several}. M = 1e6; MB = 1e6 bytes, 1 bit per binary "
        "weight; operations per image, OPs = BOPs / 64 + FLOPs. "
    )
    caption += (
        "Mean ± sample standard deviation over n seeds; a difference is over as many, or over the n it names."
        if several
        else "One seed, so nothing is said about chance in training."
    )
    return Table(opened, "ablation", caption, numbers, text, sources_of(rows), findings.of_ablation(rows))


def whole_ladder(opened: OpenStudy) -> list[Row]:
    """The rows of the ladder. Raises BinaryViTError where the study was opened for some of its runs alone."""
    if opened.ids is not None and set(opened.ids) != {run.id for run in opened.study.runs}:
        raise BinaryViTError(
            f"Tables are of a whole study: leave `runs` out for {opened.study.name}, or give folders of runs."
        )
    return read_ladder(opened.study)


def numbers_of(row: Row, step: PairedDifference | None = None) -> dict[str, Any]:
    """A row of a table at full precision: accuracy over its seeds, the difference to the row before, and its costs."""
    top1, top5 = row.measured("top1"), row.measured("top5")
    return {
        "label": row.label,
        "variant": row.variant,
        "state": "stale" if row.stale else row.missing or "done",
        "seeds": top1.seeds,
        "top1": top1.mean,
        "top1_std": top1.std,
        "top1_difference": step.points if step else math.nan,
        "top1_difference_low": step.low if step else math.nan,
        "top1_difference_high": step.high if step else math.nan,
        "top1_difference_seeds": step.seeds if step else 0,
        "top5": top5.mean,
        "top5_std": top5.std,
        **{name: getattr(row.model_cost, name) for name in _COSTS},
        "runs": " ".join(run.id for run in row.runs),
    }


def _text(row: Row, step: PairedDifference | None) -> dict[str, str]:
    return {
        "variant": row.label,
        "top-1 (%)": cells.accuracy(row, "top1"),
        "difference": cells.step_text(row, step),
        "top-5 (%)": cells.accuracy(row, "top5"),
        "parameters (M)": f"{row.model_cost.parameters / 1e6:,.3f}",
        **cells.costs(row.model_cost),
        "runs": run_ids(row),
    }


def run_ids(row: Row | None) -> str:
    return ", ".join(run.id for run in row.runs) if row else NOTHING


def sources_of(rows: Sequence[Row]) -> pd.DataFrame:
    lines = []
    for before, row in pairwise([None, *rows]):
        for column, field in (("top1", "weights.top1"), ("top5", "result.top5")):
            lines += [_source(row, column, run, f"{RECORD_FILE}: {field}") for run in row.runs]
        for run in (*before.runs, *row.runs) if before else ():
            lines.append(_source(row, "top1_difference", run, PREDICTIONS_FILE))
        for column in _COSTS:
            lines += [
                _source(row, column, run, f"binaryvit.models.cost of {row.variant}, {row.num_classes} classes")
                for run in row.runs
            ]
    return pd.DataFrame(lines, columns=list(_SOURCE_COLUMNS)).astype({"training_version": "Int64"})


def _source(row: Row, column: str, run: PlannedRun, read: str) -> dict[str, Any]:
    record = record_of(run)
    identity = [None] * 5
    if record is not None:
        key = record.key
        identity = [record.git.commit, record.git.dirty, key.config, key.data, key.training_version]
    state = State.MISSING if run.state is State.RUNNING else run.state
    return dict(zip(_SOURCE_COLUMNS, [row.label, column, run.id, str(state), *identity, read], strict=True))
