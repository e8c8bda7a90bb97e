"""Attention rollout (Abnar and Zuidema 2020), from a model's output back to the pixels of its image.

Each block is read as the matrix (A + I) / 2 over its tokens: A is the mean of the heads' attention, its rows scaled to
sum to 1, and I is the shortcut. The rollout is the product of these matrices over the blocks, and tells from which
places of the image an output gathers. Three things differ from the original:

- The {0, a} rows of binary attention don't sum to 1 before scaling, and some are all zero: there nothing is attended,
  and the block is the shortcut alone.
- A key of a spatially reduced grid is the average of R x R tokens, and passes its share on to them in equal parts.
- Between two stages, a token is merged from 2 x 2, in equal parts.

Left out are the ways between places that attention does not decide: the pooling branches, and the shortcuts of the keys
and values, which a reduced grid shares among its tokens.

Every row of the product sums to 1, for each factor's does.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.analysis.attention.capture import AttentionMaps
from binaryvit.errors import BinaryViTError


def pooling_weights(model: nn.Module, last: AttentionMaps) -> Tensor:
    """How the model pools its final tokens for the classifier: (1, tokens), sums to 1.

    The CLS token alone where the model reads it, else the mean over the tokens that have a place in the image.
    """
    weights = torch.zeros(1, last.used.shape[-2], dtype=torch.float64, device=last.used.device)
    if last.prefix_tokens and getattr(model, "global_pool", "token") == "token":
        weights[:, 0] = 1
    else:
        weights[:, last.prefix_tokens :] = 1 / last.grid_size**2
    return weights


def rollout(maps: Sequence[AttentionMaps], outputs: Tensor) -> Tensor:
    """From mixtures of a model's final tokens back to its first ones.

    Args:
        maps: of all blocks, in the order of the model.
        outputs: (outputs, tokens of the last block), each row a mixture that sums to 1: see `pooling_weights`, or the
            identity for all tokens.

    Returns:
        Tensor (B, outputs, tokens of the first block), float64; each row sums to 1.

    Raises:
        BinaryViTError: there are no maps, or the attention is not over all tokens of a square grid.
    """
    if not maps:
        raise BinaryViTError("There are no attention maps to roll out: choose at least one block.")
    images = min(len(each.used) for each in maps)
    rows = outputs.double().expand(images, -1, -1)
    for index in range(len(maps) - 1, -1, -1):
        each = maps[index]
        if len(each.used) != images or rows.shape[-1] != each.used.shape[-2]:
            raise BinaryViTError(
                f"The attention of {each.layer} is within windows or on other tokens than its neighbours', which "
                "rollout can't follow; choose a model whose blocks attend over all tokens."
            )
        rows = _through_block(rows, each)
        if index > 0:
            factor = _factor(maps[index - 1].grid_size, each.grid_size, each.layer)
            rows = _spread(rows, each.prefix_tokens, each.grid_size, factor)
    return rows


def output_by_place(model: nn.Module, maps: Sequence[AttentionMaps]) -> Tensor:
    """How much a model's output gathers from each place of its first grid, over an even share: (B, row, column).

    Tokens without a place in the image are left out. Raises BinaryViTError as `rollout` does.
    """
    first = maps[0]
    places = rollout(maps, pooling_weights(model, maps[-1]))[:, 0, first.prefix_tokens :]
    ratio = places / places.mean(-1, keepdim=True)
    return ratio.unflatten(-1, (first.grid_size, first.grid_size))


def comparable_areas(places: pd.DataFrame) -> pd.DataFrame:
    """The most attended area of each image and model, among areas of the same size for all of them.

    A block can't single out a place smaller than its keys. So ratios are averaged over the cells of the coarsest grid
    of keys in any block (of several that don't divide each other: over those of a grid that divides all).

    Args:
        places: columns image, label (of the model), row, column, ratio, keys_side (of the model's coarsest grid of
            keys).

    Returns:
        Columns image, label, row and column (of the area, on a grid of `common_side`), and ratio, its mean; no row
        where attention is off.
    """
    side = places.groupby("label")["row"].transform("max") + 1
    areas = {axis: places[axis] * common_side(places) // side for axis in ("row", "column")}
    of_area = ["image", "label", *areas]
    means = places.assign(**areas).groupby(of_area, sort=False)["ratio"].mean().dropna().reset_index()
    return means.loc[means.groupby(["image", "label"], sort=False)["ratio"].idxmax()]


def common_side(places: pd.DataFrame) -> int:
    """How many areas `comparable_areas` compares along a side."""
    return math.gcd(*map(int, places["keys_side"].unique()))


def _through_block(rows: Tensor, maps: AttentionMaps) -> Tensor:
    """`rows` (A + I) / 2, with A's keys spread to tokens; where a row of A is all zero, I alone."""
    attention = maps.used.double().mean(dim=1)
    total = attention.sum(-1, keepdim=True)
    attention = torch.where(total > 0, attention / total, 0.0)
    attended = rows * torch.where(total > 0, 0.5, 0.0).transpose(-2, -1)
    factor = _factor(maps.grid_size, maps.key_grid_size, maps.layer)
    return (rows - attended) + _spread(attended @ attention, maps.prefix_tokens, maps.key_grid_size, factor)


def _factor(finer: int, coarser: int, layer: str) -> int:
    """How many tokens of the finer grid make one of the coarser, along a side."""
    if finer % coarser:
        raise BinaryViTError(f"The {finer} x {finer} tokens before {layer} don't divide into {coarser} x {coarser}.")
    return finer // coarser


def _spread(rows: Tensor, prefix_tokens: int, grid_size: int, factor: int) -> Tensor:
    """Shares of a coarse grid's tokens to those of a grid `factor` times as fine along each side, in equal parts."""
    if factor == 1:
        return rows
    grid = rows[..., prefix_tokens:].unflatten(-1, (grid_size, grid_size)) / factor**2
    fine = grid.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return torch.cat([rows[..., :prefix_tokens], fine.flatten(-2)], dim=-1)
