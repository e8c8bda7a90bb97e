"""What the notebooks share, so that their cells stay thin: checked parameters, descriptions, and what they show."""

import ast
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
from IPython import get_ipython
from IPython.display import display

from binaryvit.analysis import stored
from binaryvit.analysis.display import show_figure, show_table
from binaryvit.analysis.ladder.tables import Table
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy
from binaryvit.config import RECIPES, TrainingConfig
from binaryvit.data.data_set import Data
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.models.cost import Cost
from binaryvit.records.run_record import RunRecord
from binaryvit.training.memory import keep_freed_memory
from binaryvit.training.recipes import configure, recipe_of
from binaryvit.training.teacher import key_of

__all__ = [
    "check_parameters",
    "configure",
    "describe_configuration",
    "describe_cost",
    "describe_data",
    "describe_record",
    "finding",
    "open_study",
    "run_folder",
    "show",
    "show_figure",
    "show_table",
]


def check_parameters() -> None:
    """Refuses a parameter that papermill was given and the running notebook does not have (papermill only warns).

    Papermill writes what it was given into a cell behind the notebook's own parameters; the two are compared by the
    names they assign. Does nothing outside IPython. Raises BinaryViTError with the name that was probably meant.
    """
    shell = get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    for own, injected in pairwise(cells):
        if injected.startswith("# Parameters\n"):
            known = _assigned(own)
            for name in _assigned(injected):
                if name not in known:
                    raise BinaryViTError(f"The notebook has no parameter {name!r}{suggestion(name, known)}")


def open_study(
    study: str, runs: Sequence[str] | str | None = None, data_dir: str | None = None, write: bool = False
) -> OpenStudy:
    """What an analysis notebook starts with: its parameters checked, and the study opened (`stored.open_study`).

    Where papermill's `-p` gave `runs` as text, "[runs/one, runs/two]" or the name of one, it is read as a list.
    Raises BinaryViTError as that does, and when `write` is neither True nor False.
    """
    check_parameters()
    if not isinstance(write, bool):
        raise BinaryViTError(f"write is {write!r}, which is neither True nor False: papermill takes `-p write True`.")
    keep_freed_memory()  # what measures models on a CPU allocates the same large tensors again and again
    if isinstance(runs, str):
        runs = [name.strip(" \"'") for name in runs.strip("[] ").split(",")]
    return stored.open_study(study, runs, data_dir, write)


def show(product: Drawing | Table) -> None:
    """Shows a figure or table with its finding; where the study was opened to be written, its files are written."""
    if product.opened.write:
        product.write()
    display(*product.show())


def _assigned(source: str) -> list[str]:
    targets = [
        target
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def run_folder(config: TrainingConfig) -> Path:
    """Where a run goes that was given no folder: below runs/, a folder of its own for each configuration."""
    data = re.sub(r"[^A-Za-z0-9]+", "-", config.data.rstrip("/").rsplit("/", 1)[-1]).strip("-")
    return Path("runs") / f"{config.variant}-{data}-seed{config.seed}-{key_of(config)[:8]}"


def describe_configuration(config: TrainingConfig) -> pd.DataFrame:
    """Every field of a configuration beside the default of its variant's recipe, changed ones marked."""
    recipe = recipe_of(config.variant)
    defaults = TrainingConfig(**{"variant": config.variant, **RECIPES[recipe]}).model_dump()
    rows = [
        {"setting": name, "value": value, f"{recipe} recipe": defaults[name], "changed": value != defaults[name]}
        for name, value in config.model_dump().items()
    ]
    table = pd.DataFrame(rows).set_index("setting")
    table["changed"] = table["changed"].map({True: "changed", False: ""})
    return table.map(lambda value: "none" if value is None else str(value))


def describe_data(data: Data) -> pd.DataFrame:
    """The two splits of a data set: names and numbers of images."""
    return pd.DataFrame(
        [
            {"split": use, "name": name, "images": images, "classes": data.num_classes}
            for use, (name, images) in data.splits.items()
        ]
    ).set_index("split")


def describe_cost(total: Cost) -> str:
    """A model's totals in one sentence."""
    return (
        f"In total {total.parameters / 1e6:.3f} M parameters, {total.binary_weights / 1e6:.3f} M of them one bit "
        f"({total.bytes / 1e6:.3f} MB); {total.bops / 1e6:,.2f} M BOPs and {total.flops / 1e6:,.2f} M FLOPs per image, "
        f"that is {total.ops / 1e6:,.2f} M OPs, or {total.ops_elementwise / 1e6:,.2f} M with elementwise work."
    )


def finding(metrics: pd.DataFrame, record: RunRecord) -> str:
    """What the curves of a finished run show, in sentences made from its numbers."""
    first, last, best = metrics.iloc[0], metrics.iloc[-1], metrics.loc[metrics["top1"].idxmax()]
    sentences = [
        f"After {len(metrics)} epoch{'s' * (len(metrics) > 1)}, {record.result.top1:.2f}% of the "
        f"{record.data.eval_images:,} evaluation images of {record.data.label} are classified correctly "
        f"(chance: {100 / record.data.num_classes:.2f}%)."
    ]
    if len(metrics) > 1:
        direction = "fell" if last["eval_loss"] < first["eval_loss"] else "did not fall"
        sentences += [
            f"The evaluation loss {direction}, from {first['eval_loss']:.3f} after the first epoch to "
            f"{last['eval_loss']:.3f}; top-1 was highest after epoch {best['epoch']:.0f} ({best['top1']:.2f}%)."
        ]
        if metrics["flip_rate"].notna().any():
            sentences += [
                f"{first['flip_rate']:.2%} of the binary weights changed sign in the first epoch, "
                f"{last['flip_rate']:.2%} in the last."
            ]
    return " ".join(sentences)


def describe_record(record: RunRecord, run_dir: str | Path) -> pd.DataFrame:
    """The result of a run, where it is stored, and what it was made from."""
    commit = record.git.commit or "unknown"
    facts = {
        "folder": str(run_dir),
        "top-1": f"{record.result.top1:.2f}%",
        "top-5": "-" if record.result.top5 is None else f"{record.result.top5:.2f}%",
        "evaluation loss": f"{record.result.eval_loss:.4f}",
        "evaluated on": f"{record.data.eval_images:,} images of {record.data.label}, split {record.data.eval_split}",
        "training": f"{record.result.epochs} epochs in {record.duration_seconds:,.0f} s "
        f"({record.result.images_per_second:,.0f} images/s on {record.hardware.cpu})",
        "weights": f"{record.weights.file}, {record.weights.bytes / 1e6:.3f} MB, {record.weights.dtype}; "
        f"top-1 with the stored weights {record.weights.top1:.2f}%",
        "commit": commit + (" with uncommitted changes" if record.git.dirty else ""),
        "key": record.key.config,
    }
    return pd.DataFrame({"": facts}).rename_axis("run")
