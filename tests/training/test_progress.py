"""What a run shows of its progress: a bar in JupyterLab, elsewhere lines, at first often, then seldom."""

import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from binaryvit.training import progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_end_is_expected_from_the_steps_after_the_first(clock):
    run = progress.Progress(epochs=2, steps_per_epoch=10, done=5)
    assert run.expected_end() == "end not known yet"
    for seconds in (100, 2, 4):  # the first one compiles
        clock.now += seconds
        run.step(0, run.done, 1.0, 64.0)
    end = datetime.now() + timedelta(seconds=3 * 12)
    assert run.expected_end() == f"ends about {end:%Y-%m-%d %H:%M} (in 0:00:36)"
    run.done = run.total
    assert run.expected_end() == "trained"


def test_lines_come_often_in_the_first_minute_and_seldom_later(clock, capsys):
    run = progress.Progress(epochs=10, steps_per_epoch=100)
    for _ in range(180):
        clock.now += 1
        run.step(0, run.done, None, 64.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60 // progress.FIRST_MINUTE_INTERVAL + 120 // progress.LATER_INTERVAL
    assert lines[0].startswith("epoch 1/10  step 5/100  loss -  64 images/s  ends about ")
    silent = progress.Progress(epochs=1, steps_per_epoch=1, enabled=False)
    silent.note("a sentence")
    clock.now += 100
    silent.step(0, 0, 1.0, 64.0)
    assert capsys.readouterr().out == ""


def test_in_jupyterlab_there_is_a_bar(monkeypatch, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not progress.in_jupyter(), "papermill starts a kernel, too"
    monkeypatch.setenv("JPY_SESSION_NAME", "train.ipynb")
    run = progress.Progress(epochs=2, steps_per_epoch=10, done=5)
    run.step(0, 5, 1.0, 64.0)
    run.note("a sentence")
    assert (run.bar.n, run.bar.total) == (6, 20)
    assert run.bar.postfix == "epoch 1/2, loss 1.0000, 64 images/s"
    run.close()
    assert "a sentence\n" in capsys.readouterr().out and run.bar.disable
