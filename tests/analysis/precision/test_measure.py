"""One model at several precisions: its numbers, what is missing said so, and features against full precision's."""

import math

import numpy as np
import pandas as pd
import pytest
import timm
from helpers.pictures import assert_readable
from helpers.records import record_of
from helpers.stored_study import store, stored_study

from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.paired import paired_difference
from binaryvit.analysis.precision import findings as precision_findings
from binaryvit.analysis.precision import measure as precision
from binaryvit.analysis.precision.capture import layer_agreement
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.models.cost import cost
from binaryvit.records.predictions import write_predictions
from binaryvit.records.run_record import RECORD_FILE, RunResult
from binaryvit.studies.study import load_study

_SHAPE = "embed_dims: [8, 16, 32]"
_FILE = f"""
name: small
title: Precisions
recipe: {{image_size: 16, eval_crop: 1.0, epochs: 6}}
variants:
  - {{variant: binaryvit_micro_patch2_32, recipe: {{model_args: {{{_SHAPE}}}}}}}
  - variant: binaryvit_micro_patch2_32
    id: real
    recipe: {{model_args: {{{_SHAPE}, weight_bits: 32, activation_bits: 32}}}}
  - {{variant: binaryvit_micro_patch2_32, id: w1a32, recipe: {{model_args: {{{_SHAPE}, activation_bits: 32}}}}}}
"""
ONE, REAL, WEIGHTS = "binaryvit_micro_patch2_32-seed0", "real-seed0", "w1a32-seed0"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = stored_study(tmp_path_factory.mktemp("studies") / "small", _FILE)
    for run, top1 in zip(study.runs, (50.0, 80.0, 70.0), strict=True):
        fingerprint = load_data(study.data_config).fingerprint
        result = RunResult(top1=top1, top5=99.0, eval_loss=1.0, epochs=6, images_per_second=1.0)
        predictions = write_predictions(run.folder, np.arange(360) >= 3.6 * top1, np.zeros(360))
        record_of(study, run, fingerprint, result=result, predictions=predictions).write(run.folder)
    return study


def test_the_table_holds_records_intervals_and_costs(study):
    table = precision.precisions(OpenStudy(study)).set_index("precision")
    assert list(table.index) == ["W1A1", "W1A32", "W32A32"]  # whatever the file's order
    assert table["top1"].tolist() == [50.0, 70.0, 80.0]
    assert table.loc["W1A32", ["difference", "low", "high"]].tolist() == pytest.approx(difference(70, 80))
    assert table.loc["W32A32", ["difference", "low", "high", "difference_seeds"]].tolist() == [0, 0, 0, 0]
    arguments = dict(img_size=16, embed_dims=(8, 16, 32), num_classes=10)
    for name, bits in (("W1A1", (1, 1)), ("W1A32", (1, 32)), ("W32A32", (32, 32))):
        counted = cost(
            timm.create_model("binaryvit_micro_patch2_32", **arguments, weight_bits=bits[0], activation_bits=bits[1])
        )
        assert table.loc[name, ["bytes", "bops", "flops"]].tolist() == [counted.bytes, counted.bops, counted.flops]
    assert table.loc["W1A32", "bops"] == 0 and table.loc["W1A32", "bytes"] < table.loc["W32A32", "bytes"] / 2


def test_people_read_the_same_table_with_headings_and_units(study):
    numbers, text = precision.precisions(OpenStudy(study)), precision.precisions_as_text(OpenStudy(study))
    assert text["precision"].tolist() == numbers["precision"].tolist()
    assert text["top-1 (%)"].tolist() == ["50.00", "70.00", "80.00"]
    change = numbers.set_index("precision").loc["W1A1", ["difference", "low", "high"]]
    assert text["against W32A32"].tolist()[::2] == ["{:+.2f} ({:+.2f} to {:+.2f})".format(*change), "-"]
    assert [float(size.replace(",", "")) for size in text["size (MB)"]] == pytest.approx(
        numbers["bytes"] / 1e6, rel=1e-3
    )


