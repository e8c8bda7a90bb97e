"""A measuring process: what is measured lives alone in it, so that its memory is its own, and answers questions."""

import os
import resource
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from binaryvit.errors import BinaryViTError


class MeasuringProcess:
    """Answers questions in a process of its own, until it is ended.

    Args:
        make: called there with `arguments`; gives the function that answers a question.
        environment: variables that the process gets on top of this one's.

    Raises:
        BinaryViTError: from `ask`, when the process has died.
    """

    def __init__(self, make: Callable[..., Callable[[str], Any]], arguments: tuple, environment: Mapping[str, str]):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        with mock.patch.dict(os.environ, environment):  # which it inherits
            self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
            self._process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        try:
            self._connection.send(question)
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise BinaryViTError("A measuring process died; its error is above.") from error
        if isinstance(answer, BinaryViTError):
            raise answer
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.join()


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
