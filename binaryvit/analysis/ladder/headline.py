"""What the README shows of a study: its ablation in four columns, and three sentences to take away.

python -m binaryvit.analysis.ladder.headline results/cifar10 README.md
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from binaryvit.analysis.ladder.findings import of_steps, price, resolution, top1
from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.models.ladder import LADDER
from binaryvit.studies.rows import Row, describe_scale, model_cost, read_ladder
from binaryvit.studies.study import Study, load_study

# What stands between these two lines of a page is made here.
_BEGIN, _END = "<!-- made by binaryvit.analysis.ladder.headline -->", "<!-- until here -->"


def headline(study: Study) -> str:
    """The short table and its sentences, in Markdown. Raises BinaryViTError while a run is missing or stale."""
    rows = read_ladder(study)
    unfinished = [row.label for row in rows if row.stale or row.missing]
    if unfinished:
        raise BinaryViTError(
            f"The study {study.name} has no headline yet, because these rows are missing or stale: "
            f"{', '.join(unfinished)}. `binaryvit status` says why."
        )
    sentences = "\n".join(f"- {sentence}" for sentence in take_away(rows))
    return f"{_table(rows)}\n\n{describe_scale(rows)}.\n\n{sentences}"


def put_into(page: str, block: str) -> str:
    """The page with `block` between its two marks. Raises BinaryViTError when it has none."""
    if _BEGIN not in page or _END not in page:
        raise BinaryViTError(f"The page lacks the lines {_BEGIN!r} and {_END!r}, between which the table is put.")
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n\n{block}\n\n{_END}", page, flags=re.DOTALL)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| variant | top-1 (%) | size (MB) | OPs (M) |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        cost = row.model_cost
        lines.append(f"| {row.label} | {row.measured('top1')} | {cost.bytes / 1e6:.2f} | {cost.ops / 1e6:.2f} |")
    return "\n".join(lines)


def take_away(rows: Sequence[Row]) -> list[str]:
    """Three sentences on finished rows: what one bit costs, which steps count, and what the pyramid does."""
    [teacher] = [row for row in rows if row.is_teacher]
    binary = [row for row in rows if not row.is_teacher]
    steps = {after.label: top1(after) - top1(before) for before, after in pairwise(binary[:4])}
    return [
        price(teacher, max(binary, key=top1)),
        of_steps(steps, resolution(binary)),
        _last_step(*binary[3:5]),
    ]


def _last_step(columnar: Row, pyramid: Row) -> str:
    step, share = top1(pyramid) - top1(columnar), pyramid.model_cost.ops / columnar.model_cost.ops
    if step > 0:
        return (
            f"The last step, the pyramid, gains {step:.2f} points with {share:.2f} of the operations, as in the paper."
        )
    of_paper = [model_cost(TrainingConfig(variant=name), 1000).ops for name in LADDER["small"][4:6]]
    return (
        f"The last step, the pyramid, loses {-step:.2f} points, where the paper gains: this small pyramid has "
        f"{share:.2f} of the columnar model's operations, the paper's {of_paper[1] / of_paper[0]:.2f}."
    )


def main(study: str, page: str) -> None:
    """Puts the headline of `study` into the file `page`."""
    text = Path(page).read_text(encoding="utf-8")
    write_text_atomically(page, put_into(text, headline(load_study(study))))


if __name__ == "__main__":
    main(*sys.argv[1:])
