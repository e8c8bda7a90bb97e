"""What the README shows of a study: its ablation in five columns, and up to four sentences to take away.

python -m binaryvit.analysis.ladder.headline results/cifar10 README.md
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from binaryvit.analysis import cells
from binaryvit.analysis.ladder.findings import of_steps, price, top1
from binaryvit.analysis.paired import PairedDifference
from binaryvit.analysis.steps import difference, steps
from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.models.cost import Cost
from binaryvit.models.ladder import BINARYVIT, LAST_COLUMNAR
from binaryvit.studies.rows import Row, describe_scale, model_cost, read_ladder, read_rows
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, Study, load_study

_EXPLAINED = (
    "Difference: to the row before, with its 95% interval over images and the students' seeds. OPs: "
    "multiply-accumulates of one image, binary ones divided by 64; elementwise work (norms, activation functions, "
    "additions, poolings) is not counted."
)
# What stands between these two lines of a page is made here.
_BEGIN, _END = "<!-- made from results/ -->", "<!-- until here -->"


def headline(study: Study) -> str:
    """The short table and its sentences, in Markdown; a study that is not finished says so."""
    rows = read_ladder(study)
    paragraphs = [_table(rows), f"{describe_scale(rows)}. {_EXPLAINED}"]
    runs = plan(study)
    if unfinished := sum(run.state is not State.DONE for run in runs):
        paragraphs.append(
            f"**This study is still being trained:** {len(runs) - unfinished} of its {len(runs)} runs are done."
        )
    ladder = {row.variant for row in rows}
    others = [row for row in read_rows(study) if row.variant not in ladder]
    if sentences := take_away(rows, others):
        paragraphs.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(paragraphs)


def put_into(page: str, block: str) -> str:
    """The page with `block` between its two marks. Raises BinaryViTError when it has none."""
    if _BEGIN not in page or _END not in page:
        raise BinaryViTError(f"The page lacks the lines {_BEGIN!r} and {_END!r}, between which the table is put.")
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n\n{block}\n\n{_END}", page, flags=re.DOTALL)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| variant | top-1 (%) | difference | size (MB) | OPs (M) |", "| --- | ---: | ---: | ---: | ---: |"]
    for before, row in pairwise([None, *rows]):
        cost = row.model_cost
        step = cells.step_text(row, difference(before, row) if before else None)
        lines.append(
            f"| {row.label} | {cells.accuracy(row, 'top1')} | {step} | {cost.bytes / 1e6:.2f} | {cost.ops / 1e6:.2f} |"
        )
    return "\n".join(lines)


def take_away(rows: Sequence[Row], others: Sequence[Row] = ()) -> list[str]:
    """What one bit costs, which steps count, what the pyramid does, and how a convolutional network of `others` does.

    Each as far as its rows are finished.
    """
    current = [row for row in rows if row.values and not row.stale]
    teachers, finished = ([row for row in current if row.is_teacher is is_teacher] for is_teacher in (True, False))
    sentences = [price(teacher, max(finished, key=top1)) for teacher in teachers if finished]
    columnar = next((row for row in rows if row.variant in LAST_COLUMNAR.values()), None)
    if gains := steps(rows):
        sentences.append(of_steps(gains))
    pyramid = next((row for row in rows if row.variant in BINARYVIT.values()), None)
    if columnar and pyramid and (step := difference(columnar, pyramid)):
        sentences.append(_last_step(step, columnar, pyramid))
    convolutional = next((row for row in others if row.variant.startswith("reactresnet")), None)
    if convolutional and pyramid and (step := difference(pyramid, convolutional)):
        sentences.append(_rival(step, pyramid, convolutional))
    return sentences


def _last_step(step: PairedDifference, columnar: Row, pyramid: Row) -> str:
    shares = _shares_of_operations(columnar.model_cost, pyramid.model_cost)
    of_paper = [model_cost(TrainingConfig(variant=name), 1000) for name in (LAST_COLUMNAR["small"], BINARYVIT["small"])]
    verb = "gains" if step.points > 0 else "loses"
    verb = verb if step.is_resolved else "makes a difference that is not resolved"
    return (
        f"The paper's last step, the pyramid, {verb}: {step} points, with {shares} of the columnar model. "
        f"In the paper's sizes it has {_shares_of_operations(*of_paper)}, counted here."
    )


def _rival(step: PairedDifference, pyramid: Row, rival: Row) -> str:
    ahead = "ahead of" if step.points > 0 else "behind"
    ahead = ahead if step.is_resolved else "within what this study resolves of"
    seeds = "one seed" if step.seeds == 1 else f"{step.seeds} seeds"
    size = rival.model_cost.bytes / pyramid.model_cost.bytes
    return (
        f"The {rival.label} is {ahead} {pyramid.label}: {step} points over {seeds}, with {size:.2f} times the bytes "
        f"and {_shares_of_operations(pyramid.model_cost, rival.model_cost)}."
    )


def _shares_of_operations(before: Cost, after: Cost) -> str:
    whole = after.ops_elementwise / before.ops_elementwise
    return f"{after.ops / before.ops:.2f} times the OPs ({whole:.2f} times with elementwise work)"


def main(study: str, page: str) -> None:
    """Puts the headline of `study` into the file `page`."""
    text = Path(page).read_text(encoding="utf-8")
    write_text_atomically(page, put_into(text, headline(load_study(study))))


if __name__ == "__main__":
    main(*sys.argv[1:])
