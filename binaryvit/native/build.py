"""Compiles C++ sources of this package for the processor they run on, once, and loads them.

Plain C functions on pointers: no headers but the standard library's, so a source compiles in seconds.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

_logger = logging.getLogger(__name__)

# Strict arithmetic but for what nobody can see: exceptions of floating-point operations, and errno.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fopenmp", "-shared", "-fPIC")


@lru_cache
def load(source: Path) -> ctypes.CDLL | None:
    """The compiled functions of a source, or None where there is no compiler for it; then a log message says why.

    The library is kept in the user's cache (XDG_CACHE_HOME, else ~/.cache) under a name that changes with the source,
    the flags and the processor, so that machines can share the folder.
    """
    try:
        library = _cache() / f"{source.stem}-{_key(source)}.so"
        if not library.exists():
            _compile(source, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _logger.warning("%s could not be compiled, so slower steps of PyTorch do its work: %s", source.name, error)
        return None


def call(function: ctypes._CFuncPtr, *arguments: torch.Tensor | float | int) -> None:
    """Calls a function with contiguous tensors (as pointers), floats (double) and integers (int64), and at the end
    PyTorch's number of threads (int).
    """
    function(*(_converted(argument) for argument in arguments), ctypes.c_int(torch.get_num_threads()))


def _converted(argument: torch.Tensor | float | int) -> ctypes._SimpleCData:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "binaryvit"


def _key(source: Path) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = ""
    parts = (source.read_text(), " ".join(_FLAGS), platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler was found")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        done = subprocess.run([compiler, *_FLAGS, "-o", str(made), str(source)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed with:\n{done.stderr.strip()}")
        made.replace(library)  # at once: another process may be doing the same
