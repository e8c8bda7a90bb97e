"""Looking around in stored runs: what is seen is the model's, and a moved widget changes the picture."""

import base64
from dataclasses import replace
from io import BytesIO

import PIL.Image
import pytest
import torch
from helpers.executed_notebooks import execute, kernels_of_this_checkout, outputs
from helpers.places import ROOT
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import stored_study, switch_off

from binaryvit.analysis.attention.measure import attended_places
from binaryvit.analysis.explore.explorer import Explorer, Selection, controls
from binaryvit.analysis.images import example_images
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError

NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return stored_study(tmp_path_factory.mktemp("studies") / "small")


@pytest.fixture(scope="module")
def explorer(study):
    return Explorer(OpenStudy(study))


def finding_of(explorer, selection):
    _, text = explorer.view(selection)
    return text.data


def test_values_are_those_the_model_takes_signs_of(study, explorer):
    selection = explorer.fit(
        Selection(PYRAMID, explorer.images[1], block=2, head=1, layer="mlp.fc1.binarize", channel=5)
    )
    (run,) = stored_runs(study, [PYRAMID])
    model, seen = run.model(), []
    module = model.stages[1].blocks[0].mlp.fc1.binarize
    module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model(example_images(run, 4).inputs[1:2])
    positive = (seen[0][0, :, 5] > 0).float().mean().item()
    assert f"in channel 5 of mlp.fc1.binarize, {positive:.0%} of the tokens become +1" in finding_of(
        explorer, selection
    )
    assert finding_of(explorer, selection).startswith("Head 1 of block 2 in ")
    assert explorer.layers(selection)[0] == "attn.reduce.binarize" and explorer.channels(selection) == 16


def test_a_selection_is_brought_into_what_the_run_has(explorer):
    wide = Selection(PYRAMID, explorer.images[0], block=4, head=3, layer="attn.v.binarize", channel=31)
    assert explorer.fit(wide) == wide
    fitted = explorer.fit(replace(wide, run=BASELINE))
    assert (fitted.block, fitted.head, fitted.layer, fitted.channel) == (1, 2, "attn.v.binarize", 23)
    assert explorer.fit(replace(wide, run=TEACHER)).layer == ""
    assert "highest probability" in finding_of(explorer, explorer.fit(replace(wide, run=TEACHER)))


def test_forward_passes_are_kept(explorer, monkeypatch):
    selection = explorer.fit(Selection(PYRAMID, explorer.images[0]))
    explorer.view(selection)
    monkeypatch.setattr("binaryvit.analysis.explore.explorer.AttentionCapture", None)
    explorer.view(replace(selection, channel=1))
    with pytest.raises(TypeError):
        explorer.view(replace(selection, image=explorer.images[3]))


def test_the_patch_is_where_it_was_put(explorer):
    """In a grid of 4 x 4 patches, (0.9, 0.99) lies in the last one."""
    selection = explorer.fit(replace(Selection(BASELINE, explorer.images[0]), down=0.9, right=0.99))
    maps = explorer._see(selection).maps[0]
    attended = int((maps.on_key_grid(maps.used[0, 0, -1]) > 0).sum())
    assert f"{attended} of 16 keys are attended" in finding_of(explorer, selection)


def test_attention_that_is_off_attends_to_nothing(tmp_path):
    study = stored_study(tmp_path / "small")
    (run,) = stored_runs(study, [PYRAMID])
    switch_off(run, 0, 0)
    explorer = Explorer(OpenStudy(study), 1)
    panels, sentence = explorer._look(explorer.fit(Selection(PYRAMID, explorer.images[0])))
    assert "0 of 4 keys are attended, as this attention is off; in" in sentence and not panels.attended.any()


def test_two_runs_are_shown_below_each_other(explorer):
    one = explorer.fit(Selection(PYRAMID, explorer.images[0], block=4, head=3, layer="attn.v.binarize", channel=31))
    both, text = explorer.view(replace(one, other=TEACHER))
    alone, text_alone = explorer.view(explorer.fit(replace(one, run=TEACHER)))
    assert text.data == f"{finding_of(explorer, one)} {text_alone.data}"
    heights = [PIL.Image.open(BytesIO(picture.data)).height for picture in (both, alone)]
    assert heights[0] == 2 * heights[1]


def test_the_rollout_is_that_of_the_analysis_of_attention(explorer, study):
    selection = explorer.fit(Selection(PYRAMID, explorer.images[0]))
    (run,) = stored_runs(study, [PYRAMID])
    places = attended_places(run.model(), example_images(run, 4))
    table = places[places["image"] == explorer.images[0]]
    assert explorer._see(selection).rollout.flatten().tolist() == pytest.approx(table["ratio"].tolist(), rel=1e-5)


def test_moved_widgets_show_the_selection(explorer):
    box = controls(explorer)
    columns, picture, finding = box.children[0].children, *box.children[1:]
    (run, other, _), (down, right, block), (head, layer, channel) = (column.children for column in columns)
    run.value, block.value = PYRAMID, 3
    assert (block.max, head.max, channel.max) == (4, 1, 15)
    head.value, layer.value, channel.value = 1, "attn.k.binarize", 7
    down.value, right.value, other.value = 0.0, 0.3, TEACHER
    selection = Selection(PYRAMID, explorer.images[0], TEACHER, 0.0, 0.3, 3, 1, "attn.k.binarize", 7)
    image, text = explorer.view(selection)
    assert picture.value == image.data and finding.value == text.data and picture.layout.width == "100%"
    run.value = TEACHER
    assert layer.options == ("",) and layer.disabled and channel.disabled and "full-precision" in finding.value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"run": PYRAMID[:-1]}, f"did you mean '{PYRAMID}'"),
        ({"image": "none"}, "There is no 'none' to look at"),
        ({"other": BASELINE[:-1]}, f"did you mean '{BASELINE}'"),
        ({"right": 1.0}, "is not in the image"),
    ],
)
def test_mistakes_are_told_in_a_sentence(explorer, change, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        explorer.view(replace(explorer.fit(Selection(PYRAMID, explorer.images[0])), **change))


@pytest.mark.slow
def test_without_widgets_the_notebook_shows_static_pictures(study, explorer, tmp_path):
    with kernels_of_this_checkout():
        document = execute(NOTEBOOK, tmp_path / "out.ipynb", study=str(study.output))
    pictures = [base64.b64decode(picture) for picture in outputs(document, "image/png")]
    findings = outputs(document, "text/markdown")
    views = explorer.views()
    assert pictures == [picture.data for picture, _ in views] and findings == [text.data for _, text in views]
