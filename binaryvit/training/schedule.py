"""The learning rate over a run."""

from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

from binaryvit.config import TrainingConfig


class LearningRate:
    """Sets an optimizer's learning rate: linear warm-up, then a cosine from the peak to the minimum.

    With t the epoch (or, with schedule_every="step", the optimizer step) out of T, it is
    min + (peak - min) * (1 + cos(pi t / T)) / 2, and during the first W it is warmup + t / W * (peak - warmup); the
    cosine runs from t = 0 also where the warm-up hides it. This is timm's `CosineLRScheduler`, as DeiT uses it.
    """

    def __init__(self, config: TrainingConfig, optimizer: Optimizer, steps_per_epoch: int):
        self.every_step = config.schedule_every == "step"
        self.optimizer = optimizer
        unit = steps_per_epoch if self.every_step else 1
        self.steps_per_epoch = steps_per_epoch
        self.scheduler = None
        if config.epochs * unit > 1:  # timm warns of a schedule of one value
            self.scheduler = CosineLRScheduler(
                optimizer,
                t_initial=config.epochs * unit,
                lr_min=config.min_learning_rate,
                warmup_t=config.warmup_epochs * unit,
                warmup_lr_init=config.warmup_learning_rate,
                t_in_epochs=not self.every_step,
            )

    def set(self, epoch: int, step: int) -> float:
        """Sets the rate for optimizer step `step` of `epoch`, both from 0, and returns it."""
        if self.scheduler is not None:
            self.scheduler.step(epoch)
            self.scheduler.step_update(epoch * self.steps_per_epoch + step)
        return self.optimizer.param_groups[0]["lr"]
