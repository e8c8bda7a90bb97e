"""A single product of signs as the engine computes it, for measurements, tests and explanations."""

import torch
from torch import Tensor

from binaryvit.errors import BinaryViTError
from binaryvit.models.ops.compiler import call
from binaryvit.packed.library import engine_library
from binaryvit.packed.program import tiles, words_of


class SignProduct:
    """sign(x + shift) @ sign(weight).T as exact integers, by XNOR and popcount on 64-bit words.

    Args:
        signs: of the weight, (outputs, inputs), in {-1, +1}, with at least one input.

    Raises:
        BinaryViTError: there is no C++ compiler, or this is not Linux; or there is no input.
    """

    def __init__(self, signs: Tensor):
        self._library = engine_library()
        if self._library is None:
            raise BinaryViTError("Products on packed bits need Linux and a C++ compiler: install g++, or set CXX.")
        self.outputs, self.inputs = signs.shape
        if self.inputs < 1:
            raise BinaryViTError("A product of signs needs at least one input, and these weights have none.")
        self._tiles = tiles(words_of(signs), self._library.lanes())

    def __call__(self, x: Tensor, shift: Tensor | None = None, threads: int | None = None) -> Tensor:
        """The product (rows, outputs) as int32 for x (rows, inputs) float32, packing of x included.

        Raises:
            BinaryViTError: x or the shift (inputs,) has another shape or type, or `threads` is less than 1.
        """
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise BinaryViTError(f"A product is computed with at least one thread, not with {threads}.")
        shift = x.new_zeros(self.inputs) if shift is None else shift
        if {x.dtype, shift.dtype} != {torch.float32} or x.shape[1:] != shift.shape or shift.shape != (self.inputs,):
            raise BinaryViTError(
                f"The product takes float32 rows of {self.inputs} numbers and a shift of as many, and these are "
                f"{x.dtype} of shape {tuple(x.shape)} and {shift.dtype} of shape {tuple(shift.shape)}."
            )
        product = torch.empty(len(x), self.outputs, dtype=torch.int32)
        call(
            self._library.sign_product, x.contiguous(), shift.contiguous(), self._tiles, product, len(x), self.inputs,
            self.outputs, threads,
        )  # fmt: skip
        return product
