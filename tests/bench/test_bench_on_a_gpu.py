"""`sapwood bench sft --device cuda`: what it says without a GPU, the models it needs no hub for, and what it tries of the peer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from bench.limit import Limit, products_of
from bench.setting import ON_A_GPU, _pins
from bench.sweep import ATTENTIONS, TrlSetting, candidates_on_a_gpu, search, words_of

from bench import limit, random_model
from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.model import LoraConfig, add_lora, load_model
from sapwood.recipes.screen import Screen
from tiny.folder import write_model

QUIET = Screen(quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_paragraph_says_so_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["bench", "sft", "--device", "cuda", "--out", str(out)]) != 0
    said = capsys.readouterr().err
    assert "device is cuda, but this torch" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_random_model_is_written_once_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    tokenizer = write_model(tmp_path / "words", context=4096)
    name, target = f"random:tiny@{tokenizer}", tmp_path / "found.json"
    words = ["--workload", "chat", "--against", "none", "--rounds", "1", "--steps", "1", "--rows", "2", "--memory", "False"]
    words += ["--model", name, "--dtype", "fp32", "--threads", "1", "--out", str(tmp_path / "out"), "--json", str(target)]
    assert main(["bench", "sft", *words]) == 0
    found = json.loads(target.read_text())
    assert found["settings"]["device"] == "cpu"
    assert "gpu" not in found["machine"]
    assert 6 < found["losses"]["Sapwood"][0] < 8, "ln 1024 is 6.9"
    folder = random_model.model_folder(name, QUIET)
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert random_model.model_folder(name, QUIET) == folder
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"Did you mean|Random models: random:qwen2\.5-0\.5b"):
        random_model.model_folder("random:qwen2.5-0.5", QUIET)


def test_a_gpu_s_sweep_tries_attentions_and_kernels_and_no_threads() -> None:
    tried: list[TrlSetting] = []

    def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        tried.append(setting)
        return 1.0 - 0.1 * setting.liger, True

    found = search(candidates_on_a_gpu(8), seconds_of, QUIET)
    assert tried[0].rows == 8
    assert {setting.rows for setting in tried} == {1, 2, 4, 8}
    assert {setting.attention for setting in tried} == {"", *ATTENTIONS}
    assert any(setting.flat and setting.attention == ATTENTIONS[0] for setting in tried)
    assert any(setting.checkpointing for setting in tried)
    assert found["best"]["liger"]
    assert not any(setting.threads or setting.keeping for setting in tried)
    assert "liger" in words_of(TrlSetting(**found["best"]))
    small, _ = candidates_on_a_gpu(8, few=True)
    assert asdict(small)["accumulation"] == 1


def test_the_limit_is_measured_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products = products_of(add_lora(load_model(write_model(tmp_path / "model"), "fp32", device="cpu"), LoraConfig(r=4), 0))
    asked: list[tuple[str, torch.dtype]] = []

    def clocked(left: object, right: object, kind: torch.dtype, device: torch.device) -> float:
        asked.append((device.type, kind))
        return 1.0

    assert Limit(products)._fastest(("any",), (2, 3), (3, 4)) > 0, "by the clock"
    monkeypatch.setattr(limit, "_clocked", clocked)
    for device in ("cpu", "cuda"):
        Limit(products, torch.device(device))._fastest(("any",), (2, 3), (3, 4))
    assert set(asked) == {("cpu", torch.bfloat16), ("cpu", torch.float32), ("cuda", torch.bfloat16)}


def test_the_peers_on_a_gpu_are_those_on_a_cpu_and_liger() -> None:
    _, requirements = ON_A_GPU
    on_a_cpu = (requirements.parent / "requirements.txt").read_text()
    assert on_a_cpu in _pins(requirements)
    assert "liger-kernel==" in _pins(requirements)
