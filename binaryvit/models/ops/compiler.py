"""Compiles C++ sources of this package for the processor they run on, once, and loads them.

Plain C functions on pointers: no headers but the standard library's, so a source compiles in seconds. Their threads are
those of PyTorch where the compiler's OpenMP runtime is PyTorch's, as GCC's is; Clang brings another.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from binaryvit.errors import BinaryViTError

_logger = logging.getLogger(__name__)

# The arithmetic stays IEEE's but for fused multiply-adds, floating-point exceptions and errno.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
_SECONDS = 120


@lru_cache
def load(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The compiled functions of a source, or None where it can't be compiled; then a log message says why.

    The source may include headers from its folder; `flags` are added to the compiler's.

    The library is kept in the user's cache (XDG_CACHE_HOME, else ~/.cache) under a name that changes with the source,
    its headers, the flags, the compiler and the processor, so that machines can share the folder. For Linux only.
    """
    if not sys.platform.startswith("linux"):
        _logger.warning("The C++ steps of %s run on Linux only; slower ones of PyTorch take their place.", source.name)
        return None
    try:
        return _load(source, _compiler(), (*_FLAGS, *flags))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        _logger.warning(
            "The C++ steps of %s could not be compiled or loaded, so slower ones of PyTorch take their place (%s). "
            "A C++ compiler with OpenMP is needed: g++, c++, or what CXX names.", source.name, str(error).strip()
        )  # fmt: skip
        return None


def compiler_of(source: Path) -> str | None:
    """What the compiler that made a source's functions says of itself with `--version`, in its first line; its command
    where it says nothing; None where they can't be used."""
    if load(source) is None:
        return None
    said = _output([*_compiler(), "--version"]).splitlines()
    return said[0] if said else shlex.join(_compiler())


def call(function: ctypes._CFuncPtr, *arguments: torch.Tensor | float | int) -> None:
    """Calls a function with tensors (as pointers), floats (double) and integers (int64).

    Raises ValueError for a tensor that C++ can't read as it lies: not on the CPU, or not contiguous.
    """
    function(*(_converted(argument) for argument in arguments))


def _converted(argument: torch.Tensor | float | int) -> ctypes._SimpleCData:
    if isinstance(argument, torch.Tensor):
        if argument.device.type != "cpu" or not argument.is_contiguous():
            raise ValueError("C++ steps take contiguous tensors on the CPU.")
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def require_compiler(what_for: str) -> None:
    """Raises BinaryViTError, which says what for, where no C++ compiler answers."""
    try:
        _output([*_compiler(), "--version"])
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        raise BinaryViTError(f"{what_for} needs a C++ compiler: install g++, or name one in CXX ({error}).") from error


def _compiler() -> list[str]:
    found = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++")]
    if found == [None]:
        raise RuntimeError("none was found")
    return found


def _output(command: list[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed with:\n{done.stderr.strip()}\n")
    return done.stdout


def _load(source: Path, compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    # All macros the compiler defines: its version, and the processor's instructions.
    target = _output([*compiler, "-march=native", "-x", "c++", "-E", "-dM", "-"])
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join((*texts, *flags, target)).encode()).hexdigest()[:16]
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "binaryvit" / f"{source.stem}-{key}.so"
    folder = _own(kept.parent)
    if folder is not None and kept.exists():
        try:
            return ctypes.CDLL(str(kept))
        except OSError:  # damaged, or made for another system's libraries: made again below
            kept.unlink(missing_ok=True)
    # Some network file systems keep an opened file's folder from being removed.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as building:
        made = Path(building) / kept.name
        _output([*compiler, *flags, "-o", str(made), str(source)])
        library = ctypes.CDLL(str(made))  # stays loaded when its name is gone
        with made.open("rb") as file:  # a library cut short by a crash would take down whoever loads it
            os.fsync(file.fileno())
        with suppress(OSError):  # another process was first, or the folder can't be written
            os.link(made, kept)  # never over a library that another process has in use
        return library


def _own(folder: Path) -> Path | None:
    """The folder, made if need be; None, for the system's temporary one, where it can't be written to, or where someone
    else may have put a library into it: it is another user's, or everyone may write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    is_own = status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH
    return folder if is_own and os.access(folder, os.W_OK) else None
