"""A whole step on a GPU that is pretended: nothing lies on the wrong device, and the host waits where it must and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ALLOWED = {
    "imitation": {"step.accumulate": 2, "optimizer.step": 1},  # a loss a micro-batch, a norm a step
    "preference": {"preferences._read": 5, "step.accumulate": 1, "optimizer.step": 1},  # five counts, read at once
    "policy": {"policy.policy": 5, "step.accumulate": 1, "optimizer.step": 1},
}


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch's guard for a device is compiled")
@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch for CUDA asks the GPU itself: see test_on_a_gpu")
def test_steps_of_every_objective(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")]), str(HERE.parents[1] / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", str(HERE / "pretended_steps.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5
    for case, reads in found.items():
        assert reads == ALLOWED[case.split()[3]], f"{case}: {reads}"
