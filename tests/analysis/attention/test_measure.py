"""The analysis of attention: numbers drawn against the models' own maps, sentences, whole pictures."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.pictures import assert_readable
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import stored_study, switch_off
from matplotlib.colors import to_rgb
from PIL import Image

from binaryvit.analysis.attention import figures
from binaryvit.analysis.attention import findings as attention_findings
from binaryvit.analysis.attention import measure as attention
from binaryvit.analysis.attention.capture import AttentionCapture, attention_statistics
from binaryvit.analysis.attention.rollout import common_side, comparable_areas, output_by_place
from binaryvit.analysis.images import ExampleImages, evaluation_batches, example_images
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.models import open_model
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.palette import GREY
from binaryvit.studies.study import load_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return stored_study(tmp_path_factory.mktemp("studies") / "small")


@pytest.fixture(scope="module")
def drawn(study):
    return {drawing.name: drawing for drawing in attention.drawings(OpenStudy(study), images=20)}


def test_there_is_a_figure_for_each_question(drawn):
    assert list(drawn) == [
        "attention_side_by_side",
        *(f"attention_heads.{run}" for run in (TEACHER, BASELINE, PYRAMID)),
        "attention_density",
        "attention_evenness",
    ]
    assert drawn["attention_side_by_side"].runs == (TEACHER, BASELINE, PYRAMID)
    assert drawn[f"attention_heads.{PYRAMID}"].runs == (PYRAMID,)
    assert drawn["attention_density"].runs == (BASELINE, PYRAMID)


def test_maps_are_the_models_at_the_place(study, drawn):
    table = pd.concat([drawn[f"attention_heads.{name}"].inputs["maps"] for name in (TEACHER, PYRAMID)])
    for name, binary in ((TEACHER, False), (PYRAMID, True)):
        (run,) = stored_runs(study, [name])
        images = example_images(run, 2)
        for each in AttentionCapture(run.model())(images.inputs):
            side, keys = each.key_grid_size, each.used.shape[-1]
            middle = each.grid_size // 2
            query = each.prefix_tokens + middle * each.grid_size + middle
            for image, head in np.ndindex(2, each.used.shape[1]):
                rows = table[
                    (table["run"] == name) & (table["layer"] == each.layer) & (table["head"] == head)
                    & (table["image"] == images.names[image])
                ]  # fmt: skip
                assert list(zip(rows["row"], rows["column"], strict=True)) == list(np.ndindex(side, side))
                row = each.probabilities[image, head, query, each.prefix_tokens :].numpy() * keys
                np.testing.assert_allclose(rows["ratio"], row, rtol=1e-5, atol=1e-6)
                if binary:
                    used = each.used[image, head, query].numpy()
                    assert rows["attended"].tolist() == (used > 0).astype(float).tolist()
                else:
                    assert rows["attended"].isna().all()


def test_places_are_the_rollout(study, drawn):
    table = drawn["attention_side_by_side"].inputs["places"]
    for run in stored_runs(study):
        images, model = example_images(run, 2), run.model()
        maps = AttentionCapture(model)(images.inputs)
        mine = table[table["run"] == run.id]
        assert mine["image"].unique().tolist() == list(images.names)
        np.testing.assert_allclose(
            mine.groupby("image")["ratio"].mean(), 1, atol=1e-5
        )  # all places have what is theirs
        ratio = output_by_place(model, maps)
        np.testing.assert_allclose(mine["ratio"].to_numpy().reshape(ratio.shape), ratio, rtol=1e-4)


def test_statistics_are_over_the_evaluation_images(study, drawn):
    table = drawn["attention_evenness"].inputs["statistics"]
    (run,) = stored_runs(study, [PYRAMID])
    images = [inputs for inputs, _ in evaluation_batches(OpenStudy(study), run, 20)]
    expected = attention_statistics(run.model(), images)
    mine = table[table["run"] == PYRAMID]
    for column in ("entropy", "density", "kept", "level"):
        np.testing.assert_allclose(mine[column], expected[column], rtol=1e-5, atol=1e-6)
    assert set(table["images"]) == {20} and set(table["seed"]) == {0}
    assert table["label"].unique().tolist() == [run.label for run in stored_runs(study)]


def test_it_is_made_again_from_what_is_stored(study, drawn, tmp_path, monkeypatch):
    def no_data(*unused, **neither):
        raise BinaryViTError("The data are not at hand.")

    monkeypatch.setattr(attention, "evaluation_batches", no_data)
    with stored_ones_only():
        again = attention.drawings(OpenStudy(study), images=20)
    assert [drawing.source() for drawing in again] == [drawing.source() for drawing in drawn.values()]
    shutil.copytree(study.output, tmp_path / "copy")
    with pytest.raises(
        BinaryViTError, match=r"'attention_statistics' .* cannot be made here: The data are not at hand"
    ):
        attention.drawings(OpenStudy(load_study(tmp_path / "copy")), images=21)


def test_pictures_can_be_read_and_show_every_map(drawn):
    for drawing in drawn.values():
        assert_readable(drawing.draw())
    axes = drawn[f"attention_heads.{PYRAMID}"].draw().axes[0]
    heads = 1 + 1 + 2 + 2 + 4
    # Two images; of each head the grey image and its tint, the image and the veil over what is not attended.
    assert len(axes.images) == 2 + 2 * heads * (2 + 2)
    outlines = [patch.get_bbox().bounds for patch in axes.patches]
    assert [(left / 2, width / 2) for left, _, width, _ in outlines] == [(4 / 8, 1 / 8)] * 2, "one of 8 x 8 patches"
    words = [text.get_text() for text in axes.texts]
    maps = drawn[f"attention_heads.{PYRAMID}"].inputs["maps"]
    shares = maps.groupby(["image", "layer"])["attended"].mean()
    blocks = {f"stages.{block[0]}.blocks.{block[2]}.attn": block for block in ("0.0", "0.1", "1.0", "1.1", "2.0")}
    ends = [(blocks[layer], f"{shares[image, layer]:.0%}") for image in maps["image"].unique() for layer in blocks]
    assert words == [word for end in ends for word in end]
    assert len(drawn[f"attention_heads.{TEACHER}"].draw().axes[0].images) == 2 + 2 * 6 * 2
    side_by_side = drawn["attention_side_by_side"]
    axes = side_by_side.draw().axes[0]
    assert len(axes.images) == 2 + 2 * 3 * 2
    assert sorted({image.get_array().shape[0] for image in axes.images}) == [4, 8, 16]
    table = side_by_side.inputs["places"]
    assert table.groupby("run")["keys_side"].first().to_dict() == {TEACHER: 4, BASELINE: 4, PYRAMID: 2}
    peaks = comparable_areas(table)["ratio"]
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"{peak:.1f}×" for peak in peaks)


def test_maps_are_laid_over_their_image():
    ratio = np.array([[4.0, 1.0], [0.25, 0.0]])
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    images = ExampleImages(pixels[None], None, ("one",), "ours")
    figure = figures.side_by_side(places({"a": ratio}), images, "A claim that is made")
    image, grey, tint = figure.axes[0].images
    assert grey.get_extent() == tint.get_extent() != image.get_extent()
    red, nothing, blue, least = tint.to_rgba(tint.get_array()).reshape(-1, 4)
    assert nothing[3] == 0 and red[0] > red[2] and blue[2] > blue[0] and tuple(least) == tuple(blue)
    assert "Images: ours" in [text.get_text() for text in figure.texts]


def test_the_most_attended_area_is_outlined_where_one_is():
    ratio = np.ones((4, 4))
    ratio[2, 1] = ratio[3, 0] = 3.0
    table = places({"peaked": ratio, "even": np.ones((4, 4))}).assign(keys_side=2)
    images = ExampleImages(np.full((1, 4, 4, 3), 100, dtype=np.uint8), None, ("one",), "ours")
    [axes, *_] = figures.side_by_side(table, images, "A claim that is made").axes
    [outline] = axes.patches
    left, right, bottom, top = axes.images[-1].get_extent()
    assert outline.get_bbox().extents == pytest.approx([left, (top + bottom) / 2, (left + right) / 2, bottom])
    assert [text.get_text() for text in axes.texts] == ["1.0×", "2.0×"]


def switched_off(study, folder):
    """A copy of the study in which training drove the level of the pyramid's first block below zero."""
    shutil.copytree(study.output, folder)
    copy = load_study(folder)
    (run,) = stored_runs(copy, [PYRAMID])
    switch_off(run, 0, 0, level=-0.1)
    return copy


