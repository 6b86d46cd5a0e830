"""Tiny models that see or hear through the real loop, from a file of rows: trained, stopped, gone on with, evaluated, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import sapwood
from sapwood.chat import Chat
from sapwood.data import read
from sapwood.errors import CheckpointError, DataError
from sapwood.model import LoraConfig, load_model
from sapwood.recipes.prepare import DataConfig, prepare, scan_files
from sapwood.recipes.tune import load_chat
from sapwood.train import OptimConfig, SftConfig
from tiny.folder import write_model
from tiny.media_models import image_bytes, sound_bytes, write_media_model
from train.tiny_training import train

# of peft itself, on loading in plain peft
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def write_rows(folder: Path, kind: str, count: int = 12) -> Path:
    """Rows whose answer is in the picture or sound alone."""
    names = []
    for number in range(2):
        name = f"{number}.{kind}"
        (folder / name).write_bytes(image_bytes(number) if kind == "image" else sound_bytes(number))
        names.append(name)
    file = folder / "rows.jsonl"
    with file.open("w") as out:
        for number in range(count):
            part = {"type": kind, "path": names[number % 2]}
            content = [{"type": "text", "text": f"{number}: "}, part, {"type": "text", "text": "which one is it?"}]
            answer = ("red", "noise")[number % 2]
            out.write(json.dumps({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}) + "\n")
    return file


@pytest.mark.parametrize(("family", "kind"), [("llava", "image"), ("qwen2_audio", "audio")])
def test_a_run_on_media_learns_and_its_adapter_is_peft_s(family: str, kind: str, tmp_path: Path) -> None:
    folder = write_media_model(tmp_path / "model", family)
    rows = write_rows(tmp_path, kind)
    knobs: dict[str, Any] = {"model": str(folder), "dtype": "fp32", "held_out": 2, "epochs": 8, "batch": 4, "lr": 0.02, "max_new_tokens": 4}
    result = sapwood.sft(str(rows), quiet=True, out=str(tmp_path / "run"), **knobs)
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [record["loss"] for record in losses if record.get("kind") == "train"]
    assert trained[-1] < 0.5 * trained[0]
    assert all(record["unique_tokens"] < record["row_tokens"] for record in losses if record.get("kind") == "train")
    assert result is not None

    base = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0]).from_pretrained(folder)
    tuned = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    changed = [name for name, parameter in tuned.named_parameters() if "lora_B" in name and bool(parameter.abs().max() > 0)]
    assert changed
    assert not [name for name in changed if "tower" in name or "visual" in name], "the towers are left as they were"


def test_a_run_on_media_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path / "model", "qwen2_vl")
    rows = read([write_rows(tmp_path, "image", 6)])
    examples = list(prepare(rows, load_chat(folder, None), DataConfig(held_out=0)).examples)
    config = SftConfig(max_steps=4, batch=2, budget=200, lora=LoraConfig(r=2), optim=OptimConfig(lr=0.02))
    train(tmp_path / "whole", config, examples=examples, model=load_model(folder, "fp32"))

    def stop(done: Any) -> None:
        if done.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", config, examples=examples, model=load_model(folder, "fp32"), report=stop)
    train(tmp_path / "stopped", config, examples=examples, model=load_model(folder, "fp32"))
    whole, stopped = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    before = [row for example in examples for row in example.rows]
    (tmp_path / "0.image").write_bytes(image_bytes(7))
    after = prepare(read([tmp_path / "rows.jsonl"]), load_chat(folder, None), DataConfig(held_out=0))
    with pytest.raises(CheckpointError):
        train(tmp_path / "stopped", config, examples=after.examples, model=load_model(folder, "fp32"))
    assert [row.inputs_T.tolist() for example in after.examples for row in example.rows] == [row.inputs_T.tolist() for row in before]


def test_a_model_of_text_alone_refuses_rows_with_media_by_its_family_s_name(tmp_path: Path) -> None:
    chat = load_chat(write_model(tmp_path / "model"), None)
    rows = read([write_rows(tmp_path, "image")])
    with pytest.raises(DataError, match=r"(?s)12.*not covered for the family 'llama'.*"):
        prepare(rows, chat, DataConfig(held_out=0))


def test_the_web_is_asked_when_the_config_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    part = {"type": "image", "url": "http://127.0.0.1:9/a.png"}  # nobody answers there
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]}
    file.write_text(json.dumps(row))
    for allowed, said in ((False, "pass --allow-urls"), (True, "cannot be fetched")):
        [refusal] = scan_files([str(file)], DataConfig(allow_urls=allowed, cache=False), lambda *_: None).refused.kept
        assert said in str(refusal)


def test_a_scan_is_made_again_where_rows_depend_on_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    file = write_rows(tmp_path, "image", 4)
    picture = (tmp_path / "1.image").read_bytes()
    (tmp_path / "1.image").unlink()
    assert len(scan_files([str(file)], DataConfig(), lambda *_: None).refused.kept) == 2
    (tmp_path / "1.image").write_bytes(picture)
    assert not scan_files([str(file)], DataConfig(), lambda *_: None).refused.kept


def test_a_processor_is_part_of_what_a_run_was_made_with(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path / "model", "llava")
    first = load_chat(folder, None).fingerprint
    assert first == load_chat(folder, None).fingerprint != Chat.load(folder).fingerprint
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.1, 0.1]}))
    assert load_chat(folder, None).fingerprint != first
