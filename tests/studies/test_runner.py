"""What is missing is trained, once; what is finished is left alone; nothing is lost. Training is replaced here."""

import shutil
import threading
import time
from pathlib import Path

import nbformat
import pytest
from helpers.places import ROOT
from helpers.records import FINGERPRINT, record_of
from helpers.run_ids import BASELINE, PYRAMID, TEACHER

from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.records.run_record import read_record
from binaryvit.studies import runner, workshop
from binaryvit.studies.durations import estimate
from binaryvit.studies.execution import ExecutionFailed, Executor
from binaryvit.studies.processes import shares
from binaryvit.studies.rehearsal import rehearse
from binaryvit.studies.study import load_study
from binaryvit.studies.workshop import Workshop

NOTEBOOKS = ROOT / "notebooks"
TINY = """
name: tiny
title: A tiny study
data: someone/photos
recipe: {epochs: 2}
teacher: {variant: deit_micro_patch4_32, recipe: {epochs: 6}}
variants: [reactdeit_micro_patch4_32, binaryvit_micro_patch2_32]
analysis: []
"""


class World:
    """A study in a folder, and stand-ins for the data and for papermill that write down what was asked of them."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.file = folder, folder / "study.yaml"
        (folder / "notebooks").mkdir()
        shutil.copy(NOTEBOOKS / "train.ipynb", folder / "notebooks")
        self.file.write_text(TINY)
        self.executed, self.said, self.loaded, self.hooks, self.given = [], [], [], {}, None
        monkeypatch.setattr(Executor, "execute", lambda *args: self._execute(*args))
        monkeypatch.setattr(Executor, "train", lambda *args, **names: self._train(*args, **names))
        monkeypatch.setattr(runner, "load_data", self._load_data)
        monkeypatch.setattr(Workshop, "poll_seconds", 0.01)

    def study(self, **options):
        return load_study(self.file, **options)

    def edit(self, old, new):
        self.file.write_text(self.file.read_text().replace(old, new))

    def add_analysis(self, parameters):
        """Gives the study an analysis notebook tables.ipynb that has these parameters."""
        self.edit("analysis: []", "analysis: [tables.ipynb]")
        cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.folder / "notebooks" / "tables.ipynb")

    def reproduce(self, *, output=None, **options):
        self.executed.clear()
        self.said.clear()
        return runner.reproduce(self.study(output=output), say=self.said.append, **options)

    def _load_data(self, config):
        self.loaded.append(config)
        return type("Data", (), {"fingerprint": FINGERPRINT})

    def _execute(self, executor, notebook, output, parameters, job):
        if notebook.name != "train.ipynb":
            self.given = parameters, executor.names
            self._begin(notebook.name)
            return
        run = self._finish(executor, parameters["run_id"], parameters["output"])
        assert output == run.folder / "train.ipynb"
        output.write_text("{}")

    def _train(self, executor, config, job, *, output, study, run_id):
        assert config == self._finish(executor, run_id, output).config and study == "tiny"

    def _finish(self, executor, run_id, output):
        study = self.study(output=executor.folder)
        run = next(run for run in study.runs if run.id == run_id)
        assert Path(output) == run.folder.relative_to(executor.folder)
        self._begin(run.id)
        record_of(study, run).write(run.folder)
        return run

    def _begin(self, name):
        self.executed.append(name)
        if name in self.hooks:
            self.hooks[name]()


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def fail(sentence="The loss is not finite."):
    def hook():
        raise ExecutionFailed(sentence)

    return hook


def states(outcome):
    return [str(run.state) for run in outcome.runs]


def test_everything_missing_is_trained_teacher_first_and_never_again(world):
    outcome = world.reproduce()
    assert world.executed == [TEACHER, BASELINE, PYRAMID] and outcome.complete and len(world.loaded) == 1
    again = world.reproduce()
    assert world.executed == [] and again.complete
    assert len(world.loaded) == 1, "a finished study must not need the data"
    assert not list(world.folder.glob("runs/*.lock"))


def test_data_are_checked_on_request_also_where_nothing_is_trained(world, monkeypatch):
    world.reproduce()
    assert world.reproduce(check_data=True).complete and len(world.loaded) == 2
    other = type("Data", (), {"fingerprint": "0" * 64})
    monkeypatch.setattr(runner, "load_data", lambda _: other)
    assert states(world.reproduce()) == ["done"] * 3
    assert states(world.reproduce(check_data=True)) == ["stale"] * 3


def test_only_takes_the_teacher_along_and_refuses_unknown_ids(world):
    assert world.reproduce(only=[PYRAMID]).complete
    assert world.executed == [TEACHER, PYRAMID]
    with pytest.raises(BinaryViTError, match=f"did you mean '{BASELINE}'"):
        world.reproduce(only=[BASELINE[:-1] + "1"])


def test_a_failed_run_is_reported_the_rest_goes_on_and_it_is_tried_again_next_time(world):
    world.hooks[BASELINE] = fail()
    outcome = world.reproduce()
    assert states(outcome) == ["done", "failed", "done"] and not outcome.complete
    assert f"{BASELINE}: FAILED: The loss is not finite." in world.said
    assert world.study().runs[1].folder.joinpath("failure.json").exists()
    del world.hooks[BASELINE]
    assert world.reproduce().complete and world.executed == [BASELINE]


def test_students_of_a_failed_teacher_are_blocked(world):
    world.hooks[TEACHER] = fail()
    outcome = world.reproduce()
    assert states(outcome) == ["failed", "missing", "missing"] and world.executed == [TEACHER]
    assert outcome.runs[1].reason == f"blocked: its teacher {TEACHER} is failed"


def test_a_stale_run_is_neither_used_nor_retrained_until_told(world):
    world.reproduce()
    world.edit("recipe: {epochs: 2}", "recipe: {epochs: 3}")
    outcome = world.reproduce()
    assert world.executed == [] and states(outcome) == ["done", "stale", "stale"] and not outcome.complete
    assert any(line.startswith(f"{BASELINE}: STALE") and "epochs was 2 and is 3" in line for line in world.said)

    (world.folder / "runs" / BASELINE / "train.ipynb").write_text("precious")
    assert world.reproduce(rerun_stale=True).complete and world.executed == [BASELINE, PYRAMID]
    kept = next((world.folder / "runs").glob(f"{BASELINE}.stale-*"))
    assert read_record(kept).config["epochs"] == 2 and (kept / "train.ipynb").read_text() == "precious"
    assert read_record(world.folder / "runs" / BASELINE).config["epochs"] == 3


def test_a_stale_teacher_blocks_new_students_and_is_followed_by_its_students_when_retrained(world):
    world.reproduce(only=[BASELINE])
    world.edit("epochs: 6", "epochs: 7")
    outcome = world.reproduce()
    assert world.executed == [] and states(outcome) == ["stale", "stale", "missing"]
    assert "is stale" in outcome.runs[2].reason
    assert world.reproduce(rerun_stale=True).complete and world.executed == [TEACHER, BASELINE, PYRAMID]


def test_a_run_whose_teacher_from_outside_cannot_be_read_now_is_kept(world):
    """As where the disk it lies on is not mounted: training again would fail, too."""
    elsewhere = world.folder / "best.safetensors"
    elsewhere.write_bytes(b"weights")
    world.edit("teacher: {variant: deit_micro_patch4_32, recipe: {epochs: 6}}\n", "")
    world.edit("recipe: {epochs: 2}", "recipe: {epochs: 2, teacher: best.safetensors}")
    assert world.reproduce().complete
    elsewhere.unlink()
    outcome = world.reproduce(rerun_stale=True)
    assert states(outcome) == ["stale", "stale"] and "cannot be read" in outcome.runs[0].reason
    assert not world.executed and not list((world.folder / "runs").glob("*.stale-*"))
    world.edit("epochs: 2", "epochs: 3")
    reason = world.reproduce(rerun_stale=True).runs[0].reason
    assert "epochs was 2 and is 3; it can't be trained again now: " in reason and "cannot be read" in reason
    world.edit("epochs: 3", "epochs: 2")
    elsewhere.write_bytes(b"weights")
    assert world.reproduce().complete and not world.executed


def test_a_notebook_that_fails_after_its_training_leaves_a_finished_run(world, monkeypatch):
    trained = Executor.execute

    def fails_at_its_end(*arguments):
        trained(*arguments)
        raise ExecutionFailed("The last cell cannot draw.")

    monkeypatch.setattr(Executor, "execute", fails_at_its_end)
    outcome = world.reproduce()
    assert outcome.complete and world.executed == [TEACHER, BASELINE, PYRAMID], "its students are not blocked"
    assert not list((world.folder / "runs").glob("*/failure.json"))
    said = [line for line in world.said if line.startswith(f"{TEACHER}: done")]
    assert len(said) == 1 and said[0].endswith("but its notebook failed: The last cell cannot draw.")


def test_runs_that_are_left_alone_take_no_share_of_the_machine(world, monkeypatch):
    world.reproduce(only=[BASELINE])
    world.edit("recipe: {epochs: 2}", "recipe: {epochs: 3}")
    asked = []
    monkeypatch.setattr(workshop, "shares", lambda number, gpus: asked.append(number) or shares(number, gpus))
    world.reproduce(only=[BASELINE, PYRAMID], jobs=2)
    assert asked[0] == 1, "the stale one stays, so one trains"
    world.edit("recipe: {epochs: 3}", "recipe: {epochs: 4}")
    asked.clear()
    world.reproduce(only=[BASELINE, PYRAMID], jobs=2, rerun_stale=True)
    assert asked[0] == 2


def test_a_run_that_does_not_come_out_as_planned_is_a_failure(world, monkeypatch):
    monkeypatch.setattr(Executor, "execute", lambda *_: None)
    outcome = world.reproduce(only=[TEACHER])
    assert states(outcome) == ["failed"] and "ended, but the run is missing" in outcome.runs[0].reason


def test_an_interruption_ends_at_once_leaves_no_failure_and_goes_on(world):
    def interrupt():
        raise KeyboardInterrupt

    world.hooks[BASELINE] = interrupt
    with pytest.raises(KeyboardInterrupt):
        world.reproduce()
    assert world.executed == [TEACHER, BASELINE]
    assert not list(world.folder.glob("runs/*/failure.json")) and not list(world.folder.glob("runs/*.lock"))
    del world.hooks[BASELINE]
    assert world.reproduce().complete and world.executed == [BASELINE, PYRAMID]


def test_two_jobs_train_two_students_at_the_same_time_after_their_teacher(world):
    both = threading.Barrier(2, timeout=30)
    world.hooks[BASELINE] = world.hooks[PYRAMID] = both.wait
    assert world.reproduce(jobs=2).complete
    assert world.executed[0] == TEACHER and sorted(world.executed[1:]) == sorted([BASELINE, PYRAMID])


def test_a_student_and_one_of_the_labels_train_at_the_same_time_once_there_is_a_teacher(world):
    world.edit(f"{PYRAMID[:-6]}]", f"{{variant: {PYRAMID[:-6]}, teacher: none}}]")
    assert not world.reproduce(only=[TEACHER]).failed_analysis
    both = threading.Barrier(2, timeout=30)
    world.hooks[BASELINE] = world.hooks[PYRAMID] = both.wait
    assert world.reproduce(jobs=2).complete and sorted(world.executed) == sorted([BASELINE, PYRAMID])


def test_a_student_of_the_labels_does_not_wait_for_a_teacher(world):
    world.edit(f"{PYRAMID[:-6]}]", f"{{variant: {PYRAMID[:-6]}, teacher: none}}]")
    both = threading.Barrier(2, timeout=30)
    world.hooks[TEACHER] = world.hooks[PYRAMID] = both.wait
    assert world.reproduce(jobs=2).complete and world.executed[-1] == BASELINE


def test_an_interruption_of_one_job_lets_no_other_start(world):
    def interrupt():
        raise KeyboardInterrupt

    name = BASELINE.removesuffix("-seed0")
    world.edit(f"[{name},", f"[{name}, {{variant: {name}, id: third}}, {{variant: {name}, id: z}},")
    both = threading.Barrier(2, timeout=30)
    world.hooks[BASELINE] = lambda: (both.wait(), interrupt())
    world.hooks["third-seed0"] = lambda: (both.wait(), time.sleep(0.5))
    with pytest.raises(KeyboardInterrupt):
        world.reproduce(jobs=2)
    assert sorted(world.executed) == sorted([TEACHER, BASELINE, "third-seed0"])
    assert not list(world.folder.glob("runs/*/failure.json")) and not list(world.folder.glob("runs/*.lock"))
    world.hooks.clear()
    assert world.reproduce(jobs=2).complete and sorted(world.executed) == sorted([BASELINE, PYRAMID, "z-seed0"])


def test_analysis_notebooks_are_executed_two_at_a_time_and_each_failure_is_its_own(world):
    world.add_analysis("study = None")
    shutil.copy(world.folder / "notebooks" / "tables.ipynb", world.folder / "notebooks" / "more.ipynb")
    world.edit("[tables.ipynb]", "[tables.ipynb, more.ipynb]")
    both = threading.Barrier(2, timeout=30)
    world.hooks["tables.ipynb"] = both.wait
    world.hooks["more.ipynb"] = lambda: (both.wait(), fail("No weights.")())
    assert runner.analyse(world.study(), jobs=2, say=world.said.append) == ("more.ipynb",)
    assert "more.ipynb: FAILED: No weights." in world.said


def test_seeds_after_the_first_leave_no_notebook_where_the_study_says_so(world):
    world.edit("analysis: []", "analysis: []\nseeds: [0, 1]\nnotebooks: first_seed")
    assert world.reproduce().complete
    assert world.executed == [TEACHER, BASELINE, PYRAMID, f"{BASELINE[:-1]}1", f"{PYRAMID[:-1]}1"]
    assert sorted(path.parent.name for path in world.folder.glob("runs/*/train.ipynb")) == sorted(
        [TEACHER, BASELINE, PYRAMID]
    )


def test_a_second_runner_takes_other_runs_and_waits_for_the_one_that_is_taken(world):
    study = world.study()
    first = study.runs[1]
    taken = hold(first.lock)
    record_of(study, study.runs[0]).write(study.runs[0].folder)
    assert taken.__enter__() is not None

    def finish_elsewhere():  # while we train the second, the other process ends the first
        record_of(study, first).write(first.folder)
        taken.__exit__(None, None, None)

    world.hooks[PYRAMID] = finish_elsewhere
    assert world.reproduce().complete and world.executed == [PYRAMID]
    assert any("another process is training it" in line for line in world.said)


def test_a_dry_run_says_what_and_how_long_and_touches_nothing(world):
    rehearse(world.study(), say=world.said.append)
    assert [line for line in world.said if "would be trained" in line and "unknown time" in line] == world.said[:3]
    assert world.said[3] == "Training would take at least 0 s; unknown: 3 runs."
    assert sorted(path.name for path in world.folder.iterdir()) == ["notebooks", "study.yaml"]
    assert world.loaded == [], "a dry run works without the data"

    world.reproduce(only=[BASELINE])
    world.edit(
        "[reactdeit_micro_patch4_32,", "[{variant: reactdeit_micro_patch4_32, id: longer, recipe: {epochs: 30}},"
    )
    world.said.clear()
    rehearse(world.study(), say=world.said.append)
    assert "unknown time" in world.said[2]
    assert f"{TEACHER}: done" in world.said[0]


def test_durations_come_from_the_same_variant_per_epoch_and_from_the_committed_study(world, tmp_path):
    world.reproduce()
    elsewhere = world.study(output=tmp_path / "afresh")
    assert estimate(elsewhere, elsewhere.runs[0]) == 60.0
    world.edit("recipe: {epochs: 2}", "recipe: {epochs: 4}")
    rehearse(world.study(), rerun_stale=True, say=world.said.append)
    assert world.said[-1] == "Training would take 80 s"
    assert "epochs was 2 and is 4), 40 s" in world.said[-2]
    rehearse(world.study(), rerun_stale=True, jobs=2, say=world.said.append)
    assert world.said[-1] == "Training would take 40 s, 2 runs at a time"


def test_another_output_gets_everything_and_the_study_keeps_what_it_has(world):
    world.reproduce()
    before = {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    world.add_analysis("study = None")
    before[world.file] = world.file.read_bytes()
    afresh = world.folder / "afresh"
    assert world.reproduce(output=afresh).complete and world.executed == [TEACHER, BASELINE, PYRAMID, "tables.ipynb"]
    assert {path: path.read_bytes() for path in before} == before
    assert load_study(afresh).name == "tiny"
    assert read_record(afresh / "runs" / BASELINE) is not None
    world.edit("name: tiny", "name: other")
    with pytest.raises(BinaryViTError, match="holds the study 'tiny'"):
        world.reproduce(output=afresh)


def test_without_notebooks_or_with_an_unknown_one_nothing_starts(world):
    world.edit("analysis: []", "analysis: [tabels.ipynb]")
    with pytest.raises(BinaryViTError, match=r"no notebooks/tabels\.ipynb"):
        world.reproduce()
    shutil.rmtree(world.folder / "notebooks")
    with pytest.raises(BinaryViTError, match=r"no notebooks/train\.ipynb"):
        world.reproduce()
    assert world.executed == []


def test_figures_are_made_without_training_or_data(world):
    world.add_analysis("study = None")
    assert runner.analyse(world.study(data_dir=world.folder / "photos"), say=world.said.append) == ()
    assert world.executed == ["tables.ipynb"] and world.loaded == []
    assert world.given[0] == {"study": "."}
    world.hooks["tables.ipynb"] = fail("No weights.")
    assert runner.analyse(world.study(), say=world.said.append) == ("tables.ipynb",)
    assert world.said[-1] == "tables.ipynb: FAILED: No weights."


def test_a_notebook_that_measures_is_told_where_the_data_are_but_stores_no_path(world):
    world.add_analysis("study = None\ndata_dir = None")
    runner.analyse(world.study(data_dir=world.folder.parent / "photos"), say=world.said.append)
    assert world.given == ({"study": ".", "data_dir": "../photos"}, {"../photos": "photos"})
    assert world.reproduce().complete and world.given == ({"study": "."}, {})


def test_an_analysis_that_another_process_executes_is_waited_for_and_then_made(world):
    world.add_analysis("study = None")
    taken = hold(world.folder / "tables.lock")
    assert taken.__enter__() is not None

    def say(line):
        world.said.append(line)
        if "another process" in line:
            taken.__exit__(None, None, None)

    assert runner.analyse(world.study(), say=say) == ()
    assert world.executed == ["tables.ipynb"] and "waiting" in world.said[0]
