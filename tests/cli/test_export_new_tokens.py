"""Exports of a base model that learned the tokens of a template: their trained rows are in every form, and others chat alike."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
import transformers

from recipes.test_base_to_instruct import write_base, write_questions
from sapwood.cli.main import main
from sapwood.errors import ExportError
from sapwood.recipes.export_forms import ExportConfig
from sapwood.recipes.exporting import export

FAST = ["--budget", "1024", "--max-new-tokens", "6", "--shots", "", "--held-out", "5", "--lr", "1e-2", "--max-steps", "4", "--batch", "8"]
FAMILIES = ("llama-tied", "qwen2-untied-padded")


@pytest.fixture(scope="module", params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new-tokens")
    write_base(folder / "model", request.param)
    rows = write_questions(folder / "my.jsonl")
    arguments = [
        "sft",
        str(rows),
        "--model",
        str(folder / "model"),
        "--template",
        "chatml",
        "--out",
        str(folder / "run"),
        "--dtype",
        "fp32",
    ]
    assert main([*arguments, *FAST]) == 0
    return folder


def holds(folder: Path) -> bool:
    (found,) = json.loads((folder / "export.json").read_text())["parity"].values()
    return bool(found["holds"])


def trained_rows(place: Path) -> dict[str, Any]:
    described = json.loads((place / "run" / "adapter" / "adapter_config.json").read_text())
    return dict(described["trainable_token_indices"])


def test_merged_weights_hold_the_trained_rows(place: Path, tmp_path: Path) -> None:
    result = export(place / "run", ExportConfig(to=tmp_path / "out"))
    assert holds(result.path)
    merged = transformers.AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    new = next(iter(trained_rows(place).values()))
    table, before = merged.get_input_embeddings().weight, base.get_input_embeddings().weight
    assert len(table) >= max(new) + 1
    assert merged.config.vocab_size == len(table)
    old = [row for row in range(len(before)) if row not in new]
    assert torch.equal(table[old], before[old]), "no other row has moved"
    assert (merged.get_output_embeddings().weight is table) is (base.get_output_embeddings().weight is before)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "sky"}], add_generation_prompt=True, return_dict=False)
    assert set(ids) & set(new)
    stops = transformers.GenerationConfig.from_pretrained(result.path).eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])


def test_the_adapter_folder_says_how_its_base_grows(place: Path, tmp_path: Path) -> None:
    result = export(place / "run", ExportConfig(to=tmp_path / "out", as_="adapter"))
    assert holds(result.path)
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    needed = max(next(iter(trained_rows(place).values()))) + 1
    grows = needed > len(base.get_input_embeddings().weight)
    assert any("resize_token_embeddings" in line for line in result.next) is grows
    scope: dict[str, Any] = {"PeftModel": peft.PeftModel, "AutoModelForCausalLM": transformers.AutoModelForCausalLM}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        exec("\n".join(result.next), scope)  # noqa: S102 - the very lines that a user is told
        merged = transformers.AutoModelForCausalLM.from_pretrained(export(place / "run", ExportConfig(to=tmp_path / "whole")).path)
        ids = torch.tensor([[next(iter(trained_rows(place).values()))[0], 5, 6, 7]])
        assert torch.allclose(scope["model"](ids).logits, merged(ids).logits, atol=1e-4)


def test_the_gguf_file_knows_the_new_tokens(place: Path, tmp_path: Path) -> None:
    result = export(place / "run", ExportConfig(to=tmp_path / "out", as_="gguf", quant="f32"))
    assert holds(result.path)
    (file,) = result.path.glob("*.gguf")
    metadata = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    for number in next(iter(trained_rows(place).values())):
        assert tokens[number].startswith("<|im_")
        assert types[number] == gguf.TokenType.CONTROL
    assert tokens[metadata["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    assert metadata["tokenizer.ggml.eos_token_id"] == metadata["tokenizer.ggml.eot_token_id"]
    text = (result.path / "Modelfile").read_text()
    assert "TEMPLATE" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_merge_that_loses_the_rows_is_found(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sapwood.recipes import export_forms

    real = export_forms.merge

    def forgetful(model: Any) -> Any:
        merged = real(model)
        with torch.no_grad():
            merged.base.get_input_embeddings().weight[next(iter(trained_rows(place).values()))] = 0
        return merged

    monkeypatch.setattr(export_forms, "merge", forgetful)
    for form in ("merged", "gguf"):
        with pytest.raises(ExportError, match="does not compute what was trained"):
            export(place / "run", ExportConfig(to=tmp_path / "out", as_=form))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
