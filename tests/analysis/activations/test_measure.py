"""The analysis of signs, weights and distinct values: its numbers, figures, sentences and refusals."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
from helpers.executed_notebooks import execute, kernels_of_this_checkout, outputs
from helpers.pictures import assert_readable
from helpers.places import ROOT
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import stored_study

from binaryvit.analysis.activations import distinct_values, findings, signs
from binaryvit.analysis.activations import measure as activations
from binaryvit.analysis.activations.layer_kinds import KINDS, kind_of
from binaryvit.analysis.activations.weight_changes import changed_weights
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.models.layers import binary_layers
from binaryvit.studies.study import load_study
from binaryvit.training import latent
from binaryvit.training.build import create_model

NAMES = [
    "pre_sign_histograms",
    "sign_statistics",
    "flipped_signs",
    "latent_weights",
    "distinct_values",
    "distinct_values_from_one_bit",
    "values_read",
]
FEW = dict(images=20, counted_images=10, channels=3)
NOTEBOOK = ROOT / "notebooks" / "activations.ipynb"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A study whose binary runs hold what training leaves of their latent weights."""
    study = stored_study(tmp_path_factory.mktemp("studies") / "small")
    for run in study.runs[1:]:
        model = with_latent_weights(run)
        latent.latent_histograms(model).to_csv(run.folder / "latent_weights.csv", index=False)
        latent.latent_layers(model).to_csv(run.folder / "latent_layers.csv", index=False)
    return study


def with_latent_weights(run):
    """As if training had only stretched the latent weights, in each layer by another factor."""
    model = create_model(run.config, 10)
    for number, layer in enumerate(binary_layers(model).values()):
        layer.weight.data *= 1 + number % 4
    return model


@pytest.fixture(scope="module")
def drawings(original):
    return dict(zip(NAMES, activations.drawings(OpenStudy(original), **FEW), strict=True))


def test_every_step_has_its_numbers_and_a_figure_of_them(original, drawings):
    assert [drawing.name for drawing in drawings.values()] == NAMES
    for drawing in drawings.values():
        assert drawing.runs == (BASELINE, PYRAMID)
        assert_readable(drawing.draw())
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
    assert len(sizes) == 10 and max(sizes) < 300_000


def test_weights_are_those_of_the_runs_folders(original, drawings):
    for run in stored_runs(original, [BASELINE, PYRAMID]):
        shown = drawings["latent_weights"].inputs["latent"].query("run == @run.id")
        assert shown.groupby("when")["share"].sum().tolist() == pytest.approx([1, 1])
        initial = binary_layers(create_model(run.config, 10))
        for when, model in (("initial", create_model(run.config, 10)), ("trained", with_latent_weights(run))):
            ratios = [
                (layer.centred_weight() / initial[name].scale.mean()).flatten().numpy(force=True)
                for name, layer in binary_layers(model).items()
            ]
            edges = np.concatenate([[-np.inf], np.linspace(-10, 10, 81), [np.inf]])
            counts, _ = np.histogram(np.concatenate(ratios), edges)
            own = shown[shown["when"] == when]
            assert own["bin_left"].tolist() == edges[:-1].tolist()
            np.testing.assert_allclose(own["share"], counts / counts.sum(), atol=0.01)


def test_weights_are_compared_with_those_their_seed_gives(original, drawings):
    (run,) = stored_runs(original, [PYRAMID])
    table = drawings["flipped_signs"].inputs["layers"].query("run == @PYRAMID").reset_index(drop=True)
    direct = changed_weights(run.model(), create_model(run.config, 10))
    pd.testing.assert_frame_equal(table[direct.columns], direct)


def test_distances_to_the_threshold_add_up():
    latent_table = pd.DataFrame(
        {"bin_left": [-np.inf, -1, -0.5, 0, 0.5, 1], "bin_right": [-1, -0.5, 0, 0.5, 1, np.inf]}
    ).assign(share=[0.1, 0.1, 0.2, 0.3, 0.2, 0.1])
    assert [findings.within(latent_table, distance) for distance in (0.5, 1)] == pytest.approx([0.5, 0.8])


def labelled(table, variant="binaryvit_micro_patch2_32"):
    return table.assign(run=f"{variant}-seed0", label=variant_style(variant).label, variant=variant)


def test_kinds_of_layers_are_told_from_their_paths():
    model = timm.create_model("binaryvit_micro_patch2_32")
    kinds = {kind_of(layer) for layer in (*signs.binary_activations(model), *binary_layers(model))}
    assert kinds == set(KINDS)
    assert kind_of("stages.0.blocks.0.attn.binarize_v") == "v of attention·v" and kind_of("head") == "head"