def test_agreement_is_that_of_the_stored_models(study):
    runs = {run.id: run for run in stored_runs(study, [ONE, REAL, WEIGHTS])}
    table = precision.agreement_with_reference(OpenStudy(study), [runs[ONE], runs[WEIGHTS]], runs[REAL], images=20)
    direct = layer_agreement(
        runs[WEIGHTS].model(), runs[REAL].model(), evaluation_batches(OpenStudy(study), runs[WEIGHTS], 20)
    )
    own = table[table["precision"] == "W1A32"].reset_index(drop=True)
    assert own["layer"].tolist() == direct["layer"].tolist()
    assert own["cka"].tolist() == pytest.approx(direct["cka"].tolist(), rel=1e-5)


def test_drawings_show_every_precision(study):
    numbers, agreement = precision.drawings(OpenStudy(study), images=20)
    assert numbers.runs == (ONE, WEIGHTS, REAL) and set(agreement.runs) == set(numbers.runs)
    ticks = [label.get_text() for label in agreement.draw().axes[0].get_xticklabels()]
    assert ticks[0] == "stem" and ticks[-2:] == ["norm", "head"] and {"0.0", "merge 1", "2.0"} < set(ticks)
    title = numbers.draw().get_suptitle().replace("\n", " ")
    assert title == (
        "With W1A1 in place of W32A32, BinaryViT (+ pyramid) loses 30.0 points of top-1 and saves 3.3 times the bytes "
        "and 28 times the OPs"
    )
    costs = numbers.inputs["precisions"].set_index("precision")["ops_elementwise"]
    less = f"{costs['W32A32'] / costs['W1A1']:.2g}"
    differences = [difference(row, 80) for row in (50, 70)]
    assert [f"{text:+.1f}" for text in differences[0]] == ["-30.0", "-34.8", "-25.2"]
    assert numbers.finding == (
        "Top-1 against W32A32 in points, over the n seeds that both have, with its 95% interval (n = 1: for the choice "
        f"of images alone): W1A1 {said(differences[0])}, W1A32 {said(differences[1])}. With elementwise work "
        f"counted, W1A1 has {less} times fewer OPs."
    )
    panel = numbers.draw().axes[0]
    assert [text.get_text() for text in panel.texts] == ["-30.00 (n = 1)", "-10.00 (n = 1)", ""]
    reached = [label.get_text() for label in panel.get_yticklabels()]
    assert reached == [f"{name} (n = 1)" for name in ("W1A1\n50.00%", "W1A32\n70.00%", "W32A32\n80.00%")]
    for drawing in (numbers, agreement):
        figure = drawing.draw()
        assert_readable(figure)
        assert len(figure.axes) == 3
    assert "360 evaluation" in numbers.draw().legends[0].get_title().get_text()
    stream, attention, ffn = agreement.draw().axes
    assert "20 evaluation images of digits" in agreement.draw().legends[0].get_title().get_text()
    assert [axes.get_title() for axes in (attention, ffn)] == ["attention branches", "FFN branches"]
    table = agreement.inputs["agreement"].query("precision == 'W1A32'").set_index("layer")["cka"]
    line = next(line for line in stream.lines if line.get_label().startswith("W1A32"))
    assert line.get_ydata().tolist() == table[~table.index.str.endswith((".attn", ".mlp"))].tolist()
    assert "With one seed of W32A32" in agreement.finding
    assert all(path.is_file() for drawing in (numbers, agreement) for path in drawing.write())
    assert precision.missing(OpenStudy(study)) == ""


def difference(top1, reference):
    """The difference of two models of which the better one is right wherever the other is, and its interval."""
    right = [np.arange(360) < 3.6 * each for each in (reference, top1)]
    step = paired_difference([right[0]], [right[1]])
    return step.points, step.low, step.high


def said(numbers):
    return "{:+.1f} ({:+.1f} to {:+.1f}; n = 1)".format(*numbers)


