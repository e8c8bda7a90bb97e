"""What carries the accuracy of a study's models: right counts, sentences that follow, figures that show all."""

import shutil

import pandas as pd
import pytest
import torch
from helpers.pictures import assert_readable
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import STUDY, store, stored_study, switch_off

from binaryvit.analysis import images
from binaryvit.analysis.branches import figures
from binaryvit.analysis.branches import findings as branch_findings
from binaryvit.analysis.branches import measure as branches
from binaryvit.analysis.branches.capture import BINARY_GROUPS, GROUPS, zeroed
from binaryvit.analysis.branches.recalibration import reestimated_statistics
from binaryvit.analysis.images import evaluation_batches
from binaryvit.analysis.intervals import wilson_interval
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.data.data_set import load_data
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
    return branches.accuracies(OpenStudy(original), **SETTINGS)


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
    assert set(pyramid["part"]) == {"whole model", *(f"stages.{index}" for index in range(3))}
    removed = pyramid.groupby("part")["removed"].agg(set)
    assert removed["whole model"] == everything and removed["stages.1"] == everything - {"nothing"}
    assert removed["stages.0"] == everything - {"nothing", "merges"}
    assert set(table[table["part"] != "whole model"]["statistics"]) == {"re-estimated"}
    assert not table.duplicated(["run", "part", "removed", "statistics"]).any()


def test_norms_name_the_kind_of_each_addition(original):
    norms = branches.branch_ratios(OpenStudy(original, (PYRAMID,)), images=40).set_index(["layer", "kind"])
    for layer, kind in [
        ("stages.0.blocks.0.attn.reduce", "attention linears"), ("stages.0.blocks.0.attn", "attention products"),
        ("stages.1.blocks.1.mlp.fc2", "FFN linears"), ("stages.1.embed", "merges"),
        ("stages.0.blocks.0", "attention branch"), ("stages.0.blocks.0", "FFN branch"),
        ("stages.0.blocks.0", "pooling branches"),
    ]:  # fmt: skip
        assert norms.loc[(layer, kind), "shortcut"] > 0
    assert set(norms.index.get_level_values("kind")) == set(figures.KINDS)


def test_drawings_hold_all_runs_with_branches_and_are_made_again_without_the_data(study, monkeypatch):
    monkeypatch.setattr(images, "load_data", lambda config: pytest.fail("the data are not needed"))
    images._load_once.cache_clear()
    norms, whole, by_stage = branches.drawings(OpenStudy(study), **SETTINGS)
    assert norms.runs == whole.runs == (BASELINE, PYRAMID) and by_stage.runs == (PYRAMID,)
    for drawing in (norms, whole, by_stage):
        assert_readable(drawing.draw())
        assert all(path.is_file() for path in drawing.write())
    accuracy = whole.inputs["accuracies"].set_index(["run", "removed"])
    row = accuracy.loc[PYRAMID, "FFN linears"]
    assert row["accuracy"] == 100 * row["correct"] / 40
    assert (row["low"], row["high"]) == wilson_interval(row["correct"], 40)
    axes = whole.draw().axes[0]
    assert "40 evaluation images of digits" in axes.get_xlabel()
    assert "batch-norm statistics re-estimated on 30 training images" in axes.get_xlabel()
    drawn = cells(whole.draw())
    assert drawn["BinaryViT\n(+ pyramid)"] == {
        removed: f"{value:.0f}" for removed, value in accuracy.loc[PYRAMID]["accuracy"].items()
    }
    none = {removed for removed, text in drawn["ReActNet-DeiT\n(baseline)"].items() if text == "none"}
    assert none == {"merges", "pooling branches"}
    assert {f"BinaryViT\n(+ pyramid), stage {stage}" for stage in range(3)} == set(cells(by_stage.draw()))