def test_sentences_follow_the_numbers():
    edges = [-np.inf, -1, 0, 1, np.inf]
    histograms = pd.DataFrame({"layer": ["mlp.fc1.binarize"] * 4 + ["mlp.fc2.binarize"] * 4})
    histograms = histograms.assign(count=[1, 2, 1, 0, 0, 0, 9, 7], bin_left=edges[:-1] * 2, bin_right=edges[1:] * 2)
    claim, finding = findings.of_histograms(labelled(histograms))
    assert claim.endswith("a gradient passes, in every kind of layer and model")
    assert finding == "By kind of layer the share is 56% (FFN 2) to 75% (FFN 1), by model 66%."
    histograms["count"] = [1, 2, 1, 0, 0, 0, 8, 8]
    assert findings.of_histograms(labelled(histograms))[0].endswith("in every model in all kinds of layers but FFN 2")
    histograms["count"] = [3, 1, 0, 0, 0, 0, 7, 9]
    few = findings.of_histograms(labelled(histograms))[0]
    assert few == "Within ±1, where a gradient passes, lie 25% to 44% of a model's pre-sign activations"

    table = pd.DataFrame({"layer": ["mlp.fc1.binarize", "mlp.fc2.binarize"], "channels": [30, 10], "dead": [0, 4]})
    table = labelled(table.assign(entropy=[0.9, 0.5]))
    claim, finding = findings.of_signs(table)
    assert claim == "In every model signs are least balanced at the input of FFN 2: 0.50 bits in the median layer"
    other = pd.concat([table, table.assign(label="other", entropy=[0.6, 0.7])])
    assert findings.of_signs(other)[0].startswith(
        "In 1 of 2 models signs are least balanced at the input of FFN 2: 0.5"
    )
    assert "carries 0.80 bits. 4 of 40 channels are dead" in finding
    nearly = findings.of_signs(table.assign(entropy=[0.95, 0.96]))[0]
    assert nearly.startswith("In every model signs are nearly balanced, least at the input of FFN 1")

    layers = labelled(pd.DataFrame({"layer": table["layer"], "flipped": [0.4, 0.0], "weights": [10, 30]}))
    claim, finding = findings.of_flipped_signs(layers)
    assert claim == "0% to 40% of a layer's weights end with another sign than they started with (by chance: 50%)"
    assert finding.startswith("Of a model's weights 10% end with another sign.") and "0% (FFN 2) to 40%" in finding

    latent_table = pd.DataFrame({"bin_left": [-0.5, 0.5], "bin_right": [0.5, 1], "share": [0.25, 0.75]})
    trained = latent_table.assign(share=[0.3, 0.7], when="trained")
    latent_table = pd.concat([latent_table.assign(when="initial"), trained])
    claim, finding = findings.of_latent_weights(labelled(latent_table))
    assert (
        claim == "Training gathers latent weights: the share near 0, where signs flip, rises from 25% to 30%"
        and finding
        == (
            "Near is nearer than 0.5 times a layer's mean scale before training; by model, 30% of the latent weights "
            "end there."
        )
    )
    away = latent_table.assign(share=latent_table["share"].where(latent_table["when"] == "initial", [0.1, 0.9] * 2))
    assert findings.of_latent_weights(labelled(away))[0].endswith("where signs flip, falls from 25% to 10%")
    same = latent_table.assign(share=[0.25, 0.75] * 2)
    assert findings.of_latent_weights(labelled(same))[0].startswith("Training leaves as many latent weights near 0")


def values_of(medians, observations=1000):
    table = pd.DataFrame({"step": list(medians), "median": list(medians.values()), "maximum": list(medians.values())})
    bound = np.where(table["step"].str.endswith("product"), 101.0, np.nan)
    return labelled(table.assign(block="stages.0.blocks.0", observations=observations, bound=bound))


def test_sentences_on_distinct_values_follow_the_numbers():
    medians = {"FFN: input": 2, "FFN 1: binary product": 20, "FFN 1: batch norm": 20, "FFN 1: + shortcut": 30}
    medians |= {"FFN 1: RPReLU": 30, "FFN 2: binary product": 40, "FFN 2: batch norm": 40, "FFN 2: + shortcut": 100}
    medians |= {"pooling branches": 60}
    claim, finding = findings.of_one_bit(values_of(medians))
    once = "Fed only signs, a channel takes 30 values after query or FFN 1 with its shortcut, after context or FFN 2"
    assert claim == f"{once} with theirs 100"
    nearly = findings.of_one_bit(values_of(medians, observations=100))
    assert nearly[0] == f"{once} with theirs nearly as many as are looked at" and "by at least 2." in nearly[1]
    assert "makes 20 to 40 values; the second shortcut" in finding and finding.endswith("multiplies them by 2.")

    mean = labelled(pd.DataFrame({"median": [17.0], "tokens": [64]}))
    cls = mean.assign(label="a", median=2.0, tokens=1)
    claim, finding = findings.of_values_read(mean)
    assert claim == "If final tokens were signs, a channel would take 17 values in their mean"
    assert finding.startswith("The classifier then reads 17. ")
    assert findings.of_values_read(pd.concat([cls, mean]))[0] == f"{claim}, 2 in a CLS token"
    assert findings.of_values_read(cls)[0] == "If the CLS token were signs, a channel would take 2 values"

    claim, finding = findings.of_distinct_values(values_of(medians, observations=100))
    product = "A channel takes 20 to 40 values after a binary product"
    assert claim == f"{product}, after its shortcut 30 to 100"
    assert finding.startswith("A product takes 30% of the values that its length allows.")
    alike = findings.of_distinct_values(values_of(medians | {"FFN 1: + shortcut": 100}, observations=100))[0]
    assert alike == f"{product}, after its shortcut nearly as many as are looked at"


