"""Ctrl-C at a moment that suits: between two steps instead of in the midst of one."""

import signal
import threading
from types import FrameType
from typing import Self


class Interruption:
    """While entered, the first SIGINT sets `requested`; a second one interrupts at once, as usual.

    Outside of the main thread, where Python handles no signals, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before)
