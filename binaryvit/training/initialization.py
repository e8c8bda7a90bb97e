"""Starting a training from existing weights: loads what fits, and says what does not."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from binaryvit.config import PRETRAINED
from binaryvit.errors import BinaryViTError
from binaryvit.models.authors_names import from_authors_names, has_authors_names
from binaryvit.models.external_checkpoint import read_state_dict
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.training.build import pretrained_model
from binaryvit.training.checkpoint import of_prefix
from binaryvit.training.teacher import finished_run


def initialize(model: nn.Module, place: str) -> str:
    """Loads into `model` each tensor of `place` that has the name and the shape of one of the model's.

    Position embeddings are resampled to the model's grid; that of a CLS token is dropped where the model has none, and
    stays as initialized where the weights have none. `place` is the folder of a finished run, a weights file or
    training checkpoint of ours, another checkpoint (with our names, the authors' or timm's), or "timm:NAME". Weights
    stored in one bit start as scale times sign; only a training checkpoint holds the latent ones.

    Returns a sentence that says what was loaded and what was not.

    Raises:
        BinaryViTError: there is nothing at `place`, it can't be read, or none of it fits.
    """
    stored, own = _state_dict(place), model.state_dict()
    if has_authors_names(stored) and hasattr(model, "stages"):
        stored = from_authors_names(stored, [len(stage.blocks) for stage in model.stages])
    stored = {
        name: _resampled(tensor, own[name]) if name.endswith("pos_embed") and name in own else tensor
        for name, tensor in stored.items()
    }
    fitting = {name: tensor for name, tensor in stored.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise BinaryViTError(
            f"init_from={place!r} holds no tensor with a name and shape of this {type(model).__name__}: give weights "
            "of the same architecture, or leave it out."
        )
    try:
        model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise BinaryViTError(f"init_from={place!r} does not fit this {type(model).__name__}: {error}") from error
    left = [name for name in own if name not in fitting]
    unused = [name for name in stored if name not in fitting]
    return (
        f"Started from {place}: {len(fitting)} of {len(own)} tensors loaded"
        + (f"; as initialized: {_few(left)}" if left else "")
        + (f"; not used: {_few(unused)}" if unused else "")
        + "."
    )


def _state_dict(place: str) -> dict[str, Tensor]:
    path = Path(place)
    if place.startswith(PRETRAINED):
        return pretrained_model(place.removeprefix(PRETRAINED)).state_dict()
    if path.is_dir():
        path = path / finished_run(path, "init_from").weights.file
    tensors = read_state_dict(path)
    if any(name.endswith(".weight.bits") for name in tensors):
        return load_inference_weights(path).state_dict()
    if any(name.startswith("optimizer.") for name in tensors):  # a training checkpoint of ours
        return of_prefix("ema", tensors) or of_prefix("model", tensors)
    return tensors


def _resampled(stored: Tensor, own: Tensor) -> Tensor:
    """A position embedding (1, N, C) on the grid of another; as it is where one of them is of no square grid.

    Tokens beyond a square, a CLS token, come first. Those that only the other one has start as there.
    """
    if stored.ndim != own.ndim or stored.shape[-1] != own.shape[-1]:
        return stored
    (extra, side), (own_extra, own_side) = (_square(tokens.shape[1]) for tokens in (stored, own))
    if max(extra, own_extra) > 1:
        return stored
    grid = resample_abs_pos_embed(stored[:, extra:], [own_side] * 2, [side] * 2, num_prefix_tokens=0)
    prefix = stored[:, :extra] if extra >= own_extra else own.detach()[:, :own_extra]
    return torch.cat([prefix[:, :own_extra], grid], dim=1)


def _square(tokens: int) -> tuple[int, int]:
    """How many tokens are beyond the largest square, and its side."""
    side = math.isqrt(tokens)
    return tokens - side**2, side


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