def test_what_is_missing_is_said_and_drawn_as_not_run(tmp_path):
    (tmp_path / "study.yaml").write_text(_FILE)
    study = load_study(tmp_path)
    assert precision.drawings(OpenStudy(study)) == []
    store(study, study.runs[0], load_data(study.data_config).fingerprint)
    table = precision.precisions(OpenStudy(study)).set_index("precision")
    assert table["state"].to_dict() == {"W1A1": "done", "W1A32": "not run", "W32A32": "not run"}
    assert math.isnan(table.loc["W32A32", "top1"])
    assert precision.drawings(OpenStudy(study)) == [], "one precision is nothing to compare"
    store(study, study.runs[2], load_data(study.data_config).fingerprint)
    (drawing,) = precision.drawings(OpenStudy(study))
    texts = [text.get_text() for text in drawing.draw().axes[0].texts]
    assert drawing.runs == (ONE, WEIGHTS) and texts == ["not compared"] * 2 + ["not run"]
    assert drawing.finding == "A comparison needs both W1A1 and W32A32."
    sentence = precision.missing(OpenStudy(study))
    assert f"--only {REAL}" in sentence and f"{REAL} (missing)" in sentence
    assert "Without W32A32 there is nothing to compare features with" in sentence


def test_a_study_of_one_precision_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_text("name: n\ntitle: t\nvariants: [binaryvit_micro_patch2_32]\n")
    with pytest.raises(BinaryViTError, match="no model at several precisions"):
        precision.drawings(OpenStudy(load_study(tmp_path)))


def test_of_several_variants_the_one_at_most_precisions_is_compared(tmp_path):
    full = "recipe: {model_args: {weight_bits: 32, activation_bits: 32}}"
    others = f"  - reactdeit_micro_patch4_32\n  - {{variant: reactdeit_micro_patch4_32, id: other, {full}}}\n"
    (tmp_path / "study.yaml").write_text(_FILE.replace("variants:\n", f"variants:\n{others}"))
    table = precision.precisions(OpenStudy(load_study(tmp_path)))
    assert table["runs"].tolist() == [ONE, WEIGHTS, REAL]


def test_a_second_seed_of_full_precision_says_what_agreement_can_be_expected(tmp_path):
    file = _FILE.replace("    id: real\n", "    id: real\n    seeds: [0, 1, 2]\n")
    study = stored_study(tmp_path / "two", file)
    agreement = precision.agreement(OpenStudy(study), images=20)
    second = agreement.inputs["agreement"].query("seed == 1")
    assert set(second["precision"]) == {"W32A32"} and second["cka"].lt(1 - 1e-6).any()
    labels = [line.get_label() for line in agreement.draw().axes[0].lines]
    assert any(label.startswith("another seed of W32A32 (1)") for label in labels)
    for run in study.runs:
        if run.model_id != "real":
            (run.folder / RECORD_FILE).unlink()
    assert precision.agreement(OpenStudy(study)) is None, "two seeds of one precision"
    assert "Two seeds of W32A32, whose initial weights differ, agree to" in agreement.finding


def test_sentences_on_agreement_follow_the_numbers():
    layers = ["stages.0.embed", "stages.0.blocks.0.attn", "stages.0.blocks.0.mlp", "stages.1.embed", "norm"]
    rows = [("W1A1", [0.92, 0.1, 0.3, 0.78, 0.7]), ("W1A32", [0.99, 0.5, 0.7, 0.87, 0.84])]
    table = pd.concat([pd.DataFrame({"precision": name, "seed": 0, "layer": layers, "cka": cka}) for name, cka in rows])
    claim, finding = precision_findings.of_agreement(table, "model")
    assert claim == (
        "model: at W1A1, the residual stream's agreement with full precision falls most across merge 1, from 0.92 to "
        "0.78"
    )
    early = table.replace({"layer": {"stages.1.embed": "stages.0.blocks.0"}})
    assert "falls most across block 0.0, from" in precision_findings.of_agreement(early, "model")[0]
    assert "is 0.80 for W1A1, 0.90 for W1A32." in finding
    alone, _ = precision_findings.of_agreement(table[table["layer"] == "norm"], "model")
    assert alone == "model: at W1A1, the residual stream's CKA with full precision is 0.70"
