"""One call trains in as many processes as the configuration asks for, and ends when one of them does."""

import threading
import time

import psutil
import pytest
from training_setup import student

from binaryvit import launch
from binaryvit.errors import BinaryViTError
from binaryvit.runs import read_record

TWO = student(processes=2, epochs=1)


@pytest.mark.slow
def test_two_processes_leave_one_record(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    record = launch.train(TWO, "run", study="a study", run_id="both")
    assert record == read_record("run")
    assert (record.id, record.study, record.processes, record.result.epochs) == ("both", "a study", 2, 1)
    assert record.key.config == TWO.key()
    assert "epoch 1/1" in capfd.readouterr().out, "their progress is seen"


def test_an_error_of_the_processes_is_their_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BinaryViTError, match=r"^The teacher 'nowhere' cannot be read"):
        launch.train(TWO.model_copy(update={"teacher": "nowhere"}), "run")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    """Not a hang: the test waits two minutes at most."""
    errors = []

    def train():
        try:
            launch.train(TWO.model_copy(update={"epochs": 10_000}), tmp_path / "run")
        except BinaryViTError as error:
            errors.append(str(error))

    def workers():
        family = psutil.Process().children(recursive=True)
        return [process for process in family if process.is_running() and "RANK" in process.environ()]

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < until:
        time.sleep(0.1)
    family = workers()
    assert len(family) == 2
    family[1].kill()
    thread.join(timeout=120)
    assert errors == ["One of the 2 training processes died; its last lines are above."]
    assert not psutil.wait_procs(family, timeout=30)[1]
