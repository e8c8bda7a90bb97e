"""What carries the accuracy of a study's models: right counts, sentences that follow, figures that show all."""

import shutil

import pandas as pd
import pytest
import torch
from helpers.stored_study import BASELINE, PYRAMID, TEACHER, stored_study

from binaryvit.analysis import images
from binaryvit.analysis.branches import figures
from binaryvit.analysis.branches import findings as branch_findings
from binaryvit.analysis.branches import measure as branches
from binaryvit.analysis.branches.capture import BINARY_GROUPS, GROUPS, zeroed
from binaryvit.analysis.branches.recalibration import reestimated_statistics
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.intervals import wilson_interval
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.studies.study import load_study

SETTINGS = {"images": 40, "statistics_images": 30}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    study = stored_study(tmp_path_factory.mktemp("studies") / "small")
    branches.drawings(OpenStudy(study), **SETTINGS)
    return study


@pytest.fixture
def study(original, tmp_path):
    shutil.copytree(original.output, tmp_path / "small")
    return load_study(tmp_path / "small")


@pytest.fixture
def table(original):
    return branches.accuracies_without(OpenStudy(original), stored_runs(original, [BASELINE, PYRAMID]), **SETTINGS)


def test_counts_are_those_of_the_ablated_model(original, table):
    (run,) = stored_runs(original, [PYRAMID])
    model = run.model()
    evaluation = list(evaluation_batches(OpenStudy(original), run, 40))
    training = list(evaluation_batches(OpenStudy(original), run, 30, split="train"))
    images, labels = (torch.cat(parts) for parts in zip(*evaluation, strict=True))
    counted = table[table["run"] == PYRAMID].set_index(["part", "removed", "statistics"])["correct"]
    for part, name, groups, within in [
        ("whole model", "FFN linears", ["FFN linears"], ""),
        ("stages.2", "all products", BINARY_GROUPS, "stages.2"),
    ]:
        with torch.no_grad(), zeroed(model, groups, within):
            if part == "whole model":
                assert counted[part, name, "stored"] == (model(images).argmax(1) == labels).sum()
            with reestimated_statistics(model, training):
                assert counted[part, name, "re-estimated"] == (model(images).argmax(1) == labels).sum()
    with torch.no_grad():
        assert counted["whole model", "nothing", "stored"] == (model(images).argmax(1) == labels).sum()
    assert set(table["images"]) == {40}


def test_every_part_and_removal_a_model_has_is_measured(table):
    everything = {"nothing", *GROUPS, "all products", "all shortcuts and poolings"}
    pyramid, columnar = (table[table["run"] == run] for run in (PYRAMID, BASELINE))
    assert set(columnar["part"]) == {"whole model"}
    assert set(columnar["removed"]) == everything - {"merges", "pooling branches"}
    assert set(pyramid["part"]) == {"whole model", *(f"stages.{index}" for index in range(4))}
    removed = pyramid.groupby("part")["removed"].agg(set)
    assert removed["whole model"] == everything and removed["stages.1"] == everything - {"nothing"}
    assert removed["stages.0"] == everything - {"nothing", "merges"}
    assert set(table[table["part"] != "whole model"]["statistics"]) == {"re-estimated"}
    assert not table.duplicated(["run", "part", "removed", "statistics"]).any()


def test_norms_name_the_kind_of_each_addition(original):
    table = branches.norms_of(OpenStudy(original), stored_runs(original, [PYRAMID]), images=40)
    norms = table.set_index(["layer", "kind"])
    for layer, kind in [
        ("stages.0.blocks.0.attn.reduce", "attention linears"), ("stages.0.blocks.0.attn", "attention products"),
        ("stages.2.blocks.1.mlp.fc2", "FFN linears"), ("stages.1.embed", "merges"),
        ("stages.0.blocks.0", "attention branch"), ("stages.0.blocks.0", "FFN branch"),
        ("stages.0.blocks.0", "pooling branches"),
    ]:  # fmt: skip
        assert norms.loc[(layer, kind), "shortcut"] > 0
    assert set(norms.index.get_level_values("kind")) == set(figures._KINDS)


