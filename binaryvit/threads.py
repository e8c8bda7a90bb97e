"""How many threads PyTorch computes with, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Lets PyTorch use `count` threads, and yields their number; None leaves it at what it uses already.

    A Python thread that first uses PyTorch meanwhile starts with this number, and keeps it.
    """
    before = torch.get_num_threads()
    if count is None:
        yield before
        return
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
