"""The notebooks, executed by papermill as a user does, and the content of what comes out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import timm
from helpers.executed_notebooks import execute, kernels_of_this_checkout, outputs, printed
from helpers.ladder_study import finish, write_study
from helpers.places import ROOT
from helpers.stored_study import stored_study
from nbclient import NotebookClient

from binaryvit.analysis import figure_files, notebook
from binaryvit.analysis.attention import measure as attention
from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.stored import OpenStudy, open_study
from binaryvit.config import RECIPES, TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER
from binaryvit.models.weights_file import load_inference_weights, save_inference_weights
from binaryvit.records.run_record import read_metrics, read_record
from binaryvit.training.teacher import key_of

NOTEBOOKS = ROOT / "notebooks"
TRAIN, TABLES, ATTENTION = (NOTEBOOKS / f"{name}.ipynb" for name in ("train", "tables", "attention"))
TEACHER, PYRAMID = "deit_micro_patch4_32", "binaryvit_micro_patch2_32"

# Seconds instead of minutes: few images, and models a few channels wide.
FEW = {"max_train_images": 64, "max_eval_images": 40, "warmup_epochs": 0}
TINY_TEACHER = FEW | {"model_args": {"embed_dim": 24, "depth": 1}, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
TINY_PYRAMID = FEW | {"model_args": {"embed_dims": [8, 16, 32]}}


@pytest.fixture(autouse=True)
def kernels(tmp_path, monkeypatch):
    """Kernels start in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with kernels_of_this_checkout():
        yield


def test_notebooks_are_stored_without_outputs_and_with_parameters():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        document = nbformat.read(path, as_version=4)
        nbformat.validate(document)
        code = [cell for cell in document.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code), path.name
        assert next(cell.metadata.get("tags") for cell in code) == ["parameters"], path.name
        assert document.cells[0].source.startswith("# "), path.name
        assert "papermill" not in document.metadata, path.name


