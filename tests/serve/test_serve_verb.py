"""`sapwood serve` as a process: what it shows, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.cli.main import main
from sapwood.errors import ConfigError
from tiny.folder import write_model

TOKEN = "a-token-of-my-own-1234"


def test_a_server_is_shown_asked_and_stopped_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", context=512)
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    flags = ["--port", "0", "--token-file", str(tmp_path / "tokens"), "--dtype", "fp32", "--json", str(tmp_path / "up.json")]
    command = [sys.executable, "-m", "sapwood", "serve", str(model), *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "told").open("w") as told_to:
        process = subprocess.Popen(command, stderr=told_to, env=environment)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "up.json").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        up = json.loads((tmp_path / "up.json").read_text())
        more: dict[str, Any] = {"headers": {"authorization": f"Bearer {TOKEN}"}, "trust_env": False, "timeout": 60}
        body = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 400}
        assert up["models"] == ["model"]
        assert httpx2.get(up["url"] + "/models", **more).json()["data"][0]["id"] == "model"
        [shown] = [line for line in (tmp_path / "told").read_text().splitlines() if "Try it" in line]
        shell = ["bash", "-c", "curl() { printf '%s\n' \"$@\"; }; " + shown.partition("Try it")[2]]
        address, _, header, _, kind, _, asked = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
        answer = httpx2.post(address, headers=dict(one.split(": ") for one in (header, kind)), content=asked, trust_env=False, timeout=60)
        assert answer.status_code == 200, "the command that is shown asks what it should"
        with httpx2.stream("POST", up["url"] + "/chat/completions", json={**body, "stream": True}, **more) as response:
            pieces = response.iter_text()
            told = next(pieces)
            process.send_signal(signal.SIGTERM)
            told += "".join(pieces)
        assert "data: [DONE]" in told, "who is being answered is answered"
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    told = (tmp_path / "told").read_text()
    assert process.returncode == 0, told
    assert up["url"] in told
    assert "Stopped." in told
    assert TOKEN not in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unlocked", "--host", "0.0.0.0"], "everybody who reaches"),
        (["--unlocked", "--token-file", "x"], "Give one of them"),
        (["--token-file", "absent"], "no such file"),
        (["--token-file", "short"], "shorter than 16"),
        (["--token-file", "empty"], "holds no token"),
        (["--port", "70000"], "0 to 65535"),
        (["--host", "203.0.113.7"], "cannot be listened on"),
        (["--max-samples", "0"], "at least 1"),
        (["--memory", "0"], "memory is 0.0; give GiB above 0"),
        (["--records", "ab.db"], "Give --experiment"),
        (["--check-every", "0"], "check_every is 0.0"),
        (["--experiment", "none.yaml"], "no such file"),
    ],
)
def test_odd_uses_are_refused_before_the_model_loads(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("abc\n")
    Path("empty").write_text("\n")
    assert main(["serve", "no-such-model", *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_engine_may_take_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def engine(*_: Any, **knobs: Any) -> Any:
        raise ConfigError(f"asked for {knobs}")

    monkeypatch.setattr("sapwood.cli.serve_verb.Engine", engine)
    words = ["serve", str(write_model(tmp_path / "model")), "--port", "0", "--unlocked", "--dtype", "fp32"]
    for flags, bytes_ in (([], None), (["--memory", "1.5"], 3 * 2**29)):
        assert main([*words, *flags]) == 2
        assert f"asked for {{'slots': 32, 'memory': {bytes_}}}" in capsys.readouterr().err
