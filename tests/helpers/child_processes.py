"""What tests need that start processes of their own."""

import os
import socket
import time
from collections.abc import Callable

from helpers.places import ROOT


def environment() -> dict[str, str]:
    """This process's environment, in which a new Python finds the library of this checkout first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def until(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Waits for a condition; fails the test where it does not come true in time, on however busy a machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
