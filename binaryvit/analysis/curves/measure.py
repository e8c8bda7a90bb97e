"""What runs noted after each epoch of training, as tables and figures; needs no data and no weights."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from binaryvit.analysis.curves import figures, findings
from binaryvit.analysis.levels import initial_levels
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy
from binaryvit.errors import BinaryViTError
from binaryvit.records.run import METRICS_FILE, RECORD_FILE, read_metrics, read_record, read_table
from binaryvit.training.run import LATENT_LAYERS_FILE
from binaryvit.training.tables import FLIPS_FILE, LEVELS_FILE, SHIFTS_FILE

_BLOCK = r"^stages\.(\d+)\.(?:blocks\.(\d+)|embed)"


def drawings(opened: OpenStudy) -> list[Drawing]:
    """All figures of this analysis."""
    return [drawing for drawing in (accuracy(opened), flips(opened), levels(opened), shifts(opened)) if drawing]


def accuracy(opened: OpenStudy) -> Drawing:
    """Accuracy and loss of all runs over the epochs; see `stored_runs` for what is refused."""
    table = _tables(opened, METRICS_FILE)
    evaluated_on = _evaluated_on(opened)
    columns = ["run", "label", "variant", "seed", "epoch", "train_loss", "eval_loss", "top1"]
    return _drawing(
        opened,
        "training_curves",
        table[columns].assign(evaluated_on=evaluated_on),
        lambda: figures.all_curves(table, evaluated_on),
        findings.of_curves(table),
    )


def flips(opened: OpenStudy) -> Drawing | None:
    """Which share of a block's binary weights flips in each epoch, against the learning rate; None: no run has any."""
    table = _tables(opened, FLIPS_FILE)
    if table.empty:
        return None
    weights = _tables(opened, LATENT_LAYERS_FILE)[["run", "layer", "weights"]]
    table = _by_block(table.merge(weights, on=["run", "layer"]))
    table["flipped"] = table["flip_rate"] * table["weights"]
    keys = ["run", "label", "variant", "seed", "block", "epoch"]
    table = table.groupby(keys, sort=False, as_index=False)[["flipped", "weights"]].sum()
    table["flip_rate"] = table["flipped"] / table["weights"]
    table = table.merge(_tables(opened, METRICS_FILE)[["run", "epoch", "lr"]], on=["run", "epoch"])
    table = table.drop(columns=["flipped", "weights"])
    return _drawing(
        opened, "weight_flips", table, lambda: figures.flips_by_block(table), findings.of_flips(table)
    )  # fmt: skip


def levels(opened: OpenStudy) -> Drawing | None:
    """The learned level a of each block over the epochs; None: no run noted it."""
    table = _tables(opened, LEVELS_FILE)
    if table.empty:
        return None
    started = {run.id: initial_levels(run.model()) for run in opened.runs()}
    start = table[table["epoch"] == table["epoch"].min()].assign(epoch=0)
    start["level"] = [
        started[run][layer.rpartition(".")[0]] for run, layer in zip(start["run"], start["layer"], strict=True)
    ]
    table = _by_block(pd.concat([start, table], ignore_index=True)).drop(columns="layer")
    return _drawing(opened, "level_curves", table, lambda: figures.levels_by_block(table), findings.of_levels(table))


def shifts(opened: OpenStudy) -> Drawing | None:
    """How far the learned shifts of each block are from 0 over the epochs; None: no run noted it."""
    table = _tables(opened, SHIFTS_FILE)
    if table.empty:
        return None
    keys = ["run", "label", "variant", "seed", "block", "epoch"]
    table = _by_block(table).groupby(keys, sort=False, as_index=False)["mean_absolute_shift"].mean()
    return _drawing(opened, "shift_curves", table, lambda: figures.shifts_by_block(table), findings.of_shifts(table))


def metrics_of_others(run_dir: str | Path) -> pd.DataFrame:
    """The metrics of other finished runs on the same data, whose folders lie next to a run's: the best of each variant.

    The columns of metrics.csv, and variant. Without such a run the table is empty.
    """
    own, folder = read_record(run_dir), Path(run_dir).resolve()
    best: dict[str, tuple[float, Path]] = {}
    for path in sorted(folder.parent.glob(f"*/{RECORD_FILE}")):
        with suppress(BinaryViTError):  # another version's, or damaged: no business of this run
            record = read_record(path.parent)
            if path.parent != folder and own and record.key.data == own.key.data:
                variant = record.config["variant"]
                best[variant] = max(best.get(variant, (-1.0, folder)), (record.result.top1, path.parent))
    tables = [read_metrics(other).assign(variant=variant) for variant, (_, other) in best.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["variant"])


def _tables(opened: OpenStudy, file: str) -> pd.DataFrame:
    """A file of all runs that have it, below each other; columns run, label (without seed), variant, seed in front."""
    tables = [pd.DataFrame(columns=["run", "label", "variant", "seed", "layer"])]
    for run in opened.runs():
        if not (run.folder / file).is_file():
            continue
        table = read_table(run.folder, file)
        table.insert(0, "run", run.id)
        table.insert(1, "label", run.label.removesuffix(f", seed {run.record.seed}"))
        table.insert(2, "variant", run.variant)
        table.insert(3, "seed", run.record.seed)
        if len(table):
            tables.append(table)
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _by_block(table: pd.DataFrame) -> pd.DataFrame:
    """With the column block, "stage.block" or "merge stage", for the rows of layers inside of one."""
    parts = table["layer"].str.extract(_BLOCK)
    names = (parts[0] + "." + parts[1]).fillna("merge " + parts[0])
    return table.assign(block=names).dropna(subset="block")


def _evaluated_on(opened: OpenStudy) -> str:
    data = opened.runs()[0].record.data
    return f"{data.eval_images:,} images of {data.label}"


def _drawing(opened: OpenStudy, name: str, table: pd.DataFrame, draw: Callable[[], Figure], finding: str) -> Drawing:
    return Drawing(opened, name, {"curves": table}, draw, tuple(table["run"].unique()), finding)
