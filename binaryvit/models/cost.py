"""What a model costs: parameters, bytes and operations, per layer and in total, for any instance.

Counting (the field's convention, that of the paper's Table 3):
    - BOPs are multiply-accumulates of two binary operands: linear layers and convolutions with 1-bit weights and 1-bit
      activations, and the two attention products with 1-bit activations.
    - FLOPs are the multiply-accumulates of all other linear layers, convolutions and attention products.
    - OPs = BOPs / 64 + FLOPs, a 64-bit word holding 64 binary products. Biases, norms, softmax, pooling: not counted.
    - Bytes: 1 bit per binary weight, 4 bytes for every other parameter. The scale of a binary row folds, with the
      running statistics, into the two numbers per channel of the batch norm after it and is not counted again.

A second count adds elementwise work, which OPs ignore although it dominates a binary model's time: per element, one
operation for each multiplication, addition or comparison in a norm (2), RPReLU (4), affine (2), shift (1), shortcut
addition (1), average (the window's size) and softmax (5); GELU, where a full-precision model has one, as an RPReLU.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from binaryvit.models.classifier import TokenClassifier
from binaryvit.models.convolutional import BinaryConvBlock, BinaryResNet
from binaryvit.models.layers import (
    POOLING_WINDOWS,
    Affine,
    BinaryActivation,
    BinaryAttention,
    BinaryBlock,
    BinaryPatchMerging,
    BinaryUnit,
    PoolingBranches,
    RPReLU,
    binary_layers,
)
from binaryvit.models.shapes import image_size, input_channels
from binaryvit.models.shortcuts_only import ShortcutAttention, ShortcutMerging, ShortcutUnit
from binaryvit.models.vision_transformer import BinaryVisionTransformer

BINARY_OPERATIONS_PER_WORD = 64


@dataclass(frozen=True)
class Cost:
    """A model's cost per layer; the properties are totals, operations being those of one image.

    `layers` has one row per module that owns parameters or computes, indexed by module path: kind, output (shape
    without the batch), weight_bits, activation_bits, parameters, binary_weights, bytes, bops, flops, elementwise.
    """

    layers: pd.DataFrame

    def _total(self, column: str) -> int:
        return int(self.layers[column].sum())

    @property
    def parameters(self) -> int:
        """Number of parameters, binary and others."""
        return self._total("parameters")

    @property
    def binary_weights(self) -> int:
        """Number of 1-bit weights."""
        return self._total("binary_weights")

    @property
    def bytes(self) -> float:
        """Size of the parameters in bytes."""
        return float(self.layers["bytes"].sum())

    @property
    def bops(self) -> int:
        """Binary multiply-accumulates per image."""
        return self._total("bops")

    @property
    def flops(self) -> int:
        """Full-precision multiply-accumulates per image."""
        return self._total("flops")

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs."""
        return self.bops / BINARY_OPERATIONS_PER_WORD + self.flops

    @property
    def elementwise(self) -> int:
        """Elementwise operations per image."""
        return self._total("elementwise")

    @property
    def ops_elementwise(self) -> float:
        """OPs and elementwise operations together."""
        return self.ops + self.elementwise


@dataclass(frozen=True)
class _Operations:
    bops: int = 0
    flops: int = 0
    elementwise: int = 0


def cost(model: nn.Module) -> Cost:
    """Counts a model of this library or a timm VisionTransformer at the image size it was built for.

    Shapes come from one forward pass of a copy without storage (on the meta device); the model is left untouched.
    """
    sizes, outputs = _trace(model)
    binary_names = binary_layers(model).keys()
    rows = []
    for name, module in model.named_modules():
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        count = _operations_of(module)
        operations = count(module, *sizes[name]) if count and name in sizes else _Operations()
        if not parameters and operations == _Operations():
            continue
        binary = module.weight.numel() if name in binary_names else 0
        rows.append(
            {
                "layer": name or "(model)",
                "kind": type(module).__name__,
                "output": outputs.get(name, ""),
                "weight_bits": getattr(module, "weight_bits", 32 if parameters else pd.NA),
                "activation_bits": getattr(module, "activation_bits", pd.NA),
                "parameters": parameters,
                "binary_weights": binary,
                "bytes": binary / 8 + 4 * (parameters - binary),
                "bops": operations.bops,
                "flops": operations.flops,
                "elementwise": operations.elementwise,
            }
        )
    return Cost(pd.DataFrame(rows).set_index("layer"))


def summary(model: nn.Module) -> pd.DataFrame:
    """The per-layer table for reading: layers, their cost, and a last row of totals."""
    layers = cost(model).layers
    table = layers.drop(columns="activation_bits")
    table["ops"] = table["bops"] / BINARY_OPERATIONS_PER_WORD + table["flops"]
    counted = ["parameters", "binary_weights", "bytes", "bops", "flops", "elementwise", "ops"]
    table.loc["total", ["kind", "output", "weight_bits"]] = ""
    table.loc["total", counted] = table[counted].sum()
    return table.astype(dict.fromkeys(counted, "int64"))


