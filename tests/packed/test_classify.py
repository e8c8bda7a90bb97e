"""Classes of image files: what the model says of the evaluation's images, and a sentence for what is no image."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.places import ROOT
from helpers.small_models import PYRAMID, model_of
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.datasets.folder import IMG_EXTENSIONS

from binaryvit.cli import main
from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import load_data
from binaryvit.data.transforms import eval_transform, normalize
from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Description
from binaryvit.models.weights_file import load_inference_weights, read_weights_file
from binaryvit.packed import classify
from binaryvit.packed.classify import Answer, Classifier, Guess, image_files
from binaryvit.packed.engine import PackedModel
from binaryvit.packed.export import export_packed
from binaryvit.packed.file import save_packed

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


def test_of_large_images_fewer_are_held_at_a_time(model, tmp_path, monkeypatch):
    folder, _ = write_digits(tmp_path / "digits", 5)
    answers = list(Classifier(model).classify(image_files([folder])))
    batches, call = [], PackedModel.__call__
    monkeypatch.setattr(PackedModel, "__call__", lambda self, images: batches.append(len(images)) or call(self, images))
    monkeypatch.setattr(classify, "_BATCH_PIXELS", 2 * 16 * 16 + 1)
    again = list(Classifier(model).classify(image_files([folder])))
    assert batches == [2, 2, 1]
    assert [answer.guesses[0].index for answer in again] == [answer.guesses[0].index for answer in answers]


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


def test_an_image_that_cannot_be_resized_leaves_its_batch_alone(model, tmp_path, monkeypatch):
    folder, _ = write_digits(tmp_path / "digits", 2)
    Image.new("L", (100, 1)).save(folder / "thin.png")
    Image.new("L", (9, 9)).save(folder / "unlucky.png")

    def prepare(images, preprocessing):
        if images[0].size == (9, 9):
            raise MemoryError
        return prepared(images, preprocessing)

    prepared = classify.prepare
    monkeypatch.setattr(classify, "prepare", prepare)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 1600 - 1)
    problems = [answer.problem for answer in Classifier(model).classify(image_files([folder]))]
    assert problems[:2] == [None, None]
    assert "100x1 pixels would be resized to more than the 25599" in problems[2]
    assert problems[3].endswith("unlucky.png cannot be used as an image: MemoryError.")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 1600)
    [answer] = Classifier(model).classify([folder / "thin.png"])
    assert answer.problem is None


def test_hidden_files_and_folders_are_skipped_unless_named(tmp_path):
    names = ["a.png", "sub/b.JPG", ".c.png", "sub/.hidden/d.png", ".hidden/sub/e.png", "f.gif", "g.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_files([tmp_path]) == [tmp_path / name for name in names[:2]]
    named = [tmp_path / ".hidden", tmp_path / ".c.png", tmp_path / "f.gif"]
    assert image_files(named) == [tmp_path / ".hidden/sub/e.png", *named[1:]]


def test_the_help_says_which_files_of_a_folder_are_taken(capsys):
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    shown = capsys.readouterr().out
    assert [ending for ending in IMG_EXTENSIONS if ending not in shown] == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_the_name_of_a_file_need_not_be_text(model, tmp_path, capsys):
    file = tmp_path / os.fsdecode(b"\xff.png")
    Image.new("L", (16, 16)).save(file)
    assert main(["classify", str(model), str(file)]) == 0
    assert "\\udcff.png\n" in capsys.readouterr().out


def test_a_name_that_no_file_can_have_is_of_no_file(model):
    [answer] = Classifier(model).classify(image_files(["x" * 300]))
    assert "cannot be used as an image: " in answer.problem


def test_a_runs_folder_stands_for_its_weights(model, tmp_path):
    folder, _ = write_digits(tmp_path / "digits", 3)
    answers = [list(Classifier(place).classify(image_files([folder]))) for place in (model, RUN)]
    indices = [[[guess.index for guess in answer.guesses] for answer in of_place] for of_place in answers]
    assert indices[0] == indices[1]
    with pytest.raises(BinaryViTError, match=r"no run\.json"):
        Classifier(folder)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"global_pool": ""}])
def test_a_model_without_classes_is_refused(arguments, tmp_path):
    shape = json.loads(json.dumps(PYRAMID | arguments))
    description = Description(variant="binaryvit_micro_patch2_32", model_args=shape)
    save_packed(model_of(dtype=torch.float32, **arguments), tmp_path / "model.bvit", description)
    with pytest.raises(BinaryViTError, match="gives features, not classes"):
        Classifier(tmp_path / "model.bvit")


def test_names_from_a_file_command_no_terminal_and_answer_for_no_other_image():
    guess = Guess(0, "\x1b[31mred\nother.png\n  99.00%  dog", 0.5)
    lines = Answer(Path("a\tb.png"), (guess,)).as_text().splitlines()
    assert lines == [r"a\tb.png", r"   50.00%  \x1b[31mred\nother.png\n  99.00%  dog"]


def test_outputs_that_are_not_finite_are_no_answer(model, tmp_path, capsys):
    folder, _ = write_digits(tmp_path / "digits", 2)
    broken = load_inference_weights(RUN / "weights.safetensors")
    broken.head.weight.data.fill_(3e38)
    description = read_weights_file(RUN / "weights.safetensors").description
    save_packed(broken, tmp_path / "broken.bvit", description)
    assert main(["classify", str(tmp_path / "broken.bvit"), str(folder), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["not finite" in line["problem"] for line in lines] == [True, True]


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
