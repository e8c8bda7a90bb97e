"""Ctrl-C and a scheduler's signal take effect between two steps instead of within one."""

import math
import signal
import threading
import time
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 3.0  # seconds in which signals count as one: a scheduler sends it to every process, and each passes it on


class Interruption:
    """While entered, the first SIGINT or SIGTERM sets `requested`; one that comes seconds later acts, as before.

    Outside the main thread, where Python handles no signals, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first = math.inf  # when it was requested

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested, self._first = True, min(self._first, time.monotonic())
        if time.monotonic() - self._first > _AT_ONCE:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)
