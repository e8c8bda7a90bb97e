"""What runs noted after each epoch of training, as tables and figures; needs no data and no weights."""

from contextlib import suppress
from pathlib import Path

import pandas as pd

from binaryvit.analysis.curves import figures, findings
from binaryvit.analysis.labels import block_of, evaluated_on, labelled
from binaryvit.analysis.levels import initial_levels
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy
from binaryvit.config import completed
from binaryvit.errors import BinaryViTError
from binaryvit.records.run_record import METRICS_FILE, RECORD_FILE, RunRecord, read_metrics, read_record, read_table
from binaryvit.studies.rows import MAY_DIFFER
from binaryvit.training.build import create_model
from binaryvit.training.tables import FLIPS_FILE, LEVELS_FILE, SHIFTS_FILE
from binaryvit.training.train import LATENT_LAYERS_FILE

_KEYS = ["run", "label", "variant", "seed", "block", "epoch"]


def drawings(opened: OpenStudy) -> list[Drawing]:
    """All figures of this analysis."""
    return [drawing for drawing in (accuracy(opened), flips(opened), levels(opened), shifts(opened)) if drawing]


def accuracy(opened: OpenStudy) -> Drawing:
    """Accuracy and loss of all runs over the epochs; see `stored_runs` for what is refused."""
    columns = ["run", "label", "variant", "seed", "epoch", "eval_loss", "top1"]
    table = _tables(opened, METRICS_FILE)[columns]
    table = table.assign(evaluated_on=evaluated_on(opened.runs(weights=False)[0].record))
    said = findings.of_curves(table)
    return Drawing.of(
        opened, "training_curves", {"curves": table}, said, lambda claim: figures.all_curves(table, claim)
    )


def flips(opened: OpenStudy) -> Drawing | None:
    """Which share of a block's binary weights flips in each epoch, against the learning rate; None: no run has any."""
    table = _tables(opened, FLIPS_FILE)
    if table.empty:
        return None
    weights = _tables(opened, LATENT_LAYERS_FILE)[["run", "layer", "weights"]]
    table = _by_block(table.merge(weights, on=["run", "layer"]))
    table["flipped"] = table["flip_rate"] * table["weights"]
    table = table.groupby(_KEYS, sort=False, as_index=False)[["flipped", "weights"]].sum()
    table["flip_rate"] = table.pop("flipped") / table.pop("weights")
    whole = _tables(opened, METRICS_FILE)[["run", "epoch", "lr", "flip_rate"]]
    table = table.merge(whole.rename(columns={"flip_rate": "model_flip_rate"}), on=["run", "epoch"])
    said = findings.of_flips(table)
    return Drawing.of(
        opened, "weight_flips", {"curves": table}, said, lambda claim: figures.flips_by_block(table, claim)
    )


def levels(opened: OpenStudy) -> Drawing | None:
    """The learned level a of each block over the epochs, from its start; None: no run noted it."""
    table = _tables(opened, LEVELS_FILE)
    if table.empty:
        return None
    noted = set(table["run"])
    models = {
        run.id: create_model(run.config, run.record.data.num_classes)
        for run in opened.runs(weights=False)
        if run.id in noted
    }
    started = {run: initial_levels(model) for run, model in models.items()}
    layers = table["layer"].str.rpartition(".")[0]
    table["initial"] = [started[run][layer] for run, layer in zip(table["run"], layers, strict=True)]
    start = table[table["epoch"] == 1].assign(epoch=0, level=table["initial"])
    table = _by_block(pd.concat([start, table], ignore_index=True))[[*_KEYS, "level", "initial"]]
    said = findings.of_levels(table)
    return Drawing.of(
        opened, "level_curves", {"curves": table}, said, lambda claim: figures.levels_by_block(table, claim)
    )


def shifts(opened: OpenStudy) -> Drawing | None:
    """How far the learned shifts of each block are from 0 over the epochs; None: no run noted it."""
    table = _tables(opened, SHIFTS_FILE)
    if table.empty:
        return None
    table = _by_block(table).groupby(_KEYS, sort=False, as_index=False)["mean_absolute_shift"].mean()
    start = table[table["epoch"] == 1].assign(epoch=0, mean_absolute_shift=0.0)
    table = pd.concat([start, table], ignore_index=True)
    said = findings.of_shifts(table)
    return Drawing.of(
        opened, "shift_curves", {"curves": table}, said, lambda claim: figures.shifts_by_block(table, claim)
    )


def metrics_of_others(run_dir: str | Path) -> pd.DataFrame:
    """The metrics of other finished runs, whose folders lie next to a run's: the best of each variant.

    Only of runs on the same data that were trained alike: by the same recipe and teacher, and with the same arguments
    of the model. The columns of metrics.csv, and variant. Without such a run the table is empty.
    """
    own, folder = read_record(run_dir), Path(run_dir).resolve()
    best: dict[str, tuple[float, Path]] = {}
    for path in sorted(folder.parent.glob(f"*/{RECORD_FILE}")):
        with suppress(BinaryViTError):  # another version's, or damaged: no business of this run
            record = read_record(path.parent)
            if path.parent != folder and own and _trained_alike(own, record):
                variant = record.config["variant"]
                best[variant] = max(best.get(variant, (-1.0, folder)), (record.result.top1, path.parent))
    tables = [read_metrics(other).assign(variant=variant) for variant, (_, other) in best.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["variant"])


def _trained_alike(one: RunRecord, other: RunRecord) -> bool:
    its, others = completed(one.config), completed(other.config)
    settings = its.keys() - MAY_DIFFER | {"model_args", "teacher"}
    return one.key.data == other.key.data and all(its[name] == others.get(name) for name in settings)


def _tables(opened: OpenStudy, file: str) -> pd.DataFrame:
    """A file of all runs that have it, below each other; see `labels.labelled`. Empty: none has rows."""
    runs = opened.runs(weights=False)
    tables = {run.id: read_table(run.folder, file) for run in runs if (run.folder / file).is_file()}
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return pd.DataFrame()
    return labelled(pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True), runs)


def _by_block(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers in a block or merge, with the column block: see `labels.block_of`."""
    return table.assign(block=table["layer"].map(block_of)).dropna(subset="block")
