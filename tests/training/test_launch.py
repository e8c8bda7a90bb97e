"""One call trains in as many processes as the configuration asks for, and ends when one of them does."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from accelerate import PartialState
from helpers.child_processes import environment, free_port, until
from helpers.training_setup import student, teacher

from binaryvit.errors import BinaryViTError
from binaryvit.locks import is_locked
from binaryvit.records.run_record import read_metrics, read_record
from binaryvit.training import launch, processes
from binaryvit.training.checkpoint import CHECKPOINT_FILE, load_state

TWO = student(processes=2, epochs=1)


@pytest.mark.slow
def test_two_processes_leave_one_record_of_what_one_computes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the two that are started
    fields = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "drop_path": 0.0, "random_erasing": 0.0, "accumulation_steps": 2}
    together = teacher(**fields, processes=2)
    record = launch.train(together, "two", study="a study", run_id="both")
    assert record == read_record("two")
    assert (record.id, record.study, record.processes, record.result.epochs) == ("both", "a study", 2, 2)
    assert record.key.config == together.key() and record.data.eval_images == 50
    assert "epoch 1/2" in capfd.readouterr().out, "their progress is seen"
    launch.train(teacher(**fields), "one")
    ours, theirs = (read_metrics(run) for run in ("one", "two"))
    for name in ("train_loss", "eval_loss", "top1", "top5", "lr"):
        assert list(ours[name]) == pytest.approx(list(theirs[name]), rel=1e-4), name


def test_an_error_of_the_processes_is_their_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BinaryViTError, match=r"^The teacher 'nowhere' cannot be read"):
        launch.train(TWO.model_copy(update={"teacher": "nowhere"}), "run")


def test_that_a_process_was_interrupted_is_no_error_of_its_training():
    """The others are interrupted when one dies, and say so in the same words as an error."""
    lines = ["Traceback ...", "binaryvit: interrupted; the same command goes on from here.", "binaryvit: No memory."]
    assert launch.errors_in(lines) == ["No memory."] and launch.errors_in(lines[:2]) == []


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(processes, "local_processes", lambda: 2)
    on_gpus = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    with pytest.raises(BinaryViTError, match="2 processes were started on a machine with 1 GPUs"):
        processes.check_launch(TWO, on_gpus)
    processes.check_launch(TWO, SimpleNamespace(num_processes=2, device=torch.device("cpu")))


def test_machines_with_different_data_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "gather_object", lambda found: [*found, "", "f" * 64])
    with pytest.raises(BinaryViTError, match=r"The machines hold different data .*, ffffffffffff"):
        processes.load_data_once_per_machine(TWO, PartialState())


def workers() -> list[psutil.Process]:
    """The training processes that descend from this one."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if process.is_running() and "RANK" in process.environ()]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    """Not a hang: the test waits two minutes at most. `test_processes` shows that two processes go on from one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the two that are started
    errors = []
    config = TWO.model_copy(update={"epochs": 10_000})

    def train():
        try:
            launch.train(config, tmp_path / "run")
        except BinaryViTError as error:
            errors.append(str(error))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    until((tmp_path / "run" / "metrics.csv").exists)
    family = workers()
    assert len(family) == 2
    family[1].kill()
    thread.join(timeout=120)
    assert errors == ["One of the 2 training processes died; its last lines are above."]
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert read_record(tmp_path / "run") is None and not is_locked(tmp_path / "run" / "training.lock")
    assert load_state(tmp_path / "run" / CHECKPOINT_FILE, {})[1]["epoch"] >= 1


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_after_they_saved(tmp_path):
    """It reaches the command alone, as from a scheduler or a notebook."""
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(TWO.model_copy(update={"epochs": 10_000}).model_dump(mode="json")))
    command = [sys.executable, "-m", "binaryvit.cli", "train", str(config), "--output", str(tmp_path / "run")]
    started = subprocess.Popen(
        command,
        env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
        # Also where the tests themselves run in the background, which shells start with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until((tmp_path / "run" / "metrics.csv").exists)
    family = workers()
    assert len(family) == 2
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=120) == 130
    assert "interrupted; the same command goes on from here" in started.stderr.read()
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert read_record(tmp_path / "run") is None and not is_locked(tmp_path / "run" / "training.lock")
    assert load_state(tmp_path / "run" / CHECKPOINT_FILE, {})[1]["epoch"] >= 1


@pytest.mark.slow
def test_torchrun_on_two_machines_writes_once_and_ends_on_both_when_one_loses_a_process(tmp_path, monkeypatch):
    """The two machines are this one twice: each has its own torchrun, and they meet at an address."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fields = TWO.model_copy(update={"epochs": 10_000}).model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    address = f"localhost:{free_port()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", address, "--rdzv_id", "test", "-m", "binaryvit.cli"]
    command += ["train", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]
    machines, logs = [], [tmp_path / "0.txt", tmp_path / "1.txt"]
    for log in logs:
        with open(log, "w") as output:
            machines.append(subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT))
    try:
        until((tmp_path / "run" / "metrics.csv").exists)
        family = {process.environ()["RANK"]: process for process in workers()}
        assert sorted(family) == ["0", "1"]
        family["1"].kill()
        assert all(machine.wait(timeout=120) != 0 for machine in machines)
        assert not psutil.wait_procs(family.values(), timeout=30)[1]
    finally:
        for process in [*workers(), *machines]:
            process.kill()
    assert sorted("epoch 1/10000" in log.read_text() for log in logs) == [False, True]
    assert (tmp_path / "run" / CHECKPOINT_FILE).exists() and read_record(tmp_path / "run") is None
