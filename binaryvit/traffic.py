"""Bytes that a model's operations read and write, counted while they run one after the other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from binaryvit.evaluation import autocast

# They give memory a name or reserve it, and move nothing.
_MOVES_NOTHING = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
}


@dataclass(frozen=True)
class Traffic:
    """What one pass over a batch moves: a part that grows with the images, and one that each pass has once.

    Bytes are those of all operands and results of all operations, each read or written once by each operation that
    uses it, as eager execution does; `product` is the part of matrix products, convolutions and fused attention, the
    least that any fusion of the rest leaves. `operations` is how many there are, whatever the batch.
    """

    per_image: float
    per_pass: float
    product_per_image: float
    product_per_pass: float
    operations: int

    def bytes(self, images: int) -> float:
        """Bytes moved by a pass over `images` images."""
        return self.per_pass + images * self.per_image

    def product_bytes(self, images: int) -> float:
        """The part of products in `bytes`."""
        return self.product_per_pass + images * self.product_per_image


def traffic(model: nn.Module, input_size: tuple[int, ...], precision: str, training: bool) -> Traffic:
    """Counts one pass of `model` (on the CPU): forward and backward when `training`, else forward without gradients.

    Two small batches are computed for real, of two and of three images, and their difference is an image's share (a
    single image would spare some copies). "fp16" is counted as bf16, which has its width and which a CPU computes. The
    gradients of the model are left empty; its mode and running statistics change.
    """
    model.train(training)
    counts = []
    for images in (2, 3):
        batch = torch.zeros(images, *input_size)
        counter = _Counter()
        half = autocast(batch.device, "bf16" if precision == "fp16" else precision)
        with torch.set_grad_enabled(training), counter, half:
            output = model(batch)
            if training:
                output.sum().backward()
        model.zero_grad()
        counts.append(counter)
    two, three = counts
    per_image, product_per_image = three.bytes - two.bytes, three.product_bytes - two.product_bytes
    return Traffic(
        per_image=per_image,
        per_pass=two.bytes - 2 * per_image,
        product_per_image=product_per_image,
        product_per_pass=two.product_bytes - 2 * product_per_image,
        operations=three.operations,
    )


class _Counter(TorchDispatchMode):
    """Adds up what passes PyTorch's dispatcher below autograd and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.product_bytes = self.operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if _moves(operation):
            moved = sum(_bytes(value) for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor))
            self.bytes += moved
            self.product_bytes += moved * (operation.overloadpacket in flop_registry)
            self.operations += 1
        return result


def _moves(operation: Any) -> bool:
    schema = operation._schema
    is_view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
    return schema.name.startswith("aten::") and not is_view and operation.overloadpacket.__name__ not in _MOVES_NOTHING


def _bytes(tensor: Tensor) -> int:
    """An expanded tensor is read again and again from the few bytes it has."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