def test_figures_draw_the_numbers(drawings):
    def drawn(name, axes=0):
        return drawings[name].draw().axes[axes]

    histograms = drawings["pre_sign_histograms"].inputs["histograms"]
    first = histograms[(histograms["run"] == PYRAMID) & histograms["layer"].str.contains("embed")]
    share = 100 * first["count"] / first.groupby("layer")["count"].transform("sum")
    expected = share[np.isfinite(first["bin_left"]) & np.isfinite(first["bin_right"])].groupby(first["bin_left"]).mean()
    panel = drawn("pre_sign_histograms")
    assert panel.get_title().startswith("patch merging\n") and len(drawings["pre_sign_histograms"].draw().axes) == 9
    stairs = panel.patches[1]
    assert stairs.get_data().values.tolist() == pytest.approx(expected.tolist())

    signs_table = drawings["sign_statistics"].inputs["signs"]
    kinds = signs_table.assign(kind=signs_table["layer"].map(kind_of)).query("run == @PYRAMID").groupby("kind")
    line = next(line for line in drawn("sign_statistics").lines if line.get_label() == "BinaryViT (+ pyramid)")
    assert line.get_xdata().tolist() == pytest.approx(kinds["entropy"].median().reindex(KINDS).tolist())
    texts = [text.get_text() for text in drawn("sign_statistics").texts]
    assert texts.count("1 of 2 have none") == 2  # the baseline has neither merges nor a spatial reduction

    figure = drawings["flipped_signs"].draw()
    layers = drawings["flipped_signs"].inputs["layers"].query("run == @PYRAMID and layer.str.contains('reduce')")
    line = next(line for line in figure.axes[0].lines if line.get_label() == "BinaryViT (+ pyramid)")
    assert line.get_xdata()[1] == pytest.approx(100 * layers["flipped"].median())
    assert "bar: their range" in figure.legends[0].get_title().get_text()
    names = [text.get_text() for text in drawings["latent_weights"].draw().legends[0].texts]
    assert names[0] == "before training" and "2 models" in names[1]

    values = drawings["distinct_values"].inputs["values"].query("step == 'FFN 1: binary product' and run == @BASELINE")
    panel = drawn("distinct_values")
    row = [label.get_text() for label in panel.get_yticklabels()].index("FFN 1: binary product")
    columnar = next(line for line in panel.lines if line.get_label() == "columnar")
    assert columnar.get_xdata()[row] == values["median"].median()
    observed = drawings["distinct_values"].inputs["values"]["observations"]
    limits = next(patch.get_bbox() for patch in panel.patches if patch.get_alpha())
    assert (limits.x0, limits.x1, limits.height) == (observed.min(), observed.max(), 1), "shaded in every row"
    built = drawings["distinct_values_from_one_bit"]
    from_bits = next(line for line in drawn("distinct_values_from_one_bit").lines if line.get_label() == "columnar")
    fed = built.inputs["values"].query("step == 'FFN: input' and run == @BASELINE")
    assert from_bits.get_xdata()[0] == fed["median"].median()
    bars = drawn("values_read").patches
    read = drawings["values_read"].inputs["values"]["median"]
    assert [bar.get_width() for bar in bars] == read.tolist() and read.iloc[0] <= 2  # a CLS token is one bit
    cls, mean = (text.get_text() for text in drawn("values_read").texts)
    assert "of 2 possible (one CLS token)" in cls and "of 5 possible (mean of 4 tokens)" in mean


def test_what_cannot_be_shown_is_refused(original, tmp_path):
    with pytest.raises(BinaryViTError, match=f"only {TEACHER}"):
        activations.drawings(OpenStudy(original, (TEACHER,)))
    with pytest.raises(BinaryViTError, match="channels=0 is refused"):
        activations.values(OpenStudy(original), channels=0)
    shutil.copytree(original.output, tmp_path / "small")
    study = load_study(tmp_path / "small")
    (study.output / "runs" / PYRAMID / "latent_weights.csv").unlink()
    with pytest.raises(BinaryViTError, match=r"latent_weights\.csv is missing"):
        activations.drawings(OpenStudy(study), **FEW)


@pytest.mark.slow
def test_the_notebook_shows_and_stores_every_figure(original, drawings, tmp_path):
    with kernels_of_this_checkout():
        executed = execute(NOTEBOOK, tmp_path / "out.ipynb", study=str(original.output), **FEW, write=True)
    assert outputs(executed, "text/markdown") == [drawing.finding for drawing in drawings.values()]
    assert len(outputs(executed, "image/png")) == 7
    stored = {path.name for path in (original.output / "figures").iterdir()}
    assert stored == {f"{name}.{ending}" for name in NAMES for ending in ("pdf", "png", "json")}
