"""A row of a study as tables say it: accuracy over its seeds, a difference to another row, and what its model costs."""

import math

from binaryvit.analysis.paired import PairedDifference
from binaryvit.models.cost import Cost
from binaryvit.studies.rows import NOTHING, Row


def accuracy(row: Row, name: str) -> str:
    """Mean and spread of "top1" or "top5" over a row's seeds, and which of its runs are missing."""
    if not row.values:
        return row.missing
    if row.stale:
        return f"{row.measured(name)} (stale)"
    return f"{row.measured(name)} ({row.missing})" if row.missing else str(row.measured(name))


def step_text(row: Row, step: PairedDifference | None) -> str:
    """The difference of a row to another one: "+1.20 (+0.40 to +2.00)".

    It says "not resolved" when the interval holds zero, and over how many seeds it is where the row has more.
    """
    if step is None:
        return NOTHING
    seeds = f", n = {step.seeds}" * (step.seeds < len(row.values))
    return f"{step}{seeds}{', not resolved' * (not step.is_resolved)}"


def costs(cost: Cost) -> dict[str, str]:
    """Size and operations of an image, by the heading of their columns."""
    return {
        "size (MB)": digits(cost.bytes / 1e6),
        "BOPs (M)": digits(cost.bops / 1e6),
        "FLOPs (M)": digits(cost.flops / 1e6),
        "OPs (M)": digits(cost.ops / 1e6),
        "OPs + elementwise (M)": digits(cost.ops_elementwise / 1e6),
    }


def digits(number: float) -> str:
    """Four significant digits, and never fewer than all before the point."""
    return f"{number:,.{max(0, 3 - math.floor(math.log10(number)))}f}" if number > 0 else "0"
