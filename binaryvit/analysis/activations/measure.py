"""What one bit does inside the binary models of a study: signs, weights, and how many values a layer's output takes."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from binaryvit.analysis.activations import distinct_values, figures, findings, signs, weight_changes
from binaryvit.analysis.device import on_best_device
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.labels import bits_of, labelled
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError

VERSION = 1  # of what is measured here
IMAGES = 1000  # signs are counted on
COUNTED_IMAGES = 256  # distinct values are counted on
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
        weights(opened),
        values(opened, counted_images, channels),
        values_from_one_bit(opened, counted_images, channels),
    ]


def histograms(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """What signs are taken of, in each kind of layer of the runs whose weights and activations are one bit.

    Args:
        opened: whose runs. Those of other bits are left out.
        images: of the evaluation split, that signs are counted on (all where there are fewer).

    Raises BinaryViTError for what `stored_runs` and `measured` refuse, where no run is of one bit, and for a number
    that is not positive.
    """
    runs = _one_bit_runs(opened)
    table, seen = labelled(_measure_signs(opened, runs, images)["pre_sign_histograms"], runs), _describe(runs, images)
    claim, finding = findings.of_histograms(table)
    return Drawing(
        opened,
        "pre_sign_histograms",
        {"histograms": table.assign(counted_on=seen)},
        lambda: figures.pre_sign_histograms(table, seen, claim),
        tuple(run.id for run in runs),
        finding,
    )


def sign_statistics(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """How much the signs of each kind of layer say, and how far the shifts moved; see `histograms`."""
    runs = _one_bit_runs(opened)
    table, seen = labelled(_measure_signs(opened, runs, images)["signs"], runs), _describe(runs, images)
    claim, finding = findings.of_signs(table)
    return Drawing(
        opened,
        "sign_statistics",
        {"signs": table.assign(counted_on=seen)},
        lambda: figures.sign_statistics(table, seen, claim),
        tuple(run.id for run in runs),
        finding,
    )


def weights(opened: OpenStudy) -> Drawing:
    """How far training moved the weights from their initial values, from what it left in the runs' folders: no data."""
    runs = _one_bit_runs(opened)
    latent = _each(runs, weight_changes.latent_distribution)
    flips = _each(runs, weight_changes.flips)
    layers = _each(runs, lambda run: weight_changes.changed_weights(run.model(), weight_changes.initial_model(run)))
    claim, finding = findings.of_weights(latent, flips, layers)
    return Drawing(
        opened,
        "weight_statistics",
        {"latent": latent, "flips": flips, "layers": layers},
        lambda: figures.weight_statistics(latent, flips, layers, claim),
        tuple(run.id for run in runs),
        finding,
    )


def values(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """How many distinct values each step inside a block takes, in the model as it is; see `histograms`.

    `channels` of each layer are counted.
    """
    return _draw_values(
        opened, images, channels, "distinct_values",
        distinct_values.distinct_values, findings.of_distinct_values, figures.distinct_values,
    )  # fmt: skip


def values_from_one_bit(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """The same count without the real-valued stream; see `values`."""
    return _draw_values(
        opened, images, channels, "distinct_values_from_one_bit",
        distinct_values.distinct_values_from_one_bit, findings.of_one_bit, figures.distinct_values_from_one_bit,
    )  # fmt: skip


def _draw_values(
    opened: OpenStudy, images: int, channels: int, name: str, count: Callable, said: Callable, draw: Callable
) -> Drawing:
    """A figure of distinct values: `count` measures a model, `said` gives claim and finding, `draw` the figure."""
    _check_positive(counted_images=images, channels=channels)
    runs = _one_bit_runs(opened)
    table = measured(
        opened, name, VERSION, {"images": images, "channels": channels}, runs,
        lambda run: count(on_best_device(run.model()), _images(opened, run, images), channels),
    )  # fmt: skip
    table = labelled(table, runs)
    seen = f"{_describe(runs, images)}, {channels} channels of each layer"
    claim, finding = said(table)
    return Drawing(
        opened,
        name,
        {"values": table.assign(counted_on=seen)},
        lambda: draw(table, distinct_values.STEPS, seen, claim),
        tuple(run.id for run in runs),
        finding,
    )


def _one_bit_runs(opened: OpenStudy) -> list[StoredRun]:
    chosen = opened.runs()
    runs = [run for run in chosen if bits_of(run) == "W1A1"]
    if not runs:
        raise BinaryViTError(
            f"No run with weights and activations of one bit is selected, only {', '.join(run.id for run in chosen)}: "
            "choose others."
        )
    return runs


def _measure_signs(opened: OpenStudy, runs: Sequence[StoredRun], images: int) -> dict[str, pd.DataFrame]:
    """Both measurements of signs, "signs" and "pre_sign_histograms"; one pass over the images serves both."""
    _check_positive(images=images)
    counts: dict[str, dict[str, signs.SignCounts]] = {}

    def count(run: StoredRun) -> dict[str, signs.SignCounts]:
        if run.id not in counts:
            counts[run.id] = signs.count_signs(
                signs.exact_copy(on_best_device(run.model())), _images(opened, run, images)
            )
        return counts[run.id]

    measure = {
        "signs": lambda run: signs.sign_layers(count(run)),
        "pre_sign_histograms": lambda run: signs.sign_histograms(count(run)),
    }
    return {name: measured(opened, name, VERSION, {"images": images}, runs, make) for name, make in measure.items()}


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise BinaryViTError(f"{name}={value} is refused: give a positive number.")


def _images(opened: OpenStudy, run: StoredRun, images: int) -> list[Tensor]:
    return [batch for batch, _ in evaluation_batches(opened, run, images)]


def _describe(runs: Sequence[StoredRun], images: int) -> str:
    data = runs[0].record.data
    return f"{min(images, data.eval_images):,} images of {data.label}"


def _each(runs: Sequence[StoredRun], table_of: Callable[[StoredRun], pd.DataFrame]) -> pd.DataFrame:
    """One table of all runs; see `labels.labelled`."""
    return labelled(pd.concat({run.id: table_of(run) for run in runs}, names=["run"]).reset_index("run"), runs)
