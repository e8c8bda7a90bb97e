"""Tiny models and data that the tests of training share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from safetensors import safe_open

from binaryvit.config import TrainingConfig
from binaryvit.data.data_set import load_data
from binaryvit.models.weights_file import save_inference_weights
from binaryvit.training import loop
from binaryvit.training.build import create_model
from binaryvit.training.checkpoint import CHECKPOINT_FILE
from binaryvit.training.loop import Trainer
from binaryvit.training.teacher import load_teacher

VIT = {"variant": "deit_micro_patch4_32", "model_args": {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}}
PYRAMID = {
    "variant": "binaryvit_micro_patch2_32",
    "model_args": {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "mlp_ratios": [2, 2],
                   "reductions": [2, 1], "patch_size": 8},
}  # fmt: skip
SHORT = {
    "epochs": 2, "batch_size": 32, "learning_rate": 4e-3, "learning_rate_batch": 32, "max_train_images": 100,
    "max_eval_images": 50, "workers": 0, "threads": 1,
}  # fmt: skip
TIMING = ["images_per_second", "seconds"]


def student(**fields: Any) -> TrainingConfig:
    """A binary pyramid that trains three steps an epoch for two epochs."""
    return TrainingConfig.for_student(**{**PYRAMID, **SHORT, **fields})


def teacher(**fields: Any) -> TrainingConfig:
    """A full-precision model of the same cost, with the teacher's augmentation."""
    return TrainingConfig.for_teacher(**{**VIT, **SHORT, "warmup_epochs": 1, **fields})


def write_teacher(path: Path) -> Path:
    """Weights of a teacher with random weights, for tests that need no trained one."""
    arguments = {**VIT["model_args"], "num_classes": 10}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_inference_weights(timm.create_model(VIT["variant"], **arguments), path, VIT["variant"], arguments)
    return path


def everything_with_state(folder: Path, **fields) -> TrainingConfig:
    """All that a checkpoint must carry or that draws random numbers: teacher, mixup, EMA, dropout, accumulation."""
    return student(
        teacher=str(write_teacher(folder / "teacher.safetensors")),
        **{"mixup_alpha": 0.5, "cutmix_alpha": 0.5, "ema_decay": 0.5, "accumulation_steps": 2, "clip_grad_norm": 1.0,
           "attention_dropout": 0.2, "drop_path": 0.2, "weight_decay": 0.05, "schedule_every": "step",
           "repeated_augmentation": 2, "checkpoint_minutes": 0.0, **fields},
    )  # fmt: skip


def make_trainer(config: TrainingConfig, folder: str | Path) -> Trainer:
    """What trains a configuration in a folder, in this process on the CPU; its run has no identity."""
    return Trainer(config, load_data(config), Path(folder), {}, PartialState(cpu=True))


@contextmanager
def in_float64() -> Iterator[None]:
    """Lets a Trainer compute in float64, where rounding moves no sign, CPUs agree, and sums may come in any order."""
    replacements = {
        "create_model": lambda *args: create_model(*args).double(),
        "load_teacher": lambda *args: load_teacher(*args).double(),
    }
    before = {name: getattr(loop, name) for name in replacements}
    vars(loop).update(replacements)
    try:
        yield
    finally:
        vars(loop).update(before)


def state_text(folder: Path) -> str:
    """The state besides tensors in a run's checkpoint, as JSON."""
    with safe_open(folder / CHECKPOINT_FILE, "pt") as file:
        return file.metadata()["binaryvit_training_state"]