def test_drawings_hold_all_runs_with_branches_and_are_made_again_without_the_data(study, monkeypatch):
    monkeypatch.setattr(images, "load_data", lambda config: pytest.fail("the data are not needed"))
    images._load_once.cache_clear()
    norms, whole, by_stage = branches.drawings(OpenStudy(study), **SETTINGS)
    assert norms.runs == whole.runs == (BASELINE, PYRAMID) and by_stage.runs == (PYRAMID,)
    for drawing, panels in ((norms, 2), (whole, 2), (by_stage, 1)):
        figure = drawing.draw()
        titled = [axes for axes in figure.axes if axes.get_title()]
        assert len(titled) == panels and all(axes.lines or axes.images for axes in titled)
        assert all(path.is_file() for path in drawing.write())
    accuracy = whole.inputs["accuracies"].set_index(["run", "removed", "statistics"])
    row = accuracy.loc[PYRAMID, "FFN linears", "stored"]
    assert row["accuracy"] == 100 * row["correct"] / 40
    assert (row["low"], row["high"]) == wilson_interval(row["correct"], 40)
    assert "40 evaluation images of digits" in whole.finding and "30 training images" in whole.finding
    shown = accuracy.loc[PYRAMID, "all products", "re-estimated"]["accuracy"]
    assert f"{shown:.1f} % without all products" in whole.finding


def table_of(accuracies, part="whole model"):
    """A table of one run from removal: (stored, re-estimated) accuracies of 200 images; a stage has the latter."""
    rows = [
        {"run": "a", "label": "A", "variant": "a", "part": part, "removed": removed, "statistics": statistics,
         "correct": 2 * accuracy, "images": 200}
        for removed, pair in accuracies.items()
        for statistics, accuracy in zip(("stored", "re-estimated"), pair, strict=True)
    ]  # fmt: skip
    rows = [row for row in rows if part == "whole model" or row["statistics"] == "re-estimated"]
    return branches._with_intervals(pd.DataFrame(rows))


def test_findings_follow_the_numbers():
    table = table_of(
        {"nothing": (80, 80), "merges": (20, 70), "FFN linears": (60, 50), "all products": (10, 40),
         "all shortcuts and poolings": (10, 12)}
    )  # fmt: skip
    finding = branch_findings.of_accuracies(table, 10, "200 images", "50 training images")
    assert "A has 80.0 %, 40.0 % without all products and 12.0 % without all shortcuts and poolings" in finding
    assert "FFN linears cost most (-30.0 points) and the merges least (-10.0 points)" in finding
    assert "shortcuts and poolings in 1 and the products in 0 of 1 models" in finding  # 12 of 200 can be chance
    assert "+50.0 at most (A, without merges), and with nothing removed by +0.0 at most" in finding
    assert "uncertain by up to 6.9 points" in finding  # Wilson's interval of 50 % and 200 images: 43.1 to 56.9

    norms = pd.DataFrame({"run": "a", "kind": ["x", "x", "y"], "ratio": [0.5, 1.5, 0.25]})
    finding = branch_findings.of_norms(norms)
    assert "Over 3 additions of 1 model, the branch is larger than its shortcut at 1." in finding
    assert "x 1.00 (0.50 to 1.50); y 0.25 (0.25 to 0.25)" in finding and "are the y, largest the x" in finding


def test_findings_by_stage_follow_the_numbers():
    intact = table_of({"nothing": (80, 80)}).tail(1)
    stages = [
        table_of({"merges": (1, lost), "FFN linears": (1, 60), "all products": (1, lost - 5)}, f"stages.{stage}")
        for stage, lost in ((1, 30), (2, 70))
    ]
    finding = branch_findings.of_stages(pd.concat([intact, *stages]), "200 images", "50 training images")
    assert "In A, of single groups, the merges of stage 1 cost most (-50.0 points)" in finding
    assert "without all products of a stage (stage 1: -55.0 points, stage 2: -15.0 points)" in finding


def test_wrong_selections_are_refused(original):
    with pytest.raises(BinaryViTError, match=f"{TEACHER} has none of the branches"):
        branches.drawings(OpenStudy(original, (TEACHER, PYRAMID)), **SETTINGS)
    with pytest.raises(BinaryViTError, match="No run is selected"):
        branches.drawings(OpenStudy(original, ()), **SETTINGS)


def test_a_model_of_a_batch_norm_statistic_from_one_image_is_refused(original):
    with pytest.raises(BinaryViTError, match="A batch of one image"):
        branches.accuracies_without(
            OpenStudy(original), stored_runs(original, [PYRAMID]), images=10, statistics_images=1
        )
