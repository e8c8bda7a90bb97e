"""Stored weights are evaluated again, on their own images or others."""

import shutil
from itertools import product

import pytest
from helpers.training_setup import student
from PIL import Image

from binaryvit.cli import main
from binaryvit.errors import BinaryViTError
from binaryvit.models.weights_file import load_inference_weights, read_weights_file, save_inference_weights
from binaryvit.records.predictions import read_predictions
from binaryvit.records.run_record import read_record
from binaryvit.training.stored import evaluate_stored
from binaryvit.training.train import train_in_process as train


def test_data_of_one_split_are_evaluated_on(finished, tmp_path):
    for name in map(str, range(10)):
        (tmp_path / "squares" / "val" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 * int(name)).save(tmp_path / "squares" / "val" / name / "0.png")
    squares = str(tmp_path / "squares")
    for place in (finished / "student", finished / "student" / "weights.safetensors"):
        assert evaluate_stored(place, data=squares)[1].startswith("10 images of split 'val' of squares")
    assert evaluate_stored(finished / "student", eval_split="train")[1].startswith("50 images of split 'train'")
    with pytest.raises(BinaryViTError, match="has no split 'train'"):
        train(student(data=squares), tmp_path / "run")


def test_stored_weights_are_evaluated_again(finished, capsys):
    record = read_record(finished / "student")
    result, images = evaluate_stored(finished / "student")
    assert result.top1 == record.weights.top1 and images == "50 images of split 'test' of digits, the run's own data"
    assert result.predicted.tolist() == read_predictions(finished / "student")["predicted"].tolist()
    assert main(["evaluate", str(finished / "student")]) == 0
    assert f"top-1 {result.top1:.2f}%, top-5 {result.top5:.2f}%" in capsys.readouterr().out
    whole, images = evaluate_stored(finished / "student" / "weights.safetensors", data="digits", batch_size=7)
    assert whole.images == 360 and images == "360 images of split 'test' of digits"
    _, images = evaluate_stored(finished / "student", max_eval_images=20)
    assert images.endswith("not the run's own data")
    with pytest.raises(BinaryViTError, match="does not say what to evaluate it on"):
        evaluate_stored(finished / "student" / "weights.safetensors")
    with pytest.raises(BinaryViTError, match="not the folder of a finished run"):
        evaluate_stored(finished)


def test_other_data_are_not_called_by_the_name_of_the_runs_own(finished, tmp_path):
    for split, name in product(("train", "val"), map(str, range(10))):
        (tmp_path / "squares" / split / name).mkdir(parents=True)
        grey = 100 * (split == "val") + 10 * int(name)
        Image.new("L", (8, 8), grey).save(tmp_path / "squares" / split / name / "0.png")
    shutil.copytree(finished / "student", tmp_path / "run")
    record = read_record(tmp_path / "run")
    called = record.config | {"data": "numbers", "data_label": "Numbers (of its own)", "max_eval_images": 3}
    record.model_copy(update={"config": called}).write(tmp_path / "run")
    squares = str(tmp_path / "squares")
    assert evaluate_stored(tmp_path / "run", data=squares)[1] == (
        "10 images of split 'val' of squares, not the run's own data"
    )
    assert evaluate_stored(tmp_path / "run", data_dir=squares)[1] == (
        "3 images of split 'val' of numbers, not the run's own data"
    )
    called["data"] = "squares"
    record.model_copy(update={"config": called}).write(tmp_path / "run")
    assert evaluate_stored(tmp_path / "run", data=squares)[1].startswith("3 images"), "records hold no place"


def test_of_a_run_with_held_out_images_another_split_can_be_evaluated(finished, tmp_path):
    shutil.copytree(finished / "student", tmp_path / "run")
    record = read_record(tmp_path / "run")
    held_out = record.config | {"holdout_images": 20, "max_eval_images": None}
    record.model_copy(update={"config": held_out}).write(tmp_path / "run")
    assert evaluate_stored(tmp_path / "run")[0].images == 20
    assert evaluate_stored(tmp_path / "run", eval_split="test")[0].images == 360


def test_a_weights_file_knows_how_its_images_are_cut(finished, tmp_path):
    path = finished / "student" / "weights.safetensors"
    said = read_weights_file(path).description
    zoomed = said.preprocessing.model_copy(update={"crop_pct": 0.5})
    other = tmp_path / "weights.safetensors"
    save_inference_weights(
        load_inference_weights(path),
        other,
        said.variant,
        said.model_args,
        class_names=said.class_names,
        preprocessing=zoomed,
    )
    losses = [
        evaluate_stored(other, data="digits", **crop)[0].loss for crop in ({}, {"eval_crop": 0.5}, {"eval_crop": 1.0})
    ]
    assert losses[0] == losses[1] != losses[2]
    brighter = said.preprocessing.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    save_inference_weights(load_inference_weights(path), other, said.variant, said.model_args, preprocessing=brighter)
    own = evaluate_stored(path, data="digits")[0].loss
    assert evaluate_stored(other, data="digits")[0].loss != own, "its own mean normalizes its images"
