"""What a vision transformer attends to: its attention maps, before and after binarization, and their statistics.

timm's `AttentionExtract` takes the maps. It leaves its hooks in the model and needs attention that is not fused, so it
is given a copy: the caller's model is never touched.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import entr, softmax
from timm.utils import AttentionExtract
from torch import Tensor, nn

from binaryvit.analysis.device import device_of
from binaryvit.analysis.levels import is_off
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import attention_levels
from binaryvit.models.shapes import image_size

# Both are called with probabilities: before binarization, and as the product with the values uses them.
_BEFORE, _USED = "binarize_attn", "attn_drop"


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of one layer for a batch of images.

    Attributes:
        layer: module path of the attention, "stages.0.blocks.0.attn".
        probabilities: after the softmax, (B, heads, queries, keys); each row sums to 1.
        used: what the values are multiplied with, of the same shape: {0, a} where the attention is binary, all 0 where
            it is off, else the probabilities.
        level: a as it was learned, or None where the attention is not binary.
        prefix_tokens: how many of the first tokens have no place in the image (a CLS token).
    """

    layer: str
    probabilities: Tensor
    used: Tensor
    level: float | None = None
    prefix_tokens: int = 0

    @property
    def off(self) -> bool:
        """Whether training switched this attention off; see `levels.is_off`."""
        return self.level is not None and is_off(self.level)

    @property
    def grid_size(self) -> int:
        """Side of the square grid of queries. Raises BinaryViTError when they form none."""
        return self._side(self.used.shape[-2], "queries")

    @property
    def key_grid_size(self) -> int:
        """Side of the grid of keys, smaller than the queries' after a spatial reduction; see `grid_size`."""
        return self._side(self.used.shape[-1], "keys")

    def query_at(self, place: tuple[float, float]) -> int:
        """The query whose patch holds a place of the image: (down, right), each a share of its side in [0, 1)."""
        row, column = (int(share * self.grid_size) for share in place)
        return self.prefix_tokens + row * self.grid_size + column

    def on_key_grid(self, values: Tensor) -> Tensor:
        """(..., keys) as (..., side, side): what keys with a place in the image hold, at that place."""
        side = self.key_grid_size
        return values[..., self.prefix_tokens :].unflatten(-1, (side, side))

    def _side(self, tokens: int, kind: str) -> int:
        places = tokens - self.prefix_tokens
        side = math.isqrt(max(places, 0))
        if side == 0 or side**2 != places:
            raise BinaryViTError(
                f"The {places} {kind} of {self.layer} form no square grid, so they have no place in the image; "
                "choose a model of square images with attention over all of their patches."
            )
        return side


class AttentionCapture:
    """Takes the attention maps of a model: `AttentionCapture(model)(images)`.

    Works on a copy of the model in evaluation mode; the model itself is left exactly as it is. Sees every layer in
    which timm's convention holds: the probabilities pass through a module called `attn_drop`, as in `layers` here.
    The maps of all layers are held at once, so their memory grows with the batch.

    Raises:
        BinaryViTError: the model has no such layer.
    """

    def __init__(self, model: nn.Module):
        model = copy.deepcopy(model)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        try:
            self._extract = AttentionExtract(
                model, [f"*.{_BEFORE}", f"*.{_USED}"], method="hook", hook_type="forward_pre"
            )
        except RuntimeError:
            raise BinaryViTError(_no_attention(model)) from None
        self.model = model
        self._levels = attention_levels(model)
        self.prefix_tokens = getattr(model, "num_prefix_tokens", 0)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[AttentionMaps]:
        """The maps of all layers, in the order of the model, for images (B, channels, height, width).

        Raises:
            BinaryViTError: the images are not of the model's size, or no layer showed its attention.
        """
        _check_images(self.model, images)
        seen = self._extract(images.to(device_of(self.model)))
        maps = []
        for name, used in seen.items():
            layer, _, end = name.rpartition(".")
            if end == _USED and used.ndim == 4:
                before, level = seen.get(f"{layer}.{_BEFORE}", used), self._levels.get(layer)
                if level is not None and is_off(level):
                    used = torch.zeros_like(used)
                maps.append(AttentionMaps(layer, before, used, level, self.prefix_tokens))
        if not maps:
            raise BinaryViTError(_no_attention(self.model))
        return maps


