"""Training with as many processes as the configuration asks for, started from one process."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.files import LIBRARY_PARENT
from binaryvit.records.run_record import RunRecord, read_record
from binaryvit.training.memory import HUGE_PAGES
from binaryvit.training.train import train_in_process

_SENTENCE = "binaryvit: "  # how the command line begins the sentence of an error
_INTERRUPTED = f"{_SENTENCE}interrupted"  # no error: as it ends after a signal, which a process gets when another dies
_GRACE_SECONDS = 30


@contextmanager
def train_command(config: TrainingConfig, output: str | Path, study: str, run_id: str) -> Iterator[list[str]]:
    """The arguments of `python -m` that train a configuration; see `train_in_process`. They are valid while entered."""
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as folder:
        fields = Path(folder) / "config.yaml"
        fields.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        words = ["binaryvit.cli", "train", str(fields), "--output", str(output)]
        yield [*words, "--study", study, "--run-id", run_id]


def train(config: TrainingConfig, run_dir: str | Path, *, study: str = "", run_id: str = "") -> RunRecord:
    """Trains into a folder, as `train_in_process`, with `config.processes` processes of this machine.

    With one process, or inside a process that torchrun or `accelerate launch` started, it trains right here. Otherwise
    torchrun starts the processes, and what they print appears here. (accelerate starts
    torchrun too, but reads the user's settings, which could change the precision or the number of machines.)

    Raises BinaryViTError as training does, or when a process dies; torchrun then ends the others.
    """
    if config.processes == 1 or "LOCAL_RANK" in os.environ:
        return train_in_process(config, run_dir, study=study, run_id=run_id)
    with train_command(config, run_dir, study, run_id) as command:
        torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc_per_node", str(config.processes), "-m"]
        paths = os.pathsep.join(filter(None, [str(LIBRARY_PARENT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            torchrun + command,
            env=os.environ | HUGE_PAGES | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
        )
        try:
            sentences = _echo(process)
        finally:
            _end(process)
    record = read_record(run_dir)
    if process.returncode != 0 or record is None:
        raise BinaryViTError(
            next(iter(sentences), f"One of the {config.processes} training processes died; its last lines are above.")
        )
    return record


def errors_in(lines: Iterable[str]) -> list[str]:
    """The sentences of the errors that the command line printed."""
    return [
        line.removeprefix(_SENTENCE).strip()
        for line in lines
        if line.startswith(_SENTENCE) and not line.startswith(_INTERRUPTED)
    ]


def _echo(process: subprocess.Popen) -> list[str]:
    """Prints what the processes print until the last one has ended; returns the sentences of their errors."""
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith(_SENTENCE):
            lines.append(line)
    process.wait()
    return errors_in(lines)


def _end(process: subprocess.Popen) -> None:
    """Interrupts processes that still run, so that they save before they stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt, ProcessLookupError):
            continue
