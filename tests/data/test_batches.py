"""Order, augmentation and sharding of batches: functions of (seed, epoch, position) and of nothing else."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional

from binaryvit.config import TrainingConfig
from binaryvit.data.batches import (
    Batch,
    ToDevice,
    eval_loader,
    told_of_killed_workers,
    train_loader,
    useful_workers,
)
from binaryvit.data.data_set import load_data
from binaryvit.data.sampling import (
    derived_seed,
    epoch_order,
    evenly_spaced_per_class,
    scoped_random_state,
    seed_everything,
    steps_per_epoch,
    train_positions,
)
from binaryvit.data.transforms import eval_transform, normalize, random_erasing, train_transform
from binaryvit.errors import BinaryViTError

MODEL = ((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def config(recipe: str = "student", **fields) -> TrainingConfig:
    make = TrainingConfig.for_teacher if recipe == "teacher" else TrainingConfig
    given = {
        "variant": "vit_tiny_patch16_224",
        "max_train_images": 100,
        "max_eval_images": 30,
        "min_learning_rate": 0.0,
    }
    return make(**{**given, "batch_size": 16, "epochs": 10, "learning_rate": 1.0, "workers": 0, **fields})


def loader_of(data, configuration, **where):
    return train_loader(data, configuration, *MODEL[:2], **where)


def epoch_of(data, configuration, epoch=0, start_step=0, **where):
    """The batches of an epoch as a model sees them: (images, labels, rows)."""
    return seen(loader_of(data, configuration, **where).epoch(epoch, start_step))


def evaluation_of(data, configuration, **where):
    return seen(eval_loader(data, configuration, MODEL[0], **where).epoch())


def seen(batches):
    prepare = ToDevice(*MODEL[1:], torch.device("cpu"))
    return [(*prepare(batch), batch.rows) for batch in batches]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for tensor, expected in zip(batch, other, strict=True):
            assert torch.equal(tensor, expected)


@pytest.fixture(scope="module")
def digits():
    return load_data(config())


# Sampling


@given(
    images=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    repeats=st.integers(1, 4),
)
def test_order_of_an_epoch(images, seed, epoch, repeats):
    order = epoch_order(images, seed, epoch, repeats)
    assert len(order) == images
    counts = np.bincount(order, minlength=images)
    distinct = -(-images // repeats)
    assert (counts > 0).sum() == distinct and counts.max() <= repeats
    assert np.array_equal(order[::repeats], epoch_order(images, seed, epoch)[:distinct])


def test_orders_differ_between_epochs_and_seeds():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # Pins the order: changing it changes what every run computes.
    assert epoch_order(8, 0, 0).tolist() == [3, 1, 4, 5, 7, 0, 2, 6]


@given(
    images=st.integers(1, 500),
    micro=st.integers(1, 6),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    data=st.data(),
)
def test_positions_are_dealt_to_processes(images, micro, world, accumulation, data):
    batch = micro * world * accumulation
    if images < batch:
        with pytest.raises(BinaryViTError, match=f"has {images} images, fewer than one batch of {batch}"):
            train_positions(images, batch, accumulation, 0, 0, world)
        return
    steps = steps_per_epoch(images, batch)
    start = data.draw(st.integers(0, steps))
    ranks = [train_positions(images, batch, accumulation, start, rank, world) for rank in range(world)]
    assert all(positions.shape == ((steps - start) * accumulation, micro) for positions in ranks)
    # Every optimizer step holds the same positions, however it is divided.
    by_step = np.concatenate(ranks, axis=1).reshape(steps - start, batch)
    assert np.array_equal(np.sort(by_step), np.arange(start * batch, steps * batch).reshape(-1, batch))


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(BinaryViTError, match=r"16 cannot be split into 3 processes x 2 .* a multiple of 6"):
        train_positions(100, 16, 2, 0, 0, 3)


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=200), data=st.data())
def test_evenly_spaced_per_class(labels, data):
    labels = np.array(labels)
    count = data.draw(st.integers(1, len(labels)))
    chosen = evenly_spaced_per_class(labels, count)
    assert len(chosen) == count and (np.diff(chosen) > 0).all()
    expected = np.bincount(labels) * count / len(labels)
    assert (np.abs(np.bincount(labels[chosen], minlength=len(expected)) - expected) <= 1).all()


def test_derived_seeds():
    seeds = {derived_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 2) != derived_seed(2, 1)


def test_random_state_is_scoped():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything(1)
    expected = draw(), draw()
    seed_everything(1)
    first = draw()
    with pytest.raises(KeyError), scoped_random_state():
        seed_everything(2)
        assert draw() != expected[1]
        raise KeyError
    assert (first, draw()) == expected


# Batches


@pytest.mark.parametrize("recipe", ["student", "teacher"])
def test_neither_workers_nor_resuming_change_a_batch(digits, recipe):
    configuration = config(recipe)
    whole = epoch_of(digits, configuration, 3)
    assert len(whole) == 100 // 16
    for images, labels, rows in whole:
        assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32
        assert labels.dtype == rows.dtype == torch.int64
        place = {row: index for index, row in enumerate(digits.train.rows.tolist())}
        assert labels.tolist() == [digits.train.labels[place[row]] for row in rows.tolist()]
    assert_equal(whole[2:], epoch_of(digits, configuration, 3, start_step=2))
    assert_equal(whole, epoch_of(digits, config(recipe, workers=2), 3))
    assert_equal(whole[4:], epoch_of(digits, config(recipe, workers=1), 3, start_step=4))
    assert not torch.equal(whole[0][0], epoch_of(digits, configuration, 4)[0][0])
    assert not torch.equal(whole[0][0], epoch_of(digits, config(recipe, seed=1), 3)[0][0])
    assert epoch_of(digits, configuration, 3, start_step=6) == []


@pytest.mark.parametrize("recipe", ["student", "teacher"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_see_the_batches_of_one(digits, recipe, accumulation):
    configuration = config(recipe, accumulation_steps=accumulation)
    whole = epoch_of(digits, configuration)
    ranks = [epoch_of(digits, configuration, rank=rank, world_size=2) for rank in range(2)]
    dealt = [
        tuple(torch.stack([tensor, other], dim=1).flatten(0, 1) for tensor, other in zip(*pair, strict=True))
        for pair in zip(*ranks, strict=True)
    ]
    assert_equal(whole, dealt)


def test_a_loader_and_its_workers_live_through_epochs_also_unfinished_ones(digits):
    fresh = {epoch: epoch_of(digits, config("teacher"), epoch) for epoch in (0, 1, 2)}
    others = set(psutil.Process().children())  # of other tests in this process
    loader = loader_of(digits, config("teacher", workers=2))
    assert_equal(seen(loader.epoch(0)), fresh[0])
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    interrupted = loader.epoch(1)
    next(interrupted)
    interrupted.close()
    assert_equal(seen(loader.epoch(2, 1)), fresh[2][1:])
    assert_equal(seen(loader.epoch(1)), fresh[1])
    assert set(psutil.Process().children()) - others == workers
    next(loader.epoch(0))
    loader.close()
    assert not workers & set(psutil.Process().children())
    assert_equal(seen(loader.epoch(2)), fresh[2])
    loader.close()


def test_a_byte_per_value_travels_and_the_noise_beside_it(digits):
    batch = next(loader_of(digits, config("teacher", random_erasing=0.5)).epoch())
    assert isinstance(batch, Batch) and batch.images.dtype == torch.uint8
    assert 0 < len(batch.noise.places) == len(batch.noise.values) < batch.images.numel() / 4
    images, labels = ToDevice(*MODEL[1:], torch.device("cpu"), torch.float64)(batch)
    assert images.dtype == torch.float64 and torch.equal(labels, batch.labels)
    assert torch.equal(images.flatten()[batch.noise.places], batch.noise.values.double())


def test_erasing_is_timms_own_of_normalized_images(digits):
    """As if it were done to the image itself, by the same random numbers."""
    configuration = config(random_erasing=0.9)
    plain, erased = (epoch_of(digits, one)[0][0] for one in (config(), configuration))
    for position, (image, expected) in enumerate(zip(plain, erased, strict=True)):
        with scoped_random_state():
            seed_everything(derived_seed(0, 0, position, 1))
            assert torch.equal(random_erasing(configuration)(image), expected)


def test_global_random_generators_are_left_alone(digits):
    seed_everything(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    for workers in (0, 1):
        seed_everything(5)
        epoch_of(digits, config("teacher", workers=workers))
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_repeated_augmentation_shows_an_image_in_different_crops(digits):
    configuration = config(repeated_augmentation=4)
    images, _, rows = epoch_of(digits, configuration)[0]
    assert rows.tolist() == rows[::4].repeat_interleave(4).tolist()
    assert len({image.numpy().tobytes() for image in images}) == 16
    ranks = [epoch_of(digits, configuration, rank=rank, world_size=4)[0][2] for rank in range(4)]
    assert all(rank.tolist() == rows[::4].tolist() for rank in ranks)


def test_an_image_is_augmented_differently_in_each_epoch(digits):
    seen = {}
    for epoch in range(3):
        for images, _, rows in epoch_of(digits, config(), epoch):
            for image, row in zip(images, rows.tolist(), strict=True):
                seen.setdefault(row, set()).add(image.numpy().tobytes())
    assert max(len(crops) for crops in seen.values()) == 3


@pytest.mark.parametrize("world_size", [1, 2, 7, 40])
def test_evaluation_sees_every_image_once(digits, world_size):
    configuration = config(batch_size=80)
    shards = [evaluation_of(digits, configuration, rank=rank, world_size=world_size) for rank in range(world_size)]
    rows = torch.cat([batch[2] for shard in shards for batch in shard])
    assert sorted(rows.tolist()) == digits.eval.rows.tolist()
    one_worker = config(batch_size=80, workers=1)
    assert_equal(shards[0], evaluation_of(digits, one_worker, rank=0, world_size=world_size))


def test_fewer_images_than_a_batch(digits):
    with pytest.raises(BinaryViTError, match=r"100 images, fewer than one batch of 128 .*: set batch_size to 100"):
        loader_of(digits, config(batch_size=128))


# What a worker process meets


def damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("binaryvit.data.images.PIXEL_CACHE_BYTES", 0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    # Behind what is decoded to find out whether the split fits into memory.
    data = load_data(config(data=str(tmp_path)))
    assert data.train.pixels is None
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_a_sentence_from_a_worker_too(tmp_path, monkeypatch, workers):
    data = damaged(tmp_path, monkeypatch)
    (tmp_path / "train" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(BinaryViTError) as caught:
        epoch_of(data, config(batch_size=4, workers=workers))
    assert str(caught.value) == (
        "Image 6 of split 'train' (train/dog/2.png) cannot be used (not an image file): replace or remove it."
    )


def test_no_image_is_read_from_outside_of_the_folder(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    data = damaged(tmp_path / "data", monkeypatch)
    table = data.train.table.map(lambda row: {"image": row["image"] | {"path": "train/../../secret.png"}})
    monkeypatch.chdir(tmp_path / "data")
    for folder in (tmp_path / "data", Path(".")):
        split = dataclasses.replace(data.train, table=table, folders=(folder,))
        with pytest.raises(BinaryViTError, match=r"Image 0 of split 'train' \(train/../../secret.png\) lies outside"):
            split.encoded([0])


def test_a_process_ends_with_its_workers_though_nobody_closed_them():
    code = """
