"""Published figures of binary models, and the table that sets the ladder beside them."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from binaryvit.analysis import cells
from binaryvit.analysis.ladder import findings
from binaryvit.analysis.ladder.tables import Table, numbers_of, run_ids, sources_of, whole_ladder
from binaryvit.analysis.stored import OpenStudy
from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.files import LIBRARY_PARENT, find_upwards
from binaryvit.models.ladder import BINARYVIT, LADDER, variant_style
from binaryvit.studies.rows import NOT_RUN, NOTHING, Row, describe_scale, model_cost, scale_of

NOT_AVAILABLE = "not available"

# The scale of the paper's and of all published figures.
_IMAGENET = {"classes": 1000, "evaluation images": 50_000, "image size": 224}
_IMAGENET_LADDER = LADDER["small"]
# Published rows that are a model of the ladder.
_PUBLISHED_AS = {"DeiT-S full precision": _IMAGENET_LADDER[0], "BinaryViT": BINARYVIT["small"]}


def find_published(start: str | Path) -> Path:
    """The file published.csv in `start`, the nearest folder above it, or this repository's results/.

    Raises BinaryViTError when there is none.
    """
    if found := find_upwards("published.csv", start) or find_upwards("published.csv", LIBRARY_PARENT / "results"):
        return found
    raise BinaryViTError(f"There is no published.csv in {start} or any folder above it: give its path.")


def read_published(path: str | Path) -> pd.DataFrame:
    """Published figures of other models on ImageNet-1k at 224 x 224, one row a model.

    The columns of the file, all text except top1, and `ops` and `bytes` as numbers (NaN where none was published).
    Raises BinaryViTError when the file is not such a table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        columns = ["model", "family", "year", "ops_e8", "size_mb", "top1", "seen_in", "certainty"]
        table = table[columns]
        table["ops"] = table["ops_e8"].str.extract(r"^([0-9.]+)")[0].astype(float) * 1e8
        table["bytes"] = table["size_mb"].str.extract(r"^([0-9.]+)")[0].astype(float) * 1e6
        table["top1"] = table["top1"].astype(float)
    except (OSError, KeyError, ValueError) as error:
        raise BinaryViTError(f"{path} is no table of published figures: {error}") from error
    return table


def published_figures(opened: OpenStudy, published: str | Path | None = None) -> pd.DataFrame:
    """`read_published` of a file; None: of the published.csv that `find_published` finds for the study."""
    return read_published(published or find_published(opened.study.output))


def is_imagenet(rows: Sequence[Row]) -> bool:
    """Whether a study's accuracies may stand beside published ones: ImageNet-1k's 50,000 images at 224 x 224.

    Its data must be called so ("ImageNet-1k", "ILSVRC/imagenet-1k") and have that scale.
    """
    scales = [scale_of(record) for row in rows for record in row.values]
    return bool(scales) and all(
        "imagenet1k" in re.sub("[^a-z0-9]", "", scale["data"].lower())
        and {name: scale[name] for name in _IMAGENET} == _IMAGENET
        for scale in scales
    )


def comparison(opened: OpenStudy, published: str | Path | None = None) -> Table:
    """Published binary models and the ladder on ImageNet-1k at 224 x 224.

    Only a study of that scale contributes accuracies; for any other the ladder's rows say "not run". A published
    figure stands beside its certainty; steps of the ladder whose figure could not be read are "not available".

    Args:
        opened: the study whose accuracies are compared.
        published: a file as `read_published` takes it; None: the nearest published.csv.

    Raises BinaryViTError as `published_figures` and `whole_ladder` do.
    """
    rows = whole_ladder(opened)
    comparable = is_imagenet(rows)
    mine = {row.variant: row for row in rows if comparable and not row.config.model_args}
    entries = published_figures(opened, published).to_dict("records")
    known = {_PUBLISHED_AS[entry["model"]]: entry for entry in entries if entry["model"] in _PUBLISHED_AS}
    others = [entry for entry in entries if entry["model"] not in _PUBLISHED_AS]
    pairs = [_published_entry(entry) for entry in others]
    pairs += [_ladder_entry(variant, mine.get(variant), known.get(variant)) for variant in _IMAGENET_LADDER]
    numbers, text = ([pair[form] for pair in pairs] for form in (0, 1))
    caption = (
        "Models with 1-bit weights and activations, and the full-precision teacher, on ImageNet-1k, 224x224 pixels, "
        "1,000 classes, 50,000 evaluation images; operations per image, OPs = BOPs / 64 + FLOPs. Certainty of a "
        "published figure: authors = their own README or abstract; table = one later paper's comparison; second-hand "
        "or doubtful = a note about a paper. "
    )
    caption += f"Here: {describe_scale(rows)}." if comparable else f"Here: {NOT_RUN} at this scale."
    finding = findings.of_comparison(rows, mine, known)
    sources = sources_of([mine[variant] for variant in _IMAGENET_LADDER if variant in mine])
    return Table(opened, "comparison", caption, pd.DataFrame(numbers), pd.DataFrame(text), sources, finding)


def _published_entry(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A published model as numbers and as text."""
    numbers = {name: entry[name] for name in ("model", "family", "year", "ops", "bytes")}
    numbers |= {"top1_published": entry["top1"], "certainty": entry["certainty"], "seen_in": entry["seen_in"]}
    text = {
        "model": entry["model"],
        "kind": entry["family"],
        "year": entry["year"],
        "OPs (1e8)": entry["ops_e8"] or NOT_AVAILABLE,
        "size (MB)": entry["size_mb"] or NOT_AVAILABLE,
        "top-1 published (%)": f"{entry['top1']:.1f}",
        "certainty": entry["certainty"],
        "seen in": entry["seen_in"],
        "top-1 here (%)": NOTHING,
        "runs": NOTHING,
    }
    return numbers, text


def _ladder_entry(
    variant: str, row: Row | None, published: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """A step of the ladder as numbers and as text; its size and operations are counted on an instance."""
    label = variant_style(variant).label
    counted = model_cost(TrainingConfig(variant=variant), _IMAGENET["classes"])
    unknown = {
        "model": label,
        "family": "ViT",
        "year": NOTHING,
        "top1": math.nan,
        "certainty": NOTHING,
        "seen_in": NOTHING,
    }
    entry = dict(published or unknown) | {
        "ops": float(counted.ops),
        "bytes": float(counted.bytes),
        "ops_e8": f"{counted.ops / 1e8:.2f} (counted here)",
        "size_mb": f"{counted.bytes / 1e6:.2f} (counted here)",
    }
    numbers, text = _published_entry(entry)
    numbers |= {"model": label, "state": NOT_RUN} | (numbers_of(row) if row else {})
    text |= {"model": label, "top-1 here (%)": cells.accuracy(row, "top1") if row else NOT_RUN, "runs": run_ids(row)}
    if published is None:
        text["top-1 published (%)"] = NOT_AVAILABLE
    return numbers, text
