"""What one bit does inside the binary models of a study: signs, weights, and how many values a layer's output takes."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from binaryvit.analysis.activations import distinct_values, figures, findings, signs
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.records.run import read_table

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
    """What signs are taken of, in each layer of the runs whose weights and activations are one bit.

    Args:
        opened: whose runs. Those of other bits are left out.
        images: of the evaluation split, that signs are counted on (all where there are fewer).

    Raises BinaryViTError for what `stored_runs` and `measured` refuse, where no run is of one bit, and for a number
    that is not positive.
    """
    runs = _one_bit_runs(opened)
    table, seen = _labelled(_measure_signs(opened, runs, images)["pre_sign_histograms"], runs), _describe(runs, images)
    return Drawing(
        opened,
        "pre_sign_histograms",
        {"histograms": table.assign(counted_on=seen)},
        lambda: figures.pre_sign_histograms(table, seen),
        tuple(run.id for run in runs),
        findings.of_histograms(table, seen),
    )


def sign_statistics(opened: OpenStudy, images: int = IMAGES) -> Drawing:
    """How much the signs of each layer say; see `histograms`."""
    runs = _one_bit_runs(opened)
    table, seen = _labelled(_measure_signs(opened, runs, images)["signs"], runs), _describe(runs, images)
    return Drawing(
        opened,
        "sign_statistics",
        {"signs": table.assign(counted_on=seen)},
        lambda: figures.sign_statistics(table, seen),
        tuple(run.id for run in runs),
        findings.of_signs(table),
    )


def weights(opened: OpenStudy) -> Drawing:
    """How far the latent weights are from their thresholds, from what training left in the runs' folders: no data."""
    runs = _one_bit_runs(opened)
    layers = _labelled(_each(runs, lambda run: read_table(run.folder, "latent_layers.csv")), runs)
    latent = _labelled(_each(runs, _latent_histogram), runs)
    flips = _labelled(_each(runs, _flips), runs)
    scales = _labelled(_each(runs, lambda run: signs.binary_weights(run.model())), runs)
    return Drawing(
        opened,
        "weight_statistics",
        {"latent": latent, "flips": flips, "scales": scales, "layers": layers},
        lambda: figures.weight_statistics(latent, flips, scales),
        tuple(run.id for run in runs),
        findings.of_weights(latent, flips, scales, layers),
    )


def values(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """How many distinct values each step inside a block can take, in the model as it is; see `histograms`.

    `channels` of each layer are counted.
    """
    table, runs, seen = _count_values(opened, "distinct_values", distinct_values.distinct_values, images, channels)
    return _draw_values(opened, "distinct_values", table, runs, seen, findings.of_distinct_values(table))


def values_from_one_bit(opened: OpenStudy, images: int = COUNTED_IMAGES, channels: int = COUNTED_CHANNELS) -> Drawing:
    """The same count without the real-valued stream; see `values`."""
    name = "distinct_values_from_one_bit"
    table, runs, seen = _count_values(opened, name, distinct_values.distinct_values_from_one_bit, images, channels)
    return _draw_values(opened, name, table, runs, seen, findings.of_one_bit(table))


def _one_bit_runs(opened: OpenStudy) -> list[StoredRun]:
    chosen = opened.runs()
    one_bit = {run.id for run in opened.study.runs if run.bits == (1, 1)}
    runs = [run for run in chosen if run.is_binary and run.id in one_bit]
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
            counts[run.id] = signs.count_signs(signs.exact_copy(run.model()), _images(opened, run, images))
        return counts[run.id]

    measure = {
        "signs": lambda run: signs.sign_layers(count(run)),
        "pre_sign_histograms": lambda run: signs.sign_histograms(count(run)),
    }
    return {name: measured(opened, name, VERSION, {"images": images}, runs, make) for name, make in measure.items()}


def _count_values(
    opened: OpenStudy, name: str, count: Callable[..., pd.DataFrame], images: int, channels: int
) -> tuple[pd.DataFrame, list[StoredRun], str]:
    """A count of distinct values, the runs it is of, and what it was made on in words."""
    _check_positive(counted_images=images, channels=channels)
    runs = _one_bit_runs(opened)
    table = measured(
        opened, name, VERSION, {"images": images, "channels": channels}, runs,
        lambda run: count(run.model(), _images(opened, run, images), channels),
    )  # fmt: skip
    return _labelled(table, runs), runs, f"{_describe(runs, images)}, {channels} channels of each layer"


def _draw_values(
    opened: OpenStudy, name: str, table: pd.DataFrame, runs: Sequence[StoredRun], seen: str, finding: str
) -> Drawing:
    return Drawing(
        opened,
        name,
        {"values": table.assign(counted_on=seen)},
        lambda: figures.distinct_values(table, distinct_values.STEPS, seen),
        tuple(run.id for run in runs),
        finding,
    )


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
    """One table of all runs, the run's id in the first column."""
    tables = []
    for run in runs:
        table = table_of(run)
        table.insert(0, "run", run.id)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _labelled(table: pd.DataFrame, runs: Sequence[StoredRun]) -> pd.DataFrame:
    """The table with each run's label and variant behind its id."""
    labels = {run.id: run.label for run in runs}
    variants = {run.id: run.variant for run in runs}
    table.insert(1, "label", table["run"].map(labels))
    table.insert(2, "variant", table["run"].map(variants))
    return table


def _latent_histogram(run: StoredRun) -> pd.DataFrame:
    """The histograms of all layers together: bin_left, bin_right, share of all binary weights."""
    layers = read_table(run.folder, "latent_weights.csv")
    counts = layers.groupby(["bin_left", "bin_right"], as_index=False)["count"].sum()
    return counts.assign(share=counts["count"] / counts["count"].sum()).drop(columns="count")


def _flips(run: StoredRun) -> pd.DataFrame:
    """Per epoch the flip rate of all binary weights together: columns epoch, flip_rate."""
    flips = read_table(run.folder, "weight_flips.csv")
    flips = flips.merge(read_table(run.folder, "latent_layers.csv")[["layer", "weights"]], on="layer")
    flips["flipped"] = flips["flip_rate"] * flips["weights"]
    sums = flips.groupby("epoch", as_index=False)[["flipped", "weights"]].sum()
    return pd.DataFrame({"epoch": sums["epoch"], "flip_rate": sums["flipped"] / sums["weights"]})
