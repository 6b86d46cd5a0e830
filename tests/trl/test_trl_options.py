"""No option of TRL's is accepted and ignored: each is honoured, answered in a line, or refused by name."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sapwood.errors import ConfigError
from sapwood.recipes import track
from sapwood.train.optimizer import learning_rate
from sapwood.trl import SFTConfig
from sapwood.trl.names import ELSEWHERE, MET, REFUSED, RENAMED
from sapwood.trl.options import known_options, understood
from sapwood.trl.settings import NEVER, adapter, settings

HONOURED = {field.name for field in dataclasses.fields(SFTConfig)}


def options_of_trl() -> set[str]:
    """The fields that TRL 1.16's own SFTConfig has, read from its source."""
    files = importlib.metadata.files("trl") or []
    found: set[str] = set()
    for name in ("trl/trainer/sft_config.py", "trl/trainer/base_config.py"):
        source = next(Path(str(file.locate())) for file in files if str(file) == name)
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ClassDef):
                found |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def other_than(default: Any) -> Any:
    """A value of the same kind that asks for something else."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 3
    return {"x": 1} if isinstance(default, dict) else ["x"] if isinstance(default, list) else "x"


def plan(rows: int = 40, lora: Any = None, **options: Any) -> Any:
    notes: list[str] = []
    return settings(SFTConfig("out", **options), rows, full=lora is None, lora=lora, notes=notes), notes


def test_every_option_of_trl_is_known() -> None:
    ours = options_of_trl()
    assert {"max_length", "packing", "assistant_only_loss", "loss_type", "chat_template_path"} <= ours, "the source was read"
    assert not ours - known_options(SFTConfig) - HONOURED


@pytest.mark.parametrize(
    "field", [field for field in dataclasses.fields(transformers.TrainingArguments) if field.init], ids=lambda f: f.name
)
def test_none_is_accepted_and_ignored(field: Any) -> None:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    assert SFTConfig(**{field.name: default}).notes == [], "a default asks for nothing"
    if field.name in HONOURED or field.name.startswith("_"):
        return
    try:
        notes = SFTConfig("out", **{field.name: other_than(default)}).notes
    except ConfigError as error:
        assert field.name in str(error)  # noqa: PT017 - either this or a note
    else:
        assert len(notes) == 1
        assert field.name in notes[0]


@pytest.mark.parametrize("name", sorted({*MET, *REFUSED} - {"train_sampling_strategy", "loss_type", "tokenizer"}))
def test_every_answer_is_given(name: str) -> None:
    value = {"save_safetensors": False, "metric_for_best_model": "accuracy"}.get(name, 7)
    if name in REFUSED:
        with pytest.raises(ConfigError, match=rf"{name}=.*cannot be honoured: "):
            SFTConfig("out", **{name: value})
    else:
        (note,) = SFTConfig("out", **{name: value}).notes
        assert note == f"{name}={value!r}: {MET[name]}."


@pytest.mark.parametrize("old", sorted(set(RENAMED) - {"tokenizer"}))
def test_former_names_are_today_s_with_one_line(old: str) -> None:
    new = RENAMED[old][0]
    value: Any = {"eval_strategy": "epoch", "use_cpu": True, "warmup_steps": 0.25}.get(new, 7)
    found = SFTConfig("out", **{old: value})
    assert getattr(found, new) == value
    assert found.given == {"output_dir": "out", new: value}
    assert len(found.notes) == 1
    assert f"{old} is called {new}" in found.notes[0]
    with pytest.raises(ConfigError, match=f"Keep `{new}`"):
        SFTConfig("out", **{old: value, new: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lerning_rate": 1e-3}, "unknown option `lerning_rate`. Did you mean 'learning_rate'"),
        ({"max_sequence_len": 5}, "Did you mean 'max_sequence_length'"),
        ({"eval_strategy": "setps"}, "Did you mean 'steps'"),
        ({"learning_rate": "high"}, "give a number"),
        ({"max_steps": 2.5}, "give a whole number"),
        ({"max_length": -1}, "None, which is no limit but the model's own"),
        ({"bf16": "yes"}, "bf16='yes'"),
        ({"dataset_kwargs": {"skip_prepare": True}}, "Did you mean 'skip_prepare_dataset'"),
        ({"train_sampling_strategy": "sequential"}, "drawn at random"),
        ({"loss_type": "dft"}, "plain log-likelihood"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SFTConfig("out", **options)
    assert said in str(caught.value)


def test_an_attribute_is_an_option_too() -> None:
    found = SFTConfig("out")
    found.max_steps = 5
    assert found.given["max_steps"] == 5
    with pytest.raises(ConfigError, match="Did you mean 'max_steps'"):
        found.max_step = 5
    assert found.with_options({"seed": 1}).seed == 1
    assert found.seed == 42


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert SFTConfig("out", learning_rate="2e-4", max_steps="7").learning_rate == 2e-4
    assert SFTConfig("out", max_steps=7.0).max_steps == 7
    assert SFTConfig("out", eval_strategy=False).eval_strategy == "no"


def test_transformers_arguments_are_taken_as_far_as_they_differ(tmp_path: Path) -> None:
    given = transformers.TrainingArguments(str(tmp_path), max_steps=9, learning_rate=1e-3, lr_scheduler_type="cosine", use_cpu=True)
    found = understood(given, SFTConfig)
    assert found.given == {
        "output_dir": str(tmp_path),
        "max_steps": 9,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "use_cpu": True,
    }
    again = understood(
        transformers.TrainingArguments(str(tmp_path), activation_checkpointing=True, logging_steps=5, use_cpu=True), SFTConfig
    )
    assert (again.activation_checkpointing, again.logging_steps, again.bf16) == (True, 5, None)
    with pytest.raises(ConfigError, match="label_smoothing_factor"):
        understood(transformers.TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True), SFTConfig)
    with pytest.raises(ConfigError, match="args is a dict"):
        understood({"max_steps": 3}, SFTConfig)


KNOBS: dict[str, Any] = {
    "num_train_epochs": 2,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "optim": "adafactor",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.3,
    "seed": 1,
    "gradient_checkpointing": True,
    "activation_checkpointing": True,
    "eval_strategy": "steps",
    "eval_on_start": True,
    "logging_strategy": "epoch",
    "logging_steps": 2,
    "save_strategy": "epoch",
    "save_steps": 7,
    "save_total_limit": 3,
}
ELSEWHERE_TESTED = {
    "output_dir": "test_trl_trainer",
    "lr_scheduler_kwargs": "test_schedules_are_those_of_transformers",
    "eval_steps": "test_intervals",
    "logging_first_step": "test_trl_trainer",
    "bf16": "test_trl_trainer",
    "use_cpu": "test_trl_trainer",
    "max_length": "test_trl_rows",
    "max_refused": "test_trl_rows",
    "dataset_text_field": "test_trl_rows",
    "dataset_kwargs": "test_trl_rows",
    "completion_only_loss": "test_trl_rows",
    "assistant_only_loss": "test_trl_rows",
    "chat_template_path": "test_trl_templates",
    "model_init_kwargs": "test_trl_trainer",
    "disable_tqdm": "test_trl_trainer",
    "log_level": "test_trl_trainer",
    "report_to": "test_services_are_told_where_they_are_named_and_installed",
    "load_best_model_at_end": "test_the_best_state_is_chosen_by_evaluations",
    "metric_for_best_model": "test_every_answer_is_given",
    "resume_from_checkpoint": "test_trl_trainer",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"), "test_trl_hub"),
}


def test_every_honoured_option_has_its_test() -> None:
    assert {*KNOBS, *ELSEWHERE_TESTED} == HONOURED
    assert not {*KNOBS} & {*ELSEWHERE_TESTED}


@pytest.mark.parametrize("name", KNOBS)
def test_each_knob_changes_the_run(name: str) -> None:
    plain, _ = plan()
    changed, _ = plan(**{name: KNOBS[name]})
    assert changed != plain


def test_rows_a_step_are_a_product_of_two() -> None:
    assert plan(per_device_train_batch_size=2, gradient_accumulation_steps=4)[0] == plan(per_device_train_batch_size=8)[0]
    assert plan(per_device_train_batch_size=2, gradient_accumulation_steps=4)[0].train.batch == 8
    with pytest.raises(ConfigError, match="gradient_accumulation_steps 0"):
        plan(gradient_accumulation_steps=0)


def test_a_step_takes_no_row_twice() -> None:
    found, notes = plan(rows=3, per_device_train_batch_size=8)
    assert (found.train.batch, found.steps) == (3, 3)
    assert notes == ["A step would take 8 rows and there are 3; it takes each of them once."]


def test_intervals() -> None:
    found, _ = plan(rows=80, num_train_epochs=2, eval_strategy="steps", logging_steps=3)
    assert (found.steps, found.log_every, found.train.eval_every, found.train.save_every, found.train.keep) == (20, 3, 3, 500, NEVER)
    shares, _ = plan(rows=80, num_train_epochs=2, eval_strategy="steps", eval_steps=0.25, save_steps=0.5)
    assert (shares.train.eval_every, shares.train.save_every) == (5, 10)
    epochs, _ = plan(rows=80, num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", logging_strategy="no")
    assert (epochs.train.eval_every, epochs.train.save_every, epochs.log_every) == (10, 10, NEVER)
    with pytest.raises(ConfigError, match="save_steps is -1"):
        plan(save_steps=-1)


def test_more_epochs_than_one_may_expect_are_told() -> None:
    assert plan(rows=8, max_steps=10)[1] == ["max_steps=10 goes through the 8 rows 10.0 times."]
    assert plan(rows=80, max_steps=10)[1] == []


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("linear", {}, transformers.get_linear_schedule_with_warmup),
        ("cosine", {}, transformers.get_cosine_schedule_with_warmup),
        ("constant_with_warmup", {}, transformers.get_constant_schedule_with_warmup),
        ("warmup_stable_decay", {"num_decay_steps": 8}, transformers.get_wsd_schedule),
    ],
)
def test_schedules_are_those_of_transformers(name: str, options: dict[str, Any], theirs: Any) -> None:
    steps, warmup = 40, 5
    found, _ = plan(rows=40 * 8, max_steps=steps, lr_scheduler_type=name, lr_scheduler_kwargs=options or None, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    named = {"num_training_steps": steps} if name != "constant_with_warmup" else {}
    if name == "warmup_stable_decay":
        named |= {"decay_type": "linear", **options}
    schedule = theirs(optimizer, num_warmup_steps=warmup, **named)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(found.train.optim, step, steps) for step in range(steps)]
    # theirs begins its warm-up with a step at rate 0, so ours is one step ahead there
    assert ours[:warmup] == pytest.approx([*expected[1:warmup], 2e-5], rel=1e-9)
    # a line is the same one; a cosine is stretched by a step, a late fall begins a step sooner
    apart = {"cosine": 1 / (steps - warmup), "warmup_stable_decay": 1 / 8 + 1e-6}.get(name, 1e-9)
    assert ours[warmup:] == pytest.approx(expected[warmup:], rel=1e-9, abs=apart * 2e-5)


def test_a_warm_up_that_transformers_would_drop_is_kept_and_told() -> None:
    found, notes = plan(rows=800, warmup_ratio=0.03, lr_scheduler_type="constant")
    assert found.train.optim.warmup * found.steps == pytest.approx(9)
    assert "leaves the warm-up out in transformers" in notes[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optim": "sgd"}, "optim is 'sgd'"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type is 'polynomial'"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "linear takes none here"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0"),
        ({"warmup_steps": -2}, "warmup_steps is -2"),
    ],
)
def test_numbers_out_of_range_are_refused_by_trl_s_names(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**options)
    assert said in str(caught.value)
    assert "optim.lr" not in str(caught.value)


@pytest.mark.parametrize("options", [{"report_to": "mlflow"}, {"report_to": ["tensorboard", "x"]}])
def test_what_this_version_lacks_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be honoured by this version"):
        plan(**options)


def test_services_are_told_where_they_are_named_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: name if name == "tensorboard" else None)
    assert plan(report_to="none")[0].track == plan(report_to=None)[0].track == ()
    assert plan(report_to="tensorboard")[0].track == plan(report_to=["tensorboard"])[0].track == ("tensorboard",)
    found, notes = plan(report_to="all")
    assert found.track == ()
    assert "name the services" in notes[0]
    with pytest.raises(ConfigError, match=r"wandb, whose package is not installed\. Install it with pip install 'sapwood\[track\]'"):
        plan(report_to=["wandb", "tensorboard"])


def test_the_best_state_is_chosen_by_evaluations() -> None:
    assert not plan(eval_strategy="steps")[0].train.keep_best
    found, notes = plan(eval_strategy="steps", load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False)
    assert found.train.keep_best
    assert notes == []
    found, notes = plan(eval_strategy="epoch", save_strategy="best")
    assert (found.train.keep_best, found.train.save_every) == (True, NEVER)
    assert "train() leaves that state" in notes[0]
    for options in ({"load_best_model_at_end": True}, {"save_strategy": "best"}):
        with pytest.raises(ConfigError, match=r"chooses among evaluations, and there are none\. Give eval_strategy"):
            plan(**options)


def test_adapters_of_peft_become_ours() -> None:
    notes: list[str] = []
    course = peft.LoraConfig(r=6, lora_alpha=8, lora_dropout=0.05, bias="none", target_modules="all-linear", task_type="CAUSAL_LM")
    found = adapter(course, "llama", notes)
    assert (found.r, found.alpha, found.dropout, found.bias, found.targets) == (6, 8.0, 0.05, "none", ("all-linear",))
    assert notes == []
    more = peft.LoraConfig(
        target_modules=["v_proj", "q_proj"],
        use_rslora=True,
        use_dora=True,
        modules_to_save=["lm_head"],
        rank_pattern={"q_proj": 4},
        alpha_pattern={"v_proj": 2},
        layers_to_transform=[0, 1],
        exclude_modules=["k_proj"],
        init_lora_weights="gaussian",
    )
    found = adapter(more, "llama", notes)
    assert (found.rslora, found.dora, found.init) == (True, True, "gaussian")
    assert (found.targets, found.modules_to_save, found.exclude, found.layers) == (("q_proj", "v_proj"), ("lm_head",), ("k_proj",), (0, 1))
    assert (found.ranks(), found.scales()) == ({"q_proj": 4}, {"v_proj": 2.0})


def test_where_peft_would_choose_layers_or_match_none_it_is_told() -> None:
    notes: list[str] = []
    assert set(adapter(peft.LoraConfig(), "llama", notes).targets) == {"q_proj", "v_proj"}
    assert adapter(peft.LoraConfig(target_modules="q_proj,v_proj"), "llama", notes).targets == ("q_proj", "v_proj")
    assert "all-linear" in notes[0]
    assert "matches nothing" in notes[1]


@pytest.mark.parametrize("field", [field for field in dataclasses.fields(peft.LoraConfig) if field.init], ids=lambda f: f.name)
def test_no_option_of_an_adapter_is_ignored(field: Any) -> None:
    silent = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config", "fan_in_fan_out"}
    if field.name in {*silent, "task_type", "target_modules"}:
        return
    plain = peft.LoraConfig(target_modules="all-linear")
    given = peft.LoraConfig(target_modules="all-linear")
    value = {"init_lora_weights": "gaussian", "bias": "all", "lora_dropout": 0.5}.get(field.name, other_than(getattr(plain, field.name)))
    if field.name in ("rank_pattern", "alpha_pattern"):
        value = {"q_proj": 4}
    if field.name in ("layers_to_transform",):
        value = [1]
    setattr(given, field.name, value)
    try:
        changed = adapter(given, "llama", []) != adapter(plain, "llama", [])
    except ConfigError as error:
        changed = field.name in str(error)
    assert changed


def test_other_methods_of_peft_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="wrap the model yourself"):
        adapter(peft.IA3Config(), "llama", [])
    with pytest.raises(ConfigError, match="CAUSAL_LM"):
        adapter(peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"), "llama", [])


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_other_names_of_trl_say_what_to_do(name: str) -> None:
    with pytest.raises(ConfigError, match=f"sapwood.trl has no {name}: "):
        exec(f"from sapwood.trl import {name}")  # noqa: S102 - the import is what is tested


def test_a_misspelt_name_is_an_ordinary_import_error() -> None:
    with pytest.raises(ImportError, match="SFTTrianer"):
        exec("from sapwood.trl import SFTTrianer")  # noqa: S102
    import sapwood.trl

    with pytest.raises(AttributeError, match="Did you mean 'SFTTrainer'"):
        sapwood.trl.SFTTrianer  # noqa: B018
