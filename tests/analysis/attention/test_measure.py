"""The analysis of attention: numbers drawn against the models' own maps, sentences, whole pictures."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.pictures import assert_readable
from helpers.stored_study import BASELINE, PYRAMID, TEACHER, stored_study
from PIL import Image

from binaryvit.analysis.attention import figures
from binaryvit.analysis.attention import findings as attention_findings
from binaryvit.analysis.attention import measure as attention
from binaryvit.analysis.attention.capture import AttentionCapture, attention_statistics
from binaryvit.analysis.attention.rollout import pooling_weights, rollout, to_pixels
from binaryvit.analysis.images import evaluation_batches, example_images
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.models import open_model
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.models.weights_file import save_inference_weights
from binaryvit.studies.study import load_study
from binaryvit.training.build import model_arguments


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
        "attention_threshold",
        "attention_evenness",
        "attention_by_depth",
    ]
    assert drawn["attention_side_by_side"].runs == (TEACHER, BASELINE, PYRAMID)
    assert drawn[f"attention_heads.{PYRAMID}"].runs == (PYRAMID,)
    assert drawn["attention_density"].runs == (BASELINE, PYRAMID)


def test_maps_are_the_models_at_the_place(study, drawn):
    table = pd.concat([drawn[f"attention_heads.{name}"].inputs["maps"] for name in (TEACHER, PYRAMID)])
    for name, binary in ((TEACHER, False), (PYRAMID, True)):
        (run,) = stored_runs(study, [name])
        images = example_images(run, 2)
        for block, each in enumerate(AttentionCapture(run.model())(images.inputs)):
            side, keys = each.key_grid_size, each.used.shape[-1]
            middle = each.grid_size // 2
            query = each.prefix_tokens + middle * each.grid_size + middle
            for image, head in np.ndindex(2, each.used.shape[1]):
                rows = table[
                    (table["run"] == name) & (table["block"] == block) & (table["head"] == head)
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


def test_places_are_rollout_and_attention_received(study, drawn):
    table = pd.concat([drawn[name].inputs["places"] for name in ("attention_side_by_side", "attention_by_depth")])
    for run in stored_runs(study):
        images, model = example_images(run, 2), run.model()
        maps = AttentionCapture(model)(images.inputs)
        mine = table[table["run"] == run.id]
        assert mine["image"].unique().tolist() == list(images.names)
        means = mine.groupby(["image", "map"])["ratio"].mean()
        np.testing.assert_allclose(means, 1, atol=1e-5)  # all places together have what is theirs
        rows = rollout(maps, pooling_weights(model, maps[-1]))[:, 0]
        pixels = to_pixels(rows, maps[0].prefix_tokens, maps[0].grid_size, (16, 16)) * 16**2
        scale = 16 // maps[0].grid_size
        stored = mine[mine["map"] == "rollout"]["ratio"].to_numpy().reshape(2, maps[0].grid_size, -1)
        np.testing.assert_allclose(np.kron(stored, np.ones((1, scale, scale))), pixels, rtol=1e-4)
        last = maps[-1].used.double().mean((1, 2))[:, maps[-1].prefix_tokens :]
        stored = mine[mine["map"] == "last block"]["ratio"].to_numpy().reshape(2, -1)
        np.testing.assert_allclose(stored, last / last.mean(1, keepdim=True), rtol=1e-4)


def test_statistics_are_over_the_evaluation_images(study, drawn):
    table = drawn["attention_evenness"].inputs["statistics"]
    (run,) = stored_runs(study, [PYRAMID])
    images = [inputs for inputs, _ in evaluation_batches(OpenStudy(study), run, 20)]
    expected = attention_statistics(run.model(), images)
    mine = table[table["run"] == PYRAMID]
    for column in ("entropy", "density", "removed", "empty", "level"):
        np.testing.assert_allclose(mine[column], expected[column], rtol=1e-5, atol=1e-6)
    assert set(table["images"]) == {20} and set(table["seed"]) == {0}
    assert table["label"].unique().tolist() == [run.label for run in stored_runs(study)]
    levels = attention.levels(table)
    assert levels.index.tolist() == [(run.label, 0) for run in stored_runs(study, [BASELINE, PYRAMID])]
    assert levels.iloc[0].dropna().tolist() == ["0.005", "0.005"]  # an untrained model's


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
    shown = drawn[f"attention_heads.{PYRAMID}"].draw().axes[0].images
    heads = 1 + 2 + 4 + 4 + 8
    # Two images; of each head the grey image and its tint, the image and the veil over what is not attended.
    assert len(shown) == 2 + 2 * heads * (2 + 2)
    assert len(drawn[f"attention_heads.{TEACHER}"].draw().axes[0].images) == 2 + 2 * 6 * 2
    shown = drawn["attention_side_by_side"].draw().axes[0].images
    assert len(shown) == 2 + 2 * 3 * 2
    assert sorted({image.get_array().shape[0] for image in shown}) == [4, 8, 16]


def test_maps_are_laid_over_their_image():
    ratio = np.array([[4.0, 1.0], [0.25, 0.0]])
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    figure = figures.side_by_side(places({"a": ratio}), {"one": pixels}, "ours", "A claim that is made")
    image, grey, tint = figure.axes[0].images
    assert grey.get_extent() == tint.get_extent() != image.get_extent()
    red, nothing, blue, least = tint.to_rgba(tint.get_array()).reshape(-1, 4)
    assert nothing[3] == 0 and red[0] > red[2] and blue[2] > blue[0] and tuple(least) == tuple(blue)
    assert "ours" in figure.texts[-1].get_text()


def switched_off(study, folder):
    """A copy of the study in which training drove the level of the pyramid's first block below zero."""
    shutil.copytree(study.output, folder)
    copy = load_study(folder)
    (run,) = stored_runs(copy, [PYRAMID])
    model = run.model()
    model.stages[0].blocks[0].attn.binarize_attn.level.data.fill_(-0.1)
    save_inference_weights(model, run.weights, run.variant, model_arguments(run.config, 10))
    return copy


