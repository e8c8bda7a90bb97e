"""The analysis of attention: numbers drawn against the models' own maps, sentences, whole pictures."""

import itertools
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.stored_study import BASELINE, PYRAMID, TEACHER, stored_study
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
        f"attention_heads.{BASELINE}",
        f"attention_heads.{PYRAMID}",
        "attention_density",
        "attention_threshold",
    ]
    assert drawn["attention_side_by_side"].runs == (TEACHER, BASELINE, PYRAMID)
    assert drawn[f"attention_heads.{PYRAMID}"].runs == (TEACHER, PYRAMID)
    assert drawn["attention_density"].runs == (BASELINE, PYRAMID)


def test_maps_are_the_models_at_the_place(study, drawn):
    table = drawn[f"attention_heads.{PYRAMID}"].inputs["maps"]
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
    table = drawn["attention_side_by_side"].inputs["places"]
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
        stored = mine[mine["map"] == "attended in the last block"]["ratio"].to_numpy().reshape(2, -1)
        np.testing.assert_allclose(stored, last / last.mean(1, keepdim=True), rtol=1e-4)


def test_statistics_are_over_the_evaluation_images(study, drawn):
    table = drawn["attention_threshold"].inputs["statistics"]
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


def texts_whole(figure):
    """Asserts that all that is drawn lies inside the figure, and that no two labels of ticks overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), canvas.get_width_height()
    for part in (*figure.axes, *figure.legends):
        box = part.get_tightbbox(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
        assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_pictures_are_whole_and_show_every_map(drawn, study):
    for drawing in drawn.values():
        figure = drawing.draw()
        texts_whole(figure)
    shown = drawn[f"attention_heads.{PYRAMID}"].draw().axes[0].images
    # Two images; the teacher's 2 x 3 heads; the pyramid's 1 + 2 + 4 + 4 + 8, before and after the threshold.
    assert len(shown) == 2 + 2 * (6 + 2 * 19)
    shown = drawn["attention_side_by_side"].draw().axes[0].images
    assert len(shown) == 2 + 2 * 3 * 3
    assert sorted({image.get_array().shape[0] for image in shown}) == [1, 2, 4, 8, 16]


def test_panels_show_every_head(drawn):
    drawing = drawn["attention_threshold"]
    table, figure = drawing.inputs["statistics"], drawing.draw()
    panels = [axes for axes in figure.axes if axes.get_ylabel()]
    for axes, column in zip(panels, ("evenness", "removed", "empty"), strict=True):
        points = np.concatenate([container.lines[0].get_ydata(orig=False) for container in axes.containers])
        assert sorted(points[~np.isnan(points)]) == sorted(table[column].dropna())
        assert [text.get_text() for text in axes.texts] == ["no\nthreshold"] * (column != "evenness")


def two_seeds(statistics):
    other = statistics.assign(seed=1, run="other", density=statistics["density"] + 0.1)
    return pd.concat([statistics, other], ignore_index=True)


def test_seeds_become_error_bars(drawn):
    table = drawn["attention_density"].inputs["statistics"]
    figure = figures.by_block(two_seeds(table), {"density": "density"})
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


def test_findings_on_places_follow_the_numbers():
    grids = {"teacher": [[2.0, 0.0], [1.0, 1.0]], "like": np.kron([[1.5, 0.5], [1, 1]], np.ones((2, 2)))}
    grids |= {"unlike": [[0.0, 1.0], [0.0, 3.0]], "even": np.ones((2, 2))}
    text = attention_findings.of_places(places(grids), "teacher")
    assert text == (
        "On 1 image, the rollout is most uneven in unlike, whose most attended place gets 3.00 times the even share, "
        "and most even in even (1.00 times). Most alike to the teacher's is that of like (correlation over places "
        "+1.00), least that of unlike (-0.29)."
    )
    assert "teacher's" not in attention_findings.of_places(places(grids), None)


def test_findings_on_heads_follow_the_numbers():
    rows = [("t", 0, 0, [1, 3.5], [math.nan] * 2), ("b", 0, 0, [1, 1], [1, 1]), ("b", 1, 1, [1, 1], [1, 0])]
    rows += [("b", 2, 0, [1], [1])]  # of a single key, which says nothing
    table = pd.DataFrame(
        [
            {"label": label, "image": "one", "block": block, "head": head, "ratio": ratio, "attended": attended}
            for label, block, head, ratios, levels in rows
            for ratio, attended in zip(ratios, levels, strict=True)
        ]
    )
    assert attention_findings.of_heads(table) == (
        "In t the highest probability is 3.5 times that of even attention (block 0, head 0). In b the patch attends to "
        "all keys in 1 of 2 maps and to none in 0; the sparsest is of block 1, head 1: 50% of the keys."
    )


def test_findings_on_statistics_follow_the_numbers():
    table = pd.DataFrame({"label": ["a", "a", "b"], "seed": 0, "block": [0, 1, 0], "head": 0, "keys": [4, 1, 4]})
    table = table.assign(evenness=[0.5, math.nan, 0.75], level=[0.5, 0.25, 0.1], density=[1.0, 0.5, 0.25])
    table = table.assign(removed=[0.1, 0.3, 0.4], empty=[0.0, 0.0, 0.015], threshold=[1.0, 0.125, 0.2])
    assert attention_findings.of_density(table) == (
        "On average over its heads, a attends to 100% of the keys, the most, and b to 25%, the fewest. 1 of the 2 "
        "heads with several keys attend to more than 99% of them, so that they only average over the image; most of "
        "these are in a. The level a lies between 0.1 and 0.5 (it starts at 0.005): a key is attended from 0.2 to 1 "
        "times the even probability on."
    )
    switched_off = attention_findings.of_density(table.assign(level=[1e-6, 0.25, 0.1]))
    two_seeds = table.assign(label="a", block=0, seed=[0, 0, 1], level=[1e-6, 1e-6, 0.1])
    assert "In a (seed 0) training drove a" in attention_findings.of_density(two_seeds)
    assert attention.levels(two_seeds)["block 0"].to_dict() == {("a", 0): "0 or below", ("a", 1): "0.1"}
    assert "0 of the 2 heads" in switched_off and "The level a lies between 0.1 and 0.1" in switched_off
    assert "In a training drove a to zero or below in block 0, where 1e-06 takes its place" in switched_off
    assert attention.levels(table.assign(level=[1e-6, 0.25, 0.1])).loc[("a", 0)].tolist() == ["0 or below", "0.25"]
    assert attention_findings.of_threshold(table) == (
        "Before binarization, attention is most even in b (entropy 75% of its maximum on average over the heads) and "
        "most selective in a (50%). The threshold removes the most probability in b (40.0% on average) and the least "
        "in a (20.0%). Rows without any attended key are at most 1.50% of a head's (b, block 0, head 0)."
    )
    assert "No row loses all" in attention_findings.of_threshold(table.assign(empty=0.0))


def test_any_model_is_shown_beside_the_teacher(study, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    drawing = attention.heads_of_model(OpenStudy(study), model, "ours", examples=1)
    assert drawing.runs == (TEACHER,)
    table = drawing.inputs["maps"]
    assert table["label"].unique().tolist() == [stored_runs(study)[0].label, "ours"]
    assert drawing.inputs["pictures"].shape == (1, 1 + 3 * 32 * 32)
    mine = table[table["label"] == "ours"]
    assert mine["attended"].isna().all() and len(mine) == 2 * 2 * 16
    texts_whole(drawing.draw())


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
    assert set(pixels) == {200, 10} and "your own images" in drawing.finding
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
        (lambda study: figures.side_by_side(pd.DataFrame(), {}), "There is no attention to draw"),
    ],
)
def test_mistakes_are_told_in_a_sentence(study, action, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        action(study)
