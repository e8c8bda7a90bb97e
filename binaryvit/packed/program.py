"""A model laid out for the C++ engine: its sizes, floats and words, in the order in which native/model.h reads them.

Rows of channels are padded with zeros to 16 floats. The words of a weight lie tile by tile (native/simd.h).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binaryvit.models.bits import unpack_bits
from binaryvit.models.layers import BinaryBlock, BinaryPatchMerging
from binaryvit.models.ops.cross_convolution import CROSS
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL
from binaryvit.models.vision_transformer import Stage
from binaryvit.packed.tensors import restored

_PADDING = 16


@dataclass(frozen=True)
class Program:
    """What the engine runs: consecutive stages, the first without its embedding."""

    sizes: Tensor
    floats: Tensor
    words: Tensor
    tokens: int
    channels: int
    """Of the last stage."""


@dataclass
class _Writer:
    """Collects what the engine reads. `tensors` are those of the model by name (see `tensors.packed_tensors`)."""

    tensors: Mapping[str, Tensor]
    lanes: int
    sizes: list[int] = field(default_factory=list)
    floats: list[Tensor] = field(default_factory=list)
    words: list[Tensor] = field(default_factory=list)

    def channels(self, *rows: Tensor) -> None:
        for row in rows:
            flat = row.flatten().float()
            self.floats.append(F.pad(flat, (0, -len(flat) % _PADDING)))

    def norm(self, name: str) -> None:
        self.channels(self.tensors[f"{name}.batch_norm.weight"], self.tensors[f"{name}.batch_norm.bias"])

    def activation(self, name: str) -> None:
        self.channels(*(self.tensors[f"{name}.{part}"] for part in ("shift_in", "slope", "shift_out")))

    def affine(self, name: str, channels: int) -> None:
        one, zero = torch.ones(channels), torch.zeros(channels)
        self.channels(self.tensors.get(f"{name}.alpha", one), self.tensors.get(f"{name}.beta", zero))

    def unit(self, name: str, layer: nn.Module, layer_name: str, segments: int = 1) -> None:
        """A binary layer with what surrounds it; its inputs come in `segments` of whole words."""
        outputs, inputs = len(layer.weight), layer.weight[0].numel()
        signs = unpack_bits(self.tensors[f"{name}.{layer_name}.weight.bits"], layer.weight.shape)
        if signs.ndim == 4:  # a convolution: token by token, as the merge packs them
            signs = signs.permute(0, 2, 3, 1)
        words = words_of(signs.reshape(outputs * segments, inputs // segments)).reshape(outputs, -1)
        self.sizes += [inputs, outputs, words.shape[1]]
        self.channels(self.tensors[f"{name}.binarize.shift"], self.tensors[f"{name}.{layer_name}.weight.scale"])
        self.norm(f"{name}.norm")
        self.activation(f"{name}.act")
        self.words.append(tiles(words, self.lanes))

    def binary_unit(self, name: str, unit: nn.Module) -> None:
        self.unit(name, unit.linear, "linear")


def write_program(stages: dict[str, Stage], norm: str | None, tensors: Mapping[str, Tensor], lanes: int) -> Program:
    """Lays out stages, by their names in the model, and the norm after them, if any.

    Args:
        stages: the first without its embedding; each other begins with a binary patch merging.
        lanes: output channels side by side in a tile, what the engine was compiled for.
    """
    writer = _Writer(tensors, lanes)
    writer.sizes.append(len(stages))
    for number, (name, stage) in enumerate(stages.items()):
        tokens = stage.pos_embed.shape[1]
        writer.sizes += [stage.dim, stage.grid_size, tokens, int(number > 0)]
        if number:
            _write_merge(writer, f"{name}.embed", stage.embed, tensors[f"{name}.pos_embed"])
        writer.sizes.append(len(stage.blocks))
        for index, block in enumerate(stage.blocks):
            _write_block(writer, f"{name}.blocks.{index}", block, stage.dim)
    if norm is None:
        writer.channels(torch.ones(stage.dim), torch.zeros(stage.dim))
    else:
        writer.norm(norm)
    return Program(
        torch.tensor(writer.sizes),
        torch.cat(writer.floats),
        torch.cat([torch.empty(0, dtype=torch.int64), *writer.words]),
        tokens,
        stage.dim,
    )


def _write_merge(writer: _Writer, name: str, merge: BinaryPatchMerging, positions: Tensor) -> None:
    writer.norm(f"{name}.norm_in")
    writer.unit(name, merge.proj, "proj", segments=4)
    writer.channels(F.pad(positions[0], (0, -positions.shape[-1] % _PADDING)))


def _write_block(writer: _Writer, name: str, block: BinaryBlock, channels: int) -> None:
    attention = block.attn
    writer.sizes.append(attention.reduction)
    if attention.reduction > 1:
        writer.binary_unit(f"{name}.attn.reduce", attention.reduce)
    writer.norm(f"{name}.norm1")
    for part in ("q", "k", "v"):
        writer.binary_unit(f"{name}.attn.{part}", getattr(attention, part))
    _write_attention(writer, f"{name}.attn", attention.num_heads, attention.softmax_scale, channels)
    writer.binary_unit(f"{name}.attn.proj", attention.proj)
    writer.affine(f"{name}.affine1", channels)
    writer.norm(f"{name}.norm2")
    for part in ("fc1", "fc2"):
        writer.binary_unit(f"{name}.mlp.{part}", getattr(block.mlp, part))
    writer.affine(f"{name}.affine2", channels)
    writer.sizes.append(int(block.pool is not None))
    if block.pool is not None:
        _write_pooling(writer, f"{name}.pool", block.pool)


def _write_attention(writer: _Writer, name: str, heads: int, softmax_scale: float, channels: int) -> None:
    writer.sizes.append(heads)
    writer.channels(*(writer.tensors[f"{name}.binarize_{part}.shift"] for part in ("q", "k", "v")))
    level = writer.tensors[f"{name}.binarize_attn.level"].float().clamp(min=MINIMUM_ATTENTION_LEVEL)
    exponentials, largest_sums = _softmax_tables(channels // heads, softmax_scale, level)
    writer.sizes.append(exponentials.shape[1])
    writer.channels(exponentials, largest_sums)
    writer.channels(level.expand(channels))
    writer.norm(f"{name}.norm")
    writer.activation(f"{name}.act")


def _write_pooling(writer: _Writer, name: str, pooling: nn.Module) -> None:
    taps, bias = restored(copy.deepcopy(pooling), writer.tensors, f"{name}.").taps_and_bias()
    row_by_row = sorted(range(len(CROSS)), key=CROSS.__getitem__)
    writer.channels(*taps[row_by_row], bias)


def _softmax_tables(channels: int, softmax_scale: float, level: Tensor) -> tuple[Tensor, Tensor]:
    """exp of each score minus the largest, by how many channels' signs differ, and the largest sum for "on".

    Row: the distance of the nearest key, column: how much farther the key is. The scores are rounded as the model's
    are. The second table holds the largest float32 sum of exponentials for which exponential * (1 / sum) / level
    exceeds one half, computed as the model does; -1 where there is none.
    """
    distances = np.arange(channels + 1)
    scores = (channels - 2 * distances).astype(np.float32) * np.float32(softmax_scale)
    columns = -(-(channels + 1) // _PADDING) * _PADDING
    exponentials = np.zeros((channels + 1, columns), np.float32)
    for nearest in range(channels + 1):
        differences = (scores[nearest:] - scores[nearest]).astype(np.float64)
        exponentials[nearest, : channels + 1 - nearest] = np.exp(differences)
    return torch.from_numpy(exponentials), torch.from_numpy(_largest_sums(exponentials, level.numpy()))


def _largest_sums(exponentials: np.ndarray, level: np.ndarray) -> np.ndarray:
    """By bisection over the floats, whose order is that of their bits: the decision falls with the sum."""
    one, largest = np.float32(1).view(np.int32), np.float32(2**30).view(np.int32)
    low, high = np.full(exponentials.shape, one - 1), np.full(exponentials.shape, largest)
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        is_on = exponentials * (np.float32(1) / middle.view(np.float32)) / level > np.float32(0.5)
        low, high = np.where(is_on, middle, low), np.where(is_on, high, middle)
    return np.where(low < one, np.float32(-1), low.view(np.float32))


def words_of(signs: Tensor) -> Tensor:
    """Signs (rows, columns), positive for +1, as 64-bit words, bit i of a word for column i, padded with zeros."""
    bits = np.packbits(np.ascontiguousarray(signs.numpy() > 0), axis=1, bitorder="little")
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return torch.from_numpy(padded.view("<i8"))


def tiles(words: Tensor, lanes: int) -> Tensor:
    """Words (outputs, words) tile by tile: for each word those of the even channels, then of the odd ones."""
    padded = F.pad(words, (0, 0, 0, -len(words) % lanes))
    return padded.unflatten(0, (-1, lanes // 2, 2)).permute(0, 3, 2, 1).flatten()
