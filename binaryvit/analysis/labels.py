"""What tables of several runs say about each: its model, variant, seed and precision; and how blocks are called."""

import re
from collections.abc import Sequence

import pandas as pd

from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.records.run_record import RunRecord
from binaryvit.studies.rows import Row, read_rows

PRECISIONS = {(1, 1): "W1A1", (1, 32): "W1A32", (32, 1): "W32A1", (32, 32): "W32A32"}
_BLOCK = re.compile(r"(?:(?:stages|layers)\.(\d+)\.)?(?:blocks\.(\d+)|embed)\b")


def block_of(layer: str) -> str | None:
    """The block that a module path lies in, "stage.block" from 0; before a stage "stem" or "merge 1"; else None."""
    found = _BLOCK.match(layer)
    if not found:
        return None
    stage, block = found[1] or "0", found[2]
    if block is None:
        return "stem" if stage == "0" else f"merge {stage}"
    return f"{stage}.{block}"


def in_words(block: str) -> str:
    """A block's name from `block_of` as a sentence says it: "block 0.1", "merge 1"."""
    return f"block {block}" if block[0].isdigit() else block


def is_pyramid(runs: pd.Series, blocks: pd.Series) -> pd.Series:
    """For each row of a table, whether its run's model has several stages; blocks: module paths or `block_of` them."""
    return blocks.str.match(r"stages\.1\.|1\.").groupby(runs).transform("any")


def evaluated_on(record: RunRecord, images: int | None = None) -> str:
    """The images of a measurement: "500 evaluation images of CIFAR-10"; `images` None: all there are."""
    number = min(images or record.data.eval_images, record.data.eval_images)
    return f"{number:,} evaluation images of {record.data.label}"


def model_label(run: StoredRun) -> str:
    """What the run's model is called, whatever the seed."""
    return run.label.removesuffix(f", seed {run.record.seed}")


def first_seeds(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Of each model the first of its runs, in their order."""
    return list({model_label(run): run for run in reversed(runs)}.values())[::-1]


def labelled(table: pd.DataFrame, runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The table, whose column "run" holds ids, with the columns label, variant, seed and bits ("W1A1") after it."""
    columns = {
        "label": {run.id: model_label(run) for run in runs},
        "variant": {run.id: run.variant for run in runs},
        "seed": {run.id: run.record.seed for run in runs},
        "bits": {run.id: bits_of(run) for run in runs},
    }
    for place, (name, values) in enumerate(columns.items(), start=1):
        table.insert(place, name, table["run"].map(values))
    return table


def bits_of(run: StoredRun) -> str:
    """The bits of weights and activations of a binary transformer, "W1A32"; any other model counts as "W32A32"."""
    if not run.is_binary_transformer:
        return "W32A32"
    arguments = run.record.config["model_args"]
    return f"W{arguments.get('weight_bits', 1)}A{arguments.get('activation_bits', 1)}"


def precision_rows(opened: OpenStudy) -> list[Row]:
    """The rows of the variant that the study trains at most precisions, in the order of PRECISIONS."""
    variants: dict[str, dict[tuple[int, int], Row]] = {}
    for row in read_rows(opened.study):
        if not row.is_teacher and (opened.ids is None or any(run.id in opened.ids for run in row.runs)):
            variants.setdefault(row.variant, {}).setdefault(row.runs[0].bits, row)
    most = max(variants.values(), key=len, default={})
    return [most[bits] for bits in PRECISIONS if bits in most]


def most_seeds(table: pd.DataFrame) -> int:
    """The largest number of seeds that a model has, in a table with columns label and seed."""
    return table.groupby("label")["seed"].nunique().max()
