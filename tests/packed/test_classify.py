"""Classes of image files: what the model says of the evaluation's images, and a sentence for what is no image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.places import ROOT
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from binaryvit.cli import main
from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import load_data
from binaryvit.data.transforms import eval_transform, normalize
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.packed.classify import Classifier, image_files
from binaryvit.packed.export import export_packed

RUN = ROOT / "results/smoke/runs/binaryvit_micro_patch2_32-seed0"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return export_packed(RUN, tmp_path / "model.bvit", class_names=tmp_path / "names.txt")


def write_digits(folder, count):
    folder.mkdir()
    digits = load_digits()
    for row in range(count):
        pixels = np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row:03}.png")
    return folder, digits.target[:count]


def test_a_folder_of_digits_is_named_in_order(model, tmp_path):
    folder, labels = write_digits(tmp_path / "digits", 40)
    answers = list(Classifier(model).classify(image_files([folder])))
    assert [answer.file.name for answer in answers] == [f"{row:03}.png" for row in range(40)]
    right = [answer.guesses[0].index == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(right) > 0.8
    for answer in answers:
        assert len(answer.guesses) == 5 and answer.guesses[0].name == NAMES[answer.guesses[0].index]
        assert answer.guesses == tuple(sorted(answer.guesses, key=lambda guess: -guess.probability))


def test_probabilities_are_those_of_the_evaluation(model, tmp_path):
    """The same preprocessing as in training's evaluation, and the same model."""
    config = TrainingConfig(variant="binaryvit_micro_patch2_32", data="digits", eval_crop=1.0)
    data = load_data(config)
    transform = eval_transform(config, (3, 16, 16))
    pixels = torch.stack([transform(image) for image in data.eval.images(range(8))])
    images = normalize(pixels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    with torch.no_grad():
        expected = load_inference_weights(RUN / "weights.safetensors")(images).softmax(1)
    files = [tmp_path / f"{row}.pgm" for row in range(8)]
    for file, content in zip(files, data.eval.encoded(range(8)), strict=True):
        file.write_bytes(content)
    for row, answer in enumerate(Classifier(model).classify(files, top=10)):
        for guess in answer.guesses:
            assert guess.probability == pytest.approx(expected[row, guess.index].item(), rel=1e-4, abs=1e-6)


def test_what_is_no_image_gets_a_sentence_and_the_others_are_done(model, tmp_path, capsys):
    folder, _ = write_digits(tmp_path / "digits", 2)
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    places = [folder, tmp_path / "gone.png", tmp_path / "empty"]
    assert main(["classify", str(model), *map(str, places), "--top", "1"]) == 1
    shown = capsys.readouterr()
    assert "000.png" in shown.out and "001.png" in shown.out and "%  zero" in shown.out
    problems = [line for line in shown.err.splitlines() if line.startswith("binaryvit: ")]
    assert len(problems) == 4
    for part in ("cut.png cannot be used", "text.jpg is not an image", "no file", "holds no image files"):
        assert part in shown.err


def test_json_has_a_line_for_each_file(model, tmp_path, capsys):
    folder, labels = write_digits(tmp_path / "digits", 3)
    (folder / "text.jpg").write_text("no image")
    assert main(["classify", str(model), str(folder), "--json", "--top", "2"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["000.png", "001.png", "002.png", "text.jpg"]
    assert lines[0]["classes"][0]["name"] == NAMES[labels[0]] and len(lines[0]["classes"]) == 2
    assert "not an image file" in lines[3]["problem"] and "classes" not in lines[3]


def test_a_file_that_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "model.bvit").write_text("no model")
    assert main(["classify", str(tmp_path / "model.bvit"), "image.png"]) == 2
    assert "truncated or damaged" in capsys.readouterr().err
