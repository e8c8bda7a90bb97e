"""The training loop: epochs of optimizer steps whose outcome is a function of the configuration and the data alone.

No random state is ever saved. All that is random in a step is seeded by (seed, epoch, step, process), so a run that
goes on from a checkpoint sees what it would have seen without the interruption.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from binaryvit.config import TrainingConfig
from binaryvit.data.batches import Batch, ToDevice, eval_loader, train_loader
from binaryvit.data.data_set import Data
from binaryvit.data.sampling import derived_seed, steps_per_epoch
from binaryvit.errors import BinaryViTError
from binaryvit.models.ops.synchronized import synchronize
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL
from binaryvit.records.provenance import git_state
from binaryvit.records.run_record import METRICS_FILE
from binaryvit.training import checkpoint
from binaryvit.training.build import compile_blocks, create_model, data_parallel, input_settings, store_weights
from binaryvit.training.evaluation import Evaluation, autocast, evaluate
from binaryvit.training.initialization import initialize
from binaryvit.training.interruption import Interruption
from binaryvit.training.latent import flip_rates, weight_signs
from binaryvit.training.losses import create_mixup, training_loss
from binaryvit.training.progress import Progress
from binaryvit.training.schedule import LearningRate
from binaryvit.training.step_log import StepLog, StepResult
from binaryvit.training.tables import append_layers, best_epoch, write_tables
from binaryvit.training.teacher import Teacher, load_teacher

BEST_WEIGHTS_FILE = "weights_best.safetensors"


class Trainer:
    """Trains one configuration on one data set, from its beginning or its last checkpoint.

    Attributes:
        model: the model in training; `trained_model` is the one to keep.
        state: what a checkpoint holds besides tensors: the position in the run, the epoch's sums, all metrics so far.
    """

    def __init__(
        self, config: TrainingConfig, data: Data, run_dir: Path, identity: dict[str, Any], process: PartialState
    ):
        """`identity` says which run the checkpoint in `run_dir` must belong to. Raises `BinaryViTError`."""
        self.config, self.data, self.run_dir, self.identity, self.process = config, data, run_dir, identity, process
        self.device = process.device
        self.steps = steps_per_epoch(len(data.train), config.batch_size)
        model = create_model(config, data.num_classes)
        self.started_from = None if config.init_from is None else initialize(model, config.init_from)
        model = model.to(self.device)
        size, mean, std = input_settings(model, config.image_size)
        shard = process.process_index, process.num_processes
        self.train_loader = train_loader(data, config, size, mean, *shard)
        self.eval_loader = eval_loader(data, config, size, *shard)
        self.to_device = ToDevice(mean, std, self.device, next(model.parameters()).dtype)
        self.ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
        self.teacher = None
        if config.teacher is not None:
            teacher = load_teacher(config.teacher, config.teacher_variant, data.class_names)
            self.teacher = Teacher(teacher, mean, std).to(self.device)
        self.mixup = create_mixup(config, data.num_classes)
        self.model = synchronize(model) if process.num_processes > 1 else model
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=config.optimizer,
            lr=config.peak_learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.learning_rate = LearningRate(config, self.optimizer, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.signs = weight_signs(self.model)
        self.state = checkpoint.initial_state(identity)
        self.interruption = Interruption()
        self.log = StepLog(process, config.batch_size)
        self._last: StepResult | None = None  # of this process's steps the last one that was read
        self._warm = False  # whether this process has done a step
        self._restore()
        source = git_state().model_dump()
        if source not in self.state["sources"]:
            self.state["sources"].append(source)
        if config.compile:
            for network in filter(
                None, (self.model, self.teacher and self.teacher.model, self.ema and self.ema.module)
            ):
                compile_blocks(network)
        self.network = data_parallel(self.model, self.device) if process.num_processes > 1 else self.model

    @property
    def trained_model(self) -> nn.Module:
        """The model whose accuracy is measured and whose weights are kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> None:
        """Trains all epochs that are left. Raises `BinaryViTError` when the loss is not finite."""
        done = self.state["epoch"] * self.steps + self.state["step"]
        progress = Progress(self.config.epochs, self.steps, done, enabled=self.process.is_main_process)
        if self.started_from is not None and not done:
            progress.note(self.started_from)
        if done:
            progress.note(f"resumed after step {self.state['step']} of epoch {self.state['epoch'] + 1}")
        self.network.train()
        self._saved = time.monotonic()
        with self.interruption:
            try:
                while self.state["epoch"] < self.config.epochs:
                    self._train_epoch(progress)
                    row, switched_off = self._finish_epoch()
                    progress.epoch(row)
                    for layer in switched_off:
                        progress.note(
                            f"The attention level of {layer} has fallen to zero or below: the layer computes with "
                            f"{MINIMUM_ATTENTION_LEVEL:g} in its place, which attends to every key, until its gradient "
                            "brings the level back."
                        )
            finally:
                progress.close()

    def evaluate(self, model: nn.Module, precision: str) -> Evaluation:
        """Evaluates `model` on the whole evaluation split."""
        return evaluate(model, map(self.to_device, self.eval_loader.epoch()), self.device, precision)

    def close(self) -> None:
        """Ends the data-loading processes."""
        self.train_loader.close()
        self.eval_loader.close()

    def write_tables(self) -> None:
        """Writes the metrics so far as CSV, from the state that the checkpoint keeps."""
        if self.process.is_main_process:
            write_tables(self.run_dir, self.state["history"], self.state["layers"])

    def _train_epoch(self, progress: Progress) -> None:
        state = self.state
        epoch = state["epoch"]
        then = time.monotonic()
        batches = self.train_loader.epoch(epoch, state["step"])
        while state["step"] < self.steps:
            step = state["step"]
            state["lr"] = self.learning_rate.set(epoch, step)
            self._step(epoch, step, batches)
            state["step"] = step + 1
            stop, save = self._exchange(at_once=state["step"] == self.steps)
            now = time.monotonic()
            state["epoch_seconds"] += now - then
            if self._warm:
                state["timed_steps"] += 1
                state["timed_seconds"] += now - then
            self._warm, then = True, now
            progress.step(epoch, step, self._last and self._last.loss, self._images_per_second())
            if stop or save:  # after the last step, too: an evaluation may take long
                self._save()
            if stop:
                raise KeyboardInterrupt

    def _exchange(self, at_once: bool) -> tuple[bool, bool]:
        """Takes in what steps measured; returns whether the processes agree to stop, and to save a checkpoint.

        Whichever process is asked to stop, all stop after the same step, so none waits for one that has left. The first
        process's clock decides when to save. Before either, every step is read, so that no checkpoint holds one whose
        loss is not finite.
        """
        overdue = time.monotonic() - self._saved >= 60 * self.config.checkpoint_minutes
        wishes = [self.interruption.requested, overdue and self.process.is_main_process]
        alone = self.process.num_processes == 1
        results, agreed = self.log.exchange(wishes, at_once or (alone and any(wishes)))
        if any(agreed):
            results += self.log.exchange(wishes, at_once=True)[0]
        for result in results:
            if not math.isfinite(result.loss):
                raise self._not_finite(f"The loss became {result.loss}", result.epoch, result.step, result.rows)
            self._last = result
            for name, value in result.measured().items():
                self.state["sums"][name] = self.state["sums"].get(name, 0.0) + value
        stop, save = agreed
        return stop, save

    def _images_per_second(self) -> float:
        """Of this epoch's training, compilation aside where there was more than one step."""
        state = self.state
        steps, seconds = state["timed_steps"], state["timed_seconds"]
        if not steps:
            steps, seconds = state["step"], state["epoch_seconds"]
        return steps * self.config.batch_size / seconds

    def _step(self, epoch: int, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step. Nothing in it waits for the device; what it measured goes to the log."""
        config = self.config
        parts, rows = [], []
        for part in range(config.accumulation_steps):
            batch = next(batches)
            if part == 0:
                seed = derived_seed(config.seed, epoch, step, self.process.process_index, 2)
                torch.manual_seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)  # timm's mixup draws from it
            rows.append(batch.rows)
            last = part == config.accumulation_steps - 1
            with nullcontext() if last or self.network is self.model else self.network.no_sync():
                parts.append(self._backward(*self.to_device(batch)))
        self.log.append(epoch, step, rows, torch.stack(parts).sum(dim=0))
        if config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adds a micro-batch's gradient; returns sums over its images: the loss and its parts, the right answers."""
        config = self.config
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        with autocast(self.device, config.precision):
            probabilities = self.teacher(images) if self.teacher is not None else None
            logits = self.network(images)
        loss = training_loss(config, logits, targets, probabilities)
        self.scaler.scale(loss.total / config.accumulation_steps).backward()
        unused = loss.total.new_zeros(())
        right = (logits.argmax(dim=1) == labels).float().mean()
        parts = [loss.total, *(unused if part is None else part for part in (loss.distillation, loss.label)), right]
        return torch.stack([part.detach() for part in parts]) * len(images)

    def _finish_epoch(self) -> tuple[dict[str, Any], list[str]]:
        """Evaluates, records the epoch and saves; returns its row of metrics and layers whose level fell to zero."""
        state, config = self.state, self.config
        self._check_weights()
        begun = time.monotonic()
        result = self.evaluate(self.trained_model, config.precision)
        if not math.isfinite(result.loss):
            raise BinaryViTError(
                f"The evaluation loss became {result.loss} after epoch {state['epoch'] + 1}; the last checkpoint is "
                f"kept in {self.run_dir}. Try a lower learning_rate, clip_grad_norm=1.0, or precision='fp32'."
            )
        epoch = state["epoch"] + 1
        rates, flip_rate = flip_rates(self.model, self.signs)
        means = {name: total / self.steps for name, total in state["sums"].items()}
        seconds = state["epoch_seconds"] + time.monotonic() - begun
        row = {
            "epoch": epoch,
            "lr": state["lr"],
            "train_loss": means["train_loss"],
            "distillation_loss": means["distillation_loss"] if self.teacher is not None else None,
            "label_loss": means["label_loss"] if self.teacher is None or config.mixing else None,
            "train_top1": None if config.mixing else 100 * means["train_top1"],
            "eval_loss": result.loss,
            "top1": result.top1,
            "top5": result.top5,
            "images_per_second": self._images_per_second(),
            "flip_rate": flip_rate,
            "seconds": seconds,
        }
        state["history"].append(row)
        switched_off = append_layers(state["layers"], epoch, self.model, rates)
        self.signs = weight_signs(self.model)
        state.update(epoch=epoch, step=0, sums={}, seconds=state["seconds"] + seconds)
        state.update(epoch_seconds=0.0, timed_steps=0, timed_seconds=0.0)
        if config.keep_best and self.process.is_main_process and best_epoch(state["history"]) is row:
            store_weights(self.trained_model, config, self.data.class_names, self.run_dir / BEST_WEIGHTS_FILE)
            state["kept_epoch"] = epoch
        self._save()
        self.write_tables()
        return row, switched_off

    def _save(self) -> None:
        self._check_weights()
        self._saved = time.monotonic()
        if not self.process.is_main_process:
            return
        tensors = checkpoint.training_tensors(self.model, self.ema and self.ema.module, self.optimizer, self.signs)
        state = self.state | {"scaler": self.scaler.state_dict()}
        checkpoint.save_state(self.run_dir / checkpoint.CHECKPOINT_FILE, tensors, state)

    def _restore(self) -> None:
        path = self.run_dir / checkpoint.CHECKPOINT_FILE
        if len(set(gather_object([path.exists()]))) > 1:
            raise BinaryViTError(f"Not all processes see {path}: the folder must be one that all machines share.")
        if not path.exists():
            if (self.run_dir / METRICS_FILE).exists():
                raise BinaryViTError(
                    f"{self.run_dir} holds metrics of a run without its checkpoint, so it cannot go on: move the "
                    "folder away to start again, or choose another one."
                )
            return
        tensors, state = checkpoint.load_state(path, self.identity)
        self.signs = checkpoint.restore_training(
            path, tensors, self.model, self.ema and self.ema.module, self.optimizer
        )
        self.scaler.load_state_dict(state.pop("scaler"))
        self.state = state
        if len(set(gather_object([(state["epoch"], state["step"])]))) > 1:
            raise BinaryViTError(f"The processes see {path} in different versions: start the run again.")
        self.write_tables()

    def _check_weights(self) -> None:
        """Keeps weights that are not finite (a finite loss with an overflowing gradient) out of the checkpoint."""
        if not torch.stack([value.isfinite().all() for value in self.model.state_dict().values()]).all():
            rows = self._last.rows if self._last else []
            what = "The weights became infinite or NaN"
            raise self._not_finite(what, self.state["epoch"], self.state["step"] - 1, rows)

    def _not_finite(self, what: str, epoch: int, step: int, rows: list[int]) -> BinaryViTError:
        path = self.run_dir / checkpoint.CHECKPOINT_FILE
        kept = f"The last good checkpoint stays in {path}" if path.exists() else "There is no checkpoint yet"
        return BinaryViTError(
            f"{what} at step {step + 1} of {self.steps} in epoch {epoch + 1}, on the training images {rows}. "
            f"{kept}. Try a lower learning_rate, more warmup_epochs, clip_grad_norm=1.0 or precision='fp32', and look "
            "at these images."
        )
