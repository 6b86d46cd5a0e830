"""DPOTrainer and KTOTrainer: the course's calls with one import changed, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.model import load_model
from sapwood.recipes import Screen
from sapwood.recipes.other_rows import pairs_to_prefer, scan
from sapwood.recipes.prepare import DataConfig
from sapwood.run import open_run, read_records, step_records
from sapwood.train import DpoConfig, OptimConfig, dpo
from sapwood.trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig
from tiny.trainers import model_of, tokenizer_of, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PAIRS = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": f"no {n}"} for n in range(8)]
TALKS = [
    {"chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
    | {"rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}]}
    for row in PAIRS
]
VOTES = [{"prompt": f"say {n}", "completion": f"{n}", "label": n % 2 == 0} for n in range(8)]


def options(out: Path, **more: Any) -> dict[str, Any]:
    plain = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True}
    return {"output_dir": str(out), **plain, **more}


def test_the_snippet_of_the_course(folder: Path, tmp_path: Path) -> None:
    training_args = DPOConfig(
        beta=0.1,
        max_prompt_length=512,
        max_length=1024,
        remove_unused_columns=False,
        **options(tmp_path / "out", warmup_ratio=0.1, bf16=False),
    )
    model = model_of(folder)
    trainer = DPOTrainer(
        model=model,
        ref_model=model_of(folder),
        args=training_args,
        train_dataset=PAIRS,
        tokenizer=tokenizer_of(folder),
    )
    before = weights_of(trainer.model)
    output = trainer.train()
    assert 'id="alarms"' in (trainer.run_path / "report.html").read_text()
    assert read_records(trainer.run_path / "ledger.jsonl")[-1]["rows_in"] > 0
    first, last, _ = trainer.state.log_history
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "the policy is the reference"
    assert last["loss"] < first["loss"]
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"} <= last.keys()
    assert output.global_step == 2
    trainer.save_model()
    assert any(not torch.equal(before[name], value) for name, value in model_of(tmp_path / "out").named_parameters())
    said = "\n".join([*trainer.args.notes, *trainer._notes])
    for part in ("max_prompt_length", "nothing is ever cut", "warmup_ratio is called", "tokenizer is called", "no second copy is needed"):
        assert part in said


def test_the_face_trains_what_the_loop_trains(folder: Path, tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(str(folder), args=DPOConfig(**options(tmp_path / "face", bf16=False)), train_dataset=PAIRS, peft_config=lora)
    trainer.train()
    assert trainer.run_path is not None
    chat, plan = Chat.load(folder), trainer.settings()
    file = tmp_path / "face" / "rows" / "train_dataset.jsonl"
    pairs = pairs_to_prefer(scan([str(file)], DataConfig(held_out=0), Screen(quiet=True)), chat, DataConfig(held_out=0)).train
    config = DpoConfig(
        max_steps=2,
        batch=4,
        seed=42,
        epochs=3.0,
        lora=plan.train.lora,
        optim=OptimConfig(lr=1e-3, schedule="linear", warmup=0, final=1 / 2, beta2=0.999),
    )
    run = open_run(tmp_path / "hand")
    dpo(load_model(folder, "fp32"), pairs, [], config, run)
    run.close()
    losses = [[one["loss"] for one in step_records(path / "metrics.jsonl")] for path in (trainer.run_path, run.path)]
    assert losses[0] == losses[1]


def test_conversations_are_judged_while_training(folder: Path, tmp_path: Path) -> None:
    args = DPOConfig(**options(tmp_path, eval_strategy="steps", eval_steps=1, loss_type=["ipo"], num_train_epochs=1))
    trainer = DPOTrainer(str(folder), args=args, train_dataset=TALKS[2:], eval_dataset=TALKS[:2])
    trainer.train()
    evals = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in evals] == [0, 1, 2]
    assert evals[-1].keys() >= {"eval_rewards/accuracies", "eval_rewards/margins"}
    assert trainer.state.best_metric == min(line["eval_loss"] for line in evals)
    with pytest.raises(ConfigError, match=r"evaluate.*eval_strategy"):
        trainer.evaluate()


def test_single_votes(folder: Path, tmp_path: Path) -> None:
    args = KTOConfig(**options(tmp_path, desirable_weight=2.0, beta=0.2, per_device_train_batch_size=8))
    trainer = KTOTrainer(str(folder), args=args, train_dataset=VOTES)
    assert (trainer.settings().train.good_weight, trainer.settings().train.beta) == (2.0, 0.2)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.75, abs=1e-2), "half of them weigh double, each at 0.5"


@pytest.mark.slow
def test_a_stopped_run_goes_on(folder: Path, tmp_path: Path) -> None:
    whole = DPOTrainer(str(folder), args=DPOConfig(**options(tmp_path / "whole", max_steps=3, save_steps=1)), train_dataset=PAIRS)
    whole.train()
    args = DPOConfig(**options(tmp_path / "cut", max_steps=3, save_steps=1))
    DPOTrainer(str(folder), args=args, train_dataset=PAIRS).train()
    for step in ("step-3", "step-000003"):
        for path in (tmp_path / "cut" / "run-1" / "checkpoints").glob(f"{step}*"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    again = DPOTrainer(str(folder), args=args, train_dataset=PAIRS)
    again.train(resume_from_checkpoint=True)
    ours, theirs = weights_of(whole.model), weights_of(again.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("trainer", "arguments", "message"),
    [
        (DPOTrainer, {"train_dataset": [{"prompt": "a", "chosen": "b"}]}, "no column `rejected`"),
        (DPOTrainer, {"args": SFTConfig("out")}, "args is a SFTConfig. Give a DPOConfig"),
        (DPOTrainer, {"beta": 0.2}, "differs from DPOConfig"),
        (DPOTrainer, {"data_collator": object()}, "nothing to collate"),
        (KTOTrainer, {"args": KTOConfig("out"), "train_dataset": PAIRS}, "no column `completion`"),
    ],
)
def test_what_cannot_be_honoured_is_said(trainer: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"model": "nowhere", "args": DPOConfig(str(tmp_path), beta=0.1, disable_tqdm=True), "train_dataset": PAIRS} | arguments
    with pytest.raises(ConfigError, match=message):
        trainer(**given)


def test_another_reference_is_refused(folder: Path, tmp_path: Path) -> None:
    other = model_of(folder)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(ConfigError, match="ref_model is another model"):
        DPOTrainer(str(folder), other, args=DPOConfig(**options(tmp_path)), train_dataset=PAIRS)


def test_votes_that_all_say_the_same(folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": True} for row in VOTES]
    with pytest.raises(ConfigError, match="All 8 votes"):
        KTOTrainer(str(folder), args=KTOConfig(**options(tmp_path)), train_dataset=rows)
