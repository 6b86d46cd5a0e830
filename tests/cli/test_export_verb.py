"""`sapwood export` from end to end on a tiny model: whole folders that others load, or nothing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import orjson
import peft
import pytest
import safetensors.torch
import torch
import transformers

from sapwood.cli.main import main
from sapwood.errors import CheckpointError, ConfigError, ExportError
from sapwood.recipes import export_forms, exporting
from sapwood.recipes.export_forms import ExportConfig
from sapwood.recipes.exporting import export
from sapwood.run import read_records
from tiny.folder import write_model, write_rows

FAST = ["--budget", "512", "--max-new-tokens", "4", "--shots", "", "--held-out", "24", "--batch", "4", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 60)
    for name, dtype in (("run", "fp32"), ("narrow", "bf16")):
        arguments = ["sft", str(folder / "my.jsonl"), "--model", str(folder / "model"), "--out", str(folder / name), "--dtype", dtype]
        assert main([*arguments, *FAST, "--max-steps", "6"]) == 0
    return folder


def parity(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "export.json").read_text())["parity"].values()
    return found


def first_logits(module: Any, folder: Path, run: Path) -> torch.Tensor:
    """Plain transformers all the way: tokenizer, template, model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = read_records(run / "items.jsonl")[0]["messages"]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        return module(ids).logits[0, -1].float()


def with_adapter(base: Any, folder: Path) -> Any:
    with warnings.catch_warnings():  # peft asks transformers by names that are going
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(("run", "dtype", "rounding"), [("run", "fp32", 1e-5), ("run", "bf16", 0.02), ("narrow", None, 0.02)])
def test_merged_weights_are_the_adapter_in_plain_transformers(place: Path, tmp_path: Path, run: str, dtype: Any, rounding: float) -> None:
    result = export(place / run, ExportConfig(to=tmp_path / "out", dtype=dtype))
    merged = transformers.AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    saved = safetensors.torch.load_file(result.path / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.float32" if dtype == "fp32" else "torch.bfloat16"}
    assert "lm_head.weight" not in saved, "tied embeddings are saved once"
    narrow = torch.bfloat16 if run == "narrow" else torch.float32
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=narrow).float()
    tuned = with_adapter(base, place / run / "adapter")
    ours, theirs = first_logits(merged, result.path, place / run), first_logits(tuned, place / run / "adapter", place / run)
    assert (ours - theirs).abs().max() < rounding
    with tuned.disable_adapter():
        assert (ours - first_logits(tuned, place / run / "adapter", place / run)).abs().max() > 5 * rounding
    assert parity(result.path)["holds"]
    assert parity(result.path)["tuning_kl"] > 1e-3
    assert transformers.GenerationConfig.from_pretrained(result.path).eos_token_id == 2


def test_the_adapter_folder_loads_in_plain_peft_by_its_own_config(place: Path, tmp_path: Path) -> None:
    assert main(["export", str(place / "run"), "--as", "adapter", "--to", str(tmp_path / "out"), "--json", str(tmp_path / "out.json")]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tuned = with_adapter(transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32), place / "run" / "adapter")
    ours, theirs = (first_logits(one, tmp_path / "out", place / "run") for one in (module, tuned))
    assert torch.equal(ours, theirs)
    shown = json.loads((tmp_path / "out.json").read_text())
    assert shown["form"] == "adapter"
    assert shown["parity"]["adapter"]["holds"] is True
    assert "PeftModel.from_pretrained" in shown["next"][1]


def test_a_whole_model_is_exported_and_has_no_adapter(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sft", str(place / "my.jsonl"), "--model", str(place / "model"), "--out", str(tmp_path / "run"), "--dtype", "fp32", *FAST]
    assert main([*arguments, "--full", "True", "--max-steps", "2"]) == 0
    assert main(["export", str(tmp_path / "run"), "--as", "adapter"]) == 2
    assert "there is no adapter" in capsys.readouterr().err
    result = export(tmp_path / "run", ExportConfig())
    saved = safetensors.torch.load_file(result.path / "model.safetensors")
    trained = safetensors.torch.load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], trained[name]) for name in trained)


