"""Curves over the epochs: the runs' own numbers, blocks weighted by their weights, and off drawn as off."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers.pictures import assert_readable
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import STUDY, stored_study

from binaryvit.analysis import curves
from binaryvit.analysis.curves import figures, findings
from binaryvit.analysis.stored import OpenStudy
from binaryvit.models.layers import attention_levels
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import load_study
from binaryvit.training.tables import FLIPS_FILE, LEVELS_FILE, SHIFTS_FILE
from binaryvit.training.train import WEIGHTS_FILE

LAYERS = ["stages.0.blocks.0.attn.q.linear", "stages.0.blocks.0.mlp.fc1.linear", "stages.1.embed.linear"]


def note_epochs(study):
    """What training would leave: three epochs in which the baseline falls behind; flips of two blocks."""
    for place, run in enumerate(study.runs):
        slope, ahead = [(0, 0), (5, 0), (2, 1)][place % 3]
        top1 = np.array([30.0, 40.0, 50.0]) + slope * np.arange(3) + ahead + run.config.seed
        table = pd.DataFrame({"epoch": [1, 2, 3], "lr": [3e-3, 2e-3, 1e-3], "train_loss": 2.0, "eval_loss": 1 / top1})
        binary = place > 0
        table.assign(top1=top1, train_top1=top1, flip_rate=0.1 / table["epoch"] if binary else np.nan).to_csv(
            run.folder / "metrics.csv", index=False
        )
        pd.DataFrame({"layer": LAYERS, "weights": [100, 300, 50]}).to_csv(run.folder / "latent_layers.csv", index=False)
        rows = [
            (epoch, layer, rate / epoch)
            for epoch in (1, 2, 3)
            for layer, rate in zip(LAYERS, (0.4, 0.2, 0.1), strict=True)
        ]
        columns = ["epoch", "layer", "flip_rate"]
        pd.DataFrame(rows if binary else [], columns=columns).to_csv(run.folder / FLIPS_FILE, index=False)


def note_levels(study):
    """Levels of two blocks, of which one falls below zero, and shifts, as later versions note them."""
    for run in study.runs[1:]:
        model = load_inference_weights(run.folder / WEIGHTS_FILE)
        first, second = [f"{path}.binarize_attn" for path in attention_levels(model)][:2]
        levels = {
            first: [0.004, 0.001, -0.01],
            second: [0.01] * 3,
        }
        rows = [(epoch, layer, value) for layer, values in levels.items() for epoch, value in enumerate(values, 1)]
        pd.DataFrame(rows, columns=["epoch", "layer", "level"]).to_csv(run.folder / LEVELS_FILE, index=False)
        rows = [
            (epoch, f"stages.0.blocks.0.{part}", share * epoch)
            for epoch in (1, 2, 3)
            for part, share in (("a", 1), ("b", 3))
        ]
        columns = ["epoch", "layer", "mean_absolute_shift"]
        pd.DataFrame(rows, columns=columns).to_csv(run.folder / SHIFTS_FILE, index=False)


@pytest.fixture
def study(tmp_path):
    study = stored_study(tmp_path / "small")
    note_epochs(study)
    return study


def test_curves_are_the_runs_own(study):
    drawing = curves.accuracy(OpenStudy(study))
    table = drawing.inputs["curves"]
    assert drawing.runs == (TEACHER, BASELINE, PYRAMID)
    assert table[table["run"] == BASELINE]["top1"].tolist() == [30.0, 45.0, 60.0]
    figure = drawing.draw()
    assert figure.get_suptitle() == "By mean accuracy, the binary models stand in their final order from epoch 2 on"
    top1 = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert top1["BinaryViT (+ pyramid)"] == [31.0, 43.0, 55.0] and len(top1) == 3
    assert drawing.finding.startswith("Accuracy still rose in the last epoch in 2 of 2 models, most in ReActNet")


def test_a_teacher_that_trains_longer_is_a_line_at_what_it_reaches(study):
    table = curves.accuracy(OpenStudy(study)).inputs["curves"]
    longer = table[table["run"] == TEACHER].tail(1).assign(epoch=60, top1=76.5)
    panel = figures.all_curves(pd.concat([table, longer], ignore_index=True), "A claim").axes[0]
    reached, *others = panel.lines
    assert reached.get_label().endswith(", after 60 epochs") and set(reached.get_ydata()) == {76.5}
    assert [max(line.get_xdata()) for line in others] == [3, 3]


def test_seeds_are_a_mean_and_a_band_also_those_that_kept_no_weights(tmp_path):
    study = stored_study(tmp_path / "seeds", STUDY + "seeds: [0, 4]\n")
    note_epochs(study)
    note_levels(study)
    for run in study.runs:
        if run.config.seed:
            (run.folder / WEIGHTS_FILE).unlink()
    accuracy, *by_block = curves.drawings(OpenStudy(load_study(study.output)))
    figure = accuracy.draw()
    (panel, _), (legend,) = figure.axes, figure.legends
    assert len(panel.lines) == 3, "a model is one line"
    assert len(panel.collections) == 2, "and a band where it has seeds"
    assert "mean of up to 2 seeds, band: their range" in legend.get_title().get_text()
    baseline = next(line for line in panel.lines if line.get_label() == "ReActNet-DeiT (baseline)")
    seeds = [pd.read_csv(run.folder / "metrics.csv")["top1"] for run in study.runs if run.id.startswith("react")]
    assert len(seeds) == 2 and baseline.get_ydata().tolist() == ((seeds[0] + seeds[1]) / 2).tolist()
    assert [drawing.name for drawing in by_block] == ["weight_flips", "level_curves", "shift_curves"]
    for drawing in by_block:
        assert drawing.inputs["curves"].groupby("label")["seed"].unique().map(list).tolist() == [[0, 4]] * 2
        assert_readable(drawing.draw())
        assert drawing.draw().axes[0].collections, "a band"


def test_flips_of_a_block_are_weighted_by_its_weights(study):
    drawing = curves.flips(OpenStudy(study))
    table = drawing.inputs["curves"].set_index(["run", "block", "epoch"])
    assert drawing.runs == (BASELINE, PYRAMID)
    assert table.loc[(BASELINE, "0.0", 2), "flip_rate"] == pytest.approx((100 * 0.4 + 300 * 0.2) / 400 / 2)
    assert table.loc[(PYRAMID, "merge 1", 1), ["flip_rate", "lr"]].tolist() == pytest.approx([0.1, 3e-3])
    figure = drawing.draw()
    named = [text.get_text() for text in figure.legends[0].texts]
    assert named[:4] == ["first block (0.0)", "between, in order", "last block (merge 1)", "merges"]
    assert {line.get_label() for line in figure.axes[1].lines if line.get_linestyle() == ":"} == {"merge 1"}
    assert figure.axes[-1].get_ylim()[1] == pytest.approx(3e-3) and "top of the panel" in named[4]
    assert figure.get_suptitle() == "Which share of the binary weights flips, epoch by epoch", "three make no trend"
    assert [axes.get_title().split("\n") for axes in figure.axes[:2]] == [
        [model, "all blocks: 10%, in the end 3.3%"] for model in ("ReActNet-DeiT (baseline)", "BinaryViT (+ pyramid)")
    ]
    assert curves.flips(OpenStudy(study, (TEACHER,))) is None


def test_levels_and_shifts_are_shown_where_they_were_noted(study):
    assert curves.levels(OpenStudy(study)) is None and curves.shifts(OpenStudy(study)) is None
    assert [drawing.name for drawing in curves.drawings(OpenStudy(study))] == ["training_curves", "weight_flips"]
    note_levels(study)
    names = [drawing.name for drawing in curves.drawings(OpenStudy(study))]
    assert names == ["training_curves", "weight_flips", "level_curves", "shift_curves"]
    levels, shifts = curves.levels(OpenStudy(study)), curves.shifts(OpenStudy(study))
    figure = levels.draw()
    assert figure.get_suptitle() == "Training switches attention off in 2 of 2 models"
    off = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert off == [[3]], "the epoch in which it is off"
    table = levels.inputs["curves"]
    assert (table["level"] / table["initial"])[table["epoch"] == 0].tolist() == [1.0] * 4, "before training"
    assert levels.finding.startswith(
        "2 of 4 levels end at zero or below, where attention is off. The others end at 0.04 "
    )
    table = shifts.inputs["curves"].query("run == @PYRAMID").set_index("epoch")["mean_absolute_shift"]
    assert table.to_dict() == {0: 0.0, 1: 2.0, 2: 4.0, 3: 6.0}, "from 0, the mean of a block's layers"
    assert shifts.finding.startswith("Every model has made half of its final shift by epoch 2 of 3;")


def test_of_seeds_of_which_one_is_off_the_others_are_drawn():
    rows = [
        (seed, epoch, level)
        for seed, levels in ((0, [0.2, 0.4]), (1, [0.1, -0.5]))
        for epoch, level in enumerate(levels)
    ]
    table = pd.DataFrame(rows, columns=["seed", "epoch", "level"]).assign(
        label="a", block="0.0", initial=0.1, variant="b"
    )
    table["run"] = table["seed"].map("a-seed{}".format)
    claim, finding = findings.of_levels(table)
    assert claim == "Training switches attention off in 1 of 1 models, in some seeds" and finding.startswith("1 of 2")
    middle, *_ = figures.levels_by_block(table, claim).axes[0].lines
    np.testing.assert_allclose(middle.get_ydata(), [1.5, 4])


def test_levels_are_claimed_by_shape_and_of_seeds_by_their_median():
    blocks = [("column", "0.0"), ("column", "0.1"), ("pyramid", "0.0"), ("pyramid", "1.0")]
    table = pd.DataFrame(blocks, columns=["run", "block"]).assign(epoch=1, initial=0.5, seed=0)
    table["label"] = table["run"]
    by_shape = "Attention levels end at {} times their start in columnar models, {} in pyramids".format
    assert findings.of_levels(table.assign(level=[0.4, 0.1, 0.3, 60]))[0] == by_shape("0.2 to 0.8", "0.6 to 120")
    alone = findings.of_levels(table[:2].assign(level=[0.1, 0.2]))[0]
    assert alone == "Attention levels end at 0.2 to 0.4 times their start"
    ends = [[0.1, 0.2, 0.3, 0.6], [0.3, 0.2, 0.3, 0.8], [50, 0.2, 0.3, 0.7]]
    seeds = [table.assign(run=table["run"] + str(seed), seed=seed, level=level) for seed, level in enumerate(ends)]
    claim, finding = findings.of_levels(pd.concat(seeds))
    assert finding.endswith(
        "times their initial value. Far above the other seeds is block 0.0 of seed 2 (column: 100)."
    )
    assert claim == f"{by_shape('0.4 to 0.6', '0.6 to 1.4')} (medians of seeds)", "as the lines are"
    lines = figures.levels_by_block(pd.concat(seeds).assign(variant="v"), claim).axes[0].lines
    assert lines[0].get_ydata().tolist() == pytest.approx([0.6])


def test_a_block_is_named_at_the_end_of_its_line():
    blocks = {"0.0": 0.01, "0.1": 0.03, "0.2": 0.0301}
    rows = [("a", block, epoch, end * epoch) for block, end in blocks.items() for epoch in (0, 1)]
    table = pd.DataFrame(rows, columns=["run", "block", "epoch", "mean_absolute_shift"])
    figure = figures.shifts_by_block(table.assign(label="a", variant="v", seed=0), "A claim that is made")
    assert_readable(figure)
    axes = figure.axes[0]
    named = [text.get_text().split(": ") for text in axes.texts]
    assert named == [["0.0", "0.01"], ["0.1", "0.03"], ["0.2", "0.03"]], "each with its last value"
    names = {block: text.get_position()[1] for (block, _), text in zip(named, axes.texts, strict=True)}
    ends = {
        block: axes.transAxes.inverted().transform(axes.transData.transform((1, end)))[1]
        for block, end in blocks.items()
    }
    assert names["0.0"] == pytest.approx(ends["0.0"], abs=0.01), "it is alone there"
    assert names["0.2"] - names["0.1"] > 0.05 > ends["0.2"] - ends["0.1"], "names that would overlap are moved apart"


def test_names_stay_apart_where_all_lines_end_at_the_edge_of_a_panel():
    levels = {"0.0": 0.51, "0.1": 0.52, "0.2": 0.53, "1.0": 0.54}
    rows = [
        (block, epoch, level if epoch == 2 else 0.5 / (1 + 99 * epoch))
        for block, level in levels.items()
        for epoch in range(3)
    ]
    table = pd.DataFrame(rows, columns=["block", "epoch", "level"]).assign(run="a", label="a", variant="v", seed=0)
    axes = figures.levels_by_block(table.assign(initial=0.5), "A claim that is made").axes[0]
    places = [text.get_position()[1] for text in axes.texts]
    assert min(places) >= 0 and max(places) <= 1 and np.diff(places).min() > 0.07


def test_levels_that_are_all_off_have_no_names_to_draw():
    table = pd.DataFrame({"run": "a", "block": "0.0", "epoch": [0, 1], "level": [0.1, -0.1], "initial": 0.1})
    figure = figures.levels_by_block(table.assign(label="a", variant="v", seed=0), "A claim that is made")
    assert not figure.axes[0].texts


def test_a_trend_is_claimed_from_four_epochs_on(study):
    table = curves.flips(OpenStudy(study)).inputs["curves"]
    fourth = table[table["epoch"] == 3].assign(epoch=4)
    claim = findings.of_flips(pd.concat([table, fourth]))[0]
    assert claim.startswith("10% of a model's"), "all its weights count alike, not its blocks"
    assert re.fullmatch(r"[\d% to]+ of a model's binary weights flip in the first epoch, [\d.% to]+ in the last", claim)
    claim = findings.of_flips(pd.concat([table, fourth.assign(model_flip_rate=1.0)]))[0]
    assert claim == "Not all models flip fewer binary weights in the last epoch than in the first"


def test_a_run_is_drawn_before_the_best_others_of_each_variant(tmp_path):
    """Of those trained alike: no teacher, no control of other epochs or of other bits, no other data."""
    study = stored_study(
        tmp_path / "small",
        """
