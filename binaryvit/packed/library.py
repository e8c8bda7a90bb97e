"""The engine's C++, compiled for this processor."""

import ctypes
from pathlib import Path

from binaryvit.models.ops.compiler import load

SOURCE = Path(__file__).with_name("native") / "engine.cpp"
# The engine rounds as the model's modules do: they fuse a multiplication with an addition in norms
# and poolings alone.
FLAGS = ("-ffp-contract=off",)


def engine_library() -> ctypes.CDLL | None:
    """The engine's functions, None where they can't be compiled; see `compiler.load`."""
    library = load(SOURCE, FLAGS)
    if library is not None:
        library.lanes.restype = ctypes.c_int64
        library.instructions.restype = ctypes.c_char_p
    return library


def instructions() -> str:
    """What counts bits here: the instructions the engine was compiled for, or "PyTorch" without a compiler."""
    library = engine_library()
    return "PyTorch" if library is None else library.instructions().decode()