def test_attention_that_is_off_is_drawn_and_counted_as_off_everywhere(study, tmp_path):
    opened = OpenStudy(switched_off(study, tmp_path / "off"), (PYRAMID,))
    drawn = {drawing.name: drawing for drawing in attention.drawings(opened, images=10, examples=1)}
    statistics = drawn["attention_density"].inputs["statistics"]
    first = statistics[statistics["block"] == 0]
    assert first["level"].tolist() == pytest.approx([-0.1])
    assert (first["density"].tolist(), first["kept"].tolist()) == ([0], [0])
    for name in ("density", "evenness"):
        words = {text.get_text(): text for text in drawn[f"attention_{name}"].draw().axes[0].texts}
        assert words["off"].get_position()[0] == 0
    mean = statistics[statistics["block"] > 0]["evenness"].mean()
    assert f"{mean:.0%}" in words, "the mean is over the heads that are on"
    assert drawn["attention_density"].finding.endswith("Attention is off in block 0.0 of BinaryViT (+ pyramid).")

    heads = drawn[f"attention_heads.{PYRAMID}"]
    maps = heads.inputs["maps"]
    assert maps["off"].eq(maps["layer"] == "stages.0.blocks.0.attn").all() and not maps["attended"][maps["off"]].any()
    assert "off" in [text.get_text() for text in heads.draw().axes[0].texts]
    assert heads.finding.endswith("Attention is off in block 0.0.")