def test_of_the_controls_the_first_of_each_other_precision_is_drawn_beside_the_ladder(study):
    with (study.output / "study.yaml").open("a") as file:
        file.write("controls:\n")
        for name, variant, bits in (
            ("one_bit", "binaryvit_micro_patch2_32", "weight_bits: 1"),
            ("real", "binaryvit_micro_patch2_32", "weight_bits: 32"),
            ("mixed", "binaryvit_micro_patch2_32", "activation_bits: 32"),
            ("real_baseline", "reactdeit_micro_patch4_32_avg_pool", "weight_bits: 32"),
        ):
            arguments = f"{{embed_dims: {[8, 16, 32] if name != 'real_baseline' else 24}, {bits}}}"
            file.write(f"  - {{id: {name}, variant: {variant}, seeds: [0, 1], recipe: {{model_args: {arguments}}}}}\n")
    study = load_study(study.output)
    for run in study.runs[3:]:
        store(study, run, load_data(study.data_config).fingerprint)
    for run in study.runs[3:]:
        if run.id not in ("real-seed0", "mixed-seed0"):  # the study keeps no other control's
            (run.folder / "weights.safetensors").unlink()
    norms = branches.norms(OpenStudy(study), images=40)
    assert norms.runs == (BASELINE, PYRAMID, "mixed-seed0", "real-seed0"), "W1A32 before W32A1"
    one_bit = norms.inputs["norms"].query("bits == 'W1A1'")
    assert norms.finding == branch_findings.of_norms(one_bit)[1], "said of models of one bit alone"


def test_several_seeds_of_a_model_share_its_column(tmp_path):
    file = STUDY.replace("recipe: {image_size", "seeds: [0, 1]\nrecipe: {image_size", 1)
    opened = OpenStudy(stored_study(tmp_path / "small", file))
    accuracy = branches.accuracy(opened, **SETTINGS)
    table = accuracy.inputs["accuracies"]
    mean = table[(table["variant"] == "binaryvit_micro_patch2_32") & (table["removed"] == "nothing")]["accuracy"].mean()
    drawn = cells(accuracy.draw())
    assert set(drawn) == {"ReActNet-DeiT\n(baseline)", "BinaryViT\n(+ pyramid)"} and len(accuracy.runs) == 4
    assert drawn["BinaryViT\n(+ pyramid)"]["nothing"] == f"{mean:.0f}"
    assert "digits, up to 2 seeds of a model" in accuracy.draw().axes[0].get_xlabel()
    norms = branches.norms(opened, images=40).draw()
    assert "digits, up to 2 seeds of a model" in norms.legends[0].get_title().get_text()


def cells(figure):
    """The text of a heat map's cells, by column and row."""
    axes = figure.axes[0]
    columns, rows = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis))
    found = {column: {} for column in columns}
    for text in axes.texts:
        column, row = text.get_position()
        found[columns[column]][rows[row]] = text.get_text()
    return found


def test_products_of_attention_that_is_off_have_no_ratio(study):
    (run,) = stored_runs(study, [PYRAMID])
    switch_off(run, 1, 0)
    norms = branches.norms(OpenStudy(study, (PYRAMID,)), images=40)
    table = norms.inputs["norms"]
    without = table[table["ratio"].isna()]
    assert without[["layer", "kind"]].to_numpy().tolist() == [["stages.1.blocks.0.attn", "attention products"]]
    assert "off, 1 of its products" in norms.finding


def table_of(label, accuracies, part="whole model"):
    """A table of one model from removal to re-estimated accuracy in percent, of an interval of 14 points."""
    rows = pd.DataFrame({"removed": list(accuracies), "accuracy": list(accuracies.values())})
    ends = dict(low=rows["accuracy"] - 7, high=rows["accuracy"] + 7)
    return rows.assign(
        column=label, label=label.split(",")[0], variant=PYRAMID, part=part, bits="W1A1", chance=10, images=200, **ends
    )


def test_sentences_on_accuracies_follow_the_numbers():
    first = {"nothing": 80, "merges": 70, "FFN linears": 50, "all products": 40, "all shortcuts and poolings": 12}
    second = first | {"all products": 11, "all shortcuts and poolings": 10}
    claim, finding = branch_findings.of_accuracies(pd.concat([table_of("A", first), table_of("B", second)]))
    assert claim == "Without their products, binary models keep 11–40% of 80% top-1 (chance: 10%)"
    assert finding == (
        "Without shortcuts and poolings 10–12% are left. By the median of the models that have a part, the FFN linears "
        "cost most (-30.0 points) and the merges least (-10.0)"
    )
    alike = table_of("A", first | {"merges": 55})
    ends = "the FFN linears and merges cost most (-30.0 to -25.0 points) and the merges and FFN linears least"
    assert ends.replace("merges and FFN linears", "FFN linears and merges") in branch_findings.of_accuracies(alike)[1]


