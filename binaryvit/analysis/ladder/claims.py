"""The paper's claims, and what a study says about each.

python -m binaryvit.analysis.ladder.claims results/cifar10 docs/claims.md
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from binaryvit.analysis import cells
from binaryvit.analysis.ladder.headline import put_into
from binaryvit.analysis.measurements import stored_measurement
from binaryvit.analysis.paired import PairedDifference
from binaryvit.analysis.steps import difference, extra_gain
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.studies.rows import NOTHING, Row, describe_scale, read_ladder, read_rows
from binaryvit.studies.study import Study, load_study
from binaryvit.yaml_file import read_yaml

CLAIMS_FILE = "claims.yaml"


class Claim(BaseModel, extra="forbid"):
    """A statement that the second of two models, named by their ids in the study, is better than the first.

    With `more_than`, two other models: that it gains more over the first than the second of these over their first.
    """

    claim: str
    test: str
    models: tuple[str, str]
    more_than: tuple[str, str] | None = None


def read_claims(study: Study) -> dict[str, list[Claim]]:
    """The claims.yaml next to the study's file: titles, each with its claims.

    Raises BinaryViTError when it is missing or wrong.
    """
    path = study.path.with_name(CLAIMS_FILE)
    try:
        titled = TypeAdapter(dict[str, list[Claim]]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise BinaryViTError(f"{path} does not list claims under titles: {error}") from None
    known = {run.model_id for run in study.runs}
    named = {name for listed in titled.values() for claim in listed for name in claim.models + (claim.more_than or ())}
    if unknown := named - known:
        raise BinaryViTError(f"{path} names {', '.join(sorted(unknown))}, which the study {study.name} has not.")
    return titled


def claims(study: Study) -> str:
    """A table in Markdown for each title of claims.yaml: each claim with its test, its number and its outcome.

    The last table is on the argument behind the claims: how many values the classifier of each rung reads.
    """
    rows, ladder = {row.runs[0].model_id: row for row in read_rows(study)}, read_ladder(study)
    scale = f"{describe_scale(ladder)}. Differences of top-1 in points with their 95% intervals.{_chance(ladder)}"
    tables = [_table(title, listed, rows) for title, listed in read_claims(study).items()]
    return "\n\n".join([scale, *tables, _values_read(study, ladder)])


def outcome(step: PairedDifference | None) -> str:
    """What a difference says about a claim: "holds", "fails", "not resolved" or "not run yet".

    With one seed it says so, for another one may say otherwise.
    """
    if step is None:
        return "not run yet"
    if not step.is_resolved:
        return "not resolved"
    return ("holds" if step.points > 0 else "fails") + " for one seed" * (step.seeds == 1)


def _table(title: str, listed: Sequence[Claim], rows: Mapping[str, Row]) -> str:
    lines = [f"| {title} | tested by | difference | seeds | outcome |", "| --- | --- | ---: | ---: | --- |"]
    for claim in listed:
        models, others = (tuple(rows[name] for name in names or ()) for names in (claim.models, claim.more_than))
        step = extra_gain(models, others) if others else difference(*models)
        seeds = step.seeds if step else NOTHING
        lines.append(f"| {claim.claim} | {claim.test} | {step or NOTHING} | {seeds} | {outcome(step)} |")
    return "\n".join(lines)


def _chance(ladder: Sequence[Row]) -> str:
    """How much the ladder's steps vary from seed to seed, a yardstick for what was trained once."""
    pairs = pairwise(row for row in ladder if not row.is_teacher)
    gains = [(_by_seed(after) - _by_seed(before)).dropna() for before, after in pairs]
    several = [gain for gain in gains if len(gain) > 1]
    if not several:
        return ""
    pooled = (sum(gain.var() * (len(gain) - 1) for gain in several) / sum(len(gain) - 1 for gain in several)) ** 0.5
    return f" From seed to seed, a step of the ladder varies by {pooled:.2f} points (pooled standard deviation)."


def _by_seed(row: Row) -> pd.Series:
    """Top-1 with the stored weights, by seed."""
    return pd.Series({record.seed: record.weights.top1 for record in row.values}, dtype=float)


def _values_read(study: Study, ladder: Sequence[Row]) -> str:
    """The values that the classifier reads from one bit a channel, as measured on the first seed, beside top-1."""
    lines = ["| Model | values in the median channel (first seed) | top-1 (%) |", "| --- | ---: | ---: |"]
    for row in ladder:
        if row.is_teacher:
            continue
        table = stored_measurement(study, "values_read", row.runs[0])
        values = NOTHING if table is None else f"{table['median'].item():g}"
        lines.append(f"| {row.label} | {values} | {cells.accuracy(row, 'top1')} |")
    return "\n".join(lines)


def main(study: str, page: str) -> None:
    """Puts the claims of `study` into the file `page`."""
    text = Path(page).read_text(encoding="utf-8")
    write_text_atomically(page, put_into(text, claims(load_study(study))))


if __name__ == "__main__":
    main(*sys.argv[1:])