name: small
title: A small study
recipe: {image_size: 16, epochs: 6}
teacher: {variant: deit_micro_patch4_32}
variants: [reactdeit_micro_patch4_32, reactdeit_micro_patch4_32_avg_pool, binaryvit_micro_patch2_32]
controls:
  - {id: longer, variant: binaryvit_micro_patch2_32, recipe: {epochs: 9}}
  - {id: real, variant: binaryvit_micro_patch2_32, recipe: {model_args: {weight_bits: 32, activation_bits: 32}}}
  - {id: labels, variant: binaryvit_micro_patch2_32, teacher: none}
""",
    )
    note_epochs(study)
    _, baseline, pooled, pyramid, *_ = study.runs
    others = curves.metrics_of_others(pyramid.folder)
    assert others["variant"].unique().tolist() == [baseline.config.variant, pooled.config.variant]
    own = pd.read_csv(pyramid.folder / "metrics.csv")
    figure = figures.training_curves(own, others)
    thin = [line.get_ydata().tolist() for line in figure.axes[1].lines if line.get_zorder() == 1]
    assert sorted(thin) == [[30.0, 45.0, 60.0], [31.0, 43.0, 55.0]]
    assert len(figure.legends[0].texts) == 2

    record = read_record(baseline.folder)
    key = record.key.model_copy(update={"data": "0" * 64})
    record.model_copy(update={"key": key}).write(baseline.folder)
    (pooled.folder / "run.json").write_text("{")
    assert curves.metrics_of_others(pyramid.folder).empty, "other data, and a damaged record"
    assert not figures.training_curves(own, curves.metrics_of_others(pyramid.folder)).legends
