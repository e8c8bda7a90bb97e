"""The first signal is noted, one that comes seconds later acts, and those at once count as one."""

import signal

import pytest

from binaryvit.training import interruption
from binaryvit.training.interruption import Interruption


def test_a_signal_seconds_after_the_first_acts(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    with Interruption() as asked:
        for clock[0] in (100.0, 102.0):
            signal.raise_signal(signal.SIGINT)
            assert asked.requested, "one that comes at once changes nothing"
        clock[0] = 104.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_signal_of_a_scheduler_that_arrives_several_times_does_not():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as asked:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert asked.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
