"""Trains one configuration again and again, and kills the process with SIGKILL at another moment each time.

Usage: python killed_runs.py CONFIG.json FOLDER. Each moment gets a folder with what the killed process left behind.
The processes are forks of this one, which has not computed anything: so libraries are loaded once, not per kill.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from binaryvit import files
from binaryvit.config import TrainingConfig
from binaryvit.records.run_record import RunRecord
from binaryvit.training import checkpoint, train
from binaryvit.training.loop import Trainer


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(count: int, then: Callable, function: Callable) -> Callable:
    """`function`, whose call number `count` (from 1) is `then`."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (then if calls == count else function)(*args, **kwargs)

    return counted


def half_written(tensors: Any, path: Path, metadata: Any) -> None:
    """A save that is killed when half of the file is on disk."""
    save_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)
    die()


save_file = checkpoint.save_file
# 3 steps per epoch, 2 epochs; a checkpoint after each step that does not end an epoch, and after each epoch.
MOMENTS: dict[str, tuple[Any, str, int, Callable]] = {
    "first step": (Trainer, "_backward", 1, die),
    "mid-epoch": (Trainer, "_backward", 4, die),
    "second epoch": (Trainer, "_backward", 11, die),
    "first save": (checkpoint, "save_file", 1, half_written),
    "mid-save": (checkpoint, "save_file", 2, half_written),
    "save at the end of an epoch": (checkpoint, "save_file", 3, half_written),
    "between writing and moving into place": (files.os, "replace", 2, die),
    "before the metrics are written": (Trainer, "write_tables", 1, die),
    "evaluation": (Trainer, "evaluate", 2, die),
    "before the weights are written": (train, "store_weights", 1, die),
    "before the record is written": (RunRecord, "write", 1, die),
}


def main() -> None:
    config = TrainingConfig(**json.loads(Path(sys.argv[1]).read_text()))
    for moment, (owner, name, count, then) in MOMENTS.items():
        process = os.fork()
        if process == 0:
            setattr(owner, name, on_call(count, then, getattr(owner, name)))
            train.train_in_process(config, Path(sys.argv[2]) / moment)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{moment}: the process was not killed but ended with status {status}")


if __name__ == "__main__":
    main()