def test_an_export_that_differs_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"merged model in bf16 does not compute what was trained.*--dtype fp32"):
        export(place / "run", ExportConfig(to=tmp_path / "out", dtype="bf16", tolerance=1e-12))
    monkeypatch.setattr(
        export_forms, "merge", lambda model: exporting.load_model(place / "model", "fp32")
    )  # a merge that loses the adapter
    with pytest.raises(ExportError, match="does not compute what was trained"):
        export(place / "run", ExportConfig(to=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("chat_template.jinja", "other prompt ids"),
        ("generation_config.json", "stops at the ids"),
        ("tokenizer.json", "could not load this tokenizer"),
        ("broken.jinja", "could not render a prompt"),
    ],
)
def test_files_that_chat_otherwise_are_found(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str) -> None:
    real = export_forms.save_weights

    def spoilt(model: Any, folder: Path, dtype: Any, files: Any) -> None:
        others = {
            "chat_template.jinja": files["chat_template.jinja"].replace(b"assistant", b"robot"),
            "generation_config.json": b'{"eos_token_id": 0, "pad_token_id": 0}',
            "tokenizer.json": b'{"version": "1.0", "model": {"type": "BPE", "vocab": 3}}',
            "broken.jinja": b"{{ raise_exception('no') }}",
        }
        real(model, folder, dtype, {**files, file.replace("broken", "chat_template"): others[file]})

    monkeypatch.setattr(export_forms, "save_weights", spoilt)
    with pytest.raises(ExportError, match=said):
        export(place / "run", ExportConfig(to=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_and_what_makes_no_sense_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="never writes over anything"):
        export(place / "run", ExportConfig(to=tmp_path / "out"))
    for wrong in (
        {"quant": "q8_0"},
        {"dtype": "fp32", "as_": "adapter"},
        {"prompts": 0},
        {"tolerance": 0.0},
        {"push": "it"},
        {"private": False},
    ):
        with pytest.raises(ConfigError):
            ExportConfig(**wrong)  # type: ignore[arg-type]
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_bytes((place / "run" / "config.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="has not finished"):
        export(tmp_path / "unfinished", ExportConfig())


def test_prompts_are_the_runs_own_or_everyday_ones(place: Path, tmp_path: Path) -> None:
    from sapwood.chat import Chat

    chat = Chat.load(place / "model")
    prompts, notes = exporting.prompts_of(place / "run", chat, ExportConfig(prompts=5))
    asked = [record["messages"] for record in read_records(place / "run" / "items.jsonl")]
    assert [[message.for_template() for message in prompt.messages] for prompt in prompts] == [asked[n * 24 // 5] for n in range(5)]
    assert notes == []
    (tmp_path / "items.jsonl").write_bytes(orjson.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}], "source": "x:1"}))
    prompts, (note,) = exporting.prompts_of(tmp_path, chat, ExportConfig(prompts=3))
    assert len(prompts) == 3
    assert "everyday questions" in note


def test_the_verb_wants_one_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 2
    assert main(["export", "a", "b"]) == 2
    assert main(["export", str(tmp_path / "none")]) != 0
    assert "no such run directory" in capsys.readouterr().err


def test_what_was_found_right_is_pushed_and_nothing_else(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Path, str, bool]] = []

    def hub(folder: Path, name: str, *, private: bool) -> str:
        assert (folder / "export.json").is_file(), "whole before it leaves"
        sent.append((folder, name, private))
        return "an address"

    monkeypatch.setattr(exporting, "push", hub)
    export(place / "run", ExportConfig(to=tmp_path / "kept"))
    assert sent == []
    with pytest.raises(ExportError):
        export(place / "run", ExportConfig(to=tmp_path / "wrong", dtype="bf16", tolerance=1e-12, push="ada/it"))
    assert sent == []
    export(place / "run", ExportConfig(to=tmp_path / "out", as_="adapter", push="ada/it", private=False))
    assert sent == [(tmp_path / "out", "ada/it", False)]


def test_the_card_lies_beside_and_names_no_folder_of_this_machine(place: Path, tmp_path: Path) -> None:
    (place / "model" / "LICENSE").write_text("a licence")
    for form in ("merged", "adapter", "gguf"):
        result = export(place / "run", ExportConfig(to=tmp_path / form, as_=form))  # type: ignore[arg-type]
        card = (result.path / "README.md").read_text()
        assert str(tmp_path) not in card
        assert "# run" in card
        assert "greedy tokens" in card
        assert "36 trained" in card
        assert (result.path / "LICENSE").read_text() == "a licence"
