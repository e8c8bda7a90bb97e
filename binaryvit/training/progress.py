"""The progress of a run: a bar in JupyterLab, a line every few seconds everywhere else."""

import os
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from tqdm import TqdmExperimentalWarning, TqdmWarning

# Seconds between lines: soon while someone may be watching, sparse in the log of a run of hours.
FIRST_MINUTE_INTERVAL = 5
LATER_INTERVAL = 30


def in_jupyter() -> bool:
    """Whether a person sees this process's output in JupyterLab. Under papermill (a kernel without a session of the
    server) a bar would add one line per tick to the stored notebook."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell" and "JPY_SESSION_NAME" in os.environ


class Progress:
    """Reports the steps of a run with its expected end.

    Args:
        epochs, steps_per_epoch: of the whole run.
        done: steps done before this process began.
        enabled: False keeps silent, for all processes but one.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, done: int = 0, enabled: bool = True):
        self.epochs, self.steps_per_epoch, self.enabled = epochs, steps_per_epoch, enabled
        self.done, self.total = done, epochs * steps_per_epoch
        self.bar = _bar(self.total, done) if enabled and in_jupyter() else None
        self.begun: tuple[float, int] | None = None  # when the first step was over, and the steps done by then
        self.last_line = time.monotonic()

    def note(self, text: str) -> None:
        """Prints a sentence."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def step(self, epoch: int, step: int, loss: float | None, images_per_second: float) -> None:
        """Counts optimizer step `step` of `epoch` (from 0) as done; `loss` is the last that is known, if any."""
        now = time.monotonic()
        self.done += 1
        if self.begun is None:  # compilation makes the first step slow: it says nothing about the others
            self.begun = now, self.done
        if not self.enabled:
            return
        known = "-" if loss is None else f"{loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"epoch {epoch + 1}/{self.epochs}, loss {known}, {images_per_second:.0f} images/s", refresh=False
            )
            self.bar.update()
            return
        interval = FIRST_MINUTE_INTERVAL if now - self.begun[0] < 60 else LATER_INTERVAL
        if now - self.last_line >= interval:
            self.last_line = now
            print(
                f"epoch {epoch + 1}/{self.epochs}  step {step + 1}/{self.steps_per_epoch}  loss {known}  "
                f"{images_per_second:.0f} images/s  {self.expected_end()}",
                flush=True,
            )

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Reports a finished epoch from its row of metrics."""
        self.note(
            f"epoch {row['epoch']}/{self.epochs}  train loss {row['train_loss']:.4f}  "
            f"eval loss {row['eval_loss']:.4f}  top-1 {row['top1']:.2f}%  "
            f"{row['images_per_second']:.0f} images/s  {self.expected_end()}"
        )

    def expected_end(self) -> str:
        """When the run is expected to end, judged by this process's steps so far, evaluations included."""
        if self.done >= self.total:
            return "trained"
        if self.begun is None or self.done == self.begun[1]:
            return "end not known yet"
        seconds = (time.monotonic() - self.begun[0]) / (self.done - self.begun[1]) * (self.total - self.done)
        left = timedelta(seconds=round(seconds))
        return f"ends about {(datetime.now() + left):%Y-%m-%d %H:%M} (in {left})"

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()


def _bar(total: int, done: int) -> Any:
    with warnings.catch_warnings():
        # Without ipywidgets the bar is made of characters, which does as well.
        warnings.simplefilter("ignore", TqdmWarning)
        warnings.simplefilter("ignore", TqdmExperimentalWarning)
        from tqdm.autonotebook import tqdm

        return tqdm(total=total, initial=done, unit="step", mininterval=0.5)
