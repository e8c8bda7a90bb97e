"""Runs of a study as models, and the images they are looked into with; what cannot be used is said in a sentence."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.run_ids import BASELINE, PYRAMID, TEACHER
from helpers.stored_study import store, stored_study
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from binaryvit.analysis import images as image_files
from binaryvit.analysis.images import evaluation_batches, example_images
from binaryvit.analysis.stored import OpenStudy, open_study, stored_runs
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import load_study

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return stored_study(tmp_path_factory.mktemp("studies") / "small")


@pytest.fixture
def study(original, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(original.output, tmp_path / "small")
    return load_study(tmp_path / "small")


def test_runs_come_in_the_studys_order_with_their_models(original):
    runs = stored_runs(original)
    assert [run.id for run in runs] == [TEACHER, BASELINE, PYRAMID]
    assert [run.is_binary_transformer for run in runs] == [False, True, True]
    assert [run.label for run in runs][1:] == ["ReActNet-DeiT (baseline)", "BinaryViT (+ pyramid)"]
    images = torch.rand(2, 3, 16, 16)
    for run in runs:
        assert run.record == read_record(run.folder) and run.variant == run.record.config["variant"]
        model = run.model()
        assert not model.training
        assert torch.equal(model(images), load_inference_weights(run.folder / "weights.safetensors")(images))
    assert [run.id for run in stored_runs(original, [PYRAMID, TEACHER])] == [TEACHER, PYRAMID]


def test_seeds_of_one_model_are_told_apart(tmp_path):
    text = "name: small\ntitle: Two seeds\nseeds: [0, 1]\nrecipe: {image_size: 16}\n"
    runs = stored_runs(stored_study(tmp_path, text + "variants: [reactdeit_micro_patch4_32]\n"))
    assert [run.label for run in runs] == [f"ReActNet-DeiT (baseline), seed {seed}" for seed in (0, 1)]


def test_controls_come_only_when_asked_for(study):
    row = "controls: [{variant: binaryvit_micro_patch2_32, id: real, recipe: {model_args: {weight_bits: 32}}}]\n"
    with (study.output / "study.yaml").open("a") as file:
        file.write(row)
    study = load_study(study.output)
    store(study, study.runs[-1], load_data(study.data_config).fingerprint)
    assert [run.id for run in stored_runs(study)] == [TEACHER, BASELINE, PYRAMID]
    assert [run.id for run in stored_runs(study, ["real-seed0", PYRAMID])] == [PYRAMID, "real-seed0"]


def test_unfinished_runs_are_left_out_unless_they_are_asked_for(study):
    (study.runs[2].folder / "run.json").unlink()
    assert [run.id for run in stored_runs(study)] == [TEACHER, BASELINE]
    with pytest.raises(BinaryViTError, match=f"{PYRAMID} cannot be looked into: it is missing"):
        stored_runs(study, [PYRAMID])


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], f"No run is selected: choose some of {TEACHER}"),
        ([BASELINE[:-1] + "1"], f"has no run .*did you mean '{BASELINE}'"),
        (BASELINE, "must be a list"),
    ],
)
def test_wrong_selections_are_refused(original, ids, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        stored_runs(original, ids)


def test_a_run_of_another_study_is_called_so(study):
    other = study.output.parent / "other" / "runs" / "resnet-seed0"
    shutil.copytree(study.runs[0].folder, other)
    with pytest.raises(BinaryViTError, match=r"'resnet-seed0': it is a run of the study in .*other"):
        stored_runs(study, ["resnet-seed0"])


def test_a_run_copied_from_another_study_is_no_run_of_this_one(study):
    record = study.runs[1].folder / "run.json"
    record.write_text(record.read_text().replace('"epochs": 6', '"epochs": 7'))
    with pytest.raises(BinaryViTError, match=f"{BASELINE} cannot be looked into: it is stale"):
        stored_runs(study, [BASELINE])


def test_a_run_without_weights_and_a_study_without_runs_are_refused(study):
    (study.runs[1].folder / "weights.safetensors").unlink()
    with pytest.raises(BinaryViTError, match=f"{BASELINE} has no weights"):
        stored_runs(study)
    shutil.rmtree(study.output / "runs")
    with pytest.raises(BinaryViTError, match="no finished run"):
        stored_runs(study)


def test_runs_are_opened_by_their_folders(study, tmp_path):
    """As train.ipynb leaves them: without a study, wherever they lie, the teacher known by the students' keys."""
    for mine, run in (("teacher", study.runs[0]), ("mine", study.runs[2])):
        shutil.copytree(run.folder, tmp_path / "elsewhere" / mine)
    folders = [tmp_path / "elsewhere" / name for name in ("mine", "teacher")]
    opened = open_study("no study", folders)
    assert [run.id for run in opened.runs()] == ["mine", "teacher"] and opened.teacher().id == "teacher"
    assert [run.label for run in opened.runs()] == ["BinaryViT (+ pyramid)", "full-precision DeiT (teacher)"]
    assert opened.study.output.resolve() == (tmp_path / "elsewhere").resolve()
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(opened.runs()[0].model()(images), stored_runs(study, [PYRAMID])[0].model()(images))
    assert len(list(evaluation_batches(opened, opened.runs()[0], 10))) == 1

    alone = open_study("no study", [folders[0]])
    assert alone.teacher() is None and [run.id for run in alone.runs()] == ["mine"]
    shutil.copytree(folders[0], tmp_path / "elsewhere" / "longer")
    record = tmp_path / "elsewhere" / "longer" / "run.json"
    record.write_text(record.read_text().replace('"epochs": 6', '"epochs": 7'))
    two = open_study("no study", [folders[0], record.parent])
    assert [run.label for run in two.runs()] == ["mine", "longer"], "two of one variant are told apart by their folders"


