"""Models as they are deployed: one-bit files, exact inference by XNOR and popcount, export and classification."""

from pathlib import Path

from binaryvit.packed.engine import PackedModel, pack
from binaryvit.packed.file import read_packed

__all__ = ["PackedModel", "load", "pack"]


def load(path: str | Path, threads: int | None = None) -> PackedModel:
    """The model of a packed file, or of the weights that a run stored: images in, logits out, on the CPU.

    Args:
        threads: how many compute; None: as many as PyTorch uses.

    Raises:
        BinaryViTError: as `file.read_packed`.
    """
    file = read_packed(path)
    return PackedModel(file.skeleton, file.tensors, threads)
