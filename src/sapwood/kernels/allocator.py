"""Freed memory stays with the process: glibc otherwise gives it back to the system and asks for it again in every layer.

A step's activations are a few MiB each. glibc takes such pieces from the system one by one, or gives the top of its heap back when it
is free, and each page that comes again is a fault and a page of zeros: the system took 7 to 16 % of the processor time of a step of
SmolLM2-135M, and takes 3 to 4 % with this. What that saves on the clock was not measured. The peak of memory is the same within 3 %.
In: nothing. Out: the setting, once. Left out on purpose: other C libraries, and a process whose user has set MALLOC_* or
GLIBC_TUNABLES.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's parameters, `mallopt(3)`."""
LARGEST = 32 << 20
"""Pieces of at least so many bytes still come from the system and go back to it: as much as glibc allows."""
KEPT = 1 << 30
"""Bytes free at the top of the heap that are not given back."""


@cache
def keep_pages() -> bool:
    """Set it, unless the user has set something; returns whether it holds."""
    chosen = any(name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "malloc" in value) for name, value in os.environ.items())
    if chosen or platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, KEPT))


def give_pages_back() -> None:
    """Whatever is free goes back to the system now: between two kinds of work, of which the second would not use the first one's pieces."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
