"""What carries the accuracy of a study's models: their branches against shortcuts, and what is left without them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.analysis.branches import figures, findings
from binaryvit.analysis.branches.capture import BINARY_GROUPS, GROUPS, REAL_GROUPS, branch_norms, group_members, zeroed
from binaryvit.analysis.branches.recalibration import reestimated_statistics
from binaryvit.analysis.device import device_of, on_best_device
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.intervals import wilson_interval
from binaryvit.analysis.labels import PRECISIONS, bits_of, evaluated_on, labelled, most_seeds, precision_rows
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import BINARY_VARIANTS
from binaryvit.models.layers import attention_levels
from binaryvit.models.vision_transformer import BinaryVisionTransformer
from binaryvit.studies.states import plan
from binaryvit.studies.study import State

_VERSION = 2  # of the measuring code in this file
IMAGES, STATISTICS_IMAGES = 400, 200

# What is removed: nothing, each group, all groups of products, and all else that is added.
REMOVALS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    **{group: (group,) for group in GROUPS},
    "all products": BINARY_GROUPS,
    "all shortcuts and poolings": REAL_GROUPS,
}
WHOLE_MODEL = "whole model"


def drawings(opened: OpenStudy, images: int = IMAGES, statistics_images: int = STATISTICS_IMAGES) -> list[Drawing]:
    """All figures on branches; the parameters are those of the functions that make them."""
    made = [norms(opened, images), accuracy(opened, images, statistics_images)]
    return [drawing for drawing in (*made, accuracy_by_stage(opened, images, statistics_images)) if drawing]


def norms(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """How large branches are against the shortcuts they are added to.

    Args:
        opened: its chosen runs, or the finished ones of the ladder's binary variants and, where one is trained at
            other precisions, their first ones.
        images: how many evaluation images are measured.

    Raises BinaryViTError when a selection is wrong or empty, a chosen run's model has no such branches, or a
    measurement is missing and its data are not at hand.
    """
    table = branch_ratios(opened, images)
    on = evaluated_on(_runs_with_branches(opened)[0].record, images) + _about_seeds(table)
    return Drawing.of(
        opened, "branch_norms", {"norms": table}, findings.of_norms(table),
        lambda claim: figures.branch_norms(table, on, claim),
    )  # fmt: skip


def accuracy(opened: OpenStudy, images: int = IMAGES, statistics_images: int = STATISTICS_IMAGES) -> Drawing:
    """The accuracy without groups of branches in the whole model, with re-estimated batch-norm statistics.

    Args:
        opened, images: see `norms`.
        statistics_images: how many training images, without augmentation, batch-norm statistics are estimated on.
    """
    table = _reestimated(opened, images, statistics_images)
    table = table[table["part"] == WHOLE_MODEL]
    return _drawing(
        opened, "accuracy_without_branches", table, table["label"], findings.of_accuracies, statistics_images
    )


def accuracy_by_stage(
    opened: OpenStudy, images: int = IMAGES, statistics_images: int = STATISTICS_IMAGES
) -> Drawing | None:
    """The same for one stage at a time of each pyramid at W1A1; None where there is none. See `accuracy`."""
    table = _reestimated(opened, images, statistics_images)
    stages = table[table["part"] != WHOLE_MODEL]
    if stages.empty:
        return None
    intact = table[(table["removed"] == "nothing") & table["run"].isin(stages["run"])]
    table = pd.concat([stages, *(intact.assign(part=part) for part in stages["part"].unique())])
    columns = table["label"] + ", " + table["part"].str.replace("stages.", "stage ")
    return _drawing(opened, "accuracy_without_branches_by_stage", table, columns, findings.of_stages, statistics_images)


def accuracies(opened: OpenStudy, images: int = IMAGES, statistics_images: int = STATISTICS_IMAGES) -> pd.DataFrame:
    """How many evaluation images models classify correctly without groups of branches.

    One row per run, part of the model ("whole model"; the stages of a pyramid at W1A1), what is removed there (a key of
    REMOVALS), and statistics of the batch norms: "stored", those of training, or "re-estimated" on training images
    after the removal; for a stage the latter alone. There is no row for what a part does not have.

    Columns: run, label, variant, seed, bits, part, removed, statistics, correct, images, accuracy, low, high (percent,
    and the ends of its 95% interval). See `accuracy` for the arguments.
    """
    runs = _runs_with_branches(opened)
    settings = {"images": images, "statistics_images": statistics_images}

    def measure(run: StoredRun) -> pd.DataFrame:
        evaluation = list(evaluation_batches(opened, run, images))
        training = list(evaluation_batches(opened, run, statistics_images, split="train"))
        return accuracy_table(on_best_device(run.model()), evaluation, training, by_stage=bits_of(run) == "W1A1")

    table = labelled(measured(opened, "accuracy_without_branches", _VERSION, settings, runs, measure), runs)
    low, high = zip(*map(wilson_interval, table["correct"], table["images"]), strict=True)
    return table.assign(accuracy=100 * table["correct"] / table["images"], low=low, high=high)


def accuracies_by_statistics(
    opened: OpenStudy, images: int = IMAGES, statistics_images: int = STATISTICS_IMAGES
) -> pd.DataFrame:
    """The accuracies of whole models in percent: a row per removal and statistics, a column per model (mean of seeds).

    See `accuracies`.
    """
    table = accuracies(opened, images, statistics_images)
    whole = table[table["part"] == WHOLE_MODEL]
    return whole.pivot_table("accuracy", ["removed", "statistics"], "label", sort=False)


def _reestimated(opened: OpenStudy, images: int, statistics_images: int) -> pd.DataFrame:
    table = accuracies(opened, images, statistics_images)
    return table[table["statistics"] == "re-estimated"]


def _drawing(
    opened: OpenStudy,
    name: str,
    table: pd.DataFrame,
    columns: pd.Series,
    say: Callable[[pd.DataFrame], tuple[str, str]],
    statistics_images: int,
) -> Drawing:
    """The drawing of re-estimated accuracies, a column of the heat map for each of `columns`."""
    record = _runs_with_branches(opened)[0].record
    table = table.assign(column=columns, chance=100 / record.data.num_classes).reset_index(drop=True)
    on = evaluated_on(record, table["images"].iloc[0]) + _about_seeds(table)
    reestimated = (
        f"batch-norm statistics re-estimated on {min(statistics_images, record.data.train_images):,} training images"
    )
    claim, finding = say(table)
    finding += f"; differences below {findings.unresolved(table):.1f} points rank nothing."
    return Drawing.of(
        opened, name, {"accuracies": table}, (claim, finding),
        lambda claim: figures.accuracy_without(table, on, reestimated, claim),
    )  # fmt: skip


def _about_seeds(table: pd.DataFrame) -> str:
    seeds = most_seeds(table)
    return f", up to {seeds} seeds of a model" if seeds > 1 else ""


def branch_ratios(opened: OpenStudy, images: int = IMAGES) -> pd.DataFrame:
    """`capture.branch_norms` of the runs, labelled; NaN is the ratio of the products of attention that is off."""

    def measure(run: StoredRun) -> pd.DataFrame:
        model = on_best_device(run.model())
        table = branch_norms(model, evaluation_batches(opened, run, images))
        off = [path for path, level in attention_levels(model).items() if is_off(level)]
        table.loc[(table["kind"] == "attention products") & table["layer"].isin(off), "ratio"] = float("nan")
        return table

    runs = _runs_with_branches(opened)
    return labelled(measured(opened, "branch_norms", _VERSION, {"images": images}, runs, measure), runs)


def accuracy_table(
    model: BinaryVisionTransformer,
    evaluation: Sequence[tuple[Tensor, Tensor]],
    training: Sequence[tuple[Tensor, ...]],
    by_stage: bool,
) -> pd.DataFrame:
    """The rows of `accuracies` for one model, without the run.

    Args:
        model: in evaluation mode.
        evaluation: tuples of images and labels.
        training: tuples whose first entry is images, for the batch norms' statistics.
        by_stage: whether a pyramid's stages are measured one by one, too.
    """
    stages = [f"stages.{index}" for index in range(len(model.stages))] if by_stage else []
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
    """How many images of (images, labels) batches a model in evaluation mode classifies correctly."""
    return sum(
        int((model(images.to(device_of(model))).argmax(dim=1).cpu() == labels).sum()) for images, labels in batches
    )


def _runs_with_branches(opened: OpenStudy) -> list[StoredRun]:
    """The chosen runs, in the order of PRECISIONS.

    Without a choice, they are the ladder's binary ones and the first of each other precision.
    """
    ids = opened.ids
    if ids is None:
        known = {run.id for run in (*opened.study.ladder, *(row.runs[0] for row in precision_rows(opened)))}
        ids = [run.id for run in plan(opened.study) if run.id in known and run.state is State.DONE] or None
    runs = stored_runs(opened.study, ids)
    suitable = [run for run in runs if run.variant in BINARY_VARIANTS]
    others = [run.id for run in runs if run not in suitable]
    if not suitable or (opened.ids is not None and others):
        raise BinaryViTError(
            f"{', '.join(others)} has none of the branches measured here: choose runs of the ladder's binary variants."
        )
    return sorted(suitable, key=lambda run: list(PRECISIONS.values()).index(bits_of(run)))