def test_wrong_folders_are_refused(study, tmp_path):
    one = study.runs[0].folder
    with pytest.raises(BinaryViTError, match="runs/none holds no finished run"):
        open_study(study.path, [one, "runs/none"])
    shutil.copytree(one, tmp_path / "other" / one.name)
    with pytest.raises(BinaryViTError, match=f"are called {one.name}"):
        open_study(study.path, [one, tmp_path / "other" / one.name])
    record = tmp_path / "other" / one.name / "run.json"
    record.write_text(record.read_text().replace(read_record(one).key.data, "0" * 64))
    (tmp_path / "other" / one.name).rename(tmp_path / "other" / "mine")
    with pytest.raises(BinaryViTError, match="were trained on different data"):
        open_study(study.path, [one, tmp_path / "other" / "mine"])


def test_a_study_is_found_from_folders_below_it_and_in_the_repository(study, monkeypatch, tmp_path):
    below = study.output / "notebooks" / "mine"
    below.mkdir(parents=True)
    for folder in (study.output.parent, study.output, below):
        monkeypatch.chdir(folder)
        assert open_study("small").study.output.resolve() == study.output.resolve()
    monkeypatch.chdir(tmp_path)
    assert open_study("results/smoke").study.name == "smoke"
    with pytest.raises(BinaryViTError, match="results/none"):
        open_study("results/none")


def test_evaluation_images_are_spread_over_the_classes_and_normalized(original):
    run = stored_runs(original)[1]
    batches = list(evaluation_batches(OpenStudy(original), run, 50, batch_size=20))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert set(torch.bincount(labels).tolist()) <= {4, 5, 6}
    assert images.shape == (50, 3, 16, 16) and images.dtype == torch.float32
    again = list(evaluation_batches(OpenStudy(original), run, 50, batch_size=50))
    assert torch.equal(again[0][0], images)

    training = torch.cat([batch for batch, _ in evaluation_batches(OpenStudy(original), run, 10**6, split="train")])
    assert len(training) == 1437 and not (training == images[0]).flatten(1).all(1).any()

    # Every image, enlarged by Pillow from scikit-learn's own arrays, is found among all evaluation images.
    everything = torch.cat([images for images, _ in evaluation_batches(OpenStudy(original), run, 10**6)])
    assert len(everything) == 360 and all((everything == image).flatten(1).all(1).any() for image in images)
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    enlarged = [
        np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BICUBIC)) / 255 for one in pixels
    ]  # fmt: skip
    first = (np.array(enlarged) - MEAN[0]) / STD[0]
    distances = np.abs(first - images[0, 0].numpy()).max((1, 2))
    assert distances.min() < 1e-5 and digits.target[distances.argmin()] == labels[0]


def test_other_data_than_the_runs_are_refused(original, monkeypatch):
    run = stored_runs(original)[1]
    key = run.record.key.model_copy(update={"data": "0" * 64})
    other = replace(run, record=run.record.model_copy(update={"key": key}))
    with pytest.raises(BinaryViTError, match="are not those of the run"):
        evaluation_batches(OpenStudy(original), other, 10)
    absent = load_study(original.path, data_dir="nowhere")
    with pytest.raises(BinaryViTError, match="leave data_dir out"):
        evaluation_batches(OpenStudy(absent), run, 10)


def test_data_are_loaded_once_for_all_runs(original, monkeypatch):
    image_files._load_once.cache_clear()
    loaded = []
    load = image_files.load_data
    monkeypatch.setattr(image_files, "load_data", lambda config: loaded.append(config) or load(config))
    for run in stored_runs(original):
        evaluation_batches(OpenStudy(original), run, 10)
    assert len(loaded) == 1


def test_example_digits_are_shown_as_the_model_sees_them(original):
    run = stored_runs(original)[0]
    examples = example_images(run, 3)
    assert examples.pixels.shape == (3, 16, 16, 3) and examples.pixels.dtype == np.uint8
    expected = (examples.pixels / 255 - MEAN) / STD
    assert np.abs(examples.inputs.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5
    assert "scikit-learn" in examples.credit and len(set(examples.names)) == 3
    assert np.ptp(examples.pixels) > 200


def test_photographs_stand_in_for_other_data(original):
    run = stored_runs(original)[0]
    record = run.record.model_copy(update={"config": run.record.config | {"data": "uoft-cs/cifar10"}})
    run = replace(run, record=record)
    examples = example_images(run, 6)
    assert examples.names[:3] == ("china", "flower", "china, left") and "CC BY" in examples.credit
    left = load_sample_image("china.jpg")[:, :427].mean((0, 1))  # the left square of a photograph 640 x 427
    assert np.abs(examples.pixels[2].mean((0, 1)) - left).max() < 2
    with pytest.raises(BinaryViTError, match="7 example images are asked for, and there are 6"):
        example_images(run, 7)


def test_images_of_ones_own_are_brought_to_the_models_size(original, tmp_path):
    run = stored_runs(original)[0]
    Image.new("L", (40, 30), 255).save(tmp_path / "white.png")
    examples = example_images(run, [tmp_path / "white.png"])
    assert examples.names == ("white.png",) and (examples.pixels == 255).all() and len(examples.inputs) == 1
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(BinaryViTError, match=r"text.png cannot be used"):
        example_images(run, [tmp_path / "text.png"])
    for nothing in (0, -1, []):
        with pytest.raises(BinaryViTError, match="choose at least one"):
            example_images(run, nothing)
