"""How a training process on a CPU asks for memory."""

import ctypes
import sys

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment of a new process whose large tensors lie in huge pages (Linux): fewer to clear, and less fragmented."""

# Parameters of glibc's mallopt: the size from which an allocation is mapped separately, and how much freed memory is
# kept.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST = 2**31 - 1
_LARGEST_DOCUMENTED = 32 * 2**20  # which older versions of glibc insist on


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory of freed tensors instead of returning it to the system.

    By default glibc maps new memory for each large tensor; the system then clears its pages one by one on first use,
    which costs more than what is computed on them. Returns whether the C library has this setting (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    never_mapped = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_DOCUMENTED)
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST)) and bool(never_mapped)
