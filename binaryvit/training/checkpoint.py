"""The state of an unfinished run on disk: one file, replaced in one step, data and never code."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically

CHECKPOINT_FILE = "checkpoint.safetensors"
PROCESSES = "processes"  # the entry of an identity whose difference gets an explanation
_FORMAT = 2
_METADATA = "binaryvit_training_state"


def initial_state(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds besides tensors, before the first step of the run that `identity` describes."""
    return {
        "identity": identity,
        "sources": [],  # the commits it was trained at, in order
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "epoch": 0,
        "step": 0,
        "sums": {},  # of this epoch's steps so far
        "epoch_seconds": 0.0,
        "timed_steps": 0,  # of this epoch: those after the first of each process, which compiles
        "timed_seconds": 0.0,
        "seconds": 0.0,
        "history": [],  # the rows of metrics
        "layers": {},  # the rows of the tables per layer, by file
    }


def save_state(path: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replaces the checkpoint `path` by these tensors and this JSON-able state."""
    text = json.dumps({"format": _FORMAT, **state})
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata={_METADATA: text}))


def load_state(path: str | Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint of the run that `identity` (names and values) describes.

    Raises `BinaryViTError` when it is truncated, not a checkpoint of ours, or belongs to another run or number of
    processes; nothing is changed then.
    """
    advice = "Nothing was changed; move the file away to start the run again, or choose another folder."
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise BinaryViTError(f"The checkpoint {path} is damaged or not a checkpoint ({error}). {advice}") from None
    try:
        state = json.loads(text or "")
        if state["format"] != _FORMAT:
            raise BinaryViTError(
                f"The checkpoint {path} has format {state['format']}, this version reads {_FORMAT}. {advice}"
            )
        stored = state["identity"]
        different = [name for name, value in identity.items() if stored[name] != value]
    except (ValueError, KeyError, TypeError):
        raise BinaryViTError(f"The file {path} is not a training checkpoint of binaryvit. {advice}") from None
    if PROCESSES in different:
        raise BinaryViTError(
            f"The checkpoint {path} was written with processes={stored[PROCESSES]}, not {identity[PROCESSES]}. Another "
            f"number would change a training's random numbers: set processes to {stored[PROCESSES]} to go on, or start "
            "over in another folder."
        )
    if different:
        raise BinaryViTError(
            f"The checkpoint {path} belongs to another run: its {' and '.join(different)} differ from this one's. "
            f"{advice}"
        )
    return tensors, state


def stored_identity(path: str | Path) -> dict[str, Any] | None:
    """The identity of the run that the checkpoint `path` belongs to, without its tensors; None if there is none."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            identity = json.loads((file.metadata() or {}).get(_METADATA) or "")["identity"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, dict) else None


def training_tensors(
    model: nn.Module, ema: nn.Module | None, optimizer: Optimizer, signs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a training, each part under its own prefix; the reverse is `restore_training`."""
    tensors = with_prefix("model", model.state_dict()) | with_prefix("signs", signs)
    tensors |= with_prefix("optimizer", optimizer_tensors(optimizer))
    return tensors | with_prefix("ema", ema.state_dict() if ema is not None else {})


def restore_training(
    path: str | Path, tensors: Mapping[str, Tensor], model: nn.Module, ema: nn.Module | None, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Puts the tensors of the checkpoint `path` back where they were, and returns the signs."""
    restore_module(model, of_prefix("model", tensors), path)
    if ema is not None:
        restore_module(ema, of_prefix("ema", tensors), path)
    restore_optimizer(optimizer, of_prefix("optimizer", tensors))
    return of_prefix("signs", tensors)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The moments of an optimizer, by `number of the parameter . name`."""
    slots = optimizer.state_dict()["state"].items()
    return {f"{number}.{name}": tensor for number, values in slots for name, tensor in values.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of one part of a checkpoint."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def of_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint under their own names."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a module's own tensors. Raises `BinaryViTError` when they are not exactly the module's."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise BinaryViTError(f"The checkpoint {path} does not fit the model it was made for: {error}") from None
