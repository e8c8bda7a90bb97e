"""What carries the accuracy of a study's models: their branches against shortcuts, and what is left without them."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.analysis.branches import figures, findings
from binaryvit.analysis.branches.capture import BINARY_GROUPS, GROUPS, REAL_GROUPS, branch_norms, group_members, zeroed
from binaryvit.analysis.branches.recalibration import reestimated_statistics
from binaryvit.analysis.device import device_of, on_best_device
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.intervals import wilson_interval
from binaryvit.analysis.labels import labelled
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun, openable, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import attention_levels
from binaryvit.models.vision_transformer import BinaryVisionTransformer

_VERSION = 1  # of the measuring code in this file

# What is removed, by what figures call it: nothing, each group, all groups of products, and all else that is added.
REMOVALS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    **{group: (group,) for group in GROUPS},
    "all products": BINARY_GROUPS,
    "all shortcuts and poolings": REAL_GROUPS,
}
WHOLE_MODEL = "whole model"


def drawings(opened: OpenStudy, images: int = 500, statistics_images: int = 200) -> list[Drawing]:
    """All figures on branches; the parameters are those of the functions that make them."""
    made = [norms(opened, images), accuracy(opened, images, statistics_images)]
    return [drawing for drawing in (*made, accuracy_by_stage(opened, images, statistics_images)) if drawing]


def norms(opened: OpenStudy, images: int = 500) -> Drawing:
    """How large branches are against the shortcuts they are added to.

    Args:
        opened: whose runs: the chosen ones, else all finished ones whose model has such branches, at any precision.
        images: how many evaluation images norms are measured on.

    Raises BinaryViTError when a selection is wrong or empty, a chosen run's model has no such branches, or what is not
    measured yet needs data that are not at hand.
    """
    runs = _runs_with_branches(opened)
    table = _without_off(norms_of(opened, runs, images), runs)
    claim, finding = findings.of_norms(table)
    return Drawing(
        opened,
        "branch_norms",
        {"norms": table},
        lambda: figures.branch_norms(table, claim),
        tuple(run.id for run in runs),
        finding,
    )


def accuracy(opened: OpenStudy, images: int = 500, statistics_images: int = 200) -> Drawing:
    """The accuracy without groups of branches in the whole model, with re-estimated batch-norm statistics.

    Args:
        opened: see `norms`.
        images: how many evaluation images accuracies are measured on.
        statistics_images: how many training images, without augmentation, batch-norm statistics are estimated on.
    """
    runs = _runs_with_branches(opened)
    table = accuracies(opened, images, statistics_images)
    table = table[(table["part"] == WHOLE_MODEL) & (table["statistics"] == "re-estimated")].reset_index(drop=True)
    evaluated_on, estimated_on = _describe(runs, table, statistics_images)
    chance = 100 / runs[0].record.data.num_classes
    claim, finding = findings.of_accuracies(table, chance, estimated_on)
    return Drawing(
        opened,
        "accuracy_without_branches",
        {"accuracies": table},
        lambda: figures.accuracy_without(table, chance, evaluated_on, claim),
        tuple(run.id for run in runs),
        finding,
    )


def accuracy_by_stage(opened: OpenStudy, images: int = 500, statistics_images: int = 200) -> Drawing | None:
    """The same for one stage of the pyramids at a time; None where no run is a pyramid. See `accuracy`.

    Where there are pyramids of one-bit weights and activations, it is of these alone.
    """
    runs = _runs_with_branches(opened)
    table = accuracies(opened, images, statistics_images)
    staged = table[table["run"].isin(table["run"][table["part"] != WHOLE_MODEL])]
    if staged.empty:
        return None
    staged = staged[staged["bits"].eq("W1A1") | ~staged["bits"].eq("W1A1").any()]
    kept = (staged["part"] != WHOLE_MODEL) | (staged["removed"] == "nothing")
    staged = staged[kept & (staged["statistics"] == "re-estimated")].reset_index(drop=True)
    evaluated_on, estimated_on = _describe(runs, table, statistics_images)
    claim, finding = findings.of_stages(staged, estimated_on)
    return Drawing(
        opened,
        "accuracy_without_branches_by_stage",
        {"accuracies": staged},
        lambda: figures.accuracy_by_stage(staged, evaluated_on, claim),
        tuple(staged["run"].unique()),
        finding,
    )


def accuracies(opened: OpenStudy, images: int = 500, statistics_images: int = 200) -> pd.DataFrame:
    """`accuracies_without` of the runs, labelled, with accuracy, low and high: percent, and ends of its 95 % interval.

    See `accuracy`, which draws those of re-estimated batch-norm statistics.
    """
    runs = _runs_with_branches(opened)
    return _with_intervals(labelled(accuracies_without(opened, runs, images, statistics_images), runs))


def _describe(runs: Sequence[StoredRun], table: pd.DataFrame, statistics_images: int) -> tuple[str, str]:
    """What accuracies were measured on, and what batch-norm statistics were estimated on."""
    data = runs[0].record.data
    estimated = min(statistics_images, data.train_images)
    return (
        f"{table['images'].iloc[0]:,} evaluation images of {data.label}",
        f"{estimated:,} training images without augmentation",
    )


def _without_off(norms: pd.DataFrame, runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The table, labelled, without a ratio for the products of attention that is off."""
    off = {(run.id, path) for run in runs for path, level in attention_levels(run.model()).items() if is_off(level)}
    products = norms["kind"] == _KINDS["context"]
    is_of_off = pd.Series([place in off for place in zip(norms["run"], norms["layer"], strict=True)], norms.index)
    return labelled(norms.assign(ratio=norms["ratio"].mask(products & is_of_off)), runs)