def heads_of(axes):
    """The points of each model's heads."""
    return [line for line in axes.lines if line.get_marker() != "None"]


def test_panels_show_every_head_that_is_on(drawn):
    for name, column in (("evenness", "evenness"), ("density", "density")):
        drawing = drawn[f"attention_{name}"]
        table, axes = drawing.inputs["statistics"], drawing.draw().axes[0]
        points = np.concatenate([line.get_ydata(orig=False) for line in heads_of(axes)])
        assert sorted(points[~np.isnan(points)]) == sorted(table[column].dropna())
    ticks = [label.get_text() for label in drawn["attention_density"].draw().axes[1].get_xticklabels()]
    assert ticks == ["0.0", "0.1", "0.0", "0.1", "1.0", "1.1", "2.0"]


def test_what_even_attention_would_hold_is_drawn_beside_what_attended_keys_hold(drawn):
    drawing = drawn["attention_density"]
    keys, held = (
        [lines.get_segments()[0][0][1] for lines in axes.collections if lines.get_color()[0][:3] == pytest.approx(grey)]
        for axes, grey in ((axes, to_rgb(GREY)) for axes in drawing.draw().axes[:2])
    )
    statistics = drawing.inputs["statistics"]
    assert not keys and held == pytest.approx(statistics.groupby("label", sort=False)["density"].mean().tolist())


def test_evenness_stands_against_that_of_random_signs(drawn):
    statistics = drawn["attention_evenness"].inputs["statistics"]
    assert statistics["chance"].isna().eq(statistics["variant"] == TEACHER.removesuffix("-seed0")).all()
    assert 0 < statistics["chance"].min() < statistics["chance"].max() < 1


def two_seeds(statistics):
    other = statistics.assign(seed=1, run="other", density=statistics["density"] + 0.1)
    return pd.concat([statistics, other], ignore_index=True)


