"""Exports of a run: a packed file, and a folder that timm opens; nothing of a user's is replaced unasked."""

import json
import resource
import shutil
import sys

import pytest
import timm
import torch
import yaml
from helpers.places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from binaryvit.cli import main
from binaryvit.errors import BinaryViTError
from binaryvit.models.weights_file import FORMAT, load_inference_weights, read_weights_file
from binaryvit.packed.export import TIMM_FILES, export_packed, export_timm
from binaryvit.packed.file import read_packed

RUNS = ROOT / "results/smoke/runs"
RUN = RUNS / "binaryvit_micro_patch2_32-seed0"
NAMES = tuple(f"the {number}" for number in range(10))
PREPROCESSING = read_weights_file(RUN / "weights.safetensors").description.preprocessing.model_dump(mode="json")
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def rewritten(run, **description):
    """The weights in a run's folder with another description; None takes an entry out."""
    path = run / "weights.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    written = json.loads(metadata[FORMAT]) | description
    metadata[FORMAT] = json.dumps({name: value for name, value in written.items() if value is not None})
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("source", [".", "weights.safetensors"], ids=["run", "weights"])
def test_a_packed_run_gives_its_logits_and_knows_its_images(source, tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    rewritten(run, preprocessing=PREPROCESSING | {"crop_pct": 0.5})
    packed = read_packed(export_packed(run / source, tmp_path / "new" / "model.bvit"))
    with torch.no_grad():
        assert torch.equal(packed.model()(IMAGES), load_inference_weights(RUN / "weights.safetensors")(IMAGES))
    prepared = packed.description.preprocessing
    assert (prepared.input_size, prepared.crop_pct, prepared.interpolation) == ((3, 16, 16), 0.5, "bicubic")


def test_what_a_file_of_version_1_does_not_say_comes_from_its_run_and_a_file_of_names(tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    rewritten(run, version=1, class_names=None, preprocessing=None, packed=None)
    record = json.loads((run / "run.json").read_text())
    record["config"]["eval_crop"] = 0.5
    (run / "run.json").write_text(json.dumps(record))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    packed = read_packed(export_packed(run, tmp_path / "model.bvit", class_names=tmp_path / "names.txt"))
    with torch.no_grad():
        assert torch.equal(packed.model()(IMAGES), load_inference_weights(run / "weights.safetensors")(IMAGES))
    assert packed.description.class_names == NAMES and packed.description.preprocessing.crop_pct == 0.5


def test_class_names_from_a_file_replace_those_of_the_weights(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    exported = export_packed(RUN, tmp_path / "model.bvit", class_names=tmp_path / "names.txt")
    assert read_packed(exported).description.class_names == NAMES
    (tmp_path / "names.txt").write_text("only one\n")
    with pytest.raises(BinaryViTError, match="names 1 classes, and the model distinguishes 10"):
        export_packed(RUN, tmp_path / "other.bvit", class_names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    "run", ["binaryvit_micro_patch2_32", "binaryvit_micro_patch2_32_some_fp", "deit_micro_patch4_32"]
)
def test_timm_opens_the_folder_and_gives_the_runs_logits(run, tmp_path):
    folder = export_timm(RUNS / f"{run}-seed0", tmp_path / "model")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        stored = load_inference_weights(RUNS / f"{run}-seed0" / "weights.safetensors")
        assert torch.equal(model(IMAGES), stored(IMAGES))
    settings = timm.data.resolve_data_config(model=model)
    assert (tuple(settings["input_size"]), settings["crop_pct"]) == ((3, 16, 16), 1.0)


def test_the_model_card_has_the_runs_numbers(tmp_path):
    card = (export_timm(RUN, tmp_path / "model") / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    record = json.loads((RUN / "run.json").read_text())
    [result] = yaml.safe_load(metadata)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(record["weights"]["top1"], abs=1e-4)
    assert result["dataset"]["name"] == "digits"
    assert f"{record['weights']['top1']:.2f}% of 360 images" in text
    assert record["git"]["commit"] in text and "learning_rate: 0.002" in text


@pytest.mark.parametrize("form", ["packed", "timm"])
def test_a_users_file_is_left_alone_unless_told(form, tmp_path, capsys):
    target = tmp_path / "target"
    existing = target / "README.md" if form == "timm" else target
    existing.parent.mkdir(exist_ok=True)
    existing.write_text("mine")
    command = ["export", str(RUN), str(target), "--format", form]
    assert main(command) == 2
    assert "left as it is" in capsys.readouterr().err
    assert existing.read_text() == "mine" and [path for path in tmp_path.rglob("*") if path.is_file()] == [existing]
    assert main([*command, "--overwrite"]) == 0
    assert existing.read_bytes() != b"mine"
    if form == "timm":
        assert {path.name for path in target.iterdir()} == set(TIMM_FILES)


@pytest.mark.parametrize("form", ["packed", "timm"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("text.txt/target", "a part of its path is a file"),
        pytest.param(
            "/proc/target", "cannot be written (", marks=pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
        ),
        ("x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_a_place_that_cannot_be_written_gets_a_sentence(form, place, reason, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("mine")
    assert main(["export", str(RUN), str(tmp_path / place), "--format", form]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["text.txt"]


@pytest.mark.parametrize("form", ["packed", "timm"])
def test_a_full_disk_gets_a_sentence_and_leaves_no_half_of_a_file(form, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main(["export", str(RUN), str(tmp_path / "target"), "--format", form]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "cannot be written (" in said and "File too large" in said and "free space" in said
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= ({"config.json"} if form == "timm" else set())


def test_a_folder_is_no_file_to_overwrite(tmp_path, capsys):
    assert main(["export", str(RUN), str(tmp_path), "--overwrite"]) == 2
    assert f"{tmp_path} is a folder" in capsys.readouterr().err


def test_what_is_exported_is_never_replaced(tmp_path, capsys):
    run = shutil.copytree(RUN, tmp_path / "run")
    weights, link = run / "weights.safetensors", tmp_path / "link"
    link.symlink_to(weights)
    for source, target in [(run, weights), (weights, run / ".." / "run" / weights.name), (link, weights)]:
        assert main(["export", str(source), str(target), "--overwrite"]) == 2
        assert "is what is exported" in capsys.readouterr().err
    assert weights.read_bytes() == (RUN / weights.name).read_bytes()


@pytest.mark.parametrize("form", ["packed", "timm"])
def test_a_link_to_nothing_is_a_users_too(form, tmp_path, capsys):
    target = tmp_path / "target"
    link = target / "README.md" if form == "timm" else target
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("not yet there")
    assert main(["export", str(RUN), str(target), "--format", form]) == 2
    assert "left as it is" in capsys.readouterr().err and link.is_symlink()


@pytest.mark.parametrize(
    ("run", "form", "match"),
    [
        ("deit_micro_patch4_32-seed0", "packed", "Only a vision transformer with binary layers"),
        ("../../cifar10/runs/binaryvit_w32a32-seed0", "packed", "32-bit"),
        ("no_such_run", "packed", "There is no file"),
        ("", "packed", "no run.json"),
        ("binaryvit_micro_patch2_32-seed0/weights.safetensors", "timm", None),
    ],
)
def test_what_cannot_be_exported_gets_a_sentence(run, form, match, tmp_path, capsys):
    shutil.copytree(RUNS / "binaryvit_micro_patch2_32-seed0", tmp_path / "a run")
    (tmp_path / "a run" / "run.json").unlink()
    source = RUNS / run if match else tmp_path / "a run" / "weights.safetensors"
    assert main(["export", str(source), str(tmp_path / "target"), "--format", form]) == 2
    error = capsys.readouterr().err
    assert (match or "is not the folder of a finished run") in error and not (tmp_path / "target").exists()
