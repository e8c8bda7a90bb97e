"""The batches that training and evaluation read, loaded by processes that persist through all epochs."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import Data
from binaryvit.data.images import ImageSplit
from binaryvit.data.sampling import (
    derived_seed,
    epoch_order,
    scoped_random_state,
    seed_everything,
    train_positions,
)
from binaryvit.data.transforms import Transform, eval_transform, normalize, random_erasing, train_transform
from binaryvit.errors import BinaryViTError
from binaryvit.records.provenance import available_cores, local_processes

MAX_WORKERS = 8


class Noise(NamedTuple):
    """What random erasing writes into normalized images: `values` (n,) float32 at the flat indices `places` (n,)."""

    places: Tensor
    values: Tensor


class Batch(NamedTuple):
    """Images on their way to the model's device: one byte per value, normalized there (see `ToDevice`)."""

    images: Tensor  # uint8 (batch, 3, height, width)
    labels: Tensor  # int64 (batch,)
    rows: Tensor  # int64 (batch,), which rows of the split they are
    noise: Noise | None = None


class ToDevice:
    """Moves a batch to a device and turns it into what a model takes: `(images, labels)`, images normalized.

    Nothing here waits for the device or, after the first call, makes a tensor on the host.

    Args:
        mean, std: per channel, of values in 0..1; what the model was or will be trained with.
        dtype: of the images. The normalization itself computes in float32.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.mean, self.std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
        self.device, self.dtype = device, dtype

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = normalize(batch.images.to(self.device, non_blocking=True), self.mean, self.std)
        if batch.noise is not None:
            places, values = (part.to(self.device, non_blocking=True) for part in batch.noise)
            images.view(-1).index_copy_(0, places, values)
        return images.to(self.dtype), batch.labels.to(self.device, non_blocking=True)


@contextmanager
def told_of_killed_workers() -> Iterator[None]:
    """Says in a sentence that a data-loading process was killed.

    PyTorch raises it in the main process whatever that is doing, most often within a step of training.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise BinaryViTError(
            "A data-loading process was killed from outside, as happens when memory runs out: set workers to a "
            "smaller number."
        ) from error