def test_a_baseline_that_is_blind_without_its_attention_products_is_left_out_of_the_claim():
    left = {"nothing": 80, "merges": 70, "all products": 40, "all shortcuts and poolings": 12}
    blind = table_of("B", left | {"all products": 10}).assign(variant="reactdeit_micro_patch4_32")
    claim, finding = branch_findings.of_accuracies(pd.concat([table_of("A", left), blind]))
    assert claim.startswith("Without their products, binary models that pool their tokens keep 40% of 80% top-1")
    assert "; B sees the image through attention products alone, so without them it must guess." in finding
    assert "binary models keep 10% of 80% top-1" in branch_findings.of_accuracies(blind)[0], "there is no other"


def test_sentences_on_norms_follow_the_numbers():
    norms = pd.DataFrame(
        {
            "bits": "W1A1",
            "label": "a",
            "kind": ["xs", "xs", "FFN branch", "FFN branch"],
            "ratio": [0.5, 1.5, 0.25, float("nan")],
        }
    )
    claim, finding = branch_findings.of_norms(norms)
    assert claim == (
        "In binary models, whole FFN branches have 0.25 times the norm of the residual stream, xs 1 times that of "
        "their shortcut (medians)"
    )
    assert "the whole FFN branches are smallest in 1 of 1 models, the xs are largest in 1 of 1 models" in finding
    assert "off, 1 of its products" in finding
    alike = norms.assign(kind=["xs", "xs", "merges", "merges"])
    claim = branch_findings.of_norms(alike)[0]
    assert claim == "In binary models, merges have 0.25 times the norm of their shortcut, xs 1 times (medians)"


def test_sentences_on_stages_follow_the_numbers():
    alike = {"nothing": 80, "FFN linears": 60, "all shortcuts and poolings": 10}
    table = pd.concat(
        table_of(f"A, {part}", alike | {"merges": left, "all products": left - 5}, part)
        for part, left in (("stages.1", 30), ("stages.2", 70))
    )
    claim, finding = branch_findings.of_stages(table)
    assert claim == "Of single parts these cost most: merges of stage 1 in A"
    near = table.assign(
        accuracy=table["accuracy"].mask((table["removed"] == "merges") & (table["part"] == "stages.2"), 36)
    )
    other = pd.concat(table_of(f"B, {part}", alike | {"all products": 40}, part) for part in ("stages.1", "stages.2"))
    claim = branch_findings.of_stages(pd.concat([near, other]))[0]
    both = "stage 1 and stage 2"
    assert claim == f"Of single parts these cost most: merges of {both} in A; FFN linears of {both} in B"
    assert finding == "Without all products of stage 1 and stage 2, accuracy changes by -55, -15 in A"


def test_a_cell_has_the_colour_of_what_is_left_and_a_dark_one_at_chance():
    table = table_of("A", {"nothing": 80, "merges": 78, "FFN linears": 30, "all products": 12})
    left, at_chance = figures.accuracy_without(table, "200 images", "as before", "A claim that is made").axes[0].images
    assert left.get_array().ravel().tolist() == [
        80,
        30,
        78,
        12,
    ]  # in the order of the groups: the FFN before the merges
    assert (at_chance.get_array().ravel() == 1).filled(False).tolist() == [False, False, False, True]
    seeds = pd.concat([table_of("A", {"nothing": 80, "merges": accuracy, "all products": 0}) for accuracy in (2, 18)])
    _, at_chance = figures.accuracy_without(seeds, "200 images", "as before", "A claim that is made").axes[0].images
    dark = (at_chance.get_array().ravel() == 1).filled(False).tolist()
    assert dark == [False, True, False], "the mean of seeds is judged, and what is below chance is not at it"


def test_wrong_selections_are_refused(original):
    with pytest.raises(BinaryViTError, match=f"{TEACHER} has none of the branches"):
        branches.drawings(OpenStudy(original, (TEACHER, PYRAMID)), **SETTINGS)
    with pytest.raises(BinaryViTError, match="No run is selected"):
        branches.drawings(OpenStudy(original, ()), **SETTINGS)


def test_a_model_of_a_batch_norm_statistic_from_one_image_is_refused(original):
    with pytest.raises(BinaryViTError, match="A batch of one image"):
        branches.accuracies(OpenStudy(original, (PYRAMID,)), images=10, statistics_images=1)
