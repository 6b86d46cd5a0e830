"""When a run ends early, and which state is its result: the decision by itself, and in runs that are killed anywhere."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sapwood.errors import CheckpointError, ConfigError
from sapwood.records import Example, Row, Source
from sapwood.run import saved_steps, step_records
from sapwood.train import OptimConfig, SftConfig, SftResult, StepReport
from sapwood.train.checkpoint import save_checkpoint
from sapwood.train.step import evaluate
from sapwood.train.stopping import PARTS, Evaluation, best_of, is_over
from train.tiny_training import random_examples, tiny_lm, train, trained_steps

ADAPTER = "adapter/adapter_model.safetensors"
HELD_OUT = random_examples(3, seed=2)
CONFIG = SftConfig(batch=2, epochs=8, budget=1000, eval_every=2, save_every=5, keep=1, keep_best=True, optim=OptimConfig(lr=8e-3))
"""24 steps in which the held-out loss falls first and then rises."""


class StopError(Exception):
    """Somebody pulled the plug."""


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in step_records(folder / "metrics.jsonl") if record["kind"] == kind]


def evaluations(folder: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in records(folder, "eval")}


def whole(folder: Path, config: SftConfig = CONFIG, **calls: Any) -> SftResult:
    return train(folder, config, held_out=HELD_OUT, **calls)


losses = st.lists(st.one_of(st.floats(0, 10), st.just(math.nan)), min_size=1, max_size=12)


@given(losses, st.integers(0, 5))
@example([math.nan], 1)
@example([1.0, 1.0, 1.0], 2)
def test_the_decision_is_one_of_the_losses_so_far(values: list[float], patience: int) -> None:
    found = [Evaluation(step, loss) for step, loss in enumerate(values)]
    best = best_of(found)
    assert all(not other.loss < best.loss for other in found)
    assert not any(other.loss == best.loss for other in found[: best.step]), "the first of equals"
    since = len(found) - 1 - best.step
    assert is_over(found, patience) == (0 < patience <= since)


def test_the_result_is_the_state_of_the_lowest_held_out_loss(tmp_path: Path) -> None:
    said: list[str] = []
    result = whole(tmp_path, say=said.append)
    measured = evaluations(tmp_path)
    best = min(measured, key=lambda step: measured[step])
    assert 0 < best < 24, "the curve of this test must have its lowest point inside"
    assert result.best_step == best
    assert result.last_eval_loss == measured[best] == evaluate(result.model, HELD_OUT, 1000).mean_loss
    assert said[-1] == (
        f"Step {best} of 24 had the lowest held-out loss, {measured[best]:.3f} against {measured[24]:.3f} at the end; "
        "the result is its state."
    )
    [chosen] = records(tmp_path, "chosen")
    assert (chosen["step"], chosen["chosen"], chosen["loss"], chosen["last_loss"]) == (24, best, measured[best], measured[24])
    assert saved_steps(tmp_path) == [best, 24], "one to go on from, and the best however old it is"


def test_patience_ends_the_run_and_leaves_the_schedule_alone(tmp_path: Path) -> None:
    said: list[str] = []
    config = replace(CONFIG, keep_best=False, patience=2)
    result = whole(tmp_path / "patient", config, say=said.append)
    whole(tmp_path / "whole")
    measured = evaluations(tmp_path / "patient")
    assert list(measured) == list(evaluations(tmp_path / "whole"))[: len(measured)]
    best = min(measured, key=lambda step: measured[step])
    assert result.best_step == best
    assert result.steps == max(measured) == best + 4 < 24, "two evaluations behind the best, two steps each"
    short, long = trained_steps(tmp_path / "patient"), trained_steps(tmp_path / "whole")
    for key in ("loss", "lr", "grad_norm", "epoch"):
        assert [record[key] for record in short] == [record[key] for record in long[: len(short)]], key
    assert (tmp_path / "patient" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert said[-2] == f"Ended at step {best + 4} of 24: no held-out loss since step {best} was lower than that one's."


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("patience", [0, 2])
def test_killed_anywhere_it_ends_with_the_same_bits_and_the_same_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, full: bool
) -> None:
    """Copies of the folder at every moment at which a run may be killed: behind each step, and before and behind each checkpoint."""
    config = replace(CONFIG, patience=patience, full=full, optim=OptimConfig(lr=3e-3 if full else 8e-3))
    folder, copies = tmp_path / "run", list[Path]()

    def kill(*_: object) -> None:
        if folder.exists():
            copies.append(tmp_path / f"killed-{len(copies)}")
            shutil.copytree(folder, copies[-1])

    def save(*given: Any, **named: Any) -> Path:
        kill()
        path = save_checkpoint(*given, **named)
        kill()
        return path

    monkeypatch.setattr(sys.modules["sapwood.train.sft"], "save_checkpoint", save)
    done = whole(folder, config, report=kill, observe=kill)
    monkeypatch.undo()
    assert done.best_step not in (None, 0, done.steps), "the curve of this test must have its lowest point inside"
    copies.append(folder)  # an ended run that is started again
    for copy in copies[full :: 3 + 4 * (patience == 0)]:
        again = whole(copy, config)
        assert (again.best_step, again.steps, again.first_eval_loss, again.last_eval_loss) == (
            done.best_step,
            done.steps,
            done.first_eval_loss,
            done.last_eval_loss,
        )
        assert evaluations(copy) == evaluations(folder)
        assert records(copy, "chosen") == records(folder, "chosen")
        assert saved_steps(copy) == saved_steps(folder)
        name = "model/model.safetensors" if full else ADAPTER
        assert (copy / name).read_bytes() == (folder / name).read_bytes()


def test_a_training_that_only_makes_it_worse_gives_back_the_beginning(tmp_path: Path) -> None:
    prompt, ones = np.arange(2, 12), np.ones(3, dtype=np.float32)
    trained, wanted = (Example((Row(prompt, np.full(3, token), ones),), Source("made.jsonl", token)) for token in (5, 7))
    result = train(tmp_path, CONFIG, examples=[trained], held_out=[wanted])
    measured = evaluations(tmp_path)
    assert measured[0] < measured[2]
    assert result.best_step == 0
    assert result.first_eval_loss == result.last_eval_loss == measured[0]
    assert evaluate(result.model, [wanted], 1000).loss == pytest.approx(evaluate(tiny_lm(), [wanted], 1000).loss, rel=1e-6)
    assert saved_steps(tmp_path) == [0, 4]


def test_a_best_state_that_was_deleted_is_passed_over_for_the_next_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    done = whole(tmp_path)
    measured = evaluations(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{done.best_step}")
    result = whole(tmp_path, say=said.append)
    assert result.best_step == 24
    lower = [step for step in sorted(measured, key=lambda step: measured[step]) if measured[step] < measured[24]]
    assert said[-1 - len(lower) : -1] == [
        f"Step {step} had a held-out loss of {measured[step]:.3f}, but its checkpoint does not stand whole any more." for step in lower
    ]


@pytest.mark.parametrize("knobs", [{"keep_best": True}, {"patience": 3}, {"keep_best": True, "patience": 1}])
def test_without_held_out_rows_nothing_can_be_chosen(tmp_path: Path, knobs: dict[str, Any]) -> None:
    name = "patience" if "patience" in knobs else "keep_best"
    with pytest.raises(ConfigError, match=rf"^{name} is .*nothing is held out.*--held-out 0.1"):
        train(tmp_path, SftConfig(**knobs))


def test_patience_is_a_number_of_evaluations() -> None:
    with pytest.raises(ConfigError, match="patience is -1"):
        SftConfig(patience=-1)


def test_what_decides_belongs_to_the_run(tmp_path: Path) -> None:
    """Other held-out rows or other evaluations would choose another state: a run that chooses is not continued with them."""
    with pytest.raises(StopError):
        whole(tmp_path, report=stop_at(7))
    for changed, held_out in ((replace(CONFIG, eval_every=3), HELD_OUT), (CONFIG, random_examples(3, seed=4))):
        with pytest.raises(CheckpointError, match="belongs to a run on other"):
            train(tmp_path, changed, held_out=held_out)
    whole(tmp_path, replace(CONFIG, save_every=7, keep=3))


def test_a_run_that_does_not_choose_may_be_evaluated_otherwise_when_it_goes_on(tmp_path: Path) -> None:
    plain = replace(CONFIG, keep_best=False)
    with pytest.raises(StopError):
        whole(tmp_path, plain, report=stop_at(7))
    assert train(tmp_path, replace(plain, eval_every=3), held_out=random_examples(4, seed=4)).best_step is None
    assert records(tmp_path, "chosen") == []


@pytest.mark.parametrize("count", [1, 3, 40])
def test_an_evaluation_records_parts_that_add_up(tmp_path: Path, count: int) -> None:
    held_out = random_examples(count, seed=3)
    train(tmp_path, SftConfig(batch=6, max_steps=1, budget=100), held_out=held_out)
    groups = np.array_split(np.arange(count), min(PARTS, count))
    weight_P = np.array([sum(held_out[index].weight for index in group) for group in groups])
    for record in records(tmp_path, "eval"):
        assert len(record["parts"]) == min(PARTS, count)
        assert float(weight_P @ record["parts"] / weight_P.sum()) == pytest.approx(record["loss"], rel=1e-5)
    [before, _] = records(tmp_path, "eval")
    alone = [evaluate(tiny_lm(), [held_out[index] for index in group], 10**6).mean_loss for group in groups]
    assert before["parts"] == pytest.approx(alone, rel=1e-4)


def test_memory_and_epochs_are_recorded(tmp_path: Path) -> None:
    train(tmp_path, SftConfig(batch=4, epochs=2, budget=1000))
    found = trained_steps(tmp_path)
    assert [record["epoch"] for record in found] == pytest.approx([4 / 6, 8 / 6, 2.0])
    peaks = [record["peak_bytes"] for record in found]
    assert peaks == sorted(peaks)
    assert 50 * 2**20 < peaks[0] < 2**37


def stop_at(step: int) -> Any:
    def report(done: StepReport) -> None:
        if done.step == step:
            raise StopError

    return report
