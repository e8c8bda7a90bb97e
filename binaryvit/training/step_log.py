"""What optimizer steps measured: kept on the device and read several steps at a time, so no step waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

READ_EVERY = 10
"""Steps between two readings on a GPU. On a CPU there is no queue to keep filled, and every step is read at once."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: means over all processes' images, and the images of this one (rows of the training split)."""

    epoch: int
    step: int
    rows: list[int]
    loss: float
    distillation: float
    label: float
    right: float

    def measured(self) -> dict[str, float]:
        """What a row of metrics averages over an epoch, by its column."""
        return {
            "train_loss": self.loss,
            "distillation_loss": self.distillation,
            "label_loss": self.label,
            "train_top1": self.right,
        }


class StepLog:
    """Collects what steps measured, and moves it to the host together with the processes' wishes.

    `exchange` is called after every step, by all processes. Every `read_every` steps it sums over the
    processes and starts the copy; the next call, while the device works on another step, receives it.

    Args:
        process: this one among all.
        batch_size: images of a step, over all processes.
        read_every: steps between two readings; None: `READ_EVERY` on a GPU, 1 on a CPU.
    """

    def __init__(self, process: PartialState, batch_size: int, read_every: int | None = None):
        queued = process.device.type != "cpu"
        self.read_every = read_every or (READ_EVERY if queued else 1)
        self.reads_at_once = self.read_every == 1
        self.batch_size = batch_size
        self._unsent: list[tuple[int, int, Sequence[Tensor], Tensor]] = []
        self._sent: tuple[list[tuple[int, int, Sequence[Tensor], Tensor]], Tensor, torch.Event | None] | None = None

    def append(self, epoch: int, step: int, rows: Sequence[Tensor], sums: Tensor) -> None:
        """Keeps a step's `rows` (on the host) and `sums` (4,) over its images here: loss, its two parts, right ones."""
        self._unsent.append((epoch, step, rows, sums))

    def exchange(self, wishes: Sequence[bool], at_once: bool = False) -> tuple[list[StepResult], list[bool]]:
        """The steps that could be read, in their order, and for each wish whether any process had it when sending.

        `at_once` reads all there are and waits for them; it must be the same in all processes.
        """
        results, agreed = self._receive(len(wishes))
        if at_once or len(self._unsent) >= self.read_every:
            self._send(wishes)
        if at_once or self.reads_at_once:
            more, also = self._receive(len(wishes))
            results, agreed = results + more, [one or other for one, other in zip(agreed, also, strict=True)]
        return results, agreed

    def _send(self, wishes: Sequence[bool]) -> None:
        if not self._unsent:
            return
        sums = torch.stack([sums for *_, sums in self._unsent])
        flags = torch.stack([sums.new_full((), float(wish)) for wish in wishes])
        everyones = reduce(torch.cat([sums.flatten(), flags]), reduction="sum")
        copy, event = everyones.to("cpu", non_blocking=True), None  # from a GPU into pinned memory
        if everyones.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._sent, self._unsent = (self._unsent, copy, event), []

    def _receive(self, wishes: int) -> tuple[list[StepResult], list[bool]]:
        if self._sent is None:
            return [], [False] * wishes
        steps, copy, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()
        values = copy.tolist()
        results = []
        for number, (epoch, step, rows, _) in enumerate(steps):
            means = [value / self.batch_size for value in values[4 * number : 4 * number + 4]]
            results.append(StepResult(epoch, step, torch.cat(list(rows)).tolist(), *means))
        return results, [value > 0 for value in values[4 * len(steps) :]]