def test_seeds_become_bars_from_the_lowest_to_the_highest(drawn):
    table = drawn["attention_density"].inputs["statistics"]
    [axes, *_] = figures.by_block(two_seeds(table), {"density": "density"}, "A claim that is made").axes
    of_model = table[table["label"] == table["label"].iloc[0]]
    np.testing.assert_allclose(heads_of(axes)[0].get_ydata(orig=False), of_model["density"] + 0.05)
    bars = np.array(axes.collections[0].get_segments())
    np.testing.assert_allclose(np.ptp(bars[:, :, 1], axis=1), 0.1)
    assert "2 seeds" in axes.get_xlabel()


def test_seeds_that_differ_by_rounding_or_in_what_is_off_are_drawn(drawn):
    table = drawn["attention_density"].inputs["statistics"].assign(density=0.1)
    # The mean of three times 0.1 is above 0.1.
    seeds = [table.assign(seed=seed, run=f"seed{seed}") for seed in range(3)]
    seeds[2]["level"] = -1.0
    [axes, *_] = figures.by_block(pd.concat(seeds, ignore_index=True), {"density": "density"}, "A claim").axes
    blocks = len(table.groupby(["label", "block"]))
    counted = [text.get_text() for text in axes.texts if "off" in text.get_text()]
    assert counted == ["off in 1\nof 3"] * blocks


def places(ratios):
    frames = []
    for label, grid in ratios.items():
        row, column = np.indices(np.shape(grid)).reshape(2, -1)
        frame = pd.DataFrame({"row": row, "column": column, "ratio": np.ravel(grid)})
        frames.append(frame.assign(label=label, image="one", keys_side=len(grid)))
    return pd.concat(frames, ignore_index=True)


def test_sentences_on_places_follow_the_numbers():
    grids = {"teacher": [[2.0, 0.0], [1.0, 1.0]], "unlike": [[0.0, 1.0], [0.0, 3.0]], "even": np.ones((2, 2))}
    claim, finding = attention_findings.of_rollouts(places(grids))
    assert claim == (
        "Rolled out, attention peaks highest in unlike, 3.0 times an even share, and lowest in even, 1.0 times"
    )
    many = grids | {f"even {number}": np.ones((2, 2)) for number in range(2)}
    assert attention_findings.of_rollouts(places(many))[0].endswith("lowest in 3 models, 1.0 times")
    assert finding.startswith("Compared is what the most attended of 2 x 2 areas gets. Pooling branches")
    two = pd.concat([places(grids), places(grids).assign(image="two")])
    assert "of 2 x 2 areas gets, the mean of these 2 images." in attention_findings.of_rollouts(two)[1]
    alone = attention_findings.of_rollouts(places({"even": grids["even"]}))[0]
    assert alone == "Rolled out, attention peaks at 1.0 times an even share in even"
    alike = attention_findings.of_rollouts(places({"even": grids["even"], "other": grids["even"]}))[0]
    assert alike.endswith("peaks at 1.0 times an even share in every model")
    off = places({"off": np.full((2, 2), np.nan)})
    assert attention_findings.of_rollouts(off)[0].endswith("falls on no place of these images")
    coarse = places(grids).assign(keys_side=1)
    assert "without common areas" in attention_findings.of_rollouts(coarse)[1]


def test_peaks_are_compared_on_areas_of_one_size():
    fine = np.ones((4, 4))
    fine[0, 0], fine[3, 3] = 4.0, 2.5
    fine[2, 3] = 2.5
    table = places({"fine": fine, "coarse": [[1.0, 1.5], [0.5, 1.0]]})
    assert common_side(table) == 2
    found = [["one", "fine", 0, 0, (4 + 1 + 1 + 1) / 4], ["one", "coarse", 0, 1, 1.5]]
    assert comparable_areas(table).to_numpy().tolist() == found
    alone = table[table["label"] == "fine"]
    assert comparable_areas(alone).to_numpy().tolist() == [["one", "fine", 0, 0, 4.0]]
    assert comparable_areas(alone.assign(keys_side=1)).to_numpy().tolist() == [["one", "fine", 0, 0, fine.mean()]]


