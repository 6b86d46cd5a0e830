"""Options of the trainers of rewards and preferences: each of TRL's is honoured, answered in a line, or refused by name."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from sapwood.errors import ConfigError
from sapwood.trl import DPOConfig, GRPOConfig, KTOConfig
from sapwood.trl.dpo_options import preference_settings
from sapwood.trl.grpo_options import grpo_settings
from sapwood.trl.options import Options, defaults, honoured, known_options

KINDS: dict[str, type[Options]] = {"grpo": GRPOConfig, "dpo": DPOConfig, "kto": KTOConfig}


def options_of_trl(method: str) -> set[str]:
    """The fields that TRL 1.16's own class has, read from its source."""
    files = importlib.metadata.files("trl") or []
    source = next(Path(str(file.locate())) for file in files if str(file) == f"trl/trainer/{method}_config.py")
    classes = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ClassDef)]
    found = {
        line.target.id for one in classes for line in one.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("method", KINDS)
def test_every_option_of_trl_is_known(method: str) -> None:
    ours = options_of_trl(method)
    assert {"beta", "learning_rate"} <= ours, "the source was read"
    assert not ours - known_options(KINDS[method])


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in KINDS for name in sorted(options_of_trl(method))])
def test_none_of_them_is_accepted_and_ignored(method: str, name: str) -> None:
    kind = KINDS[method]
    if name in honoured(kind):
        return  # its own test is below
    default = defaults(kind).get(name)
    value = not default if isinstance(default, bool) else default + 3 if isinstance(default, int | float) else "x"
    said = ""
    try:
        said = "\n".join(kind("out", **{name: value}).notes)
    except ConfigError as error:
        said = str(error)
    assert name in said, f"{name}={value} was taken without a word"


GRPO: dict[str, Any] = {
    "num_generations": 4,
    "max_completion_length": 7,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "beta": 0.04,
    "num_iterations": 2,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "loss_type": "dr_grpo",
    "importance_sampling_level": "sequence",
    "scale_rewards": False,
    "mask_truncated_completions": True,
    "entropy_coef": 0.01,
    "resample": 2,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 3,
    "num_train_epochs": 1,
    "max_steps": 3,
    "seed": 5,
    "save_steps": 7,
    "gradient_checkpointing": True,
}
PREFERENCE: dict[str, Any] = {"beta": 0.3, "learning_rate": 1e-4, "num_train_epochs": 1, "max_steps": 3, "seed": 5, "optim": "adafactor"}


def grpo_plan(rows: int = 40, **options: Any) -> Any:
    notes: list[str] = []
    return grpo_settings(GRPOConfig("out", **options), rows, full=True, lora=None, notes=notes).train, notes


def preference_plan(kind: Any, **options: Any) -> Any:
    return preference_settings(kind("out", **options), 40, full=True, lora=None, notes=[]).train


@pytest.mark.parametrize("name", GRPO)
def test_each_knob_of_rewards_changes_the_run(name: str) -> None:
    assert grpo_plan(**{name: GRPO[name]})[0] != grpo_plan()[0]


@pytest.mark.parametrize("name", [*PREFERENCE, "loss_type", "label_smoothing"])
def test_each_knob_of_pairs_changes_the_run(name: str) -> None:
    value = {**PREFERENCE, "loss_type": "ipo", "label_smoothing": 0.1}[name]
    assert preference_plan(DPOConfig, **{name: value}) != preference_plan(DPOConfig)


@pytest.mark.parametrize("name", [*PREFERENCE, "desirable_weight", "undesirable_weight"])
def test_each_knob_of_votes_changes_the_run(name: str) -> None:
    value = {**PREFERENCE, "desirable_weight": 2.0, "undesirable_weight": 2.0}[name]
    assert preference_plan(KTOConfig, **{name: value}) != preference_plan(KTOConfig)


def test_every_honoured_option_has_its_test() -> None:
    elsewhere = {"max_length", "max_prompt_length", "reward_weights", "preflight", "chat_template_kwargs"}  # test_trl_grpo, test_trl_dpo
    for kind, tested in ((GRPOConfig, GRPO), (DPOConfig, {"loss_type": 1, "label_smoothing": 1, **PREFERENCE})):
        own = {field.name for field in dataclasses.fields(kind)} - {field.name for field in dataclasses.fields(Options)}
        assert not own - {*tested, *elsewhere}


def test_answers_make_whole_groups() -> None:
    plan, notes = grpo_plan(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert (plan.prompts, plan.group, plan.steps) == (2, 8, 60)
    assert any("A step asks 2 prompts for 8 answers each" in note for note in notes)
    plan, notes = grpo_plan(per_device_train_batch_size=1, num_generations=6)
    assert (plan.prompts, plan.group) == (1, 6)
    assert any("TRL stops here" in note for note in notes)
    with pytest.raises(ConfigError, match=r"no multiple of 8\. Give per_device_train_batch_size=16 and"):
        grpo_plan(per_device_train_batch_size=14)
    with pytest.raises(ConfigError, match="num_generations is 1"):
        grpo_plan(num_generations=1)


def test_the_options_of_section_6(tmp_path: Path) -> None:
    args = GRPOConfig(
        learning_rate=5e-6,
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.1,
        warmup_ratio=0.1,
        lr_scheduler_type="cosine",
        optim="paged_adamw_8bit",
        logging_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        num_generations=6,
        max_prompt_length=256,
        max_completion_length=768,
        max_steps=250,
        save_steps=250,
        max_grad_norm=0.1,
        report_to="none",
        output_dir=str(tmp_path),
    )
    plan = grpo_settings(args, 7000, full=True, lora=None, notes=[]).train
    assert (plan.steps, plan.prompts, plan.group, plan.max_new_tokens, plan.optim.optimizer) == (250, 1, 6, 768, "adamw8bit")
    assert args.notes == ["warmup_ratio is called warmup_steps since transformers 5.0, where a number below 1 is a share of all steps."]


def test_gspo_is_grpo_on_whole_answers() -> None:
    assert grpo_plan(importance_sampling_level="sequence", loss_type="grpo")[0].policy.loss == "gspo"
    with pytest.raises(ConfigError, match="loss_type='grpo'"):
        grpo_plan(importance_sampling_level="sequence", loss_type="dapo")


def test_what_the_version_once_meant_is_said() -> None:
    notes = "\n".join(grpo_plan()[1])
    assert "it was 0.04 before" in notes
    assert "dapo, TRL's default since 0.22" in notes
    assert not [note for note in grpo_plan(beta=0.0, loss_type="grpo")[1] if "not given" in note]
