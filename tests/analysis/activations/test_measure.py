"""The analysis of signs, weights and distinct values: its numbers, figures, sentences and refusals."""

import re
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import papermill
import pytest
import timm
from helpers.places import ROOT
from helpers.stored_study import BASELINE, PYRAMID, TEACHER, stored_study
from matplotlib.backends.backend_agg import FigureCanvasAgg

from binaryvit.analysis.activations import distinct_values, figures, findings, signs
from binaryvit.analysis.activations import measure as activations
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.studies.study import load_study
from binaryvit.training import latent
from binaryvit.training.build import model_arguments

NAMES = [
    "pre_sign_histograms",
    "sign_statistics",
    "weight_statistics",
    "distinct_values",
    "distinct_values_from_one_bit",
]
FEW = dict(images=20, counted_images=10, channels=3)
NOTEBOOK = ROOT / "notebooks" / "activations.ipynb"


def nothing_is_cut_off(figure):
    """Asserts that all axes, legends and titles lie inside the canvas, and that no tick labels overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), canvas.get_width_height()
    texts = [text for text in (figure._supxlabel, figure._supylabel) if text]
    for box in [artist.get_tightbbox(renderer) for artist in (*figure.axes, *figure.legends, *texts)]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()]
        boxes = [tick.label1.get_window_extent(renderer) for tick in ticks if tick.label1.get_text()]
        assert not any(one.overlaps(two) for one, two in pairwise(boxes))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A study whose binary runs hold what training leaves of their latent weights."""
    study = stored_study(tmp_path_factory.mktemp("studies") / "small")
    for run in study.runs[1:]:
        model = timm.create_model(run.config.variant, **model_arguments(run.config, 10))
        latent.latent_layers(model).to_csv(run.folder / "latent_layers.csv", index=False)
        latent.latent_histograms(model).to_csv(run.folder / "latent_weights.csv", index=False)
        flips = pd.DataFrame({"layer": list(latent.weight_signs(model))}).merge(
            pd.DataFrame({"epoch": [1, 2], "flip_rate": [0.25, 0.125]}), how="cross"
        )
        flips.to_csv(run.folder / "weight_flips.csv", index=False)
    return study


@pytest.fixture(scope="module")
def drawings(original):
    return dict(zip(NAMES, activations.drawings(OpenStudy(original), **FEW), strict=True))


def test_every_step_has_its_numbers_and_a_figure_of_them(original, drawings):
    assert [drawing.name for drawing in drawings.values()] == NAMES
    for drawing in drawings.values():
        assert drawing.runs == (BASELINE, PYRAMID)
        nothing_is_cut_off(drawing.draw())
        for table in drawing.inputs.values():
            assert set(table["run"]) == {BASELINE, PYRAMID}
        assert not re.search(r"nan|None", drawing.finding)
    run = stored_runs(original, [PYRAMID])[0]
    batches = [images for images, _ in evaluation_batches(OpenStudy(original), run, 20)]
    counts = signs.count_signs(run.model().double(), batches)
    stored = drawings["sign_statistics"].inputs["signs"].set_index(["run", "layer"]).loc[PYRAMID]
    direct = signs.sign_layers(counts).set_index("layer")
    pd.testing.assert_frame_equal(stored[direct.columns], direct, rtol=1e-5, check_dtype=False)
    few = [images for images, _ in evaluation_batches(OpenStudy(original), run, 10)]
    values = drawings["distinct_values"].inputs["values"].query("run == @PYRAMID").set_index(["block", "step"])
    direct = distinct_values.distinct_values(run.model(), few, 3).set_index(["block", "step"])
    assert values["median"].tolist() == direct["median"].tolist()


def test_stored_measurements_serve_without_the_data(original, drawings):
    with stored_ones_only():
        again = activations.drawings(OpenStudy(original), **FEW)
        assert [drawing.source() for drawing in again] == [d.source() for d in drawings.values()]
        with pytest.raises(BinaryViTError, match="other settings"):
            activations.drawings(OpenStudy(original), **FEW | {"images": 30})
    sizes = [path.stat().st_size for path in (original.output / "measurements").glob("*/*.csv")]
    assert len(sizes) == 8 and max(sizes) < 300_000


