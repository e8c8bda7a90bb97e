"""The norms of a model's branches against their shortcuts, and the model without them.

A binary vision transformer adds real-valued shortcuts and poolings to its binary products. The kinds of additions, and
the module that adds:

    attention linears   BinaryUnit in attention: the normalized products of a binary linear layer, to its input
    FFN linears         BinaryUnit elsewhere: the same
    attention products  BinaryAttention: the normalized context attn @ v, to q + k + v
    merges              BinaryPatchMerging: the normalized products of the binary convolution, to the 2x2 average
    attention branch    BinaryBlock: the attention branch after its Affine, to the block's input x
    FFN branch          BinaryBlock: the feed-forward branch after its Affine, to the x between the block's halves
    pooling branches    BinaryBlock: the pooling branches, to that same x

Hooks on submodules do everything here, so it works on any model made of these modules and leaves no trace.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from binaryvit.analysis.device import device_of
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.models.layers import (
    BinaryAttention,
    BinaryBlock,
    BinaryMlp,
    BinaryPatchMerging,
    BinaryUnit,
    PoolingBranches,
)

# The kinds of additions, by what they are added to.
ADDED_TO_SHORTCUTS = ("attention linears", "attention products", "FFN linears", "merges")
ADDED_TO_STREAM = ("attention branch", "FFN branch", "pooling branches")

# What computes act(norm(products) + shortcut), by the kind of its products.
_ADDS_TO_PRODUCTS = {BinaryUnit: "FFN linears", BinaryAttention: "attention products", BinaryPatchMerging: "merges"}


@torch.no_grad()
def branch_norms(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> pd.DataFrame:
    """Norms of the branch and of its shortcut at each addition of a model, over all tokens of all images.

    The norm is the root of the mean square of all elements, so that layers of different size can be compared.

    Args:
        model: in evaluation mode.
        batches: tuples whose first entry is images (batch, 3, height, width).

    Returns:
        One row per addition, in the order of computing: layer (module path of what adds), kind (see above), elements,
        branch and shortcut (their norms), ratio (branch / shortcut).

    Raises:
        BinaryViTError: the model has no such addition, or there are no images.
    """
    sums: dict[tuple[str, str], np.ndarray] = {}  # elements, and the sums of squares of branch and shortcut

    def add(layer: str, kind: str, branch: Tensor, shortcut: Tensor) -> None:
        squares = (x.double().square().sum().item() for x in (branch, shortcut))
        sums[layer, kind] = sums.get((layer, kind), 0) + np.array([branch.numel(), *squares])

    with ExitStack() as stack:
        for layer, module in model.named_modules():
            for handle in _observe(layer, module, partial(add, layer)):
                stack.callback(handle.remove)
        for images, *_ in batches:
            model(images.to(device_of(model)))
    if not sums:
        raise BinaryViTError(
            f"There are no branches to measure in {type(model).__name__}: give a model with binary blocks, and images."
        )
    places = pd.DataFrame(sums.keys(), columns=["layer", "kind"])
    elements, branch, shortcut = np.array([*sums.values()]).T
    norms = {"branch": (branch / elements) ** 0.5, "shortcut": (shortcut / elements) ** 0.5}
    return places.assign(elements=elements.astype(int), **norms, ratio=norms["branch"] / norms["shortcut"])


def _observe(layer: str, module: nn.Module, add: Callable[[str, Tensor, Tensor], None]) -> list[RemovableHandle]:
    """Hooks that call `add(kind, branch, shortcut)` at the module's own additions."""
    if kind := _ADDS_TO_PRODUCTS.get(type(module)):
        in_attention = isinstance(module, BinaryUnit) and ".attn." in layer
        return _observe_products(module, "attention linears" if in_attention else kind, add)
    if isinstance(module, BinaryBlock):
        handles = _observe_residual(module.norm1, module.affine1, "attention branch", add)
        handles += _observe_residual(module.norm2, module.affine2, "FFN branch", add)
        return handles + (_observe_residual(module.norm2, module.pool, "pooling branches", add) if module.pool else [])
    return []


def _observe_products(module: nn.Module, kind: str, add: Callable) -> list[RemovableHandle]:
    """The branch leaves `norm`, the sum enters `act`."""
    branch: list[Tensor] = []

    def at_sum(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(kind, branch[-1], inputs[0] - branch.pop())

    return [_keep_output(module.norm, branch), module.act.register_forward_pre_hook(at_sum)]


def _observe_residual(norm: nn.Module, end: nn.Module, kind: str, add: Callable) -> list[RemovableHandle]:
    """The shortcut x enters `norm`, where the branch starts; the branch leaves `end`."""
    shortcut: list[Tensor] = []

    def at_start(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shortcut.append(inputs[0])

    def at_end(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        add(kind, output, shortcut.pop())

    return [norm.register_forward_pre_hook(at_start), end.register_forward_hook(at_end)]


def _keep_output(module: nn.Module, outputs: list[Tensor]) -> RemovableHandle:
    return module.register_forward_hook(lambda _, inputs, output: outputs.append(output))


def _zero_products(module: nn.Module) -> list[RemovableHandle]:
    """`norm` is given zeros in place of the products."""
    return [module.norm.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))]


def _zero_output(module: nn.Module) -> list[RemovableHandle]:
    return [module.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))]


