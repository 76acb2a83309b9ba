"""The C library's allocator, told to keep what it was given.

By default glibc returns every large freed block to the kernel and gets a new, zeroed one for the next tensor; on virtual
machines the page faults cost more than the arithmetic (measured: a training step of 20 s became one of 2.3 s).
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and keep freed ones for reuse; False where the C library is not glibc.

    Changes no result, only speed; the process keeps its peak memory.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    return all(mallopt(ctypes.c_int(option), ctypes.c_int(value)) for option, value in settings.items())