def test_weights_are_those_of_the_runs_folders(original, drawings):
    inputs = drawings["weight_statistics"].inputs
    for run in (BASELINE, PYRAMID):
        stored = pd.read_csv(original.output / "runs" / run / "latent_weights.csv")
        share = inputs["latent"].set_index("run").loc[run, "share"]
        assert share.sum() == pytest.approx(1)
        first = stored[stored["bin_left"] == 0]["count"].sum() / stored["count"].sum()
        assert inputs["latent"].query("run == @run and bin_left == 0")["share"].item() == pytest.approx(first)
    assert inputs["flips"]["flip_rate"].tolist() == pytest.approx([0.25, 0.125] * 2)
    assert "In the first epoch 25.0% of the signs flipped, in the last 12.5%." in drawings["weight_statistics"].finding


def test_distances_to_the_threshold_add_up():
    latent_table = pd.DataFrame(
        {"bin_left": [-np.inf, -1, -0.5, 0, 0.5, 1], "bin_right": [-1, -0.5, 0, 0.5, 1, np.inf]}
    ).assign(share=[0.1, 0.1, 0.2, 0.3, 0.2, 0.1])
    assert figures.within(latent_table).to_dict() == pytest.approx({0.5: 0.5, 1: 0.8})


def labelled(table, variant="binaryvit_micro_patch2_32"):
    return table.assign(run=f"{variant}-seed0", label=variant_style(variant).label, variant=variant)


def test_sentences_follow_the_numbers():
    edges = [-np.inf, -1, 0, 1, np.inf]
    histograms = pd.DataFrame({"layer": ["a"] * 4 + ["b"] * 4, "count": [1, 2, 1, 0, 0, 0, 8, 8]})
    histograms = labelled(histograms.assign(bin_left=edges[:-1] * 2, bin_right=edges[1:] * 2))
    sentence = findings.of_histograms(histograms, "5 images of digits")
    assert sentence.startswith("On 5 images of digits, 55.0% of the pre-sign activations lie inside the window")
    assert "from 50.0% (b of BinaryViT (+ pyramid)) to 75.0% (a of BinaryViT (+ pyramid))" in sentence
    assert "45.00% lie beyond ±1." in sentence

    signs = pd.DataFrame({"layer": ["a", "b"], "channels": [30, 10], "dead": [0, 4], "entropy": [0.9, 0.5]})
    signs = labelled(
        signs.assign(mean_absolute_shift=[0.1, 0.3], share_positive_low=0.25, share_positive_high=[0.75, 0.45])
    )
    sentence = findings.of_signs(signs)
    assert "carries 0.80 bits on average" in sentence and "least in b of BinaryViT (+ pyramid) (0.50 bits)" in sentence
    assert "10.00% of the channels are dead" in sentence and "4 of 10, in b" in sentence
    assert "over 35 points" in sentence and "shifts are 0.150 in size" in sentence
    assert "Of 40 channels none is dead" in findings.of_signs(signs.assign(dead=0))


def values_of(medians, observations=1000):
    table = pd.DataFrame({"step": list(medians), "median": list(medians.values())})
    bound = np.where(table["step"].str.endswith("product"), 101.0, np.nan)
    return labelled(table.assign(block="stages.0.blocks.0", observations=observations, bound=bound))


def test_sentences_on_distinct_values_follow_the_numbers():
    medians = {"MLP: input": 2, "MLP 1: binary product": 20, "MLP 1: batch norm": 20, "MLP 1: + shortcut": 30}
    medians |= {"MLP 1: RPReLU": 30, "MLP 2: binary product": 40, "MLP 2: batch norm": 40, "MLP 2: + shortcut": 100}
    medians |= {"MLP 2: RPReLU": 100, "MLP: affine": 100, "pooling branches": 60, distinct_values.ADDED: 250}
    medians |= {"head: input": 2, "head: pooled": 17}
    sentence = findings.of_one_bit(values_of(medians))
    assert "makes 20 to 40 values; adding a shortcut of one bit multiplies them by 1.50" in sentence
    assert "a mean of several channels, by 2.50; batch norm and RPReLU add none." in sentence
    assert "The pooling branches make 60 values of the same bits. In the 1 of 1 blocks" in sentence
    assert "multiply their number by 2.50" in sentence and "reads takes 17 (BinaryViT" in sentence
    assert "cannot be counted" in findings.of_one_bit(values_of(medians, observations=150))
    without = {
        step: value for step, value in medians.items() if step not in ("pooling branches", distinct_values.ADDED)
    }
    assert "pooling branches" not in findings.of_one_bit(values_of(without))
    assert "by factors of 0.50 and 1.00" in findings.of_one_bit(values_of(medians | {"MLP 1: batch norm": 10}))

    sentence = findings.of_distinct_values(values_of(medians, observations=100))
    assert "takes 20 to 40 values, 30% of what its length allows" in sentence
    assert "65.0% of the values looked at are different" in sentence and "hides" not in sentence
    assert "hides" in findings.of_distinct_values(values_of(medians | {"MLP 1: + shortcut": 100}, observations=100))