def test_attention_that_is_off_is_drawn_and_counted_as_off_everywhere(study, tmp_path):
    opened = OpenStudy(switched_off(study, tmp_path / "off"), (PYRAMID,))
    drawn = {drawing.name: drawing for drawing in attention.drawings(opened, images=10, examples=1)}
    statistics = drawn["attention_density"].inputs["statistics"]
    first = statistics[statistics["block"] == 0]
    assert first["level"].tolist() == pytest.approx([-0.1]) and first["density"].tolist() == [0]
    assert (first["removed"].tolist(), first["empty"].tolist()) == ([1], [1])
    for name in ("density", "evenness", "threshold"):
        panel = drawn[f"attention_{name}"].draw().axes[0]
        assert [text.get_text() for text in panel.texts] == ["off"]
        assert panel.texts[0].get_position()[0] == 0
    assert "off: 1" in drawn["attention_density"].draw().get_suptitle()
    assert "in block 0 of BinaryViT (+ pyramid)" in drawn["attention_density"].finding
    assert attention.levels(statistics).loc[("BinaryViT (+ pyramid)", 0), "block 0"] == "off"

    heads = drawn[f"attention_heads.{PYRAMID}"]
    maps = heads.inputs["maps"]
    assert maps["off"].eq(maps["block"] == 0).all() and not maps["attended"][maps["off"]].any()
    assert "off" in [text.get_text() for text in heads.draw().axes[0].texts]
    assert "Attention is off in block 0." in heads.finding
    depth = drawn["attention_by_depth"]
    assert depth.inputs["places"].query("map == 'first block' and run == @PYRAMID")["ratio"].isna().all()
    assert "off" in [text.get_text() for text in depth.draw().axes[0].texts]
    assert "the first block of BinaryViT (+ pyramid)" in depth.finding


def test_panels_show_every_head_that_is_on(drawn):
    for name, column in (("evenness", "evenness"), ("threshold", "removed"), ("density", "density")):
        drawing = drawn[f"attention_{name}"]
        table, axes = drawing.inputs["statistics"], drawing.draw().axes[0]
        points = np.concatenate([container.lines[0].get_ydata(orig=False) for container in axes.containers])
        assert sorted(points[~np.isnan(points)]) == sorted(table[column].dropna())
    threshold = drawn["attention_density"].draw().axes[1]
    starts = np.concatenate([line.get_ydata() for line in threshold.lines if line.get_marker() == "_"])
    keys = drawn["attention_density"].inputs["statistics"].drop_duplicates(["run", "block"])["keys"]
    np.testing.assert_allclose(starts, 0.0025 * keys)  # the level starts at 0.005


def two_seeds(statistics):
    other = statistics.assign(seed=1, run="other", density=statistics["density"] + 0.1)
    return pd.concat([statistics, other], ignore_index=True)


def test_seeds_become_error_bars(drawn):
    table = drawn["attention_density"].inputs["statistics"]
    figure = figures.by_block(two_seeds(table), {"density": "density"}, "A claim that is made")
    (first, *_) = figure.axes[0].containers
    of_model = table[table["label"] == table["label"].iloc[0]]
    np.testing.assert_allclose(first.lines[0].get_ydata(orig=False), of_model["density"] + 0.05)
    assert first.has_yerr and "2 seeds" in figure.axes[0].get_xlabel()
    bars = np.array(first.lines[2][0].get_segments())
    np.testing.assert_allclose(np.ptp(bars[:, :, 1], axis=1), 2 * 0.1 / math.sqrt(2))


def places(ratios):
    frames = []
    for label, grid in ratios.items():
        row, column = np.indices(np.shape(grid)).reshape(2, -1)
        frame = pd.DataFrame({"row": row, "column": column, "ratio": np.ravel(grid)})
        frames.append(frame.assign(label=label, image="one", map="rollout"))
    return pd.concat(frames, ignore_index=True)


