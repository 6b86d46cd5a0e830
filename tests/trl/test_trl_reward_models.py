"""GRPOTrainer with reward models: by folder, held in code, with a tokenizer of their own, and beside functions, as TRL takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from sapwood.errors import ConfigError, ModelError
from sapwood.run import read_records
from sapwood.trl import GRPOConfig, GRPOTrainer
from tiny.reward import by_transformers, write_reward_model

ROWS = [{"prompt": f"what is {n} and {n}?"} for n in range(4)]
TALKS = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


@pytest.fixture(scope="module")
def liked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_model(tmp_path_factory.mktemp("rewards") / "liked")


def held(folder: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def short(completions: list[Any], **kwargs: Any) -> list[float]:
    return [-float(len(str(one))) for one in completions]


def trained(folder: Path, out: Path, rewards: Any, rows: Any, **options: Any) -> GRPOTrainer:
    args = GRPOConfig(
        str(out),
        num_generations=2,
        per_device_train_batch_size=2,
        max_steps=1,
        max_completion_length=6,
        disable_tqdm=True,
        learning_rate=1e-3,
        logging_steps=1,
        preflight=2,
    )
    trainer = GRPOTrainer(str(folder), rewards, args=args, train_dataset=rows, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("rows", [ROWS, TALKS], ids=["texts", "messages"])
@pytest.mark.parametrize("by_name", [True, False])
def test_its_numbers_are_those_that_trl_would_see(folder: Path, liked: Path, tmp_path: Path, rows: Any, by_name: bool) -> None:
    trainer = trained(folder, tmp_path, [short, str(liked) if by_name else held(liked)], rows)
    assert {"rewards/short/mean", "rewards/liked/mean"} <= trainer.state.log_history[0].keys()
    assert trainer.run_path is not None
    shown = read_records(trainer.run_path / "rollouts.jsonl")
    asked = [
        one["question"] + one["answer"]
        if rows is ROWS
        else [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": one["answer"]}]
        for one in shown
    ]
    assert shown
    np.testing.assert_allclose([one["parts"]["liked"] for one in shown], by_transformers(liked, asked), rtol=0, atol=1e-5)


def test_a_model_without_a_folder_takes_its_tokenizer(folder: Path, liked: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(liked)
    model = held(liked)
    model.config._name_or_path = ""
    with pytest.raises(ConfigError, match=r"folder \(none\) is not here.*reward_processing_classes"):
        trained(folder, tmp_path, model, TALKS)
    trainer = trained(folder, tmp_path, [model, short], TALKS, reward_processing_classes=[tokenizer, None])
    assert trainer.run_path is not None
    record = read_records(trainer.run_path / "metrics.jsonl")[-1]
    assert list(record["rewards"]) == ["LlamaForSequenceClassification", "short"]
    assert np.isfinite(record["rewards"]["LlamaForSequenceClassification"])


def test_models_that_are_no_reward_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM, and a reward model is"):
        trained(folder, tmp_path, str(folder), ROWS)
    with pytest.raises(ModelError, match="a classifier of 3 labels"):
        trained(folder, tmp_path, held(write_reward_model(tmp_path / "three", labels=3)), ROWS)