def _trace(model: nn.Module) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """For each module that ran: its first input and its output (meta tensors), and the output's shape as text."""
    ghost = copy.deepcopy(model).to("meta").eval()
    sizes: dict[str, tuple[Tensor, Tensor]] = {}
    names = {module: name for name, module in ghost.named_modules()}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes[names[module]] = inputs[0], output

    for module in names:
        module.register_forward_hook(keep)
    images = 1, input_channels(model), *image_size(model)
    with torch.no_grad():
        ghost(torch.empty(images, device="meta", dtype=next(ghost.parameters()).dtype))
    outputs = {name: " x ".join(map(str, output.shape[1:])) for name, (_, output) in sizes.items()}
    return sizes, outputs


def _operations_of(module: nn.Module) -> Callable | None:
    """How to count a module's own operations, those of its children apart; the rule of the most specific class."""
    for kind in type(module).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    return None


def _multiply_accumulates(number: int, binary: bool) -> _Operations:
    return _Operations(bops=number) if binary else _Operations(flops=number)


def _elements(per_element: int) -> Callable:
    return lambda _, x, output: _Operations(elementwise=per_element * output.numel())


def _products(layer: nn.Linear | nn.Conv2d, x: Tensor, output: Tensor) -> _Operations:
    """Those of a linear layer or convolution, binary where both operands are."""
    binary = getattr(layer, "weight_bits", 32) == getattr(layer, "activation_bits", 32) == 1
    return _multiply_accumulates(output.numel() * layer.weight[0].numel(), binary)


def _unit_shortcut(unit: BinaryUnit, x: Tensor, output: Tensor) -> _Operations:
    """The shortcut: its average where it narrows, and its addition."""
    average = x.numel() if x.numel() > output.numel() else 0
    return _Operations(elementwise=average + output.numel())


def _pooled_shortcut(module: nn.Module, x: Tensor, output: Tensor) -> _Operations:
    """The shortcut: its average where the grid is halved, and its addition."""
    average = x.numel() if x.shape[1] > output.shape[1] else 0
    return _Operations(elementwise=average + output.numel())


def _binary_attention(attention: BinaryAttention, x: Tensor, output: Tensor) -> _Operations:
    """Both products, the softmax, and the shortcuts."""
    _, tokens, channels = x.shape
    keys = tokens // attention.reduction**2
    products = _multiply_accumulates(2 * tokens * keys * channels, attention.binarize_q.activation_bits == 1)
    softmax = 5 * attention.num_heads * tokens * keys
    shortcuts = _attention_shortcuts(attention, x, output).elementwise
    return _Operations(products.bops, products.flops, softmax + shortcuts)


def _attention_shortcuts(attention: BinaryAttention, x: Tensor, output: Tensor) -> _Operations:
    """The averaging of keys and values, and the three shortcuts of the context."""
    average = x.numel() if attention.reduction > 1 else 0
    return _Operations(elementwise=average + 3 * x.numel())


def _timm_attention(attention: TimmAttention, x: Tensor, output: Tensor) -> _Operations:
    _, tokens, channels = x.shape
    return _Operations(flops=2 * tokens**2 * channels, elementwise=5 * attention.num_heads * tokens**2)


def _pooling_branches(branches: PoolingBranches, x: Tensor, output: Tensor) -> _Operations:
    """The four windows and their addition into the residual; the affines are counted here too, being fused."""
    windows = sum(height * width for height, width in POOLING_WINDOWS.values())
    affines = 2 * len(POOLING_WINDOWS)
    return _Operations(elementwise=(windows + affines + len(POOLING_WINDOWS)) * output.numel())


def _residuals(block: nn.Module, x: Tensor, output: Tensor) -> _Operations:
    return _Operations(elementwise=2 * output.numel())


def _token_mean(model: TokenClassifier, x: Tensor, output: Tensor) -> _Operations:
    if model.global_pool != "avg":
        return _Operations()
    return _Operations(elementwise=model.stages[-1].grid_size ** 2 * model.num_features)


_RULES: dict[type, Callable] = {
    nn.Linear: _products,
    nn.Conv2d: _products,
    BinaryUnit: _unit_shortcut,
    BinaryPatchMerging: _pooled_shortcut,
    BinaryConvBlock: _pooled_shortcut,
    BinaryAttention: _binary_attention,
    ShortcutAttention: _attention_shortcuts,
    ShortcutUnit: _unit_shortcut,
    ShortcutMerging: lambda _, x, output: _Operations(elementwise=x.numel()),
    BinaryBlock: _residuals,
    PoolingBranches: _pooling_branches,
    BinaryVisionTransformer: _token_mean,
    BinaryResNet: _token_mean,
    nn.BatchNorm1d: _elements(2),
    nn.LayerNorm: _elements(2),
    RPReLU: _elements(4),
    nn.GELU: _elements(4),
    Affine: _elements(2),
    BinaryActivation: _elements(1),
    TimmAttention: _timm_attention,
    TimmBlock: _residuals,
}