def test_sentences_on_places_follow_the_numbers():
    grids = {"teacher": [[2.0, 0.0], [1.0, 1.0]], "like": np.kron([[1.5, 0.5], [1, 1]], np.ones((2, 2)))}
    grids |= {"unlike": [[0.0, 1.0], [0.0, 3.0]], "even": np.ones((2, 2))}
    claim, finding = attention_findings.of_rollouts(places(grids), "teacher")
    assert claim == "Rolled out to the image, attention is most selective in unlike and most even in even"
    assert finding == (
        "The most attended place gets 3.00 times its even share in unlike and 1.00 times in even (mean of 1 image). "
        "like comes closest to the teacher's map (correlation over places +1.00), unlike least (-0.29)."
    )
    assert "teacher's" not in attention_findings.of_rollouts(places(grids), None)[1]

    blocks = [places(grids | {"dark": np.full((2, 2), np.nan)}).assign(map=name) for name in ("first", "last")]
    blocks[1]["ratio"] = blocks[1]["ratio"].where(blocks[1]["label"] != "like", 2.0)
    claim, finding = attention_findings.of_depths(pd.concat(blocks))
    assert claim == "The last block is more selective than the first in 1 of 4 models whose attention is on in both"
    assert finding.endswith("Attention is off in the first of dark and the last of dark.")


def maps_of(rows):
    return pd.DataFrame(
        [
            {"image": "one", "block": block, "head": head, "ratio": ratio, "attended": attended, "off": off}
            for block, head, ratios, levels, off in rows
            for ratio, attended in zip(ratios, levels, strict=True)
        ]
    )


def test_sentences_on_heads_follow_the_numbers():
    rows = [
        (0, 0, [1, 1], [1, 1], False),
        (1, 1, [1, 1], [1, 0], False),
        (2, 0, [1], [1], False),
    ]  # one key says nothing
    claim, finding = attention_findings.of_heads(maps_of([*rows, (3, 0, [1, 1], [0, 0], True)]), "b")
    assert claim == "b: the marked patch attends to 75 % of the keys"
    assert finding == (
        "It attends to every key in 1 of 2 maps and to none in 0; the sparsest attends to 50 % (block 1, head 1). "
        "Attention is off in block 3."
    )
    claim, finding = attention_findings.of_heads(maps_of([(0, 0, [1, 3.5], [math.nan] * 2, False)]), "t")
    assert claim == "t: the marked patch prefers some keys by up to 3.5 times" and "(block 0, head 0)" in finding
    claim, finding = attention_findings.of_heads(maps_of([(0, 0, [1, 1], [0, 0], True)]), "b")
    assert (claim, finding) == ("b: the marked patch has no keys to choose from", "Attention is off in block 0.")


def test_sentences_on_statistics_follow_the_numbers():
    table = pd.DataFrame({"label": ["a", "a", "b"], "seed": 0, "block": [0, 1, 0], "head": 0, "keys": [4, 1, 4]})
    table = table.assign(evenness=[0.5, math.nan, 0.75], level=[0.5, 0.25, 0.1], density=[1.0, 0.5, 0.25])
    table = table.assign(removed=[0.1, 0.3, 0.4], empty=[0.0, 0.0, 0.015], threshold=[1.0, 0.125, 0.2])
    claim, finding = attention_findings.of_density(table)
    assert claim == "1 of 2 heads choose among the keys (attending to nearly all: 1, off: 0)"
    assert finding == (
        "Where attention is on, a attends to 100 % of the keys, the most, and b to 25 %, the fewest; a key is attended "
        "from 0.2 to 1 times the even probability on."
    )
    off = table.assign(level=[-0.5, 0.25, 0.1], density=[0, 0.5, 0.25])
    claim, finding = attention_findings.of_density(off)
    assert "nearly all: 0, off: 1" in claim and "in block 0 of a: no key" in finding
    two = pd.concat([off, off.assign(seed=1, level=0.1)])
    assert "in block 0 of a, seed 0: no key" in attention_findings.of_density(two)[1]
    assert attention_findings.of_density(table.assign(level=0))[1] == "Training drove every level a to zero or below."

    assert attention_findings.of_threshold(table) == (
        "The threshold removes 20 % to 40 % of the attention probability",
        "Most in b, least in a (means over the heads that are on). At most 1.50 % of a head's queries lose all of "
        "their keys (b, block 0, head 0).",
    )
    assert "No query loses all" in attention_findings.of_threshold(table.assign(empty=0.0))[1]
    claim, finding = attention_findings.of_evenness(table, "a")
    assert claim == "Before the threshold, 1 of 1 binary models attend more evenly than the teacher"
    assert "50 % of its maximum in a and 75 % in b" in finding
    assert "most even in b" in attention_findings.of_evenness(table, None)[0]


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
    assert set(pixels) == {200, 10} and "your own images" in drawing.draw().texts[-1].get_text()
    # A file of the same name and other pixels is measured anew.
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
        (lambda study: figures.side_by_side(pd.DataFrame(), {}, "", ""), "There is no attention to draw"),
    ],
)
def test_mistakes_are_told_in_a_sentence(study, action, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        action(study)
