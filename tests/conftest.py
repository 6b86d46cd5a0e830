"""Shared settings of the tests: no clock in hypothesis, few threads, no network."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker: two pools of threads on the same cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if "SAPWOOD_PREPARED" not in os.environ:  # a folder of this session's own: rows that another prepared would hide what is tested
    _prepared = tempfile.TemporaryDirectory(prefix="sapwood-prepared-")
    os.environ["SAPWOOD_PREPARED"] = _prepared.name
    atexit.register(_prepared.cleanup)

settings.register_profile("sapwood", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sapwood")


@pytest.fixture(autouse=True)
def _kernels_are_not_put_off() -> Iterator[None]:
    """A chat with an empty cache does without the kernels for the rest of its process; the tests behind it do not."""
    yield
    kernels = sys.modules.get("sapwood.kernels")
    if kernels is not None and kernels._put_off:
        kernels._put_off.clear()
        kernels._load.cache_clear()
        kernels.cpu_kernels.cache_clear()
