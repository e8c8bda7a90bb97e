"""The first signal is noted, the second acts."""

import signal

import pytest

from binaryvit.training.interruption import Interruption


def test_the_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        signal.raise_signal(signal.SIGINT)
