"""Templates that a tokenizer gets in code, or by an option, are trained with, and saved with what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sapwood.chat import Chat, named_template
from sapwood.errors import ConfigError, TemplateError
from sapwood.model import load_adapter, load_model
from sapwood.recipes.screen import Screen
from sapwood.trl import SFTTrainer, clone_chat_template, setup_chat_format
from sapwood.trl.config import SFTConfig
from sapwood.trl.models import opened
from tiny.folder import TEMPLATE, write_model
from tiny.trainers import Rows, model_of, notes_of, quiet, tokenizer_of, trainer_of

OTHER = TEMPLATE.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|done|>")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no template."""
    return write_model(tmp_path_factory.mktemp("base") / "model", template=None)


def lora() -> Any:
    return peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("how", ["in code", "setup_chat_format", "clone_chat_template", "a name", "a file", "another model's folder"])
def test_a_base_model_learns_a_template(how: str, base: Path, folder: Path, rows: Rows, tmp_path: Path) -> None:
    model, tokenizer, options = model_of(base), tokenizer_of(base), dict[str, Any]()
    if how == "in code":
        tokenizer.chat_template = TEMPLATE
    elif how == "setup_chat_format":
        model, tokenizer = setup_chat_format(model=model, tokenizer=tokenizer)
    elif how == "clone_chat_template":
        model, tokenizer, added = clone_chat_template(model, tokenizer, str(folder))
        assert added == [], "this tokenizer has the tokens already"
    elif how == "a file":
        (tmp_path / "own.jinja").write_text(TEMPLATE)
        options["chat_template_path"] = str(tmp_path / "own.jinja")
    else:
        options["chat_template_path"] = "chatml" if how == "a name" else str(folder)
    trainer = SFTTrainer(model, quiet(tmp_path / "o", **options), train_dataset=rows, processing_class=tokenizer, peft_config=lora())
    wanted = named_template("chatml", base) if how in ("setup_chat_format", "a name") else TEMPLATE
    assert trainer.chat.template == wanted
    assert trainer.chat.turn_end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    trainer.train()
    trainer.save_model()
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "o")
    assert saved.chat_template == wanted
    assert saved.eos_token == "<|im_end|>"


def test_tokens_that_the_model_lacks_are_added_trained_and_saved(folder: Path, rows: Rows, tmp_path: Path) -> None:
    model, tokenizer = model_of(folder), tokenizer_of(folder)
    tokenizer.chat_template = OTHER
    trainer = SFTTrainer(model, quiet(tmp_path, bf16=False), train_dataset=rows, processing_class=tokenizer, peft_config=lora())
    assert set(trainer.chat.new_tokens) == {"<|turn|>", "<|done|>"}
    assert "The tokenizer lacked 2 control tokens" in notes_of(trainer)
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([[*trainer.chat.new_tokens.values(), 40]])
    with torch.inference_mode():
        expected = trainer.model(ids).logits
    loaded = load_adapter(load_model(folder, "fp32"), tmp_path)
    loaded.module.set_attn_implementation("sdpa")
    with torch.inference_mode():
        assert torch.allclose(loaded.module(ids).logits, expected, atol=1e-4)
    assert Chat.load(tmp_path).turn_end == trainer.chat.turn_end


def test_ids_that_a_cloned_template_will_add_are_told(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "chat_template.jinja").write_text(OTHER)
    model, tokenizer = model_of(folder), tokenizer_of(folder)
    rows_before = len(model.get_input_embeddings().weight)
    _, _, added = clone_chat_template(model, tokenizer, str(other))
    assert added == [rows_before, rows_before + 1]
    assert len(model.get_input_embeddings().weight) == rows_before, "the model changes when it trains"


def test_the_model_s_own_template_adds_nothing(folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = SFTTrainer(model_of(folder), quiet(tmp_path), train_dataset=rows, processing_class=tokenizer_of(folder))
    assert trainer.chat.template == TEMPLATE
    assert trainer._model.new_tokens == ()
    assert not trainer.chat.known_tokens


def test_without_a_template_texts_are_trained_and_conversations_refused(base: Path, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"SFTConfig\(chat_template_path='chatml'\)"):
        trainer_of(base, tmp_path / "a", rows)
    trainer = trainer_of(base, tmp_path / "b", [{"text": "the colour of the sky"}] * 8, peft_config=lora())
    trainer.train()
    trainer.save_model()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b").chat_template is None, "none was trained"
    formatted = trainer_of(base, tmp_path / "c", rows, formatting_func=lambda row: row["messages"][-1]["content"])
    assert len(formatted._prepared.examples) == len(rows)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda folder: setup_chat_format(None, tokenizer_of(folder)), "has a chat template already"),
        (lambda folder: setup_chat_format(None, tokenizer_of(folder), format="chatlm"), "allowed are chatml, plain"),
        (lambda folder: clone_chat_template(None, tokenizer_of(folder), "nowhere-at-all"), "no tokenizer could be loaded"),
    ],
)
def test_templates_that_cannot_be_given(call: Any, said: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        call(folder)


def test_templates_that_are_not_there(folder: Path, base: Path, rows: Rows, tmp_path: Path) -> None:
    for name, said in ((str(base), "whose tokenizer has no chat template"), ("missing.jinja", "no tokenizer could be loaded")):
        with pytest.raises(ConfigError, match=said):
            trainer_of(folder, tmp_path, rows, chat_template_path=name)


def test_the_processor_is_used_where_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(path: Path, dtype: str, *, device: str) -> Any:
        asked.append(device)
        return load_model(path, dtype, device="cpu")

    monkeypatch.setattr("sapwood.trl.models.load_model", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for options in ({}, {"use_cpu": True}):
        opened(str(folder), SFTConfig("out", bf16=False, **options), None, Screen(quiet=True), [])
    assert asked == ["cuda", "cpu"]
