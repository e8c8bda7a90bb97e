"""Checkpoints from outside of this library: PyTorch or safetensors files, read as data and never as code."""

import copy
import os
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, the latter read with `weights_only=True`.

    A state dict under "state_dict", "model" or "module" is unwrapped, and the prefix "module." of distributed
    training is removed.

    Raises:
        BinaryViTError: the file is missing or damaged, holds more than tensors, or holds no tensors.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file without an error of its own
        raise BinaryViTError(f"There is no checkpoint file {path}; check the path.")
    try:
        content = load_file(path) if _is_safetensors(path) else torch.load(path, "cpu", weights_only=True)
    except PermissionError as error:
        raise BinaryViTError(f"{path} may not be read; check its permissions.") from error
    except pickle.UnpicklingError as error:  # anything but plain tensors and containers
        raise BinaryViTError(
            f"{path} is no PyTorch file, or holds more than tensors and is not opened, for it could run code; "
            "convert it to safetensors where you trust it."
        ) from error
    except Exception as error:  # a damaged file can make the readers raise anything
        raise BinaryViTError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}); it is truncated or of another kind."
        ) from error
    for key in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise BinaryViTError(f"{path} holds no state dict (names with tensors); nothing was loaded from it.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its content: eight bytes with the length of its header, then JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint with our names or the authors' into a model, strictly; another image size is resampled.

    Raises:
        BinaryViTError: the file can't be read, or does not fit the model; the model is then unchanged.
    """
    state_dict = read_state_dict(path)
    try:
        copy.deepcopy(model).load_state_dict(state_dict)
        model.load_state_dict(state_dict)
    except (RuntimeError, IndexError, ValueError) as error:
        problems = str(error).split("\n\t", 1)[-1].replace("\n\t", " ")
        raise BinaryViTError(f"{path} does not fit this {type(model).__name__}: {problems[:600]}") from error