def maps_of(rows):
    return pd.DataFrame(
        [
            {"image": "one", "layer": f"stages.1.blocks.{block}.attn", "head": head, "ratio": ratio}
            | {"attended": attended, "off": off}
            for block, head, ratios, levels, off in rows
            for ratio, attended in zip(ratios, levels, strict=True)
        ]
    )


def test_sentences_on_heads_follow_the_numbers():
    rows = [(0, 0, [1, 1], [1, 1], False), (1, 1, [1, 1], [1, 0], False)]
    claim, finding = attention_findings.of_heads(maps_of([*rows, (3, 0, [1, 1], [0, 0], True)]), "b")
    assert claim == "b: in each image the marked patch attends to the fewest keys in block 1.1"
    assert finding == (
        "The marked patch attends to 75% of the keys: to every key in 1 of 2 maps, to none in 0. "
        "Attention is off in block 1.3."
    )
    assert (
        attention_findings.of_heads(maps_of(rows[:1]), "b")[0] == "b: the threshold leaves the marked patch every key"
    )
    unlike = maps_of([(0, 0, [1, 1], [1, 0], False), (1, 1, [1, 1], [1, 1], False)]).assign(image="two")
    claim = attention_findings.of_heads(pd.concat([maps_of(rows), unlike]), "b")[0]
    assert claim == "b: for the marked patch the heads of a block keep 50% to 100% of the keys", (
        "no block is first in both"
    )
    tied = maps_of([(0, 0, [1, 1], [0, 1], False), (1, 1, [1] * 4, [1, 1, 0, 0], False)])
    assert (
        attention_findings.of_heads(tied, "b")[0] == "b: for the marked patch the heads of a block keep 50% of the keys"
    )
    flat, peaked = [[math.nan] * 2, False], [(0, 0, [1, 3.5]), (1, 0, [1, 1])]
    peaked = maps_of([(*row, *flat) for row in peaked])
    claim, finding = attention_findings.of_heads(peaked, "t")
    assert claim == "t: in each image the patch singles out keys most in block 1.0"
    assert "3.5 times" in finding
    other = maps_of([(0, 0, [1, 1], *flat), (1, 0, [1, 2], *flat)]).assign(image="two")
    claim = attention_findings.of_heads(pd.concat([peaked, other]), "t")[0]
    assert claim == "t: the strongest key of a block gets 1.0 to 3.5 times a uniform share"
    claim, finding = attention_findings.of_heads(maps_of([(0, 0, [1, 1], [0, 0], True)]), "b")
    assert (claim, finding) == ("b: the marked patch attends to nothing", "Attention is off in block 1.0.")


def test_sentences_on_statistics_follow_the_numbers():
    table = pd.DataFrame(
        {"run": ["a", "a", "b"], "label": ["a", "a", "b"], "seed": 0, "layer": [f"blocks.{n}.attn" for n in (0, 1, 0)]}
    )
    table = table.assign(evenness=[0.5, 0.5, 0.75], level=[0.5, 0.25, 0.1], density=[1.0, 0.5, 0.25])
    table = table.assign(kept=[1.0, 0.8, 0.6], keys=4)
    claim, finding = attention_findings.of_density(table)
    passed = "25% to 75% of the keys pass the threshold and hold 60% to 90% of the probability"
    assert claim == f"Averaged over a model's heads, {passed}"
    assert finding.startswith("1 of 3 heads keeps nearly all keys") and finding.endswith("regardless of the query.")
    off = table.assign(level=[-0.5, 0.25, 0.1])
    claim, finding = attention_findings.of_density(off)
    assert "25% to 50%" in claim and finding.endswith("Attention is off in block 0.0 of a.")
    two = pd.concat([off, off.assign(seed=1, level=0.1)])
    assert attention_findings.of_density(two)[1].endswith("Attention is off in block 0.0 of a, seed 0.")
    few = attention_findings.of_density(table.assign(density=[0.5, 0.5, 0.2]))[1]
    assert few == (
        "Single heads keep 20.0% to 50.0% of their keys, so none averages over the whole image regardless of the "
        "query; 1 of 3 heads keeps less than one key for the average query, in block 0.0 of b."
    )
    alike = pd.concat([table, table.assign(seed=1, run=table["run"] + "1")])
    assert attention_findings.of_density(alike)[1].startswith("2 of 6 heads in 4 runs keep nearly all keys")
    assert attention_findings.of_density(table.assign(level=0))[0] == "Binary attention is off in every head"

    claim, finding = attention_findings.of_evenness(table.assign(chance=[0.9, 0.9, 0.8]))
    more = "Averaged over heads, before the threshold, attention is more selective in"
    assert claim == f"{more} every run of a binary model than between random signs"
    assert "50% of its maximum in a and 75% in b" in finding and finding.endswith("of as many keys have 80% to 90%.")
    some = attention_findings.of_evenness(table.assign(chance=[0.9, 0.9, 0.7]))[0]
    assert some == f"{more} 1 of 2 runs of binary models than between random signs"
    alone = attention_findings.of_evenness(table.assign(chance=math.nan))
    assert "most even in b" in alone[0] and alone[1].endswith("all keys alike.")