def _zero_inner_shortcut(module: nn.Module) -> list[RemovableHandle]:
    """`act` is given what left `norm`, without the shortcut."""
    branch: list[Tensor] = []
    without = module.act.register_forward_pre_hook(lambda _, inputs: (branch.pop(),))
    return [_keep_output(module.norm, branch), without]


def _zero_residuals(block: BinaryBlock) -> list[RemovableHandle]:
    """The second half is given the attention branch alone; what leaves the block are the other branches alone."""
    first: list[Tensor] = []
    second: list[Tensor] = []

    def without_residual(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total = sum(second)
        second.clear()
        return total

    return [
        _keep_output(block.affine1, first),
        block.norm2.register_forward_pre_hook(lambda _, inputs: (first.pop(),)),
        *(_keep_output(end, second) for end in (block.affine2, block.pool) if end is not None),
        block.register_forward_hook(without_residual),
    ]


# Whether a module of a parent is in the group, and how it is zeroed. Hooks are set in this order: first those that zero
# an output, then those that read it.
_BINARY = {
    "attention products": (lambda module, _: isinstance(module, BinaryAttention), _zero_products),
    "attention linears": (
        lambda module, parent: isinstance(module, BinaryUnit) and isinstance(parent, BinaryAttention),
        _zero_products,
    ),
    "FFN linears": (
        lambda module, parent: isinstance(module, BinaryUnit) and isinstance(parent, BinaryMlp),
        _zero_products,
    ),
    "merges": (lambda module, _: isinstance(module, BinaryPatchMerging), _zero_products),
}
_REAL = {
    "pooling branches": (lambda module, _: isinstance(module, PoolingBranches), _zero_output),
    "inner shortcuts": (lambda module, _: type(module) in _ADDS_TO_PRODUCTS, _zero_inner_shortcut),
    "residual shortcuts": (lambda module, _: isinstance(module, BinaryBlock), _zero_residuals),
}
_GROUPS = _BINARY | _REAL

BINARY_GROUPS = tuple(_BINARY)
REAL_GROUPS = tuple(_REAL)
GROUPS = BINARY_GROUPS + REAL_GROUPS


def group_members(model: nn.Module, group: str, within: str = "") -> dict[str, nn.Module]:
    """The modules of a group, by module path; see `zeroed`.

    Raises BinaryViTError for a group that does not exist and for a path the model does not have.
    """
    if group not in _GROUPS:
        raise BinaryViTError(f"{group!r} is no group of branches{suggestion(group, list(GROUPS))}")
    modules = dict(model.named_modules())
    if within not in modules:
        raise BinaryViTError(f"{type(model).__name__} has no part {within!r}{suggestion(within, list(modules))}")
    belongs, _ = _GROUPS[group]
    return {
        path: module
        for path, module in modules.items()
        if (not within or path == within or path.startswith(f"{within}."))
        and belongs(module, modules[path.rpartition(".")[0]])
    }


@contextmanager
def zeroed(model: nn.Module, groups: Sequence[str], within: str = "") -> Iterator[None]:
    """Within this context the model computes without groups of branches; afterwards it is as it was.

    BINARY_GROUPS are products of one-bit operands (of more where the model has more). They are zeroed before the batch
    norm after them, which turns zeros into a constant per channel:

        attention products  the context attn @ v of every attention; its shortcut q + k + v stays
        attention linears   the linear layers q, k, v, reduce and proj of every attention
        FFN linears         both linear layers of every feed-forward network
        merges              the binary convolutions of the patch merging before a stage

    REAL_GROUPS are what else is added:

        pooling branches    the four poolings and their affines, parallel to every feed-forward network
        inner shortcuts     what is added to the normalized products of all four binary groups
        residual shortcuts  the x of both additions x + Affine(...) of every block

    Without the residual shortcuts and a block's two main branches nothing of the image passes the block.

    Args:
        model: in evaluation mode.
        groups: some of GROUPS.
        within: module path of the part they are zeroed in ("stages.1", "stages.0.blocks.2"); empty: the whole model.

    Raises:
        BinaryViTError: no group is given, one does not exist, or the model's part has none of its branches.
    """
    if isinstance(groups, str) or not groups:
        raise BinaryViTError(f"Give the groups of branches to zero as a list, at least one of {', '.join(GROUPS)}.")
    members = {group: group_members(model, group, within) for group in groups}
    for group, modules in members.items():
        if not modules:
            where = f"in {within}" if within else "in this model"
            raise BinaryViTError(f"There are no {group} {where} of {type(model).__name__}: choose another group.")
    with ExitStack() as stack:
        for group in sorted(members, key=GROUPS.index):
            _, zero = _GROUPS[group]
            for module in members[group].values():
                for handle in zero(module):
                    stack.callback(handle.remove)
        yield
