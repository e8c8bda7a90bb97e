"""Processes that run in parallel, each on its share of the machine, and end in order when interrupted."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from binaryvit.records.provenance import available_cores

Task = TypeVar("Task")
Say = Callable[[str], None]

_POLL_SECONDS = 0.1
# How long an interrupted process may take to end its step and store a checkpoint.
_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Share:
    """The part of the machine that one job uses.

    Attributes:
        cores: numbers of the CPU cores; None for all of them.
        gpus: ids as CUDA_VISIBLE_DEVICES takes them; None for all that are visible.
    """

    cores: frozenset[int] | None = None
    gpus: tuple[str, ...] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that keep a process to these GPUs."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def restrict_thread(self) -> None:
        """Keeps this thread, and the processes it starts, to these cores (Linux only)."""
        if self.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)


def default_jobs(gpus_per_job: int = 1) -> int:
    """As many jobs as the GPUs allow; 1 without a GPU."""
    return max(1, len(_visible_gpus()) // gpus_per_job)


def shares(jobs: int, gpus_per_job: int = 1) -> list[Share]:
    """Splits this machine into `jobs` shares. Jobs beyond the number of GPUs share them."""
    if jobs == 1:
        return [Share()]
    cores, gpus = sorted(_cores()), _visible_gpus()
    groups = [tuple(gpus[first : first + gpus_per_job]) for first in range(0, len(gpus), gpus_per_job)]
    groups = [group for group in groups if len(group) == gpus_per_job] or [None]
    each = max(1, len(cores) // jobs)
    return [
        Share(frozenset(cores[(job * each + core) % len(cores)] for core in range(each)), groups[job % len(groups)])
        for job in range(jobs)
    ]


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(available_cores()))


def _visible_gpus() -> list[str]:
    """Ids of the GPUs, or of the parts of one (MIG), that the user or the scheduler left visible."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Job:
    """What belongs to one process: its GPUs, the lock it holds while it lives, and who gets its lines."""

    environment: Mapping[str, str]
    lock: int
    say: Say


class Processes:
    """Threads that each start one process at a time. The first Ctrl-C or error ends all of them."""

    def __init__(self) -> None:
        self._running: dict[subprocess.Popen, Callable[[int], None]] = {}
        self._starting = threading.Lock()
        self._ending = False

    def in_parallel(
        self, take: Callable[[], Task | None], work: Callable[[Task, Share], None], over: Sequence[Share]
    ) -> None:
        """Works on one task per share at a time, in a thread restricted to the share.

        `take` gives the next task to a free thread, and None when none is left. Raises what the first `take` or
        `work` raised, or KeyboardInterrupt, after the processes of all have ended.
        """

        def work_on(share: Share) -> None:
            share.restrict_thread()
            while (task := take()) is not None:
                work(task, share)

        with ThreadPoolExecutor(len(over)) as pool:
            try:
                for future in as_completed([pool.submit(work_on, share) for share in over]):
                    future.result()
            except BaseException:
                self._end()
                raise

    def run(
        self, command: Sequence[str], folder: Path, job: Job, *, errors: Path | None = None, kernel: bool = False
    ) -> int:
        """Runs a command in `folder` and returns its exit code. `job.say` gets what it prints, line by line.

        `errors`: a file for its standard error, which otherwise is printed too. `kernel`: it is papermill, which leaves
        the work to a kernel.

        Raises KeyboardInterrupt when the processes are ended.
        """
        with tempfile.TemporaryDirectory(prefix="binaryvit-") as temporary:
            # Not through a pipe: if this process is killed, the other can still write and finish its work.
            printed = Path(temporary) / "printed.txt"
            with open(printed, "w") as output, open(errors or os.devnull, "w") as error, self._starting:
                self.check()
                child = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=job.environment,
                    pass_fds=(job.lock,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if errors is None else error,
                    start_new_session=True,  # Ctrl-C reaches this process only, which ends the others in order
                )
                self._running[child] = _interrupt_kernel if kernel else _interrupt
            for line in _follow(printed, lambda: child.poll() is not None):
                job.say(line)
        del self._running[child]
        self.check()
        return child.returncode

    def check(self) -> None:
        """Raises KeyboardInterrupt when the processes are being ended and none may start."""
        if self._ending:
            raise KeyboardInterrupt

    def _end(self) -> None:
        """Asks the processes to end, then insists. Another Ctrl-C hurries them."""
        with self._starting:
            self._ending = True
        children = dict(self._running)
        if children:
            print("Stopping after storing the state of training (Ctrl-C again: at once).", file=sys.stderr, flush=True)
        for end, seconds in (
            (None, _GRACE_SECONDS),
            (_interrupt, 15),
            (subprocess.Popen.terminate, 5),
            (subprocess.Popen.kill, 60),
        ):
            for child, interrupt in children.items():
                if child.poll() is None:
                    with suppress(psutil.NoSuchProcess):
                        (end or interrupt)(child)
            try:
                until = time.monotonic() + seconds
                while any(child.poll() is None for child in children) and time.monotonic() < until:
                    time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                continue


def _interrupt(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGINT)


def _interrupt_kernel(papermill: subprocess.Popen) -> None:
    """Interrupts the kernel directly: papermill, when interrupted, would give it only five seconds."""
    kernels = psutil.Process(papermill.pid).children()
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    if not kernels:  # it has not started one yet
        _interrupt(papermill)


def _follow(path: Path, ended: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file that a process writes, as they appear, until the process has ended."""
    with open(path, encoding="utf-8", errors="replace") as file:
        rest, last = "", False
        while not last:
            last = ended()  # asked before reading, so that nothing is missed
            *lines, rest = (rest + file.read()).split("\n")
            yield from lines
            if not last:
                time.sleep(_POLL_SECONDS)
    if rest:
        yield rest
