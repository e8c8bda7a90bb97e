"""A run that a scheduler stops goes on when its command is repeated, on each device and in each precision."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from helpers.training_setup import everything_with_state

from binaryvit.records.run_record import read_metrics, read_record
from binaryvit.training.checkpoint import CHECKPOINT_FILE

EPOCHS = 20


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_goes_on(precision, device, tmp_path):
    """In processes of its own, since a process chooses its device once."""
    config, run = everything_with_state(tmp_path, precision=precision, epochs=EPOCHS), tmp_path / "run"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "binaryvit.cli", "train", str(tmp_path / "run.yaml"), "--output", str(run)]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {})
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as stopped:
        while not (run / CHECKPOINT_FILE).exists() and stopped.poll() is None:
            time.sleep(0.02)
        stopped.send_signal(signal.SIGTERM)
    assert stopped.returncode != 0 and read_record(run) is None
    again = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    assert "resumed after step" in again.stdout
    record, metrics = read_record(run), read_metrics(run)
    assert record.hardware.device == device.type and record.config["precision"] == precision
    assert metrics["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert np.isfinite(metrics["train_loss"]).all()
