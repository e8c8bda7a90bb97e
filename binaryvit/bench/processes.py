"""Measuring processes: what is measured lives alone in one, so that its memory is its own, and answers questions."""

import math
import os
import resource
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from binaryvit.errors import BinaryViTError

# What processes get to end by themselves; one that waits for another that has died never would.
_GRACE_SECONDS = 10


class MeasuringProcess:
    """Answers questions in a process of its own, until `end_all`.

    Args:
        make: called there with `arguments`; gives the function that answers a question.
        environment: variables that the process gets on top of this one's.

    Raises:
        BinaryViTError: from `hear` and `ask`, when the process has died, has itself raised one, or takes too long.
    """

    def __init__(self, make: Callable[..., Callable[[str], Any]], arguments: tuple, environment: Mapping[str, str]):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        with mock.patch.dict(os.environ, environment):  # which it inherits
            self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
            self._process.start()
        theirs.close()

    def tell(self, question: str) -> None:
        """Asks without waiting for the answer, which the next `hear` returns."""
        with suppress(BrokenPipeError):  # the process has died, as `hear` will say
            self._connection.send(question)

    def hear(self, until: float = math.inf) -> Any:
        """The answer, for which it waits until that moment of `time.monotonic()`."""
        try:
            if not self._connection.poll(None if math.isinf(until) else max(0.0, until - time.monotonic())):
                raise BinaryViTError("The measurement did not end in the time it had.")
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise BinaryViTError("A measuring process died; its error is above.") from error
        if isinstance(answer, BinaryViTError):
            raise answer
        return answer

    def ask(self, question: str) -> Any:
        self.tell(question)
        return self.hear()

    def hang_up(self) -> None:
        """Lets the process end when it is next free."""
        self._connection.close()

    def end(self, until: float) -> None:
        """Waits for the process to end until that moment of `time.monotonic()`, then kills it."""
        self._process.join(max(0.0, until - time.monotonic()))
        self._process.kill()
        self._process.join()


def ask_all(processes: Sequence[MeasuringProcess], question: str, until: float = math.inf) -> list[Any]:
    """The answers of processes that answer at the same time, as those that train together must; see `hear`."""
    for process in processes:
        process.tell(question)
    return [process.hear(until) for process in processes]


def end_all(processes: Iterable[MeasuringProcess]) -> None:
    """Ends processes: all get the same few seconds for it."""
    processes = list(processes)
    for process in processes:
        process.hang_up()
    until = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.end(until)


def together(number: int) -> list[dict[str, str]]:
    """For each of so many processes the environment with which torchrun would start it to train with the others."""
    if number == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(number))
    return [common | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(number)]


def _serve(connection: Connection, make: Callable[..., Callable[[str], Any]], arguments: tuple) -> None:
    answer = make(*arguments)
    with connection:
        while True:
            try:
                question = connection.recv()
            except EOFError:
                return
            try:
                connection.send(answer(question))
            except BinaryViTError as error:  # something that can't be measured here
                connection.send(error)


def peak_memory() -> int:
    """The most bytes of memory this process has had; on Linux without what its parent had when it started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
