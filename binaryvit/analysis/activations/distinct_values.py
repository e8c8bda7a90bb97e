"""How many distinct values the activations of a binary model take, at each step inside its blocks.

A binary product of K terms takes at most K + 1 values; batch norm, a one-to-one map, adds none, while shortcuts,
average pooling and sums with other branches do. Counted are distinct float32 numbers, per channel, of a copy of the
model that computes in float64 (`signs.exact_copy`): values equal there but for rounding are equal as float32, too.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.analysis.activations.signs import Point, evaluating, exact_copy, watching
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import BinaryAttention, BinaryBlock
from binaryvit.models.quantizers import sign
from binaryvit.models.vision_transformer import BinaryVisionTransformer

# What a step of a block is called, and where in the block it is seen, in the order of computation. The units of query,
# key and value are alike: the query's stands for the three.
ATTENTION_STEPS: dict[str, Point] = {
    "attention: input": ("norm1", "output"),
    "query: binary product": ("attn.q.linear", "output"),
    "query: batch norm": ("attn.q.norm", "output"),
    "query: + shortcut": ("attn.q.act", "input"),
    "query: RPReLU": ("attn.q.act", "output"),
    "context: binary product": ("attn.norm", "input"),
    "context: batch norm": ("attn.norm", "output"),
    "context: + q + k + v": ("attn.act", "input"),
    "context: RPReLU": ("attn.act", "output"),
    "projection: binary product": ("attn.proj.linear", "output"),
    "projection: batch norm": ("attn.proj.norm", "output"),
    "projection: + shortcut": ("attn.proj.act", "input"),
    "projection: RPReLU": ("attn.proj.act", "output"),
    "attention: affine": ("affine1", "output"),
}
FFN_STEPS: dict[str, Point] = {
    "FFN: input": ("norm2", "output"),
    "FFN 1: binary product": ("mlp.fc1.linear", "output"),
    "FFN 1: batch norm": ("mlp.fc1.norm", "output"),
    "FFN 1: + shortcut": ("mlp.fc1.act", "input"),
    "FFN 1: RPReLU": ("mlp.fc1.act", "output"),
    "FFN 2: binary product": ("mlp.fc2.linear", "output"),
    "FFN 2: batch norm": ("mlp.fc2.norm", "output"),
    "FFN 2: + shortcut": ("mlp.fc2.act", "input"),
    "FFN 2: RPReLU": ("mlp.fc2.act", "output"),
    "FFN: affine": ("affine2", "output"),
    "pooling branches": ("pool", "output"),
}
# Only where the block's real-valued input is there to be added, and only where it is not.
RESIDUAL_STEPS: dict[str, Point] = {
    "attention: + residual": ("norm2", "input"),
    "block: output": ("", "output"),
}
ADDED = "FFN + pooling branches"

STEPS = (*ATTENTION_STEPS, "attention: + residual", *FFN_STEPS, ADDED, "block: output")


class DistinctValues:
    """The distinct float32 values of some channels, over any number of batches.

    `channels` of the values' last dimension are taken, evenly spaced (all where there are no more, or it is None). Of
    each, up to `limit` values are kept, so the memory is bounded; a count of `limit` means as many or more.
    `observations` is the number of values seen per channel.
    """

    def __init__(self, channels: int | None = None, limit: int = 2**16):
        self.observations = 0
        self._channels = channels
        self._limit = limit
        self._values: list[np.ndarray] = []

    def update(self, x: Tensor) -> None:
        """Takes in one batch, (..., C). Raises BinaryViTError at a value that is not a number."""
        if x.isnan().any():
            raise BinaryViTError("An activation is not a number (NaN): the model's training has diverged.")
        x = x.flatten(0, -2)
        chosen = np.unique(np.linspace(0, x.shape[1] - 1, self._channels or x.shape[1]).round().astype(int))
        rows = x[:, torch.from_numpy(chosen).to(x.device)].float().T.cpu().numpy()
        self.observations += rows.shape[1]
        self._values = self._values or [rows[0, :0]] * len(rows)
        self._values = [
            known if len(known) >= self._limit else np.unique(np.concatenate([known, row]))[: self._limit]
            for known, row in zip(self._values, rows, strict=True)
        ]

    def counts(self) -> np.ndarray:
        """Distinct values per channel."""
        return np.array([len(values) for values in self._values])


def distinct_values(model: BinaryVisionTransformer, batches: Iterable[Tensor], channels: int = 8) -> pd.DataFrame:
    """Counts the values that each step takes on `batches` of images (B, in_chans, H, W).

    Args:
        model: a binary vision transformer. What is counted is its `exact_copy`.
        batches: images, moved to the model's device and dtype.
        channels: how many channels are counted at each step, evenly spaced.

    Returns:
        A row per block and step, in the order of computation. Columns block (its path), step (of STEPS), channels
        (counted), observations (per channel), bound (the most values a binary product can take,
        else NaN), minimum, median and maximum (over channels).

    Raises:
        BinaryViTError: the model has no binary blocks, or there is no image.
    """
    model = exact_copy(model)
    counts, watchers = _watched(model, ATTENTION_STEPS | FFN_STEPS | RESIDUAL_STEPS, channels)
    like = next(model.parameters())
    with evaluating(model), watching(model, watchers):
        for images in batches:
            model(images.to(like.device, like.dtype))
    return _frame(model, counts)


def distinct_values_from_one_bit(
    model: BinaryVisionTransformer, batches: Iterable[Tensor], channels: int = 8
) -> pd.DataFrame:
    """What the steps make of one bit: as `distinct_values`, each half of a block computed by itself from signs.

    In the model as it is, real-valued shortcuts reach every step from the full-precision stem. Here the normalized
    input of each attention and FFN (with its pooling branches) is replaced by its sign, so each value counted after it
    was made by that half alone; nothing is added to a residual.
    """
    model = exact_copy(model)
    counts, watchers = _watched(model, ATTENTION_STEPS | FFN_STEPS | {ADDED: ("", "output")}, channels)
    blocks = _blocks(model)
    normalized: dict[str, Tensor] = {}
    norms = [f"{path}.{norm}" for path in blocks for norm in ("norm1", "norm2")]
    keepers = {(path, "output"): partial(normalized.__setitem__, path) for path in norms}
    like = next(model.parameters())
    with evaluating(model):
        for images in batches:
            with watching(model, keepers):
                model(images.to(like.device, like.dtype))
            with watching(model, watchers):
                for path, block in blocks.items():
                    x, y = sign(normalized[f"{path}.norm1"]), sign(normalized[f"{path}.norm2"])
                    counts[path, "attention: input"].update(x)
                    counts[path, "FFN: input"].update(y)
                    block.affine1(block.attn(x))
                    added = block.affine2(block.mlp(y))
                    counts[path, ADDED].update(added if block.pool is None else added + block.pool(y))
    return _frame(model, counts)


def values_read(model: BinaryVisionTransformer, batches: Iterable[Tensor]) -> pd.DataFrame:
    """How many values the classifier reads of each channel, where the tokens before the final pooling are signs.

    Args:
        model, batches: as in `distinct_values`.

    Returns:
        One row. Columns tokens (of an image, that are pooled), observations (images), channels, minimum, median and
        maximum (over all channels).

    Raises:
        BinaryViTError: there is no image.
    """
    model, count, tokens = exact_copy(model), DistinctValues(), 0
    like = next(model.parameters())
    with evaluating(model):
        for images in batches:
            signs = sign(model.forward_features(images.to(like.device, like.dtype)))
            tokens = 1 if model.global_pool == "token" else signs.shape[1] - model.num_prefix_tokens
            count.update(model.forward_head(signs, pre_logits=True))
    return pd.DataFrame([{"tokens": tokens, **_summary(count)}])


def _blocks(model: nn.Module) -> dict[str, BinaryBlock]:
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, BinaryBlock)}
    if not blocks:
        raise BinaryViTError(
            f"This {type(model).__name__} has no binary blocks to count values in; choose another one."
        )
    return blocks


def _watched(
    model: nn.Module, block_steps: Mapping[str, Point], channels: int
) -> tuple[dict[tuple[str, str], DistinctValues], dict[Point, Callable[[Tensor], None]]]:
    """The counts by block and step, and which point of the model feeds which."""
    counts, watchers = {}, {}
    for path, block in _blocks(model).items():
        for step in sorted(block_steps, key=STEPS.index):
            inner, side = block_steps[step]
            if step != "pooling branches" or block.pool is not None:
                counts[path, step] = DistinctValues(channels)
                watchers[".".join(filter(None, [path, inner])), side] = counts[path, step].update
    return counts, watchers


def _frame(model: nn.Module, counts: Mapping[tuple[str, str], DistinctValues]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"block": path, "step": step, "bound": _bound(model, path, step), **_summary(count)}
            for (path, step), count in counts.items()
        ]
    )


def _summary(count: DistinctValues) -> dict[str, float]:
    if not count.observations:
        raise BinaryViTError("There is no image to count on; give at least one batch.")
    values = count.counts()
    numbers = {"channels": len(values), "observations": count.observations, "minimum": values.min()}
    return numbers | {"median": np.median(values), "maximum": values.max()}


def _bound(model: nn.Module, path: str, step: str) -> float:
    """K + 1 for a sum of K terms of +1 or -1; 2 K + 1 for the context, whose attention may also leave out terms."""
    if not step.endswith("binary product"):
        return np.nan
    if step.startswith("context"):
        attention: BinaryAttention = model.get_submodule(f"{path}.attn")
        return 2 * _keys(model, attention) + 1
    inner, _ = (ATTENTION_STEPS | FFN_STEPS)[step]
    return model.get_submodule(f"{path}.{inner}").in_features + 1


def _keys(model: BinaryVisionTransformer, attention: BinaryAttention) -> int:
    return (attention.grid_size // attention.reduction) ** 2 + model.num_prefix_tokens