def norms_of(opened: OpenStudy, runs: Sequence[StoredRun], images: int = 500) -> pd.DataFrame:
    """`capture.branch_norms` of runs over evaluation images, stored ones reused; `kind` names the unit's group."""

    def measure(run: StoredRun) -> pd.DataFrame:
        table = branch_norms(on_best_device(run.model()), evaluation_batches(opened, run, images))
        table.loc[(table["kind"] == "unit") & table["layer"].str.contains(r"\.attn\."), "kind"] = "attention linears"
        return table.replace({"kind": _KINDS})

    return measured(opened, "branch_norms", _VERSION, {"images": images}, runs, measure)


# The groups whose branch is added there, and the two branches of a block.
_KINDS = {
    "unit": "FFN linears", "context": "attention products", "merge": "merges", "attention": "attention branch",
    "FFN": "FFN branch", "pooling": "pooling branches",
}  # fmt: skip


def accuracies_without(
    opened: OpenStudy, runs: Sequence[StoredRun], images: int = 500, statistics_images: int = 200
) -> pd.DataFrame:
    """How many evaluation images runs classify rightly without groups of branches, stored measurements reused.

    One row per run, part of the model ("whole model"; the stages of a pyramid), what is removed there (a key of
    REMOVALS), and statistics of the batch norms: "stored", those of training, or "re-estimated" on training images with
    the branches already removed; for a stage the latter alone. Columns: run, part, removed, statistics, correct,
    images. What a part does not have has no row.
    """
    settings = {"images": images, "statistics_images": statistics_images}

    def measure(run: StoredRun) -> pd.DataFrame:
        evaluation = list(evaluation_batches(opened, run, images))
        training = list(evaluation_batches(opened, run, statistics_images, split="train"))
        return accuracy_table(on_best_device(run.model()), evaluation, training)

    return measured(opened, "accuracy_without_branches", _VERSION, settings, runs, measure)


def accuracy_table(
    model: BinaryVisionTransformer, evaluation: Sequence[tuple[Tensor, Tensor]], training: Sequence[tuple[Tensor, ...]]
) -> pd.DataFrame:
    """The rows of `accuracies_without` for one model, without the run.

    Args:
        model: in evaluation mode.
        evaluation: tuples of images and labels.
        training: tuples whose first entry is images, for the batch norms' statistics.
    """
    stages = [f"stages.{index}" for index in range(len(model.stages))]
    rows = []
    for part in ("", *(stages if len(stages) > 1 else ())):
        for removed, groups in REMOVALS.items():
            present = [group for group in groups if group_members(model, group, part)]
            if not present and (groups or part):
                continue
            with zeroed(model, present, part) if present else nullcontext():
                correct = {} if part else {"stored": count_correct(model, evaluation)}
                with reestimated_statistics(model, training):
                    correct["re-estimated"] = count_correct(model, evaluation)
            rows += [
                {"part": part or WHOLE_MODEL, "removed": removed, "statistics": statistics, "correct": count}
                for statistics, count in correct.items()
            ]
    return pd.DataFrame(rows).assign(images=sum(len(labels) for _, labels in evaluation))


@torch.no_grad()
def count_correct(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    """How many images of (images, labels) batches a model in evaluation mode classifies rightly."""
    return sum(
        int((model(images.to(device_of(model))).argmax(dim=1).cpu() == labels).sum()) for images, labels in batches
    )


def _runs_with_branches(opened: OpenStudy) -> list[StoredRun]:
    finished = openable(opened.study) or None
    runs = stored_runs(opened.study, finished if opened.ids is None else opened.ids)
    suitable = [run for run in runs if isinstance(run.model(), BinaryVisionTransformer)]
    others = [run.id for run in runs if run not in suitable]
    if not suitable or (opened.ids is not None and others):
        raise BinaryViTError(
            f"{', '.join(others)} has none of the branches looked at here: choose runs of binary vision transformers."
        )
    return suitable


def _with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the accuracy in percent, and the ends of its 95 % interval."""
    ends: list[Any] = [wilson_interval(row.correct, row.images) for row in table.itertuples()]
    low, high = zip(*ends, strict=True)
    return table.assign(accuracy=100 * table["correct"] / table["images"], low=low, high=high)
