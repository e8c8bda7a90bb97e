"""The first signal is noted, one that comes seconds later acts, and those at once count as one."""

import signal

import pytest

from binaryvit.training import interruption
from binaryvit.training.interruption import Interruption


def test_a_second_signal_acts(monkeypatch):
    monkeypatch.setattr(interruption, "_AT_ONCE", 0.0)
    with pytest.raises(KeyboardInterrupt), Interruption() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.requested
        signal.raise_signal(signal.SIGINT)


def test_the_signal_of_a_scheduler_that_arrives_several_times_does_not():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as asked:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert asked.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
