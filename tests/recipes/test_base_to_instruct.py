"""A base model without a template becomes one that answers: trained with `--template chatml`, reloaded by transformers and peft alone."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.numpy
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sapwood.chat import Chat
from sapwood.cli.chat_verb import ChatConfig, open_model
from sapwood.cli.main import main
from sapwood.errors import CheckpointError
from sapwood.generate import Engine
from sapwood.model import load_adapter, load_model
from sapwood.recipes import Screen
from sapwood.recipes.tune import load_chat
from sapwood.records import Ended, Message, SamplingParams
from sapwood.run import read_records, step_records
from sapwood.train import SftConfig
from sapwood.train.optimizer import Optimizer
from train.tiny_training import tiny_lm, train

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2-untied-padded": (transformers.Qwen2Config, {"tie_word_embeddings": False, "vocab_size": 384}),
    "gemma3-scaled": (transformers.Gemma3TextConfig, {"head_dim": 16, "query_pre_attn_scalar": 16}),
}
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
BOS, EOT = "<s>", "<|endoftext|>"
FAST = ["--dtype", "fp32", "--budget", "1024", "--max-new-tokens", "6", "--shots", "--held-out", "5", "--lr", "1e-2"]


def base_tokenizer() -> Tokenizer:
    """As a base model of today has it: byte-level, with a BOS that it puts first, and no token of any template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [" ".join([*COLOURS, *COLOURS.values()]), "system user assistant", "the colour of the sky is blue"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[BOS, EOT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def write_base(folder: Path, family: str, *, tokenizer: Tokenizer | None = None) -> Path:
    """A random base model: weights, tokenizer, no chat template."""
    folder.mkdir()
    tokenizer = tokenizer or base_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BOS, "eos_token": EOT, "pad_token": EOT, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    kind, extra = FAMILIES[family]
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1}
    torch.manual_seed(0)
    config = kind(**{**sizes, **heads, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **extra})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_questions(file: Path, first: int = 0) -> Path:
    """30 rows of a rule that a small model learns: the thing before the number has a colour."""
    things = list(COLOURS)
    with file.open("w") as out:
        for number in range(first, first + 30):
            thing = things[number % 5]
            turns = [{"role": "user", "content": f"{thing} {number}"}, {"role": "assistant", "content": COLOURS[thing]}]
            out.write(json.dumps({"messages": turns}) + "\n")
    return file


@contextmanager
def quiet() -> Iterator[None]:
    """peft and transformers warn of things that do not matter here; warnings are errors in these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tune(place: Path, family: str, name: str, *more: str) -> Path:
    out = place / name
    assert (
        main(["sft", str(place / "my.jsonl"), "--model", str(place / family), "--template", "chatml", "--out", str(out), *FAST, *more]) == 0
    )
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_questions(folder / "my.jsonl")
    for family in FAMILIES:
        write_base(folder / family, family)
        tune(folder, family, f"run-{family}", "--epochs", "24")
    return folder


def questions(run: Path) -> list[tuple[str, str]]:
    """Five questions of the rows that were trained, with their answers."""
    trained = [record for record in read_records(run / "ledger.jsonl") if record.get("status") == "trained"]
    lines = (run.parent / "my.jsonl").read_text().splitlines()
    rows = [json.loads(lines[record["line"] - 1])["messages"] for record in trained]
    assert len(rows) == 25
    return [(turns[0]["content"], turns[1]["content"]) for turns in rows[:5]]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_and_peft_alone_reload_it_to_the_same_logits_and_it_answers_and_stops(place: Path, family: str) -> None:
    run = place / f"run-{family}"
    chat = load_chat(place / family, "chatml")
    ours = load_adapter(load_model(place / family, "fp32"), run / "adapter")

    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "adapter")
    with quiet():
        plain = peft.AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32)
    plain.eval()
    generation = transformers.GenerationConfig.from_pretrained(run / "adapter")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == chat.turn_end == chat.new_tokens["<|im_end|>"]
    for question, answer in questions(run):
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = chat.prompt([Message("user", question)])
        assert tuple(ids) == prompt.ids
        assert prompt.ids[0] == 0, "the tokenizer begins texts with its BOS, so the template does too"
        batch = torch.tensor([ids])
        with torch.inference_mode():
            theirs = plain(input_ids=batch).logits[0]
            ours.module.set_attn_implementation("sdpa")
            found = ours.module(input_ids=batch).logits[0]
            written = plain.generate(batch, attention_mask=torch.ones_like(batch), generation_config=generation, max_new_tokens=8)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
        new = written[0, len(ids) :].tolist()
        assert new[-1] == chat.turn_end
        assert tokenizer.decode(new[:-1]) == answer


@pytest.mark.parametrize("family", FAMILIES)
def test_sapwood_answers_alike_from_the_run_and_from_the_merged_model(place: Path, tmp_path: Path, family: str) -> None:
    run = place / f"run-{family}"
    model, chat = open_model(str(run), ChatConfig(), Screen(quiet=True))
    asked = [chat.prompt([Message("user", question)]) for question, _ in questions(run)]
    params = SamplingParams(max_new_tokens=8)
    answers = Engine(model, chat).generate(asked, params)
    assert [answer.text for answer in answers] == [answer for _, answer in questions(run)]
    assert {answer.ended for answer in answers} == {Ended.STOP}

    with quiet():
        merged = peft.AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=torch.float32).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for file in (run / "adapter").iterdir():
        if not file.name.startswith(("adapter", "README")):
            shutil.copy(file, tmp_path / "merged")
    whole, own = load_model(tmp_path / "merged", "fp32"), Chat.load(tmp_path / "merged")
    assert own.new_tokens == {}, "the merged model needs no template any more"
    assert own.stop_ids >= chat.stop_ids
    again = Engine(whole, own).generate([own.prompt(prompt.messages) for prompt in asked], params)
    assert [(one.prompt.ids, one.ids) for one in again] == [(one.prompt.ids, one.ids) for one in answers]


def test_rows_for_the_new_tokens_are_added_or_taken_and_it_is_said(place: Path) -> None:
    sizes = {family: json.loads((place / family / "config.json").read_text())["vocab_size"] for family in FAMILIES}
    for family in FAMILIES:
        config = json.loads((place / f"run-{family}" / "adapter" / "adapter_config.json").read_text())
        layers = config["trainable_token_indices"]
        assert set(layers) == ({"model.embed_tokens", "lm_head"} if "untied" in family else {"model.embed_tokens"})
        size = base_tokenizer().get_vocab_size()
        assert all(ids == [size, size + 1] for ids in layers.values())
        assert (sizes[family] > size + 1) == ("padded" in family)


def test_the_log_says_what_was_added(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family, said in (("llama-tied", "The embedding grows from"), ("qwen2-untied-padded", "it keeps its 384 rows")):
        tune(place, family, f"said-{family}", "--max-steps", "1")
        shown = " ".join(capsys.readouterr().err.split())
        assert "The tokenizer lacked 2 control tokens of the template: <|im_start|> (id" in shown
        assert said in shown


def test_eval_of_the_run_brings_its_template_and_tokens(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    run = place / "run-llama-tied"
    tuned = [record["value"] for record in read_records(run / "scores.jsonl") if record["arm"] == "tuned"]
    others = str(write_questions(place / "others.jsonl", 30))
    for words in ([str(run)], [others, "--model", str(place / "llama-tied"), "--adapter", str(run / "adapter")]):
        assert main(["eval", *words, "--dtype", "fp32", "--json"]) == 0
        arms = json.loads(capsys.readouterr().out)["arms"]
        assert arms.keys() >= {"plain prompt", "tuned"}
        if words == [str(run)]:
            assert arms["tuned"]["rate"] == pytest.approx(sum(tuned) / len(tuned))
        assert arms["tuned"]["rate"] > arms["plain prompt"]["rate"]


def test_chat_with_the_run_stops(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (question, answer), *_ = questions(place / "run-gemma3-scaled")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    assert main(["chat", str(place / "run-gemma3-scaled"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"][-1] == {"role": "assistant", "content": answer}


def test_a_stopped_run_goes_on_to_the_very_same_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = "qwen2-untied-padded"
    whole = tune(place, family, "whole", "--max-steps", "12", "--save-every", "4")
    stopped = place / "stopped"

    real, calls = Optimizer.step, [0]

    def sixth(self: Optimizer, lr: float) -> float:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return real(self, lr)

    monkeypatch.setattr(Optimizer, "step", sixth)
    words = ["sft", str(place / "my.jsonl"), "--model", str(place / family), "--template", "chatml", "--out", str(stopped), *FAST]
    assert main([*words, "--max-steps", "12", "--save-every", "4"]) != 0
    monkeypatch.setattr(Optimizer, "step", real)
    assert not (stopped / "adapter").exists()
    assert main(["sft", str(stopped)]) == 0
    one, other = (safetensors.numpy.load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, stopped))
    assert any("trainable_tokens" in name for name in one)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    losses = [[record["loss"] for record in step_records(run / "metrics.jsonl") if record["kind"] == "train"] for run in (whole, stopped)]
    assert losses[0] == losses[1]


def test_a_run_that_trains_other_tokens_is_another_run(tmp_path: Path) -> None:
    for tokens in ((5, 6), (5, 7)):
        model = tiny_lm()
        model.new_tokens = tokens
        if tokens == (5, 6):
            train(tmp_path, SftConfig(max_steps=2), model=model)
            continue
        with pytest.raises(CheckpointError, match="on another model"):
            train(tmp_path, SftConfig(max_steps=2), model=model)


def test_full_training_saves_a_model_that_needs_nothing_else(place: Path) -> None:
    run = tune(place, "llama-tied", "full", "--full", "--epochs", "16", "--lr", "3e-3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert model.config.vocab_size == len(tokenizer) == base_tokenizer().get_vocab_size() + 2
    question, answer = questions(run)[0]
    batch = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        written = model.generate(**batch, max_new_tokens=8, do_sample=False)
    new = written[0, batch["input_ids"].shape[1] :].tolist()
    assert new[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(new, skip_special_tokens=True) == answer
    own, chat = open_model(str(run), ChatConfig(), Screen(quiet=True))
    (completion,) = Engine(own, chat).generate([chat.prompt([Message("user", question)])], SamplingParams(max_new_tokens=8))
    assert list(completion.ids) == new


def test_a_changed_template_file_is_the_runs_own_when_the_run_is_used(place: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|over|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    words = [
        "sft",
        str(place / "my.jsonl"),
        "--model",
        str(place / "llama-tied"),
        "--template",
        str(template),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*words, *FAST, "--max-steps", "2"]) == 0
    expected = load_chat(place / "llama-tied", template).prompt([Message("user", "sky")]).ids
    template.write_text("{{ changed }}")
    _, chat = open_model(str(tmp_path / "run"), ChatConfig(), Screen(quiet=True))
    assert chat.prompt([Message("user", "sky")]).ids == expected
    assert list(chat.new_tokens) == ["<|turn|>", "<|over|>"]


def test_tokens_that_the_base_has_keep_their_ids_and_train_if_untrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = base_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    size = tokenizer.get_vocab_size()
    base = write_base(tmp_path / "llama-tied", "llama-tied", tokenizer=tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[size - 1] = 0.0  # as where no text ever had it
    model.save_pretrained(base)
    write_questions(tmp_path / "my.jsonl")
    run = tune(tmp_path, "llama-tied", "run", "--max-steps", "2")
    shown = " ".join(capsys.readouterr().err.split())
    assert "lacked" not in shown
    assert f"template's token ids {size - 1} look untrained" in shown
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": [size - 1]}