def test_figures_draw_the_numbers(drawings):
    histograms = drawings["pre_sign_histograms"].inputs["histograms"]
    axes = figures.pre_sign_histograms(histograms, "20 images of digits").axes[0]
    first = histograms[histograms["run"] == BASELINE]
    share = 100 * first["count"] / first.groupby("layer")["count"].transform("sum")
    assert axes.collections[0].get_array().ravel().tolist() == pytest.approx(share.tolist())
    assert [line.get_xdata()[0] for line in axes.lines[:2]] == [-1, 1]

    signs = drawings["sign_statistics"].inputs["signs"]
    figure = figures.sign_statistics(signs, "20 images of digits")
    assert len(figure.axes) == 10  # five measures, columnar beside pyramid
    inside = 100 * signs[signs["run"] == PYRAMID]["share_inside"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx(inside.tolist())
    assert all("20 images of digits" in axes.get_xlabel() for axes in figure.axes[-2:])

    values = drawings["distinct_values"].inputs["values"]
    figure = figures.distinct_values(values, distinct_values.STEPS, "10 images")
    assert [axes.get_title("left") for axes in figure.axes] == ["", "BinaryViT (+ pyramid), by stage.block"]
    drawn = {x for axes in figure.axes[:1] for line in axes.lines for x in np.atleast_1d(line.get_ydata())}
    blocks = values[(values["run"] == BASELINE) & (values["step"] == "MLP 1: binary product")]
    assert blocks["median"].median() in drawn


@pytest.mark.parametrize(
    ("draw", "inputs"),
    [
        (figures.pre_sign_histograms, ("histograms",)),
        (figures.sign_statistics, ("signs",)),
        (figures.weight_statistics, ("latent", "flips", "scales")),
        (figures.distinct_values, ("values",)),
    ],
)
def test_nothing_to_draw_is_an_error(drawings, draw, inputs):
    known = {name: table for drawing in drawings.values() for name, table in drawing.inputs.items()}
    further = {figures.distinct_values: (distinct_values.STEPS, "no images"), figures.weight_statistics: ()}
    with pytest.raises(BinaryViTError, match="nothing to draw"):
        draw(*(known[name].iloc[:0] for name in inputs), *further.get(draw, ("no images",)))


def test_what_cannot_be_shown_is_refused(original, tmp_path):
    with pytest.raises(BinaryViTError, match=f"only {TEACHER}"):
        activations.drawings(OpenStudy(original, (TEACHER,)))
    with pytest.raises(BinaryViTError, match="channels=0 is refused"):
        activations.values(OpenStudy(original), channels=0)
    shutil.copytree(original.output, tmp_path / "small")
    study = load_study(tmp_path / "small")
    (study.output / "runs" / PYRAMID / "weight_flips.csv").unlink()
    with pytest.raises(BinaryViTError, match=r"weight_flips\.csv is missing"):
        activations.drawings(OpenStudy(study), **FEW)


@pytest.mark.slow
def test_the_notebook_shows_and_stores_every_figure(original, drawings, tmp_path):
    parameters = {"study": str(original.output), **FEW, "write": True}
    executed = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "out.ipynb", parameters, kernel_name="python3", progress_bar=False
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    shown = [output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    assert shown == [drawing.finding for drawing in drawings.values()]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    stored = {path.name for path in (original.output / "figures").iterdir()}
    assert stored == {f"{name}.{ending}" for name in NAMES for ending in ("pdf", "png", "json")}