from binaryvit.config import TrainingConfig
from binaryvit.data.batches import eval_loader
from binaryvit.data.data_set import load_data
variant = "binaryvit_micro_patch2_32"
config = TrainingConfig.for_student(variant=variant, data="digits", workers=1, learning_rate_batch=32, batch_size=32)
loader = eval_loader(load_data(config), config, (3, 32, 32), 0, 1)
batches = loader.epoch()
next(batches)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_worker_that_is_killed(digits, monkeypatch):
    monkeypatch.setattr("binaryvit.data.batches.seed_everything", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BinaryViTError, match=r"killed from outside.*set workers to a smaller"):
        epoch_of(digits, config(workers=1))


def test_a_worker_that_is_killed_is_told_whatever_the_main_process_does(digits):
    loader = train_loader(digits, config(workers=1), *MODEL[:2])
    with pytest.raises(BinaryViTError, match="killed from outside"), told_of_killed_workers():
        next(loader.epoch())
        (worker,) = loader._loader._iterator._workers
        os.kill(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # torch raises from a signal's handler
            time.sleep(0.01)
    with pytest.raises(RuntimeError, match="of another kind"), told_of_killed_workers():
        raise RuntimeError("of another kind")


def test_useful_workers(monkeypatch):
    monkeypatch.setattr("binaryvit.data.batches.available_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [useful_workers(True), useful_workers(False)] == [0, 5]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert useful_workers(False) == 2
    monkeypatch.setattr("binaryvit.data.batches.available_cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    workers = []
    for here in (1, 8, 64):  # 64 processes on eight such machines are eight on each
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
        monkeypatch.setenv("WORLD_SIZE", "64")
        workers.append(useful_workers(True))
    assert workers == [8, 7, 0]


# Transforms


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_evaluation_at_224_is_resize_256_and_centre_crop():
    image = picture(400, 300)
    resized = functional.resize(image, 256, functional.InterpolationMode.BICUBIC)
    expected = functional.pil_to_tensor(functional.center_crop(resized, 224))
    configuration = TrainingConfig(variant="vit_tiny_patch16_224")
    assert torch.equal(eval_transform(configuration, (3, 224, 224))(image), expected)


def test_evaluation_of_images_of_the_models_size_loses_nothing():
    image = picture(32, 32)
    assert torch.equal(eval_transform(config(eval_crop=1.0), (3, 32, 32))(image), functional.pil_to_tensor(image))


def test_small_images_are_enlarged_to_the_model():
    for transform in (eval_transform(config(), MODEL[0]), train_transform(config(), *MODEL[:2])):
        assert transform(picture(8, 8)).shape == (3, 32, 32)


def test_the_student_sees_random_resized_crop_and_flip_alone():
    image, configuration = picture(50, 40), TrainingConfig(variant="vit_tiny_patch16_224")
    steps = [type(step).__name__ for step in train_transform(configuration, *MODEL[:2]).transforms]
    assert steps == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "MaybePILToTensor"]
    crop = train_transform(configuration, *MODEL[:2]).transforms[0]
    assert crop.scale == (0.08, 1.0) and crop.interpolation == functional.InterpolationMode.BICUBIC
    with scoped_random_state():
        seed_everything(3)
        got = normalize(train_transform(configuration, *MODEL[:2])(image)[None], *MODEL[1:])[0]
        seed_everything(3)
        timms = create_transform(32, True, color_jitter=None, interpolation="bicubic", mean=MODEL[1], std=MODEL[2])
        assert torch.equal(got, timms(image))


def test_the_teachers_augmentation():
    configuration = TrainingConfig.for_teacher(variant="vit_tiny_patch16_224")
    steps = [type(step).__name__ for step in train_transform(configuration, *MODEL[:2]).transforms]
    assert steps == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "MaybePILToTensor"]
    alone = config(color_jitter=0.4)
    assert "ColorJitter" in [type(step).__name__ for step in train_transform(alone, *MODEL[:2]).transforms]


def test_every_strength_of_the_teachers_policy_works():
    """The strongest posterization keeps no bit, which some versions of Pillow refuse."""
    transform = train_transform(config(auto_augment="rand-m10-n8-inc1"), *MODEL[:2])
    with scoped_random_state():
        for seed in range(100):
            seed_everything(seed)
            assert transform(picture(16, 16)).shape == (3, 32, 32)


def test_random_erasing_is_noise_in_normalized_images(digits):
    plain = torch.cat([batch[0] for batch in epoch_of(digits, config())])
    erased = torch.cat([batch[0] for batch in epoch_of(digits, config(random_erasing=0.5))])
    changed = (plain != erased).any(dim=1)
    share = changed.flatten(1).any(dim=1).float().mean()
    assert 0.3 < share < 0.7
    for image in changed[changed.flatten(1).any(dim=1)]:
        rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all() and 0.01 < box.numel() / image.numel() < 0.36
    noise = erased[(plain != erased)]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


@settings(max_examples=20)
@given(value=st.integers(0, 255))
def test_normalize(value):
    images = torch.full((2, 3, 4, 4), value, dtype=torch.uint8)
    normalized = normalize(images, *MODEL[1:])
    for channel in range(3):
        expected = (value / 255 - MODEL[1][channel]) / MODEL[2][channel]
        assert torch.allclose(normalized[:, channel], torch.tensor(expected), atol=1e-5)
    assert (images == value).all()
