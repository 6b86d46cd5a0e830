"""`sapwood serve --experiment` as processes: killed and started again, every user has the same arm; the report reads the records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from ab.trial import PLAN
from sapwood.ab.plan import Arm
from sapwood.cli.main import main
from sapwood.config import save_yaml
from tiny.folder import write_model

TOKEN = "a-token-of-my-own-1234"
USERS = [f"user-{number}" for number in range(8)]


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    up = folder / "up.json"
    up.unlink(missing_ok=True)
    flags = ["--port", "0", "--token-file", str(folder / "tokens"), "--dtype", "fp32", "--name", "assistant", "--json", str(up)]
    command = [sys.executable, "-m", "sapwood", "serve", str(folder / "model"), "--experiment", str(folder / "plan.yaml"), *flags]
    with (folder / "told").open("w") as told:
        process = subprocess.Popen(command, stderr=told, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        until = time.monotonic() + 100
        while not (up.exists() and up.stat().st_size) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, (folder / "told").read_text()
        yield json.loads(up.read_text())["url"], process
    finally:
        process.kill()
        process.wait()


def arms(url: str) -> dict[str, str]:
    """The arm of each user, as the server tells it to whoever asks."""
    headers = {"authorization": f"Bearer {TOKEN}", "x-sapwood-show-arm": "1"}
    more: dict[str, Any] = {"headers": headers, "trust_env": False, "timeout": 60}
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return {user: httpx2.post(f"{url}/chat/completions", json={**body, "user": user}, **more).headers["x-sapwood-arm"] for user in USERS}


@pytest.mark.slow
def test_a_killed_server_comes_back_with_the_same_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    save_yaml(replace(PLAN, arms=(Arm(name="long"), Arm(name="short", share=0.5, system="Be short."))), tmp_path / "plan.yaml")
    with server(tmp_path) as (url, process):
        before = arms(url)
        process.kill()
    with server(tmp_path) as (url, _):
        assert arms(url) == before
    assert set(before.values()) == {"long", "short"}
    assert "Experiment short" in (tmp_path / "told").read_text()
    assert main(["ab", "report", str(tmp_path / "plan.yaml"), "--json", str(tmp_path / "report.json")]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["units"], found["exposures"]) == (len(USERS), 2 * len(USERS))
