"""The memory that a process frees."""

from __future__ import annotations

import ctypes
import os
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of the two settings, from malloc.h
LARGEST_THRESHOLD = 32 << 20  # bytes; glibc refuses more


def keep_freed_memory() -> bool:
    """Lets glibc keep the memory that this process frees; results do not change.

    By default glibc takes large maps from the system in each pass and gives them back, and the system clears them page
    by page. Nothing is changed where another C library is used, or where the environment sets glibc's allocator.

    Returns:
        bool: Whether freed memory is kept.
    """
    given = [name for name in os.environ if name.startswith('MALLOC_')]
    if platform.libc_ver()[0] != 'glibc' or given or 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
