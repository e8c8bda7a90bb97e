"""What one bit does inside the binary models of a study: signs, weights, and how many values a layer's output takes."""

from collections.abc import Callable

import pandas as pd
from torch import Tensor

from binaryvit.analysis.activations import distinct_values, figures, findings, signs, weight_changes
from binaryvit.analysis.device import on_best_device
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.labels import bits_of, evaluated_on, first_seeds, labelled
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError

_SIGNS_VERSION, _VALUES_VERSION = 3, 4  # of the code that measures
IMAGES = 1000  # that signs, and the values that classifiers read, are counted on
COUNTED_IMAGES = 256  # that all other distinct values are counted on
COUNTED_CHANNELS = 8


def drawings(
    opened: OpenStudy,
    images: int = IMAGES,
    counted_images: int = COUNTED_IMAGES,
    channels: int = COUNTED_CHANNELS,
) -> list[Drawing]:
    """All figures of this analysis; the parameters are those of the functions that make them."""
    return [
        histograms(opened, images),
        sign_statistics(opened, images),
        flipped_signs(opened),
        latent_weights(opened),
        values(opened, counted_images, channels),
        values_from_one_bit(opened, counted_images, channels),
        values_read(opened, images),
    ]


def histograms(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """What signs are taken of, in each kind of layer of the runs whose weights and activations are one bit.

    Args:
        opened: whose runs, or the first seed of each model. Those of other bits are left out.
        images: of the evaluation split, that signs are counted on (all where there are fewer).

    Raises BinaryViTError for what `stored_runs` and `measured` refuse, where no run is of one bit, and for a number
    that is not positive.
    """
    table = _measure_signs(opened, images)["pre_sign_histograms"]
    inputs, said = {"histograms": table}, findings.of_histograms(table)
    return Drawing.of(
        opened, "pre_sign_histograms", inputs, said, lambda claim: figures.pre_sign_histograms(table, claim)
    )


def sign_statistics(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """How much the signs of each kind of layer say; see `histograms`."""
    table = _measure_signs(opened, images)["signs"]
    inputs, said = {"signs": table}, findings.of_signs(table)
    return Drawing.of(opened, "sign_statistics", inputs, said, lambda claim: figures.sign_statistics(table, claim))


def flipped_signs(opened: OpenStudy) -> Drawing:
    """How many weights end with another sign than their seed gave them, from the runs' folders: no data."""
    table = _each(opened, lambda run: weight_changes.changed_weights(run.model(), weight_changes.initial_model(run)))
    inputs, said = {"layers": table}, findings.of_flipped_signs(table)
    return Drawing.of(opened, "flipped_signs", inputs, said, lambda claim: figures.flipped_signs(table, claim))


def latent_weights(opened: OpenStudy) -> Drawing:
    """Where the latent weights lie before and after training, from the runs' folders: no data."""
    table = _each(opened, weight_changes.latent_distribution)
    inputs, said = {"latent": table}, findings.of_latent_weights(table)
    return Drawing.of(opened, "latent_weights", inputs, said, lambda claim: figures.latent_weights(table, claim))


def values(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """How many distinct values each step inside a block takes, in the model as it is; see `histograms`.

    `channels` of each layer are counted.
    """
    name, count = "distinct_values", distinct_values.distinct_values
    table = _measure_values(opened, images, channels, name, count)
    said = findings.of_distinct_values(table)
    fed = "the real-valued stream"
    return Drawing.of(opened, name, {"values": table}, said, lambda claim: figures.distinct_values(table, fed, claim))


def values_from_one_bit(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """The same count without the real-valued stream; see `values`."""
    name, count = "distinct_values_from_one_bit", distinct_values.distinct_values_from_one_bit
    table = _measure_values(opened, images, channels, name, count)
    said, fed = findings.of_one_bit(table), "signs of what enters each half of a block"
    return Drawing.of(opened, name, {"values": table}, said, lambda claim: figures.distinct_values(table, fed, claim))


def values_read(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """How many values the classifier reads of each channel where final tokens are signs; see `histograms`."""
    _check_positive(images=images)
    runs = _one_bit_runs(opened)
    table = measured(
        opened, "values_read", _VALUES_VERSION, {"images": images}, runs,
        lambda run: distinct_values.values_read(on_best_device(run.model()), _images(opened, run, images)),
    )  # fmt: skip
    table = labelled(table, runs).assign(counted_on=evaluated_on(runs[0].record, images))
    said = findings.of_values_read(table)
    return Drawing.of(opened, "values_read", {"values": table}, said, lambda claim: figures.values_read(table, claim))


def _one_bit_runs(opened: OpenStudy) -> list[StoredRun]:
    chosen = opened.runs() if opened.ids else first_seeds(opened.runs())
    runs = [run for run in chosen if bits_of(run) == "W1A1"]
    if not runs:
        raise BinaryViTError(
            "No binary transformer with weights and activations of one bit is selected, only "
            f"{', '.join(run.id for run in chosen)}: choose others."
        )
    return runs


def _measure_signs(opened: OpenStudy, images: int) -> dict[str, pd.DataFrame]:
    """Both measurements of signs, "signs" and "pre_sign_histograms"; one pass over the images serves both."""
    _check_positive(images=images)
    runs = _one_bit_runs(opened)
    counts: dict[str, dict[str, signs.SignCounts]] = {}

    def count(run: StoredRun) -> dict[str, signs.SignCounts]:
        if run.id not in counts:
            model = signs.exact_copy(on_best_device(run.model()))
            counts[run.id] = signs.count_signs(model, _images(opened, run, images))
        return counts[run.id]

    measure = {
        "signs": lambda run: signs.sign_layers(count(run)),
        "pre_sign_histograms": lambda run: signs.sign_histograms(count(run)),
    }
    settings = {"images": images}
    tables = {name: measured(opened, name, _SIGNS_VERSION, settings, runs, make) for name, make in measure.items()}
    counted_on = evaluated_on(runs[0].record, images)
    return {name: labelled(table, runs).assign(counted_on=counted_on) for name, table in tables.items()}


def _measure_values(opened: OpenStudy, images: int, channels: int, name: str, count: Callable) -> pd.DataFrame:
    _check_positive(counted_images=images, channels=channels)
    runs = _one_bit_runs(opened)
    table = measured(
        opened, name, _VALUES_VERSION, {"images": images, "channels": channels}, runs,
        lambda run: count(on_best_device(run.model()), _images(opened, run, images), channels),
    )  # fmt: skip
    return labelled(table, runs).assign(
        counted_on=f"{evaluated_on(runs[0].record, images)}, {channels} channels counted in each layer"
    )


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise BinaryViTError(f"{name}={value} is refused: give a positive number.")


def _images(opened: OpenStudy, run: StoredRun, images: int) -> list[Tensor]:
    return [batch for batch, _ in evaluation_batches(opened, run, images)]


def _each(opened: OpenStudy, table_of: Callable[[StoredRun], pd.DataFrame]) -> pd.DataFrame:
    """One table of all runs; see `labels.labelled`."""
    runs = _one_bit_runs(opened)
    return labelled(pd.concat({run.id: table_of(run) for run in runs}, names=["run"]).reset_index("run"), runs)
