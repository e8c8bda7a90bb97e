"""A product on packed bits against the one the models take."""

import pytest
import torch
from helpers.compilers import needs_compiler
from hypothesis import given
from hypothesis import strategies as st

from binaryvit.errors import BinaryViTError
from binaryvit.models.ops.products import int8_sign, sign_product
from binaryvit.packed.products import SignProduct
from binaryvit.packed.program import words_of


@needs_compiler
@given(
    rows=st.integers(1, 11), inputs=st.integers(1, 200), outputs=st.integers(1, 50), threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_its_integers_are_those_of_the_models(rows, inputs, outputs, threads, seed) -> None:
    torch.manual_seed(seed)
    x, shift = torch.randint(-2, 3, (rows, inputs)).float(), torch.randint(-1, 2, (inputs,)).float()
    signs = int8_sign(torch.randn(outputs, inputs))
    expected = sign_product(int8_sign(x + shift), signs).int()
    assert torch.equal(SignProduct(signs)(x, shift, threads), expected)


@needs_compiler
def test_what_cannot_be_multiplied_is_refused():
    with pytest.raises(BinaryViTError, match="at least one input"):
        SignProduct(torch.ones(3, 0))
    with pytest.raises(BinaryViTError, match="at least one thread, not with -1"):
        SignProduct(torch.ones(3, 2))(torch.ones(1, 2), threads=-1)


def test_words_of_transposed_signs_are_those_of_their_copy():
    signs = torch.randn(128, 64).sign()
    assert torch.equal(words_of(signs.T), words_of(signs.T.contiguous()))
