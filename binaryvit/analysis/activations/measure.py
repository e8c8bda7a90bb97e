"""What one bit does inside the binary models of a study: signs, weights, and how many values a layer's output takes."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from binaryvit.analysis.activations import distinct_values, figures, findings, signs
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import StoredRun, evaluation_batches, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.records.run import read_table
from binaryvit.studies.study import Study

VERSION = 1  # of what is measured here
IMAGES = 1000  # signs are counted on
COUNTED_IMAGES = 256  # distinct values are counted on
COUNTED_CHANNELS = 8


def drawings(
    study: Study,
    ids: Sequence[str] | None = None,
    images: int = IMAGES,
    counted_images: int = COUNTED_IMAGES,
    channels: int = COUNTED_CHANNELS,
) -> list[Drawing]:
    """All figures of this analysis, for the finished runs of a study whose weights and activations are one bit.

    Args:
        study: the study.
        ids: which of its runs; None: all. Those of other bits are left out.
        images: of the evaluation split, that signs are counted on (all where there are fewer).
        counted_images: images that distinct values are counted on, in `channels` channels of each layer.

    Raises:
        BinaryViTError: what `stored_runs` and `measured` raise; no run is of one bit; a number that is not positive.
    """
    for name, value in {"images": images, "counted_images": counted_images, "channels": channels}.items():
        if value < 1:
            raise BinaryViTError(f"{name}={value} is refused: give a positive number.")
    chosen = stored_runs(study, ids)
    one_bit = {run.id for run in study.runs if run.bits == (1, 1)}
    runs = [run for run in chosen if run.is_binary and run.id in one_bit]
    if not runs:
        raise BinaryViTError(
            f"No run with weights and activations of one bit is selected, only {', '.join(run.id for run in chosen)}: "
            "choose others."
        )
    return [
        *_of_signs(study, runs, images),
        _of_weights(runs),
        *_of_distinct_values(study, runs, counted_images, channels),
    ]


def _of_signs(study: Study, runs: Sequence[StoredRun], images: int) -> list[Drawing]:
    counts: dict[str, dict[str, signs.SignCounts]] = {}

    def count(run: StoredRun) -> dict[str, signs.SignCounts]:
        if run.id not in counts:  # one pass serves both measurements
            model = signs.exact_copy(run.model())
            counts[run.id] = signs.count_signs(model, _images(study, run, images))
        return counts[run.id]

    settings = {"images": images}
    measure = {
        "signs": lambda run: signs.sign_layers(count(run)),
        "pre_sign_histograms": lambda run: signs.sign_histograms(count(run)),
    }
    sign_table, histograms = (
        _labelled(measured(study, name, VERSION, settings, runs, make), runs) for name, make in measure.items()
    )
    seen = _describe(runs, images)
    ids = tuple(run.id for run in runs)
    return [
        Drawing(
            name="pre_sign_histograms",
            inputs={"histograms": histograms.assign(counted_on=seen)},
            draw=lambda: figures.pre_sign_histograms(histograms, seen),
            runs=ids,
            finding=findings.of_histograms(histograms, seen),
        ),
        Drawing(
            name="sign_statistics",
            inputs={"signs": sign_table.assign(counted_on=seen)},
            draw=lambda: figures.sign_statistics(sign_table, seen),
            runs=ids,
            finding=findings.of_signs(sign_table),
        ),
    ]


def _of_weights(runs: Sequence[StoredRun]) -> Drawing:
    """From what training left in the runs' folders; needs no data."""
    layers = _labelled(_each(runs, lambda run: read_table(run.folder, "latent_layers.csv")), runs)
    latent = _labelled(_each(runs, _latent_histogram), runs)
    flips = _labelled(_each(runs, _flips), runs)
    scales = _labelled(_each(runs, lambda run: signs.binary_weights(run.model())), runs)
    return Drawing(
        name="weight_statistics",
        inputs={"latent": latent, "flips": flips, "scales": scales, "layers": layers},
        draw=lambda: figures.weight_statistics(latent, flips, scales),
        runs=tuple(run.id for run in runs),
        finding=findings.of_weights(latent, flips, scales, layers),
    )


def _of_distinct_values(study: Study, runs: Sequence[StoredRun], images: int, channels: int) -> list[Drawing]:
    seen = f"{_describe(runs, images)}, {channels} channels of each layer"
    kinds = {
        "distinct_values": (distinct_values.distinct_values, findings.of_distinct_values),
        "distinct_values_from_one_bit": (distinct_values.distinct_values_from_one_bit, findings.of_one_bit),
    }
    made = []
    for name, (count, finding) in kinds.items():
        settings = {"images": images, "channels": channels}
        table = measured(
            study, name, VERSION, settings, runs,
            lambda run, count=count: count(run.model(), _images(study, run, images), channels),
        )  # fmt: skip
        values = _labelled(table, runs)
        made.append(
            Drawing(
                name=name,
                inputs={"values": values.assign(counted_on=seen)},
                draw=lambda values=values: figures.distinct_values(values, distinct_values.STEPS, seen),
                runs=tuple(run.id for run in runs),
                finding=finding(values),
            )
        )
    return made


def _images(study: Study, run: StoredRun, images: int) -> list[Tensor]:
    return [batch for batch, _ in evaluation_batches(study, run, images)]


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
