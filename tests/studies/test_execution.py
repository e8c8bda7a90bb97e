"""Notebooks execute in this interpreter through papermill, fail with a sentence, and are stored without paths."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from helpers.places import ROOT

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.studies import execution
from binaryvit.studies.execution import ExecutionFailed, Executor, process_environment
from binaryvit.studies.notebooks import check_parameters, find_notebook, training_parameters
from binaryvit.studies.processes import Job, Processes
from binaryvit.training.recipes import configure

TRAIN = ROOT / "notebooks" / "train.ipynb"


def write_notebook(path, code, parameters="word: str = 'default'"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "somebodys-kernel", "display_name": "x", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def run(tmp_path):
    """Executes code as a notebook in results/, with the notebook in a folder next to it."""
    folder = tmp_path / "results"
    folder.mkdir()

    def run(code, names=None):
        notebook = write_notebook(tmp_path / "notebooks" / "n.ipynb", code)
        executor = Executor(folder, names or {}, Processes())
        with process_environment() as environment, hold(folder / "n.lock") as lock:
            job = Job(environment, lock, print)
            executor.execute(notebook, folder / "runs" / "a" / "n.ipynb", {"word": "given"}, job)
        return (folder / "runs" / "a" / "n.ipynb").read_text()

    return run


@pytest.mark.slow
def test_the_kernel_is_this_interpreter_and_nothing_stored_says_where(run, tmp_path, monkeypatch, capfd):
    decoy = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    decoy.parent.mkdir(parents=True)
    decoy.write_text(json.dumps({"argv": ["false"], "display_name": "decoy", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    code = """
import importlib.util, json, os, pathlib, sys
facts = [sys.executable, os.getcwd(), importlib.util.find_spec("binaryvit").origin, word]
pathlib.Path("facts.json").write_text(json.dumps(facts))
print(*facts, "../elsewhere/photos", "for the reader", sep="\\n")
"""
    stored = run(code, names={"../elsewhere/photos": "photos"})
    facts = json.loads((tmp_path / "results" / "facts.json").read_text())
    library = ROOT / "binaryvit" / "__init__.py"
    assert facts == [sys.executable, str(tmp_path / "results"), str(library), "given"]
    assert "for the reader" in capfd.readouterr().out, "what a notebook prints is seen while it runs"
    output = "".join(json.loads(stored)["cells"][-1]["outputs"][0]["text"])
    assert output.split("\n")[1:] == [".", "./binaryvit/__init__.py", "given", "photos", "for the reader", ""]
    for place in (tmp_path, sys.prefix, library.parent, Path.home()):
        assert str(place) not in stored
    assert "start_time" not in stored and "duration" not in stored
    assert [cell["id"] for cell in json.loads(stored)["cells"]][1] == "injected-parameters", "papermill's is random"


@pytest.mark.slow
def test_an_error_is_its_sentence_and_what_was_executed_is_kept(run, tmp_path):
    with pytest.raises(ExecutionFailed, match=r"^This is for the reader: 7\.$"):
        run(
            "print('before')\nclass BinaryViTError(Exception): pass\nraise BinaryViTError('This is for the reader: 7.')"
        )
    folder = tmp_path / "results" / "runs" / "a"
    assert [path.name for path in folder.iterdir()] == ["n.failed.ipynb"]
    assert "before" in (folder / "n.failed.ipynb").read_text()
    run("pass")
    assert [path.name for path in folder.iterdir()] == ["n.ipynb"]


@pytest.mark.slow
def test_a_kernel_that_dies_is_said_to_have_died(run):
    with pytest.raises(
        ExecutionFailed, match="Python process died without an error, most likely because memory ran out"
    ):
        run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")


@pytest.fixture
def dying_kernels(tmp_path, monkeypatch):
    """Lets the first kernels die as they start, so many as are asked for; returns how many have started."""
    (tmp_path / "first").mkdir()
    code = """
import os, pathlib, sys
starts = pathlib.Path(__file__).with_name("starts")
if "ipykernel_launcher" in sys.orig_argv:
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    if len(starts.read_text()) <= int(os.environ["DYING_KERNELS"]):
        os._exit(1)
"""
    (tmp_path / "first" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))

    def die(times):
        monkeypatch.setenv("DYING_KERNELS", str(times))
        return lambda: len((tmp_path / "first" / "starts").read_text())

    return die


@pytest.mark.slow
def test_a_kernel_that_dies_before_the_first_cell_is_started_again(run, dying_kernels):
    started = dying_kernels(1)
    assert "ran after all" in run("print('ran', 'after', 'all')")
    assert started() == 2


@pytest.mark.slow
def test_a_kernel_that_never_starts_is_given_up(run, dying_kernels):
    started = dying_kernels(99)
    with pytest.raises(ExecutionFailed, match="Python process died without an error"):
        run("pass")
    assert started() == 3


def test_a_notebook_that_is_none_is_refused(tmp_path):
    notebook = tmp_path / "notebooks" / "n.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{")
    with pytest.raises(BinaryViTError, match="not a readable notebook"):
        check_parameters(notebook, {})


def test_unknown_parameters_are_refused_before_a_kernel_starts(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", "", parameters="epochs: int = 3\nvariant = 'x'")
    check_parameters(notebook, {"epochs": 1})
    with pytest.raises(BinaryViTError, match=r"n\.ipynb has no parameter 'epoch': did you mean 'epochs'\?"):
        check_parameters(notebook, {"epoch": 1})


def test_notebooks_are_found_above_the_study(tmp_path):
    notebook = write_notebook(tmp_path / "notebooks" / "n.ipynb", "")
    (tmp_path / "results" / "tiny").mkdir(parents=True)
    assert find_notebook("n.ipynb", tmp_path / "results" / "tiny") == notebook
    with pytest.raises(BinaryViTError, match=r"no notebooks/other\.ipynb"):
        find_notebook("other.ipynb", tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig.for_student(
            variant="binaryvit_micro_patch2_32", epochs=3, teacher="runs/t", crop_scale=[0.5, 1.0]
        ),
        TrainingConfig.for_teacher(
            variant="deit_micro_patch4_32", auto_augment=None, color_jitter=None, mixup_alpha=0.0
        ),
        TrainingConfig.for_student(variant="deit_micro_patch4_32", warmup_epochs=0, model_args={"qkv_bias": False}),
        TrainingConfig.for_teacher(variant="binaryvit_micro_patch2_32", precision="bf16", max_train_images=10, seed=3),
    ],
)
def test_the_training_notebook_gets_exactly_the_configuration(config):
    parameters = training_parameters(TRAIN, config, output="runs/a", study="s", run_id="a")
    assert json.loads(json.dumps(parameters)) == parameters
    names = {name: parameters.pop(name) for name in ("output", "study", "run_id")}
    assert names == {"output": "runs/a", "study": "s", "run_id": "a"}
    assert configure(parameters.pop("settings"), **parameters) == config


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("print('binaryvit: It is for the reader.'); raise SystemExit(1)", "^It is for the reader\\.$"),
        ("raise ValueError('an unforeseen one')", "ended with an error: ValueError: an unforeseen one$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "most likely because memory ran out"),
    ],
)
def test_a_training_that_fails_says_why(code, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_PYTHON", (sys.executable, "-u", "-c"))
    monkeypatch.setattr(execution, "train_command", lambda *_: nullcontext([code]))
    executor = Executor(tmp_path, {}, Processes())
    with hold(tmp_path / "run.lock") as lock, pytest.raises(ExecutionFailed, match=sentence):
        executor.train(None, Job(dict(os.environ), lock, print), output="out", study="", run_id="")
