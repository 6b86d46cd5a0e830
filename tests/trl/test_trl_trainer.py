"""The face trains what Sapwood's own loop trains, and leaves what transformers and peft load."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sapwood.chat import Chat
from sapwood.cli.chat_verb import ChatConfig, open_model
from sapwood.errors import CheckpointError, ConfigError, SapwoodError
from sapwood.model import LoraConfig, load_model
from sapwood.recipes.prepare import DataConfig, prepare_files
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import config_of
from sapwood.records import Message
from sapwood.run import open_run, read_records, step_records
from sapwood.train import OptimConfig, SftConfig, sft
from sapwood.trl import SFTTrainer
from sapwood.trl.models import forest_attention
from tiny.trainers import Rows, losses_of, model_of, notes_of, quiet, tokenizer_of, trainer_of, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers by its old name
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def lora() -> Any:
    return peft.LoraConfig(**LORA)


def by_hand(folder: Path, rows: Rows, out: Path, **options: Any) -> list[float]:
    """The losses of the same training without the face."""
    file = out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = Chat.load(folder)
    prepared = prepare_files([str(file)], chat, DataConfig(held_out=0), Screen(quiet=True))
    optim = OptimConfig(lr=1e-3, schedule="linear", warmup=0, final=1 / 4, beta2=0.999)
    adapter = LoraConfig() if options.get("full") else LoraConfig(r=4, alpha=8)
    config = SftConfig(max_steps=4, batch=4, seed=42, epochs=3.0, lora=adapter, optim=optim, **options)
    run = open_run(out)
    sft(load_model(folder, "fp32"), prepared.examples, [], config, run)
    run.close()
    return [record["loss"] for record in step_records(out / "metrics.jsonl") if record["kind"] == "train"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("held_in_code", [False, True])
def test_the_face_trains_what_the_loop_trains(full: bool, held_in_code: bool, folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        model=model_of(folder) if held_in_code else str(folder),
        args=quiet(tmp_path / "face", logging_steps=1, bf16=False),
        train_dataset=rows,
        processing_class=tokenizer_of(folder) if held_in_code else None,
        peft_config=None if full else lora(),
    )
    before = weights_of(trainer.model)
    output = trainer.train()
    assert losses_of(trainer) == by_hand(folder, rows, tmp_path / "hand", full=full)
    assert output.training_loss == pytest.approx(sum(losses_of(trainer)) / 4)
    assert output.global_step == trainer.state.global_step == trainer.state.max_steps == 4
    assert any(not torch.equal(before[name], value) for name, value in weights_of(trainer.model).items() if name in before) == full


def test_history_has_the_lines_that_trl_s_has(folder: Path, rows: Rows, tmp_path: Path) -> None:
    plain = trainer_of(folder, tmp_path / "a", rows, logging_steps=1)
    plain.train()
    trainer = trainer_of(
        folder,
        tmp_path / "b",
        rows[5:],
        eval_dataset=rows[:5],
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        logging_first_step=True,
    )
    trainer.train()
    kinds = [(next(key for key in ("loss", "eval_loss", "train_loss") if key in line), line["step"]) for line in trainer.state.log_history]
    assert kinds == [("eval_loss", 0), ("loss", 1), ("eval_loss", 2), ("loss", 2), ("eval_loss", 4), ("loss", 4), ("train_loss", 4)]
    assert trainer.state.epoch == pytest.approx(16 / 25)
    assert trainer.state.best_metric == min(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    last = trainer.state.log_history[-3]["eval_loss"]
    again = trainer.evaluate()
    assert again["eval_loss"] == pytest.approx(last, rel=1e-6)
    assert trainer.evaluate(rows[:2], metric_key_prefix="mine")["mine_loss"] != again["eval_loss"]
    page = (trainer.run_path / "report.html").read_text()
    assert f"{last:.3f}" in page, "the held-out loss stands on the run's page"
    records = read_records(trainer.run_path / "ledger.jsonl")
    assert [record["status"] for record in records[:-1]].count("held_out") == 5
    assert records[-1] | {"rows_in": len(rows), "trained": len(rows) - 5, "held_out": 5} == records[-1], "one summary of both sides"
    assert "does not agree" not in page


def test_an_adapter_loads_in_peft_and_computes_the_same(folder: Path, rows: Rows, tmp_path: Path) -> None:
    model, tokenizer = model_of(folder), tokenizer_of(folder)
    trainer = SFTTrainer(model, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer, peft_config=lora())
    trainer.train()
    trainer.save_model()
    ids = tokenizer("the colour of the sky", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = trainer.model(ids).logits
        assert expected.isfinite().all(), "outside of a training, the model computes as ever"
        loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
        assert not torch.allclose(model_of(folder)(ids).logits, expected, atol=1e-5)
        merged = loaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        assert torch.allclose(model_of(tmp_path / "merged")(ids).logits, expected, atol=1e-4)
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert kept.chat_template == tokenizer.chat_template
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_whole_model_loads_in_transformers_and_generates(folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rows, bf16=False)
    trainer.train()
    trainer.save_model(tmp_path / "own")
    trained = dict(trainer.model.named_parameters())
    for name, value in model_of(tmp_path / "own").named_parameters():
        assert torch.equal(value, trained[name])
    assert (trainer.run_path / "model" / "config.json").is_file()
    ids = tokenizer_of(tmp_path / "own")("the colour", return_tensors="pt").input_ids
    assert trainer.model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_each_training_has_a_folder_and_none_is_written_over(folder: Path, rows: Rows, tmp_path: Path) -> None:
    first = trainer_of(folder, tmp_path, rows, logging_steps=1)
    first.train()
    second = trainer_of(folder, tmp_path, rows, logging_steps=1)
    second.train()
    assert [first.run_path.name, second.run_path.name] == ["run-1", "run-2"]
    assert losses_of(first) == losses_of(second)
    kinds = [record["kind"] for record in map(json.loads, (tmp_path / "run-1" / "ledger.jsonl").read_text().splitlines())]
    assert kinds.count("row") == len(rows)


@pytest.mark.parametrize("full", [False, True])
def test_the_folder_of_a_training_is_a_run_that_the_verbs_take(full: bool, folder: Path, rows: Rows, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")  # a template of one's own goes with the run
    trainer = SFTTrainer(
        model_of(folder), quiet(tmp_path), train_dataset=rows, processing_class=tokenizer, peft_config=None if full else lora()
    )
    trainer.train()
    config = config_of(trainer.run_path)
    assert (config.model, config.data, config.train.full) == (str(folder), (str(tmp_path / "rows" / "train_dataset.jsonl"),), full)
    model, chat = open_model(str(trainer.run_path), ChatConfig(), Screen(quiet=True))
    assert chat.template == tokenizer.chat_template
    row = trainer._prepared.examples[0].rows[0]
    assert [*chat.prompt([Message(**message) for message in rows[0]["messages"][:-1]]).ids] == row.prompt_T.tolist()
    with forest_attention(trainer._model):
        assert model.logprobs([row])[0] == pytest.approx(trainer._model.logprobs([row])[0], abs=1e-4)


def test_a_second_training_goes_on_from_the_first(folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rows, peft_config=lora(), logging_steps=1, learning_rate=0.05)
    trainer.train()
    first = losses_of(trainer)
    trainer.train()
    assert losses_of(trainer)[0] < first[0] - 0.1


@pytest.mark.parametrize("by_path", [False, True])
def test_a_stopped_training_goes_on(by_path: bool, folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer_of(folder, tmp_path / "whole", rows, peft_config=lora(), logging_steps=1)
    whole.train()
    stopped = trainer_of(folder, tmp_path / "stopped", rows, peft_config=lora(), logging_steps=1)
    steps = 0

    def stop(*given: Any, **named: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return kept(*given, **named)

    loop = sys.modules["sapwood.train.sft"]  # the room's name for it is the function
    kept = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    monkeypatch.undo()
    assert stopped.state.global_step == 2
    again = trainer_of(folder, tmp_path / "stopped", rows, peft_config=lora(), logging_steps=1)
    again.train(resume_from_checkpoint=str(stopped.run_path / "checkpoints" / "step-2") if by_path else True)
    assert again.run_path == stopped.run_path
    assert losses_of(again) == losses_of(whole)
    trained = dict(whole.model.named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in again.model.named_parameters())


def test_there_must_be_something_to_go_on_with(folder: Path, rows: Rows, tmp_path: Path) -> None:
    for resume, said in ((True, "no run has a checkpoint"), ("elsewhere", "no run of Sapwood lies")):
        with pytest.raises(CheckpointError, match=said):
            trainer_of(folder, tmp_path, rows, resume_from_checkpoint=resume).train()


def test_an_adapter_that_comes_with_the_model_is_trained(folder: Path, rows: Rows, tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(model_of(folder), peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
    before = weights_of(wrapped)
    trainer = SFTTrainer(wrapped, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer_of(folder))
    assert "brings its own adapter" in notes_of(trainer)
    trainer.train()
    changed = {name for name, value in weights_of(trainer.model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    with pytest.raises(ConfigError, match="carries an adapter already"):
        SFTTrainer(wrapped, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer_of(folder), peft_config=lora())


def test_another_method_of_peft_is_trained_as_the_model_brings_it(folder: Path, rows: Rows, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model_of(folder), config)
    trainer = SFTTrainer(wrapped, quiet(tmp_path, learning_rate=0.1), train_dataset=rows, processing_class=tokenizer_of(folder))
    trainer.train()
    assert any((value != 1).any() for name, value in trainer.model.named_parameters() if "ia3" in name)
    learned = peft.get_peft_model(model_of(folder), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="learns a prompt"):
        SFTTrainer(learned, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer_of(folder))


def test_a_model_whose_layers_carry_an_adapter_without_its_wrapper(folder: Path, rows: Rows, tmp_path: Path) -> None:
    model, tokenizer = model_of(folder), tokenizer_of(folder)
    trainer = SFTTrainer(model, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer, peft_config=lora())
    trainer.train()
    with pytest.raises(ConfigError, match="Give that trainer's `model`"):
        SFTTrainer(model, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer)
    merged = trainer.model.merge_and_unload()
    SFTTrainer(merged, quiet(tmp_path), train_dataset=rows, processing_class=tokenizer, peft_config=lora()).train()


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)])
def test_the_type_of_weights_is_what_was_asked_for(bf16: bool | None, dtype: torch.dtype, folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = SFTTrainer(model_of(folder), quiet(tmp_path, bf16=bf16), train_dataset=rows, processing_class=tokenizer_of(folder))
    assert trainer.model.dtype == dtype
    assert ("fp32 masters" in notes_of(trainer)) == bool(bf16)
    wrapped = peft.get_peft_model(model_of(folder), lora())
    kept = SFTTrainer(wrapped, quiet(tmp_path, bf16=bf16), train_dataset=rows, processing_class=tokenizer_of(folder))
    assert {value.dtype for name, value in kept.model.named_parameters() if "lora_" in name} == {torch.float32}
    named = trainer_of(folder, tmp_path, rows, model_init_kwargs={"dtype": str(dtype).removeprefix("torch.")})
    assert named.model.dtype == dtype


def test_a_model_s_own_dropout_is_off_and_that_is_said(folder: Path, rows: Rows, tmp_path: Path) -> None:
    sizes = {"vocab_size": len(tokenizer_of(folder)), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=2))
    trainer = SFTTrainer(model, quiet(tmp_path, logging_steps=1), train_dataset=rows, processing_class=tokenizer_of(folder))
    assert "The model's own dropout (0.1) is off" in notes_of(trainer)
    assert trainer.evaluate(rows)["eval_loss"] == trainer.evaluate(rows)["eval_loss"]


def test_early_stopping_gives_back_the_best_state(folder: Path, rows: Rows, tmp_path: Path) -> None:
    options = {"max_steps": 12, "learning_rate": 0.1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    stop = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    trainer = trainer_of(folder, tmp_path, rows[:20], eval_dataset=rows[20:], callbacks=[stop], peft_config=lora(), **options)
    steps = trainer.train().global_step
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert steps == best + 2 < 12
    assert trainer.state.best_metric == losses[best] == trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"callbacks": [transformers.PrinterCallback]}, r"callbacks=\[PrinterCallback\]\) cannot be honoured"),
        ({"callbacks": [transformers.EarlyStoppingCallback(3, 0.1)]}, r"early_stopping_threshold=0.1\) cannot be honoured"),
        ({"callbacks": [transformers.EarlyStoppingCallback]}, "EarlyStoppingCallback needs load_best_model_at_end=True"),
        ({"data_collator": len}, "data_collator.*cannot be honoured: rows are never padded"),
        ({"compute_metrics": len}, "Score answers with `sapwood eval`"),
        ({"optimizers": (object(), None)}, "chosen by name"),
        ({"model_init": len}, "trains one model"),
        ({"train_datset": []}, "unknown argument `train_datset`. Did you mean 'train_dataset'"),
        ({"processing_class": 3}, "processing_class is a int"),
        ({"tokenizer": 1, "processing_class": 2}, "Keep `processing_class`"),
        ({"max_seq_length": 5, "max_length": 6}, "differs from SFTConfig"),
        ({"eval_strategy": "steps"}, "needs eval_dataset"),
        ({"model_init_kwargs": {"revision": "x"}}, "revision='x', which cannot be honoured"),
        ({"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}, "NF4"),
        ({"peft_config": peft.LoraConfig(target_modules=["nothing"])}, "nothing"),
        ({"train_dataset": None}, "`train_dataset` is missing"),
    ],
)
def test_what_is_wrong_is_said_before_or_as_it_trains(named: dict[str, Any], said: str, folder: Path, rows: Rows, tmp_path: Path) -> None:
    options = {"train_dataset": rows, **named}
    with pytest.raises(SapwoodError, match=said):
        trainer_of(folder, tmp_path, options.pop("train_dataset"), **options).train()


def test_a_model_must_be_one_and_a_tokenizer_be_found(folder: Path, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model is a int"):
        SFTTrainer(7, quiet(tmp_path), train_dataset=rows)
    lonely = transformers.LlamaForCausalLM(model_of(folder).config)
    lonely.config._name_or_path = ""
    with pytest.raises(ConfigError, match="processing_class is missing"):
        SFTTrainer(lonely, quiet(tmp_path), train_dataset=rows)
    assert SFTTrainer(model_of(folder), quiet(tmp_path), train_dataset=rows).chat.folder == folder
    with pytest.raises(ConfigError, match="model_init_kwargs is for a model given by name"):
        SFTTrainer(model_of(folder), quiet(tmp_path, model_init_kwargs={"dtype": "bfloat16"}), train_dataset=rows)


def test_arguments_of_former_versions_are_taken_with_a_line(folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        model_of(folder),
        quiet(tmp_path),
        train_dataset=rows,
        tokenizer=tokenizer_of(folder),
        max_seq_length=64,
        packing=True,
        dataset_kwargs={"add_special_tokens": False, "append_concat_token": False},
    )
    assert trainer.args.max_length == 64
    assert trainer.tokenizer is trainer.processing_class
    said = notes_of(trainer)
    for words in (
        "tokenizer is called processing_class",
        "max_seq_length is called max_length",
        "packing=True",
        "SFTConfig since TRL 0.13",
    ):
        assert words in said


def test_methods_that_are_not_here_say_what_is(folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rows)
    with pytest.raises(AttributeError, match=r"SFTTrainer.add_callback: Sapwood has no callbacks"):
        trainer.add_callback(None)
    with pytest.raises(AttributeError, match="Did you mean 'evaluate'"):
        trainer.evalute()
    with pytest.raises(ConfigError, match="needs rows"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("options", "silent"), [({}, True), ({"disable_tqdm": False}, False), ({"disable_tqdm": False, "log_level": "error"}, True)]
)
def test_what_is_shown(options: dict[str, Any], silent: bool, folder: Path, rows: Rows, tmp_path: Path, capsys: Any) -> None:
    trainer = SFTTrainer(str(folder), quiet(tmp_path, packing=True, logging_steps=2, **options), train_dataset=rows, peft_config=lora())
    trainer.train()
    shown = capsys.readouterr().err
    assert (shown == "") == silent
    if not silent:
        for words in ("packing=True", "rows in           30", "Trained are the answers", "step 2 of 4  loss", "step 4 of 4  loss", "run-1"):
            assert words in shown
        assert "step 3" not in shown


def test_output_dir_has_the_model_s_name_where_none_is_given(
    folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SFTTrainer(str(folder), train_dataset=rows, args=None, disable_tqdm=True).output == Path("model-SFT")
