"""What the notebooks share, so that their cells stay thin: from parameters to a checked configuration and a folder."""

import ast
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, Image
from matplotlib.figure import Figure

from binaryvit.config import RECIPES, TrainingConfig, suggestion
from binaryvit.cost import Cost
from binaryvit.data import Data
from binaryvit.errors import BinaryViTError
from binaryvit.figures.style import style
from binaryvit.model import LADDER
from binaryvit.runs import RunRecord

# The paper's recipe is for millions of photographs; with this a model learns the digits in a few epochs.
_DIGITS = {"batch_size": 64, "learning_rate": 2e-3, "learning_rate_batch": 64, "crop_scale": (0.7, 1.0)}
_DIGITS |= {"horizontal_flip": 0.0, "eval_crop": 1.0}
DIGITS_SETTINGS: dict[str, dict[str, Any]] = {
    "student": _DIGITS,
    "teacher": _DIGITS
    | {"learning_rate": 1e-3, "warmup_epochs": 1, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "auto_augment": None}
    | {"color_jitter": None, "random_erasing": 0.0, "repeated_augmentation": 1, "drop_path": 0.0},
}

_BINARY_VARIANTS = {name for _, *binary in LADDER.values() for name in binary}


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


def _assigned(source: str) -> list[str]:
    targets = [
        target
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def recipe_of(variant: str) -> str:
    """The recipe whose defaults a variant is trained with: "student" for the binary ones, "teacher" for all others."""
    return "student" if variant in _BINARY_VARIANTS else "teacher"


def configure(settings: dict[str, Any] | None, **parameters: Any) -> TrainingConfig:
    """The configuration of one run from a notebook's parameters.

    A parameter that is None is the default of the variant's recipe; `settings` holds any other field of TrainingConfig,
    and there None is a value like any other. When `settings` itself is None, the digits get what suits them
    (`DIGITS_SETTINGS`, where no parameter says otherwise) and other data nothing. Raises BinaryViTError when a field is
    unknown, wrong, or given twice.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    recipe = recipe_of(str(given.get("variant")))
    if settings is None:
        digits = given.get("data") == "digits"
        settings = {name: value for name, value in DIGITS_SETTINGS[recipe].items() if digits and name not in given}
    if not isinstance(settings, dict):
        raise BinaryViTError(f"settings must be a mapping of TrainingConfig's fields to values, not {settings!r}.")
    twice = sorted(given.keys() & settings.keys())
    if twice:
        raise BinaryViTError(f"Given twice, as a parameter and in settings: {', '.join(twice)}. Give each once.")
    return TrainingConfig(**{**RECIPES[recipe], **given, **settings})


def run_folder(config: TrainingConfig) -> Path:
    """Where a run goes that was given no folder: below runs/, a folder of its own for each configuration."""
    data = re.sub(r"[^A-Za-z0-9]+", "-", config.data.rstrip("/").rsplit("/", 1)[-1]).strip("-")
    return Path("runs") / f"{config.variant}-{data}-seed{config.seed}-{config.key()[:8]}"


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
        f"After {len(metrics)} epoch{'s' * (len(metrics) > 1)}, {record.result.top1:.2f} % of the "
        f"{record.data.eval_images:,} evaluation images of {record.data.label} are classified correctly "
        f"(chance: {100 / record.data.num_classes:.2f} %)."
    ]
    if len(metrics) > 1:
        direction = "fell" if last["eval_loss"] < first["eval_loss"] else "did not fall"
        sentences += [
            f"The evaluation loss {direction}, from {first['eval_loss']:.3f} after the first epoch to "
            f"{last['eval_loss']:.3f}; top-1 was highest after epoch {best['epoch']:.0f} ({best['top1']:.2f} %)."
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
        "top-1": f"{record.result.top1:.2f} %",
        "top-5": "-" if record.result.top5 is None else f"{record.result.top5:.2f} %",
        "evaluation loss": f"{record.result.eval_loss:.4f}",
        "evaluated on": f"{record.data.eval_images:,} images of {record.data.label}, split {record.data.eval_split}",
        "training": f"{record.result.epochs} epochs in {record.duration_seconds:,.0f} s "
        f"({record.result.images_per_second:,.0f} images/s on {record.hardware.cpu})",
        "weights": f"{record.weights.file}, {record.weights.bytes / 1e6:.3f} MB, {record.weights.dtype}; "
        f"top-1 with the stored weights {record.weights.top1:.2f} %",
        "commit": commit + (" with uncommitted changes" if record.git.dirty else ""),
        "key": record.key.config,
    }
    return pd.DataFrame({"": facts}).rename_axis("run")


def show_table(frame: pd.DataFrame, name: str, caption: str = "") -> HTML:
    """A table as people read it, whole, its caption above; a long one scrolls. `name` makes equal tables equal HTML."""
    styler = frame.style.set_uuid(name).set_caption(caption).format(thousands=",", na_rep="-")
    if isinstance(frame.index, pd.RangeIndex) or frame.index.name is None:
        styler = styler.hide(axis="index")
    return HTML(f'<div style="max-height: 32em; overflow: auto">{styler.to_html()}</div>')


def show_figure(figure: Figure) -> Image:
    """A figure as a picture in the notebook, the same bytes each time."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="png", dpi=150, metadata={"Software": "binaryvit"})
    return Image(content.getvalue(), width=int(figure.get_figwidth() * 96))
