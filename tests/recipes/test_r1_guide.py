"""docs/deepseek-r1-distill.md: its commands and its code run, and what it says of thoughts, merging and plain transformers holds."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import pages
from sapwood.chat import Chat
from sapwood.cli.main import main
from sapwood.generate import Engine
from sapwood.model import load_adapter, load_model
from sapwood.recipes.prepare import DataConfig, Prepared, prepare_files
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Message, SamplingParams
from sapwood.run import read_records
from sapwood.train import SftConfig
from sapwood.train.miniature import on_paper
from tiny.r1 import BOS, EOS, NAME, REAL, SHAPE, sums, write_r1, write_tokenizer

PAGE = pages.ROOT / "docs" / "deepseek-r1-distill.md"
QUESTION = Message("user", "What is 4 + 4?")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model under its name, and what the page's commands have left there."""
    place = tmp_path_factory.mktemp("r1")
    write_r1(place / NAME)
    (place / "played.md").write_text(pages.played(PAGE, place), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A run whose adapter has moved the model far, and its merged weights."""
    options = ["--r", "8", "--lr", "3e-2", "--epochs", "4", "--dtype", "fp32", "--scorer", "none", "--batch", "4"]
    assert main(["sft", str(place / "sums.jsonl"), "--model", str(place / NAME), "--out", str(place / "far"), *options]) == 0
    assert main(["export", str(place / "far")]) == 0
    return place / "far"


def test_the_page_shows_what_its_commands_print(place: Path) -> None:
    shown = (place / "played.md").read_text(encoding="utf-8")
    assert shown.splitlines() == PAGE.read_text(encoding="utf-8").splitlines(), f"write it anew: python tests/pages.py {PAGE}"


def test_the_tiny_model_is_of_the_models_own_kind(place: Path) -> None:
    described = transformers.AutoConfig.from_pretrained(place / NAME).to_dict()
    real = transformers.Qwen2Config(**REAL).to_dict()
    assert {name: described[name] for name in SHAPE if name in real} == {name: real[name] for name in SHAPE if name in real}
    assert not described["tie_word_embeddings"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / NAME)
    assert tokenizer("a").input_ids[0] == tokenizer.convert_tokens_to_ids(BOS)
    assert tokenizer.pad_token == tokenizer.eos_token == EOS


def prepared(place: Path) -> tuple[Chat, Prepared]:
    chat = Chat.load(place / NAME)
    return chat, prepare_files([str(place / "sums.jsonl")], chat, DataConfig(held_out=0), Screen(quiet=True))


def test_every_turn_is_a_row_that_holds_its_own_thought_and_no_other(place: Path) -> None:
    chat, found = prepared(place)
    assert sum(len(example.rows) for example in found.examples) == 56 + 18
    for conversation, example in zip(found.train, found.examples, strict=True):
        assert isinstance(conversation, Conversation)
        turns = [message for message in conversation.messages if message.role == "assistant"]
        for turn, row in zip(turns, example.rows, strict=True):
            prompt, text = chat.decode(row.prompt_T.tolist()), chat.decode(row.completion_T.tolist())
            thought = turn.reasoning or re.findall(r"<think>\n(.*)\n</think>", turn.content)[0]
            answer = turn.content.split("</think>")[-1].strip()
            assert text == f"{thought}\n</think>\n\n{answer}{EOS}"
            assert row.weights_T.tolist() == [1.0] * len(row.completion_T)
            assert prompt.endswith("<｜Assistant｜><think>\n")
            assert (prompt.count(BOS), prompt.count("<think>"), prompt.count("</think>")) == (1, 1, 0)
            assert " more is " not in prompt, "no earlier thought is left"


def test_the_template_alone_loses_the_thought_and_bos_comes_twice(place: Path) -> None:
    """What the page says of others: transformers renders and tokenises, as code for conversations does."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / NAME)
    messages = sums(1)[0]["messages"]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "more is" not in whole
    assert not whole.startswith(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
    assert tokenizer(whole).input_ids.count(tokenizer.bos_token_id) == 2


def ids_of(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    found: list[int] = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return found


def logits(module: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(torch.tensor([ids])).logits
    return found


def test_the_merged_model_is_the_adapter(place: Path, run: Path) -> None:
    """Plain transformers and peft on both sides: logits, and what greedy decoding writes."""
    base = transformers.AutoModelForCausalLM.from_pretrained(place / NAME)
    ids = ids_of(run / "export" / "merged", [{"role": "user", "content": QUESTION.content}])
    before = logits(base, ids)
    merged = transformers.AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    adapted = peft.PeftModel.from_pretrained(base, str(run / "adapter"))
    expected = logits(adapted, ids)
    assert torch.allclose(logits(merged, ids), expected, atol=1e-4)
    assert (expected - before).abs().max() > 0.1, "training has moved it"
    options = {"input_ids": torch.tensor([ids]), "max_new_tokens": 24, "do_sample": False}
    assert torch.equal(merged.generate(**options), adapted.generate(**options))


def test_plain_transformers_gets_the_prompt_and_the_answer_of_training(place: Path, run: Path) -> None:
    folder = run / "export" / "merged"
    chat = Chat.load(place / NAME)
    prompt = chat.prompt([QUESTION])
    assert ids_of(folder, [{"role": "user", "content": QUESTION.content}]) == list(prompt.ids)
    ours = load_adapter(load_model(place / NAME, "fp32"), run / "adapter")
    (answer,) = Engine(ours, chat).generate([prompt], SamplingParams(max_new_tokens=24))
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder)
    written = merged.generate(torch.tensor([prompt.ids]), max_new_tokens=24, do_sample=False)[0, len(prompt.ids) :].tolist()
    assert written[: len(answer.ids)] == list(answer.ids)
    assert merged.generation_config.eos_token_id == chat.turn_end
    assert (merged.generation_config.temperature, merged.generation_config.top_p) == (0.6, 0.95)


def test_what_is_saved_names_a_tokenizer_that_every_transformers_builds_rightly(run: Path) -> None:
    for folder in (run / "adapter", run / "export" / "merged"):
        assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert transformers.AutoTokenizer.from_pretrained(folder).decode([257, 220, 83]).startswith("h")


def test_the_courses_code_leaves_the_same_kind_of_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # where the base lies under its name
    tokens = ids_of(place / "out" / "merged", [{"role": "user", "content": QUESTION.content}])
    assert tokens == list(Chat.load(place / NAME).prompt([QUESTION]).ids)
    merged = transformers.AutoModelForCausalLM.from_pretrained(place / "out" / "merged")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(str(place / "out"))
    assert torch.allclose(logits(merged, tokens), logits(adapted, tokens), atol=1e-4)
    trained = [record for record in read_records(place / "out" / "run-1" / "ledger.jsonl") if record.get("status") == "trained"]
    assert len(trained) == 56


def test_a_gguf_file_of_it_computes_the_same(run: Path) -> None:
    assert main(["export", str(run), "--as", "gguf"]) == 0
    (parity,) = json.loads((run / "export" / "gguf" / "export.json").read_text())["parity"].values()
    assert parity["holds"]


def test_it_can_be_talked_to(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^ {4}sapwood (chat .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION.content + "\n"))
    assert main(command.replace("2048", "8").split()) == 0
    assert "(thinks)" in capsys.readouterr().out


def test_what_the_page_says_of_sizes_is_counted(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(REAL))
    count = sum(parameter.numel() for parameter in on_paper(tmp_path, SftConfig(full=True), "bf16").module.parameters())
    page = PAGE.read_text(encoding="utf-8")
    assert f"{count:,} parameters" in page
    assert f"| LoRA r = 16, bf16 | {2 * count / 2**30:.1f} |" in page
