"""GRPOTrainer: the calls of the course's chapter 12 with one import changed, those of today and those that TRL has dropped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from sapwood.errors import ConfigError, DataError, TrainingError
from sapwood.run import read_records
from sapwood.trl import GRPOConfig, GRPOTrainer
from sapwood.trl.prompts import taken
from tiny.trainers import model_of, tokenizer_of, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
QUIET: dict[str, Any] = {"disable_tqdm": True, "max_completion_length": 6, "learning_rate": 1e-3}
ROWS = [{"prompt": f"what is {n} and {n}?", "answer": str(2 * n)} for n in range(6)]
TALKS = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in ROWS]


def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
    return [-abs(20.0 - len(completion)) for completion in completions]


def args_of(out: Path, **options: Any) -> GRPOConfig:
    return GRPOConfig(str(out), **{"num_generations": 2, "per_device_train_batch_size": 2, "max_steps": 2, **QUIET, **options})


def trainer_of(folder: Path, out: Path, reward: Any = reward_len, rows: Any = ROWS, **options: Any) -> GRPOTrainer:
    return GRPOTrainer(str(folder), reward, args=args_of(out, **options), train_dataset=rows)


def notes_of(trainer: GRPOTrainer) -> str:
    return "\n".join([*trainer.args.notes, *trainer._notes])


def test_section_4_as_the_page_has_it(folder: Path, tmp_path: Path) -> None:
    training_args = GRPOConfig(
        output_dir=str(tmp_path / "output"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=1,
        max_completion_length=6,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(model=str(folder), args=training_args, train_dataset=ROWS[:2], reward_funcs=reward_len)
    before = weights_of(trainer.model)
    output = trainer.train()
    assert 'id="alarms"' in (trainer.run_path / "report.html").read_text()
    assert read_records(trainer.run_path / "ledger.jsonl")[-1]["rows_in"] > 0
    assert output.global_step == trainer.state.max_steps == 2, "8 answers a step are one prompt's"
    assert any(not torch.equal(before[name], value) for name, value in weights_of(trainer.model).items())
    line = trainer.state.log_history[0]
    assert {"loss", "reward", "reward_std", "rewards/reward_len/mean", "completions/mean_length", "grad_norm", "step"} <= line.keys()
    assert line["reward"] == line["rewards/reward_len/mean"] < 0
    trainer.save_model()
    assert any(not torch.equal(before[name], value) for name, value in model_of(tmp_path / "output").named_parameters())
    assert "counts letters" in notes_of(trainer)


def test_section_5_with_a_loaded_model_and_its_adapter(folder: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(model_of(folder), peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    args = GRPOConfig(
        output_dir=str(tmp_path / "GRPO"),
        learning_rate=2e-5,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_prompt_length=512,
        max_completion_length=6,
        num_generations=2,
        optim="adamw_torch",
        num_train_epochs=1,
        bf16=False,
        report_to="none",
        remove_unused_columns=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(model=model, reward_funcs=[reward_len], args=args, train_dataset=ROWS[:2], processing_class=tokenizer_of(folder))
    trainer.train()
    assert "lora_A" in "".join(weights_of(trainer.model))
    trainer.save_model()
    assert (tmp_path / "GRPO" / "adapter_model.safetensors").is_file()
    assert "remove_unused_columns" not in notes_of(trainer), "what asks for nothing is no news"
    trainer.model.merge_and_unload()


def test_functions_are_called_as_trl_calls_them(folder: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def first(prompts: list[Any], completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        seen.append(
            {"prompts": prompts, "completions": completions, "answer": answer, **kwargs, "step": kwargs["trainer_state"].global_step}
        )
        return [float(len(completion[0]["content"])) for completion in completions]

    async def second(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
        return [None if place == 0 else float(sum(ids)) for place, ids in enumerate(completion_ids)]

    trainer = trainer_of(folder, tmp_path, [first, second], TALKS, reward_weights=[1.0, 0.001], preflight=0, logging_steps=1)
    trainer.train()
    call = seen[0]
    assert call["prompts"] == [row["prompt"] for row in TALKS for _ in range(2) if row["answer"] == call["answer"][0]]
    assert call["completions"][0][0]["role"] == "assistant"
    assert call.keys() == {"prompts", "completions", "completion_ids", "answer", "trainer_state", "step"}
    assert [one["step"] for one in seen] == [0, 1]
    assert {"rewards/first/mean", "rewards/second/mean"} <= trainer.state.log_history[0].keys()


def test_a_data_set_of_the_library(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    seen: list[Any] = []

    def reward(completions: list[str], prompts: list[str], answer: list[str]) -> list[float]:
        seen.append((prompts, answer))
        return [float(len(one)) for one in completions]

    trainer = trainer_of(folder, tmp_path, reward, datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), preflight=0)
    trainer.train()
    questions = {row["prompt"]: row["answer"] for row in ROWS}
    assert all(questions[prompt] == right for prompts, answers in seen for prompt, right in zip(prompts, answers, strict=True))
    assert "has no **kwargs" in notes_of(trainer)


def test_a_run_resumes_and_later_readers_know_it(folder: Path, tmp_path: Path) -> None:
    whole = trainer_of(folder, tmp_path / "whole", max_steps=3, save_steps=1, learning_rate=1e-2, seed=7)
    whole.train()

    def stops(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        if trainer_state.global_step == 2:
            raise KeyboardInterrupt
        return reward_len(completions)

    stops.__name__ = "reward_len"
    cut = trainer_of(folder, tmp_path / "cut", stops, max_steps=3, save_steps=1, learning_rate=1e-2, seed=7)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert cut.state.global_step == 2
    again = trainer_of(folder, tmp_path / "cut", max_steps=3, save_steps=1, learning_rate=1e-2, seed=7)
    again.train(resume_from_checkpoint=True)
    ours, theirs = weights_of(whole.model), weights_of(again.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_held_out_prompts_are_rewarded(folder: Path, tmp_path: Path) -> None:
    trainer = GRPOTrainer(
        str(folder), reward_len, args_of(tmp_path, eval_strategy="steps", eval_steps=1), train_dataset=ROWS[:4], eval_dataset=ROWS[4:]
    )
    trainer.train()
    evals = [line["eval_reward"] for line in trainer.state.log_history if "eval_reward" in line]
    assert len(evals) == 3
    assert trainer.evaluate()["eval_reward"] == pytest.approx(evals[-1])
    assert trainer.evaluate(ROWS, metric_key_prefix="mine").keys() >= {"mine_reward", "mine_rewards/reward_len/mean"}


def reward_format(completions: list[str], **kwargs: Any) -> list[float]:
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    return [1.0 if re.match(pattern, content) else 0.0 for content in completions]


def test_a_reward_that_never_matches_is_told_before_step_1(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, reward_format)
    with pytest.raises(TrainingError, match=r"(?s)nothing to learn.*GRPOConfig\(preflight=0\).*re\.DOTALL"):
        trainer.train()


def test_texts_that_are_messages_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(?s)judged none.*completion\[0\]\['content'\]"):
        trainer_of(folder, tmp_path / "a", reward_format, TALKS).train()
    with pytest.raises(TrainingError, match=r"(?s)rewarded alike.*len\(completion\) is 1 for every answer"):
        trainer_of(folder, tmp_path / "b", reward_len, TALKS).train()


def problem_reward(completions: list[str], answers: list[str], **kwargs: Any) -> list[float]:
    return [float(answer in completion) for completion, answer in zip(completions, answers, strict=True)]


def sends_figures(completions: list[str], log_metric: Any, **kwargs: Any) -> list[float]:
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_funcs": problem_reward}, "takes `answers`.*Did you mean 'answer'"),
        ({"reward_funcs": sends_figures}, "`log_metric`, which Sapwood does not give"),
        ({"reward_funcs": None}, "`reward_funcs` is missing"),
        ({"reward_funcs": ["reward-model"]}, "which is no folder of a reward model here.*There is no scorer 'reward-model'"),
        ({"reward_funcs": torch.nn.Embedding(2, 2)}, "Embedding. Give functions, or reward models"),
        ({"reward_processing_classes": [None, None]}, "2 tokenizers for 1 reward functions"),
        ({"reward_funcs": torch.nn.Embedding(2, 2), "weights": [1.0, 2.0]}, "2 weights for 1"),
        ({"train_dataset": [{"question": "a"}]}, r"no column `prompt`.*rename_column\('question', 'prompt'\)"),
        ({"train_dataset": None}, "`train_dataset` is missing"),
        ({"tools": [len]}, "without tools"),
        ({"callbacks": [object()]}, "no callbacks"),
        ({"max_grad_nrom": 1}, "Did you mean 'max_grad_norm'"),
    ],
)
def test_what_cannot_be_honoured_is_said_before_a_model_is_loaded(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    weights = arguments.pop("weights", None)
    with pytest.raises(ConfigError, match=message):
        GRPOTrainer(
            **{"model": "nowhere", "args": args_of(tmp_path, reward_weights=weights), "train_dataset": ROWS, "reward_funcs": reward_len}
            | arguments
        )


def test_prompts_of_two_kinds_and_long_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: the prompt is not a text"):
        trainer_of(folder, tmp_path, rows=[ROWS[0], TALKS[0]])
    with pytest.raises(DataError, match="at most 3 are wanted"):
        trainer_of(folder, tmp_path, max_prompt_length=3)


def test_the_run_s_folder_says_whose_it_is(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, hub_token="secret", max_steps=1)
    trainer.train()
    assert trainer.run_path is not None
    assert "secret" not in "".join(file.read_text() for file in trainer.run_path.glob("*.json"))
    assert json.loads((trainer.run_path / "settings.json").read_text())["trl"]["num_generations"] == 2
    assert f"model: {folder}" in (trainer.run_path / "config.yaml").read_text()


def test_rows_say_what_their_template_is_told(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), chat_template_kwargs={"enable_thinking": False, "a": 1}, disable_tqdm=True)
    rows = [{**ROWS[0], "chat_template_kwargs": {"a": 2}, "tools": None}]
    found = taken(rows, "train_dataset", tmp_path, args, [])
    (written,) = [json.loads(line) for line in Path(found.file).read_text().splitlines()]
    assert written["chat_template_kwargs"] == {"enable_thinking": False, "a": 2}
    assert written["columns"]["answer"] == "0"
    assert not found.conversational