def test_notebooks_that_draw_numbers_by_chance_seed_them():
    """Otherwise a second execution shows other tables."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        code = path.read_text(encoding="utf-8")
        assert "torch.rand" not in code or "torch.manual_seed" in code, path.name


@pytest.mark.parametrize("folder", [ROOT, NOTEBOOKS])
def test_default_studies_are_found_from_the_repository_and_from_its_notebooks(folder, monkeypatch):
    monkeypatch.chdir(folder)
    defaults = [papermill.inspect_notebook(str(path)).get("study") for path in NOTEBOOKS.glob("*.ipynb")]
    studies = {default["default"] for default in defaults if default} - {'""'}
    assert studies == {'"results/smoke"', '"results/cifar10"'}
    for study in studies:
        assert open_study(study.strip('"')).study.output.resolve() == ROOT / study.strip('"')


def test_a_text_is_no_answer_to_whether_to_write():
    with pytest.raises(BinaryViTError, match="write is 'false', which is neither True nor False"):
        notebook.open_study("results/smoke", write="false")


def test_papermill_knows_every_parameter_and_its_help():
    parameters = papermill.inspect_notebook(str(TRAIN))
    assert {"variant", "data", "epochs", "seed", "batch_size", "teacher", "output", "settings"} <= set(parameters)
    assert set(parameters) <= {*TrainingConfig.model_fields, "settings", "output", "study", "run_id"}
    assert (parameters["epochs"]["inferred_type_name"], parameters["data_dir"]["inferred_type_name"]) == ("int", "str")


@pytest.mark.slow
def test_teacher_then_student_then_nothing_twice(tmp_path):
    execute(TRAIN, variant=TEACHER, epochs=1, batch_size=32, settings=TINY_TEACHER, output="teacher")
    teacher = read_record("teacher")
    assert teacher.config["weight_decay"] == RECIPES["teacher"]["weight_decay"]
    assert (teacher.id, teacher.result.epochs, teacher.data.train_images) == ("teacher", 1, 64)

    # As typed in a shell: papermill gives the numbers their types.
    command = [sys.executable, "-m", "papermill", str(TRAIN), "out.ipynb", "--kernel", "python3"]
    for name, value in {"variant": PYRAMID, "epochs": 2, "batch_size": 32, "teacher": "teacher"}.items():
        command += ["-p", name, str(value)]
    command += ["-p", "learning_rate", "1e-3", "-p", "output", "student"]
    command += ["-y", json.dumps({"settings": TINY_PYRAMID}), "--no-progress-bar"]
    subprocess.run(command, check=True, capture_output=True)

    record, metrics = read_record("student"), read_metrics("student")
    config = TrainingConfig(
        variant=PYRAMID, epochs=2, batch_size=32, teacher="teacher", learning_rate=1e-3, **TINY_PYRAMID
    )
    assert record.key.config == key_of(config)
    assert len(metrics) == 2 and metrics["top1"].iloc[-1] == record.result.top1
    assert load_inference_weights("student/weights.safetensors").num_classes == 10

    executed = nbformat.read("out.ipynb", as_version=4)
    tables = "".join(outputs(executed, "text/html"))
    assert "student recipe" in tables and "stages.0.blocks.0" in tables
    assert f"{record.result.top1:.2f}%" in tables and record.key.config in tables
    (finding,) = (text for text in outputs(executed, "text/markdown") if text.startswith("After 2 epochs"))
    assert f"{record.result.top1:.2f}% of the 40 evaluation images of digits" in finding
    assert len(outputs(executed, "image/png")) == 1
    assert "epoch 2/2" in printed(executed)

    before = {path.name: path.stat().st_mtime_ns for path in Path("student").iterdir()}
    again = execute(
        TRAIN, variant=PYRAMID, epochs=2, batch_size=32, teacher="teacher", learning_rate=1e-3, settings=TINY_PYRAMID,
        output="student",
    )  # fmt: skip
    assert {path.name: path.stat().st_mtime_ns for path in Path("student").iterdir()} == before
    assert "student holds a finished run: nothing is trained" in printed(again)
    assert outputs(again, "text/markdown") == outputs(executed, "text/markdown")
    assert outputs(again, "image/png") == outputs(executed, "image/png")

    with pytest.raises(papermill.PapermillExecutionError, match="holds a finished run that differs"):
        execute(TRAIN, variant=PYRAMID, epochs=3, batch_size=32, settings=TINY_PYRAMID, output="student")
    assert {path.name: path.stat().st_mtime_ns for path in Path("student").iterdir()} == before


@pytest.mark.slow
def test_an_unknown_parameter_ends_the_notebook_before_anything_is_written(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute(TRAIN, epoch=3)
    assert caught.value.ename == BinaryViTError.__name__
    assert caught.value.evalue == "The notebook has no parameter 'epoch': did you mean 'epochs'?"
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.slow
def test_running_all_cells_as_in_jupyterlab_trains_on_the_digits(tmp_path):
    document = nbformat.read(TRAIN, as_version=4)
    (parameters,) = (cell for cell in document.cells if "parameters" in cell.metadata.get("tags", []))
    assert "epochs: int = 4" in parameters.source
    parameters.source = parameters.source.replace("epochs: int = 4", "epochs: int = 1")  # changed by hand, as one would
    NotebookClient(document, timeout=None, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    (run_json,) = tmp_path.glob("runs/*/run.json")
    record = read_record(run_json.parent)
    assert record.config["variant"] == PYRAMID and record.data.eval_images == 360 and record.result.epochs == 1
    assert record.result.top1 > 20  # chance is 10


def finished_study(folder):
    """A study of the micro ladder with hand-made records, but for its last variant."""
    folder.mkdir()
    study = write_study(folder)
    finish(study, skip=LADDER["micro"][6:])
    return study


def contents(folder):
    return {path.name: path.read_bytes() for part in ("tables", "figures") for path in (folder / part).iterdir()}


@pytest.mark.slow
def test_tables_show_and_store_the_studys_numbers(tmp_path):
    study = finished_study(tmp_path / "tiny")
    looked = execute(TABLES, study="tiny")
    assert not (study.output / "tables").exists() and not (study.output / "figures").exists(), "nothing is asked for"
    executed = execute(TABLES, study="tiny", write=True)
    assert [cell.get("outputs") for cell in looked.cells][3:] == [cell.get("outputs") for cell in executed.cells][3:]
    shown = "".join(outputs(executed, "text/html"))
    for text in (
        "52.25",
        "+8.75 (+5.97 to +11.53)",
        "not run",
        "67.7",
        "not available",
        "second-hand",
        study.runs[5].id,
    ):
        assert f">{text}<" in shown, text
    findings = " ".join(outputs(executed, "text/markdown"))
    assert "gains most is BinaryViT (+ pyramid), by +8.75" in findings
    assert "not of the published figures' scale" in findings
    assert "Of 6 models" in findings
    assert len(outputs(executed, "image/png")) == 1

    stored = contents(tmp_path / "tiny")
    names = {f"{name}{end}" for name in ("ablation", "comparison") for end in (".csv", ".md", ".tex", ".sources.csv")}
    names |= {"ablation.json", "comparison.json"}
    assert set(stored) == names | {f"accuracy_against_operations.{end}" for end in ("pdf", "png", "json")}
    ablation = pd.read_csv(tmp_path / "tiny" / "tables" / "ablation.csv")
    assert ablation["top1"].tolist()[:6] == [79.0, 46.0, 49.0, 52.5, 52.25, 61.0] and pd.isna(ablation["top1"].iloc[6])
    picture = tmp_path / "tiny" / "figures" / "accuracy_against_operations.png"
    assert set(figure_files.read_provenance(picture)["runs"]) == {run.id for run in study.runs[:6]}

    again = execute(TABLES, "again.ipynb", study="tiny/study.yaml", write=True)
    assert contents(tmp_path / "tiny") == stored
    assert [cell.get("outputs") for cell in again.cells] == [cell.get("outputs") for cell in executed.cells]


@pytest.mark.slow
def test_tables_of_a_study_that_was_not_run(tmp_path):
    study = finished_study(tmp_path / "tiny")
    shutil.rmtree(study.output / "runs")
    executed = execute(TABLES, study="tiny")
    assert "Nothing to draw" in printed(executed)
    assert "Nothing can be said yet" in " ".join(outputs(executed, "text/markdown"))
    assert not outputs(executed, "image/png") and not (tmp_path / "tiny" / "figures").exists()


def test_parameters_left_out_are_the_recipes():
    nothing = {"data": "zh-plus/tiny-imagenet", "epochs": None, "batch_size": None}
    student, teacher = (notebook.configure(None, variant=name, **nothing) for name in (PYRAMID, TEACHER))
    assert student == TrainingConfig.for_student(variant=PYRAMID, data=nothing["data"])
    assert teacher == TrainingConfig.for_teacher(variant=TEACHER, data=nothing["data"])


def test_the_digits_get_settings_that_suit_them_unless_some_are_given():
    quick = notebook.configure(None, variant=PYRAMID, data="digits", batch_size=32)
    assert (quick.batch_size, quick.horizontal_flip) == (32, 0.0)
    assert notebook.configure({}, variant=PYRAMID, data="digits") == TrainingConfig(variant=PYRAMID)
    assert notebook.configure(None, variant=TEACHER, data="digits", epochs=2).mixup_alpha == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 3}, "Given twice.*epochs"),
        ([1], "must be a mapping"),
        ({"sead": 3}, "did you mean 'seed'"),
        ({"seed": "many"}, "seed='many' is refused"),
        ({"variant": PYRAMID}, "Given twice.*variant"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        notebook.configure(settings, variant=PYRAMID, epochs=2)


def test_an_unknown_variant_is_refused_with_the_name_meant():
    with pytest.raises(BinaryViTError, match=f"did you mean '{PYRAMID}'"):
        notebook.configure(None, variant="binaryvit_mikro_patch2_32")


def test_runs_without_a_folder_do_not_share_one():
    one, two = (notebook.configure(None, variant=PYRAMID, data="uoft-cs/cifar10", epochs=n) for n in (1, 2))
    assert notebook.run_folder(one) != notebook.run_folder(two)
    assert notebook.run_folder(one).parent == Path("runs")
    assert notebook.run_folder(one).name.startswith(f"{PYRAMID}-cifar10-seed0-")


@pytest.mark.slow
def test_the_attention_notebook_shows_and_writes_what_the_library_makes(tmp_path):
    study = stored_study(tmp_path / "small")
    model = timm.create_model("deit_micro_patch4_32", img_size=16, embed_dim=24, depth=1)
    save_inference_weights(
        model, "other.safetensors", "deit_micro_patch4_32", {"img_size": 16, "embed_dim": 24, "depth": 1}
    )
    folder = study.runs[2].folder.relative_to(tmp_path)
    looked = execute(ATTENTION, runs=f"[{folder}]", images=10, examples=1)  # as `-p runs [small/runs/...]` gives it
    assert len(outputs(looked, "image/png")) == 4
    assert {path.name for path in study.output.iterdir()} == {"runs", "study.yaml"}, "looking replaces nothing"
    executed = execute(ATTENTION, study="small", images=20, checkpoint="other.safetensors", write=True)
    with stored_ones_only():
        made = attention.drawings(OpenStudy(study), images=20)
    texts = outputs(executed, "text/markdown")
    assert texts[:-1] == [drawing.finding for drawing in made] and texts[-1].startswith("The highest probability is")
    assert len(outputs(executed, "image/png")) == len(made) + 1
    for drawing in made:
        assert all((study.output / "figures" / name).is_file() for name in drawing.file_names)