def test_any_model_is_shown(study):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    drawing = attention.heads_of_model(OpenStudy(study), model, "ours", examples=1)
    assert drawing.runs == () and drawing.draw().get_suptitle().startswith("ours: ")
    assert drawing.inputs["pictures"].shape == (1, 1 + 3 * 32 * 32)
    mine = drawing.inputs["maps"]
    assert mine["attended"].isna().all() and len(mine) == 2 * 2 * 16
    assert_readable(drawing.draw())


def test_models_are_opened_from_their_name_and_checkpoint(study, tmp_path):
    run = stored_runs(study, [BASELINE])[0]
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(open_model(None, run.weights)(images), run.model()(images))
    trained = timm.create_model("binaryvit_micro_patch2_32", num_classes=7)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "weights.pt")
    opened = open_model("binaryvit_micro_patch2_32", tmp_path / "weights.pt")
    assert opened.num_classes == 7 and not opened.training
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(opened(images), trained.eval()(images))


def own_image(folder):
    Image.new("RGB", (20, 20), (200, 10, 10)).save(folder / "red.png")
    return str(folder / "red.png")


def test_ones_own_images_can_be_looked_at(study, tmp_path):
    shutil.copytree(study.output, tmp_path / "copy")
    mine = OpenStudy(load_study(tmp_path / "copy"), (PYRAMID,))
    drawing = attention.side_by_side(mine, examples=[own_image(tmp_path)])
    pixels = drawing.inputs["pictures"].set_index("image").loc["red.png"].to_numpy()
    assert set(pixels) == {200, 10} and "Images: your own images" in [text.get_text() for text in drawing.draw().texts]
    # A file of the same name and other pixels is measured again.
    Image.new("RGB", (20, 20), (0, 0, 250)).save(tmp_path / "red.png")
    again = attention.side_by_side(mine, examples=[str(tmp_path / "red.png")])
    assert not again.inputs["places"].equals(drawing.inputs["places"])


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda study: attention.drawings(OpenStudy(study, ())), "No run is selected"),
        (lambda study: attention.heads(OpenStudy(study), place=(0.5, 1.0)), r"place=\(0.5, 1.0\) is not in the image"),
        (lambda study: attention.drawings(OpenStudy(study), examples=0), "0 example images are asked for"),
        (
            lambda study: attention.heads_of_model(OpenStudy(study), timm.create_model("resnet18"), "r"),
            "no attention to look at",
        ),
        (lambda study: open_model(None), "No model is chosen"),
        (lambda study: open_model("vit_tinny_patch16_224"), "did you mean 'vit_tiny_patch16_224'"),
        (lambda study: open_model("binaryvit_micro_patch2_32"), "has no pretrained weights"),
    ],
)
def test_mistakes_are_told_in_a_sentence(study, action, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        action(study)
