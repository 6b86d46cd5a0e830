"""A machine that asks for an end gets a checkpoint of the last whole step, and the run goes on to the same adapter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sapwood.cli.main import main
from sapwood.run import read_records, saved_steps
from tiny.folder import write_model, write_rows


def test_sigterm_saves_the_last_whole_step(tmp_path: Path) -> None:
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "my.jsonl", 400)
    flags = ["--model", str(model), "--dtype", "fp32", "--budget", "512", "--max-new-tokens", "2", "--shots", "", "--held-out", "24"]
    flags += ["--save-every", "1000", "--batch", "1"]
    command = [sys.executable, "-m", "sapwood", "sft", str(rows), "--out", str(tmp_path / "run"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    steps = 0
    for _ in range(3000):  # bounded: an end without a step shows below
        steps = sum(record["kind"] == "train" for record in read_records(tmp_path / "run" / "metrics.jsonl"))
        if steps >= 3 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate()
    assert steps >= 3
    assert process.returncode == 130, words
    assert words.endswith(f"Stopped. What was finished is kept; go on with: sapwood sft {tmp_path / 'run'}\n")
    assert "Traceback" not in words
    (saved,) = saved_steps(tmp_path / "run")
    assert saved >= steps
    assert main(["sft", str(tmp_path / "run")]) == 0
    assert main(["sft", str(rows), "--out", str(tmp_path / "whole"), *flags]) == 0
    adapters = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("run", "whole")]
    assert adapters[0] == adapters[1]
