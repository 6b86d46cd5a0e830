"""Shared settings of the tests: no clock in hypothesis, few threads, no network."""

from __future__ import annotations

import atexit
import os
import tempfile

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