class Loader:
    """Batches of one split, for one process of a training, epoch after epoch.

    Its worker processes start with the first epoch and live until `close`. What a batch holds is a function of what
    `order` says alone: not of the number of workers, nor of where an epoch was entered. Global random generators
    keep their state.

    Args:
        prepared: the images; each is asked for as (epoch, position, index).
        order: gives the batches of an epoch from an optimizer step on, as arrays (batch, 3) of such triples.
        workers: None: `useful_workers`.
    """

    def __init__(
        self,
        prepared: "_PreparedImages",
        order: Callable[[int, int], list[np.ndarray]],
        workers: int | None,
    ):
        self._prepared, self._order, self._workers = prepared, order, workers
        self._batches: list[np.ndarray] = []  # of the epoch that is being loaded; the loader's sampler
        self._loader: DataLoader | None = None
        self._running: Generator[Batch] | None = None

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from optimizer step `start_step` on, both from 0; one epoch at a time.

        Raises BinaryViTError, while iterating, on an image that cannot be used.
        """
        self._batches[:] = self._order(epoch, start_step)
        self._running = self._iterate()
        return self._running

    def close(self) -> None:
        """Ends the worker processes, even within an epoch; another epoch would start new ones."""
        if self._running is not None:
            self._running.close()
        self._running = self._loader = None

    def _iterate(self) -> Generator[Batch]:
        if not self._batches:
            return
        if self._loader is None:
            self._loader = self._start()
        with told_of_killed_workers():
            for batch in self._loader:
                if isinstance(batch, BinaryViTError):
                    raise batch
                yield batch

    def _start(self) -> DataLoader:
        in_memory = self._prepared.split.pixels is not None  # decoded now, so that the workers share it
        workers = useful_workers(in_memory) if self._workers is None else self._workers
        return DataLoader(
            self._prepared,
            batch_sampler=self._batches,
            collate_fn=_as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_obey_the_parent_alone,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws from the global one
        )


def train_loader(
    data: Data,
    config: TrainingConfig,
    input_size: tuple[int, ...],
    mean: tuple[float, ...],
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """This process's augmented batches.

    A batch holds batch_size / world_size / accumulation_steps images; accumulation_steps of them in a row make one
    optimizer step. What a batch holds depends on (seed, epoch, step) and the sharding alone; the processes' batches
    together are the single process's ones. Mixup is left to the caller.

    Args:
        data: what `load_data` gave.
        config: seed, batch_size, accumulation_steps, repeated_augmentation, workers, and the augmentation's fields.
        input_size: of the model, (3, height, width).
        mean: per channel, of values in 0..1; RandAugment fills with it.
        rank, world_size: this process among all.

    Raises:
        BinaryViTError: fewer images than a batch, a batch that cannot be split evenly.
    """
    images, accumulation = len(data.train), config.accumulation_steps
    train_positions(images, config.batch_size, accumulation, 0, rank, world_size)  # refuses what cannot be split

    def order(epoch: int, start_step: int) -> list[np.ndarray]:
        positions = train_positions(images, config.batch_size, accumulation, start_step, rank, world_size)
        indices = epoch_order(images, config.seed, epoch, config.repeated_augmentation)
        return list(np.stack([np.full_like(positions, epoch), positions, indices[positions]], axis=-1))

    transform = train_transform(config, input_size, mean)
    prepared = _PreparedImages(data.train, transform, random_erasing(config), input_size, config.seed)
    return Loader(prepared, order, config.workers)


def eval_loader(
    data: Data, config: TrainingConfig, input_size: tuple[int, ...], rank: int = 0, world_size: int = 1
) -> Loader:
    """This process's part of the evaluation split: over all processes each image once, the last batch may be smaller.

    Arguments as in `train_loader`; every epoch is the same one. Image i goes to process i modulo `world_size`.
    """
    batch_size = max(1, config.batch_size // (world_size * config.accumulation_steps))
    indices = np.arange(rank, len(data.eval), world_size)
    triples = np.stack([np.zeros_like(indices), indices, indices], axis=-1)
    batches = [triples[start : start + batch_size] for start in range(0, len(triples), batch_size)]
    prepared = _PreparedImages(data.eval, eval_transform(config, input_size), None, input_size, seed=0)
    return Loader(prepared, lambda epoch, start_step: batches[start_step:], config.workers)


def useful_workers(in_memory: bool) -> int:
    """Number of worker processes of each training process when none is asked for.

    Zero for images in memory on a machine without a GPU, where workers would only take cores from the model; else as
    many as this machine's cores allow after one for each training process on it, up to MAX_WORKERS.
    """
    if in_memory and not torch.cuda.is_available():
        return 0
    return max(0, min(MAX_WORKERS, available_cores() // local_processes() - 1))


class _PreparedImages(Dataset):
    """Transformed images; a whole batch is asked for at once, as an array (batch, 3) of (epoch, position, index)."""

    def __init__(
        self,
        split: ImageSplit,
        transform: Transform,
        erasing: RandomErasing | None,
        input_size: tuple[int, ...],
        seed: int,
    ):
        self.split, self.transform, self.erasing = split, transform, erasing
        self.input_size, self.seed = input_size, seed

    def __getitems__(self, batch: np.ndarray) -> Batch | BinaryViTError:
        try:
            return self._batch(*batch.T)
        except BinaryViTError as error:  # a worker's exception would reach the user as a traceback
            return error

    def _batch(self, epochs: np.ndarray, positions: np.ndarray, indices: np.ndarray) -> Batch:
        images = self.split.images(indices)
        with scoped_random_state():
            tensors = []
            for epoch, position, image in zip(epochs, positions, images, strict=True):
                seed_everything(derived_seed(self.seed, epoch, position, 0))
                tensors.append(self.transform(image))
            noise = self._noise(epochs, positions) if self.erasing else None
        labels, rows = (torch.from_numpy(values[indices]) for values in (self.split.labels, self.split.rows))
        return Batch(torch.stack(tensors), labels, rows, noise)

    def _noise(self, epochs: np.ndarray, positions: np.ndarray) -> Noise:
        """What timm's random erasing writes into each image, which does not depend on the image."""
        places, values = [], []
        for number, (epoch, position) in enumerate(zip(epochs, positions, strict=True)):
            seed_everything(derived_seed(self.seed, epoch, position, 1))
            blank = torch.full(self.input_size, torch.nan)
            self.erasing(blank)
            blank = blank.view(-1)
            [erased] = blank.isfinite().nonzero(as_tuple=True)
            places.append(erased + number * len(blank))
            values.append(blank[erased])
        return Noise(torch.cat(places), torch.cat(values))


def _as_is(batch: Batch) -> Batch:
    return batch


def _obey_the_parent_alone(worker: int) -> None:
    """Ctrl-C or a scheduler signals the whole process group; the main process alone answers, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS can't tell who sent a signal, and must be able to end a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # and so in the threads that start from now on
        threading.Thread(target=_end_at_the_parents_signal, args=(os.getppid(),), daemon=True).start()


def _end_at_the_parents_signal(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
