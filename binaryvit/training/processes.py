"""What processes agree on before they train together: their number, the data and the folder."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import Data, load_data
from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.records.provenance import local_processes
from binaryvit.records.run_record import LOCK_FILE

# How long a network file system may take to show a file to another machine.
_VISIBLE_SECONDS = 90.0


def check_launch(config: TrainingConfig, process: PartialState) -> None:
    """Refuses a number of processes that differs from the configuration's or exceeds the machine's GPUs."""
    if config.processes != process.num_processes:
        raise BinaryViTError(
            f"processes={config.processes}, but {process.num_processes} were started: run it with "
            f"`accelerate launch --num_processes {config.processes}` (on CPUs `torchrun --nproc_per_node "
            f"{config.processes}`), or set processes to {process.num_processes}."
        )
    here = local_processes()
    if process.device.type == "cuda" and here > torch.cuda.device_count():
        raise BinaryViTError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} GPUs: each needs "
            f"one. Set processes to at most {torch.cuda.device_count()}; accumulation_steps keeps the batch."
        )


def load_data_once_per_machine(config: TrainingConfig, process: PartialState) -> Data:
    """`load_data`, which the first process of each machine does alone and completely.

    The others wait, because preparing a large set for the first time takes long. They then open the prepared data and
    take over the fingerprint. Raises BinaryViTError when two machines hold different data.
    """
    with process.local_main_process_first():
        data = load_data(config, fingerprinted=process.is_local_main_process)
    found = sorted(set(gather_object([data.fingerprint])) - {""})
    if len(found) > 1:
        raise BinaryViTError(
            f"The machines hold different data (fingerprints {', '.join(value[:12] for value in found)}): give all of "
            "them the same copy."
        )
    return replace(data, fingerprint=found[0])


@contextmanager
def locked(run_dir: Path, process: PartialState) -> Iterator[None]:
    """Keeps a second training out of the folder; the lock ends with the first process, however that ends."""
    lock = run_dir / LOCK_FILE
    with hold(lock) if process.is_main_process else nullcontext() as descriptor:
        [held] = broadcast_object_list([descriptor is not None])
        if not held:
            raise BinaryViTError(f"Another process is training in {run_dir}: wait for it, or choose another folder.")
        until = time.monotonic() + _VISIBLE_SECONDS
        while not lock.exists():
            if time.monotonic() > until:
                raise BinaryViTError(
                    f"{run_dir} on {platform.node()} is not the folder that the first process writes to: give all "
                    "machines an output folder that they share."
                )
            time.sleep(0.2)
        yield
