"""Which image comes when, and with which random numbers: pure functions of (seed, epoch, position), never of a state.

An epoch is a list of positions 0, 1, 2, ...; each holds the index of an image. Positions are cut into global batches,
each global batch into accumulation parts, each part is dealt to the processes in turn. So a run that resumes at any
step, or uses more processes, sees the same images with the same augmentation in the same batches.
"""

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from binaryvit.errors import BinaryViTError


def derived_seed(*numbers: int) -> int:
    """Maps integers, for instance (seed, epoch, position), to a well mixed seed in [0, 2^63)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def scoped_random_state() -> Iterator[None]:
    """Restores the global generators of Python, NumPy and torch (CPU) when the block ends."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_everything(seed: int) -> None:
    """Seeds the global generators the transforms draw from: python's, numpy's and torch's on the CPU.

    torch.manual_seed would seed the accelerators too, which belong to training.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def evenly_spaced_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices (ascending) of `count` images, always the same ones, each class in proportion to within one image.

    Systematic sampling: images are ordered by (class, index), and `count` evenly spaced ones are taken.
    """
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.arange(count) * len(labels) // count])


def epoch_order(images: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """Image index at each position of an epoch: a permutation of all images that depends on (seed, epoch) alone.

    With `repeats` > 1 (repeated augmentation; Hoffer et al. 2020, Berman et al. 2019) each image stands at that many
    neighbouring positions, so an epoch of unchanged length meets 1/repeats of the images, each augmented differently.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = torch.randperm(images, generator=generator).numpy()
    return order.repeat(repeats)[:images]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Optimizer steps of an epoch; every global batch is full; images left over are not seen in that epoch.

    Raises:
        BinaryViTError: there are fewer images than one batch holds.
    """
    if images < batch_size:
        raise BinaryViTError(
            f"The training split has {images} images, fewer than one batch of {batch_size} (every batch is full): "
            f"set batch_size to {images} or less, or use more images."
        )
    return images // batch_size


def train_positions(
    images: int, batch_size: int, accumulation_steps: int, start_step: int, rank: int, world_size: int
) -> np.ndarray:
    """Positions of an epoch that this process gets, from optimizer step `start_step` on: (micro-batches, their size).

    Neighbouring positions go to different processes, so that repetitions of an image spread over them.

    Raises:
        BinaryViTError: the batch does not divide by processes times accumulation steps, or is larger than the data.
    """
    steps = steps_per_epoch(images, batch_size)
    if batch_size % (world_size * accumulation_steps):
        raise BinaryViTError(
            f"batch_size {batch_size} cannot be split into {world_size} processes x {accumulation_steps} accumulation "
            f"steps: choose a multiple of {world_size * accumulation_steps}."
        )
    positions = np.arange(start_step * batch_size, steps * batch_size)
    return positions.reshape(-1, batch_size // accumulation_steps)[:, rank::world_size]
