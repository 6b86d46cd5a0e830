"""The loop: what is called when, what a run leaves, and what is refused before it starts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sapwood.errors import CheckpointError, ConfigError, DataError
from sapwood.model import LanguageModel, LoraConfig
from sapwood.records import Example, Source
from sapwood.run import read_records, saved_steps, step_records
from sapwood.train import OptimConfig, SftConfig, StepReport
from train.tiny_training import opened, random_examples, tiny_lm, train, trained_steps

SHORT = SftConfig(batch=2, epochs=3, budget=1000, save_every=4, eval_every=4)
ADAPTER = "adapter/adapter_model.safetensors"


def evaluations(folder: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in step_records(folder / "metrics.jsonl") if record["kind"] == "eval"}


class StopError(Exception):
    """Somebody pulled the plug."""


def stop_at(step: int) -> Any:
    def report(done: StepReport) -> None:
        if done.step == step:
            raise StopError

    return report


def test_what_is_called_and_told(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    observed: list[int] = []
    held_out = random_examples(3, seed=9)

    def observe(step: int, model: LanguageModel) -> None:
        assert isinstance(model, LanguageModel)
        assert len(reports) == step
        observed.append(step)

    result = train(tmp_path, SHORT, held_out=held_out, report=reports.append, observe=observe)
    assert [report.step for report in reports] == list(range(1, 10))
    assert {report.num_steps for report in reports} == {9}
    assert observed == [0, 4, 8, 9]
    assert list(evaluations(tmp_path)) == observed
    assert (result.first_eval_loss, result.last_eval_loss) == (evaluations(tmp_path)[0], evaluations(tmp_path)[9])
    assert result.steps == 9
    assert result.row_tokens == sum(report.row_tokens for report in reports) == 3 * sum(e.length for e in random_examples(6))
    assert result.unique_tokens == sum(report.unique_tokens for report in reports) < result.row_tokens
    assert result.seconds == pytest.approx(sum(report.seconds for report in reports))
    assert result.rehearsal is not None
    assert result.rehearsal.budget == 1000
    for record, report in zip(trained_steps(tmp_path), reports, strict=True):
        shared = {field.name for field in dataclasses.fields(report)} & record.keys()
        assert {"loss", "lr", "grad_norm", "seconds"} <= shared
        assert all(record[name] == getattr(report, name) for name in shared)
        assert record["saved"] == pytest.approx(1 - report.unique_tokens / report.row_tokens)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["adapter", "checkpoints"]


def test_without_held_out_nothing_is_evaluated_but_the_run_is_observed(tmp_path: Path) -> None:
    observed: list[int] = []
    result = train(tmp_path, SHORT, observe=lambda step, _: observed.append(step))
    assert observed == [0, 4, 8, 9]
    assert result.first_eval_loss is None
    assert result.last_eval_loss is None


def test_evaluating_and_observing_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "quiet", replace(SHORT, eval_every=9))

    def noisy(step: int, model: LanguageModel) -> None:
        torch.manual_seed(step)
        model.logprobs([row for example in random_examples(2) for row in example.rows])

    train(tmp_path / "noisy", replace(SHORT, eval_every=1), held_out=random_examples(4, seed=3), observe=noisy)
    assert (tmp_path / "quiet" / ADAPTER).read_bytes() == (tmp_path / "noisy" / ADAPTER).read_bytes()


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_examples_than_a_step_holds(tmp_path: Path, count: int) -> None:
    result = train(tmp_path, SftConfig(batch=8, epochs=2, budget=1000), examples=random_examples(count))
    assert result.steps == math.ceil(2 * count / 8)
    assert result.row_tokens == 2 * sum(example.length for example in random_examples(count))


@pytest.mark.parametrize("max_steps", [1, 4, 20])
def test_max_steps_is_the_length_of_run_and_schedule(tmp_path: Path, max_steps: int) -> None:
    config = SftConfig(batch=4, epochs=2, max_steps=max_steps, budget=1000, optim=OptimConfig(warmup=0))
    said: list[str] = []
    train(tmp_path, config, say=said.append)
    assert f"max_steps is {max_steps}: each example is trained {max_steps * 4 / 6:.3g} times, and epochs is not read." in said
    records = trained_steps(tmp_path)
    assert len(records) == max_steps
    if max_steps > 1:
        assert records[-1]["lr"] == pytest.approx(config.optim.lr * config.optim.final)


def test_all_weights_are_trained_and_saved_for_transformers(tmp_path: Path) -> None:
    result = train(tmp_path, replace(SHORT, full=True), model=tiny_lm(torch.bfloat16))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    untuned = dict(tiny_lm(torch.bfloat16).module.named_parameters())
    for name, parameter in result.model.module.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(dict(loaded.named_parameters())[name], parameter), name
        assert not torch.equal(untuned[name], parameter), f"{name} was not trained"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stopped_and_continued_is_never_stopped(tmp_path: Path, full: bool, dtype: torch.dtype) -> None:
    config, held_out = replace(SHORT, full=full), random_examples(3, seed=9)
    folder = tmp_path / "stopped"
    whole = train(tmp_path / "whole", config, held_out=held_out, model=tiny_lm(dtype))
    for step in (3, 4, 7):
        with pytest.raises(StopError):
            train(folder, config, held_out=held_out, model=tiny_lm(dtype), report=stop_at(step))
        assert saved_steps(folder)[-1] == step, "what ends the loop saves first"
    said: list[str] = []
    result = train(folder, config, held_out=held_out, model=tiny_lm(dtype), say=said.append)
    assert said[-1] == "Continuing from step-7."
    assert len(said) == 2, "the other sentence counts the parameters"
    name = "model/model.safetensors" if full else ADAPTER
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [r["loss"] for r in trained_steps(folder)] == [r["loss"] for r in trained_steps(tmp_path / "whole")]
    assert evaluations(folder) == evaluations(tmp_path / "whole")
    assert result.rehearsal is None
    assert (result.first_eval_loss, result.last_eval_loss) == (whole.first_eval_loss, whole.last_eval_loss)


def test_steps_of_a_start_that_saved_nothing_are_forgotten(tmp_path: Path) -> None:
    """Killed before its first checkpoint, then started again with fewer steps: no loss of another life is left at the end."""
    with opened(tmp_path) as run:
        run.append("metrics", *({"kind": "train", "step": step, "loss": 99.0} for step in range(1, 30)))
        run.append("metrics", {"kind": "eval", "step": 0, "loss": 99.0})
    result = train(tmp_path, SHORT, held_out=random_examples(2, seed=3))
    assert len(trained_steps(tmp_path)) == 9
    assert result.first_eval_loss == evaluations(tmp_path)[0] < 90


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(tmp_path, SHORT)
    before = (tmp_path / ADAPTER).read_bytes()
    (tmp_path / ADAPTER).unlink()
    result = train(tmp_path, SHORT)
    assert (tmp_path / ADAPTER).read_bytes() == before
    assert result.row_tokens == 0
    assert len([r for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "train"]) == 9


def test_a_run_is_continued_only_with_what_it_was_started_with(tmp_path: Path) -> None:
    train(tmp_path, SHORT)
    examples = random_examples(6)
    first = examples[0].rows[0]
    heavier = Example((replace(first, weights_T=first.weights_T + 1), *examples[0].rows[1:]))
    others: list[tuple[str, dict[str, Any]]] = [
        ("another model", {"model": tiny_lm(seed=1)}),
        ("another model", {"model": tiny_lm(torch.bfloat16)}),
        ("other rows", {"examples": examples[:5]}),
        ("other rows", {"examples": [examples[1], examples[0], *examples[2:]]}),
        ("other rows", {"examples": [heavier, *examples[1:]]}),
    ]
    for named, other in others:
        with pytest.raises(CheckpointError, match=rf"belongs to a run on {named}\..*--out"):
            train(tmp_path, SHORT, **other)
    for changed in (replace(SHORT, seed=1), replace(SHORT, optim=OptimConfig(lr=1e-3)), replace(SHORT, full=True)):
        with pytest.raises(CheckpointError, match="on other settings"):
            train(tmp_path, changed)
    train(tmp_path, replace(SHORT, budget=50, eval_every=1, save_every=1, keep=5))
    moved = tiny_lm()
    moved.base.config._name_or_path = "/somewhere/else"
    train(tmp_path, SHORT, model=moved)


def test_a_smaller_budget_can_be_given_to_a_run_that_ran_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(tmp_path, SHORT, report=stop_at(4))
    reports: list[StepReport] = []
    train(tmp_path, replace(SHORT, budget=1), report=reports.append)
    wide = [record["unique_tokens"] for record in trained_steps(tmp_path)[:4]]
    assert sum(report.unique_tokens for report in reports) / len(reports) > sum(wide) / len(wide), "nothing is shared under a budget of 1"


def silent(example: Example) -> Example:
    return replace(example, rows=tuple(replace(row, weights_T=np.zeros_like(row.weights_T)) for row in example.rows))


def test_examples_that_cannot_be_trained_are_refused_by_name(tmp_path: Path) -> None:
    examples = random_examples(6)
    with pytest.raises(DataError, match="nothing to train on"):
        train(tmp_path, SHORT, examples=[])
    with pytest.raises(DataError, match=r"1 of 6 examples have no weight.*made\.jsonl:3\."):
        train(tmp_path, SHORT, examples=[*examples[:2], silent(examples[2]), *examples[3:]])
    with pytest.raises(DataError, match=r"1 of 7 examples have no weight.*made\.jsonl:1\."):
        train(tmp_path, SHORT, examples=examples, held_out=[silent(examples[0])])
    strange = replace(examples[4].rows[0], completion_T=np.full_like(examples[4].rows[0].completion_T, 97))
    with pytest.raises(DataError, match=r"1 of 6 examples hold token ids that the model does not have \(it has 97\).*odd\.jsonl:5\."):
        train(tmp_path, SHORT, examples=[*examples[:5], Example((strange,), Source("odd.jsonl", 5))])
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("batch", 0),
        ("keep", 0),
        ("eval_every", -1),
        ("save_every", -1),
        ("epochs", 0.0),
        ("epochs", math.nan),
        ("epochs", math.inf),
        ("max_steps", 0),
        ("budget", 0),
        ("seed", -1),
    ],
)
def test_a_knob_out_of_range_is_named(knob: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{knob} is {value}"):
        SftConfig(**{knob: value})


def test_a_whole_number_for_a_share_continues_after_its_config_was_written_and_read(tmp_path: Path) -> None:
    """`epochs=2` in Python is 2.0 once it was in config.yaml: the run must still know itself."""
    train(tmp_path / "run", SftConfig(epochs=2, batch=8, budget=4096))
    train(tmp_path / "run", SftConfig(epochs=2.0, batch=8, budget=4096))


def test_full_training_refuses_options_that_it_does_not_read() -> None:
    with pytest.raises(ConfigError, match="reads no option of lora"):
        SftConfig(full=True, lora=LoraConfig(r=4))
