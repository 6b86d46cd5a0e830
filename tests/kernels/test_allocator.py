"""What is freed stays with the process, unless its user has chosen otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from sapwood.kernels.allocator import keep_pages
print(keep_pages())
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def round():
    pieces = [c.malloc(8 << 20) for _ in range(12)]
    for piece in pieces:
        ctypes.memset(piece, 1, 8 << 20)
    for piece in pieces:
        c.free(piece)
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True)
    held, faults = done.stdout.split()
    return held == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_is_not_fetched_again() -> None:
    held, faults = run()
    assert held
    assert faults < 1000
    held, faults = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not held
    assert faults > 10_000  # 96 MiB in pages of 4 KiB