def _no_attention(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} has no attention to look at: none of its layers passes attention probabilities "
        "through a module called attn_drop; choose a vision transformer."
    )


def _check_images(model: nn.Module, images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise BinaryViTError(
            f"A batch of images (number, channels, height, width) is needed, not a tensor of shape "
            f"{tuple(images.shape)}; choose at least one image."
        )
    height, width = image_size(model)
    if images.shape[-2:] != (height, width):
        raise BinaryViTError(
            f"The images have {images.shape[-2]} x {images.shape[-1]} pixels and the model takes {height} x {width}: "
            "resize or crop them first."
        )


def select(maps: Sequence[AttentionMaps], block: int, head: int) -> tuple[AttentionMaps, int]:
    """The maps of a block, blocks counted through the whole model, and the head, both checked; negative: from the end.

    Raises BinaryViTError when the model has no such block, or the block no such head.
    """
    if not -len(maps) <= block < len(maps):
        raise BinaryViTError(f"There is no block {block}: the model has {len(maps)}, 0 to {len(maps) - 1}.")
    chosen = maps[block]
    heads = chosen.used.shape[1]
    if not -heads <= head < heads:
        raise BinaryViTError(
            f"There is no head {head} in block {block % len(maps)} ({chosen.layer}): it has {heads}, 0 to {heads - 1}."
        )
    return chosen, head % heads


def attention_statistics(model: nn.Module, batches: Iterable[Tensor]) -> pd.DataFrame:
    """The statistics of a model's attention over batches of images, normalized for it; see `statistics_of`.

    Raises BinaryViTError when the model has no attention, images are of a wrong size, or there are none.
    """
    capture = AttentionCapture(model)
    return statistics_of((capture(images), len(images)) for images in batches)


def statistics_of(batches: Iterable[tuple[Sequence[AttentionMaps], int]]) -> pd.DataFrame:
    """Statistics of the maps of batches, each with its number of images: one row per layer and head.

    Maps are added up batch by batch, exactly or in float64, so the memory does not grow with the number of images.

    Columns: layer (module path), block and head (from 0), heads, queries, keys, rows (of the maps), images, entropy
    (mean over the rows of -sum p ln p before binarization, in nats), evenness (entropy / ln keys: 1 means all keys
    alike, 0 a single one); and where the attention is binary, else NaN: level (a as it was learned), density (share of
    the entries that are a), kept (mean share of the probability on these). Where attention is off the last two are 0.

    Raises BinaryViTError when there is no image.
    """
    shapes: dict[str, dict[str, Any]] = {}
    rows: Counter[str] = Counter()  # with attention in windows, several maps are of one image
    sums: dict[str, Tensor] = {}  # of a layer: (entropy, kept and attended, heads)
    images = 0
    for maps, added in batches:
        images += added
        for each in maps:
            heads, queries, keys = each.used.shape[1:]
            shapes[each.layer] = {"heads": heads, "queries": queries, "keys": keys, "level": each.level}
            rows[each.layer] += len(each.used) * queries
            probabilities, on = each.probabilities.double(), each.used > 0
            values = (torch.special.entr(probabilities), probabilities * on, on.double())
            sums[each.layer] = sums.get(each.layer, 0) + torch.stack([value.sum((0, 2, 3)) for value in values])
    if not images:
        raise BinaryViTError("There are no images to take the statistics of: choose at least one.")
    frames = []
    for block, (layer, shape) in enumerate(shapes.items()):
        entropy, kept, on = (sums[layer] / rows[layer]).cpu().numpy()
        columns = {"layer": layer, "block": block, "head": range(shape["heads"]), "images": images, **shape}
        columns |= {"rows": rows[layer], "entropy": entropy, "density": on / shape["keys"], "kept": kept}
        columns["evenness"] = entropy / math.log(shape["keys"]) if shape["keys"] > 1 else math.nan
        if shape["level"] is None:
            columns |= dict.fromkeys(("level", "density", "kept"), math.nan)
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


@cache
def evenness_of_chance(keys: int) -> float:
    """The evenness (see `statistics_of`) of attention between random signs, on average; NaN for a single key.

    A score is a sum of as many independent signs as a head has channels, over the root of that number: near to a
    standard normal number.
    """
    if keys < 2:
        return math.nan
    scores = np.random.default_rng(0).standard_normal((2000, keys))
    return float(entr(softmax(scores, axis=1)).sum(axis=1).mean() / math.log(keys))
