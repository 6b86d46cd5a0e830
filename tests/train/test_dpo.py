"""The loop of preference tuning on a tiny model."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from sapwood.errors import CheckpointError, ConfigError, DataError
from sapwood.model import LoraConfig, add_lora
from sapwood.records import Example, Row, Source
from sapwood.run import read_records, step_records
from sapwood.train import OptimConfig
from sapwood.train.dpo import DpoConfig, DpoResult, dpo
from sapwood.train.preferred import FILE, ToPrefer, accumulate_preferences, judged, reference_of, references, vote_examples
from train.tiny_training import opened, tiny_lm, trained_steps


def row(rng: np.random.Generator, prompt: Any, low: int, high: int) -> Row:
    ids = rng.integers(low, high, int(rng.integers(4, 8)))
    return Row(prompt, ids, np.ones(len(ids), np.float32))


def pairs(count: int, seed: int = 0) -> list[Example]:
    """Ids below 40 are preferred."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = rng.integers(2, 97, 22)
        found.append(Example((row(rng, prompt, 2, 40), row(rng, prompt, 40, 97)), Source("pairs.jsonl", number + 1)))
    return found


def votes(count: int, seed: int = 0) -> list[Example]:
    good = [number % 2 == 0 for number in range(count)]
    singles = [Example((one.rows[0 if liked else 1],), one.source) for one, liked in zip(pairs(count, seed), good, strict=True)]
    return vote_examples(singles, good, seed)


def config(**knobs: Any) -> DpoConfig:
    settings: dict[str, Any] = {"batch": 8, "epochs": 3, "budget": 400, "lora": LoraConfig(r=4), "optim": OptimConfig(lr=5e-3)}
    return DpoConfig(**{**settings, **knobs})


def prefer(folder: Path, setting: DpoConfig, examples: Sequence[Example] | None = None, **calls: Any) -> DpoResult:
    held_out = calls.pop("held_out", ())
    with opened(folder) as run:
        return dpo(calls.pop("model", None) or tiny_lm(), pairs(24) if examples is None else examples, held_out, setting, run, **calls)


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("make", [pairs, votes])
def test_it_learns_what_is_preferred(tmp_path: Path, make: Any) -> None:
    result = prefer(tmp_path, config(epochs=4, optim=OptimConfig(lr=2e-2)), make(32), held_out=make(24, 1))
    assert result.before is not None
    assert result.after is not None
    assert result.before.right == 12  # nothing has moved: all are ties
    assert result.after.right > 14
    steps = trained_steps(tmp_path)
    assert steps[0]["loss"] == pytest.approx(np.log(2) if make is pairs else 0.5, abs=1e-4)
    assert np.mean([step["margin"] for step in steps[-4:]]) > 0.5
    held = [record for record in step_records(tmp_path / "metrics.jsonl") if record["kind"] == "eval"]
    assert held[-1]["accuracy"] == result.after.right / 24
    assert held[-1]["accuracy_low"] == result.after.interval.low


class Stopped(Exception):  # noqa: N818
    """What ends a sitting."""


@pytest.mark.parametrize("make", [pairs, votes])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, make: Any) -> None:
    setting = config(save_every=2)
    prefer(tmp_path / "whole", setting, make(24), held_out=make(6, 1))

    def stop(done: Any) -> None:
        if done.step in (3, 6):
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            prefer(tmp_path / "stopped", setting, make(24), held_out=make(6, 1), report=stop)
    prefer(tmp_path / "stopped", setting, make(24), held_out=make(6, 1))
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")


def figures(folder: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    return [
        {key: value for key, value in record.items() if "second" not in key and key != "peak_bytes"}
        for record in step_records(folder / "metrics.jsonl")
    ]


def sitting(folder: Path, make: Any, pause: float) -> None:
    torch.set_num_threads(1)
    prefer(folder, config(save_every=2, eval_every=3), make(24), held_out=make(6, 1), report=lambda done: time.sleep(pause))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
@pytest.mark.parametrize("make", [pairs, votes])
def test_killed_at_any_phase_it_ends_with_the_same_bytes(tmp_path: Path, make: Any) -> None:
    """Kills fall behind the reference's passes, and into updates, evaluations, records and checkpoints: the pauses sweep over a step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def start(folder: Path) -> Any:
        process = context.Process(target=sitting, args=(folder, make, 0.05))
        process.start()
        return process

    start(tmp_path / "whole").join()
    killed = tmp_path / "killed"
    kills = 0
    for number in range(6):
        process, begun = start(killed), len(read_records(killed / "metrics.jsonl"))
        while process.is_alive() and not (killed / FILE).exists():
            time.sleep(0.002)
        while process.is_alive() and len(read_records(killed / "metrics.jsonl")) < begun + number % 3:
            time.sleep(0.002)
        time.sleep(0.013 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    last = start(killed)
    last.join()
    assert last.exitcode == 0
    assert kills >= 4
    assert adapter(killed) == adapter(tmp_path / "whole")
    assert figures(killed) == figures(tmp_path / "whole")


def test_the_reference_is_asked_once_and_mended(tmp_path: Path) -> None:
    said: list[str] = []
    setting = config(max_steps=2)
    prefer(tmp_path, setting)
    first, result = (tmp_path / FILE).read_bytes(), adapter(tmp_path)
    (tmp_path / FILE).write_bytes(first[:40])
    prefer(tmp_path, setting, say=said.append)
    assert any("is damaged; the reference is asked again" in sentence for sentence in said)
    assert safetensors.numpy.load((tmp_path / FILE).read_bytes())["logprobs"].tolist() == safetensors.numpy.load(first)["logprobs"].tolist()
    assert adapter(tmp_path) == result


@pytest.mark.parametrize("budget", [30, 60, 400])
def test_nothing_is_preferred_before_anything_is_trained_however_steps_are_cut(budget: int) -> None:
    model = add_lora(tiny_lm(torch.bfloat16), LoraConfig(r=4), 0)
    examples = pairs(6)
    asked = ToPrefer(examples, list(reference_of(model, examples, budget)), config(), votes=False)
    sums = accumulate_preferences(model, asked, budget, draw=(0, 0))
    assert sums.mean_loss == pytest.approx(math.log(2), abs=1e-6)
    assert sums.counts["chosen"] == pytest.approx(0, abs=1e-6)
    assert judged(model, asked, budget).right == 3, "all are ties"


def test_all_weights_learn_too(tmp_path: Path) -> None:
    result = prefer(tmp_path, config(full=True, lora=LoraConfig(), optim=OptimConfig(lr=2e-3)), held_out=pairs(24, 1))
    assert result.after is not None
    assert result.after.right > 16
    assert (tmp_path / "model" / "model.safetensors").is_file()


KNOBS: dict[str, Any] = {
    "loss": "ipo",
    "beta": 0.5,
    "smoothing": 0.2,
    "epochs": 1,
    "max_steps": 2,
    "batch": 4,
    "seed": 1,
    "lora": LoraConfig(r=2),
    "optim": OptimConfig(lr=1e-3),
}


def test_each_knob_changes_the_result(tmp_path: Path) -> None:
    prefer(tmp_path / "plain", config())
    for name, value in KNOBS.items():
        prefer(tmp_path / name, config(**{name: value}))
        assert adapter(tmp_path / name) != adapter(tmp_path / "plain"), name
    prefer(tmp_path / "votes", config(epochs=1), votes(24))
    for name in ("good_weight", "bad_weight"):
        prefer(tmp_path / name, config(**{name: 3.0, "epochs": 1}), votes(24))
        assert adapter(tmp_path / name) != adapter(tmp_path / "votes"), name


@pytest.mark.parametrize(
    "knobs", [{"beta": 0}, {"smoothing": 0.5}, {"batch": 0}, {"epochs": 0}, {"max_steps": 0}, {"seed": -1}, {"good_weight": 0}], ids=str
)
def test_bad_knobs(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        config(**knobs)


def test_an_option_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="the loss ipo does not read it"):
        config(loss="ipo", smoothing=0.1)


def test_examples_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl:1: preference tuning takes pairs"):
        prefer(tmp_path, config(), [Example(pairs(1)[0].rows[:1], Source("pairs.jsonl", 1))])
    with pytest.raises(DataError, match="not both in one run"):
        prefer(tmp_path, config(), [*pairs(2), *votes(2)])
    with pytest.raises(DataError, match="nothing to train on"):
        prefer(tmp_path, config(), [])
    with pytest.raises(ConfigError, match="batch is 1"):
        prefer(tmp_path, config(batch=1), votes(4))


def test_another_run_is_named(tmp_path: Path) -> None:
    prefer(tmp_path, config(max_steps=1))
    with pytest.raises(CheckpointError, match="other settings"):
        prefer(tmp_path, config(max_steps=1, beta=0.2))


def test_votes_are_never_matched_with_themselves() -> None:
    for seed in range(5):
        for count in (2, 3, 7):
            made = votes(count, seed)
            for one in made:
                assert one.rows[1].completion_T.tolist() != one.rows[0].completion_T.tolist()
                assert one.rows[1].prompt_T.tolist() == one.rows[0].prompt_T.tolist()


@pytest.mark.parametrize(
    ("knobs", "make"), [({"loss": "ipo"}, votes), ({"smoothing": 0.1}, votes), ({"good_weight": 2.0}, pairs), ({"bad_weight": 2.0}, pairs)]
)
def test_an_option_of_the_other_kind_is_refused(tmp_path: Path, knobs: dict[str, Any], make: Any) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(knobs))} is .* not read it"):
        prefer(tmp_path, config(**knobs), make(8))


def test_other_held_out_pairs_are_asked_for_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        made_of = {"rows": "those trained", "model": "one"}
        first, second, again = (references(tiny_lm(), pairs(6, seed), 400, run, made_of, print) for seed in (1, 2, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(second, again)


def test_a_run_that_goes_on_still_knows_how_it_began(tmp_path: Path) -> None:
    def stop(done: Any) -> None:
        if done.step == 2:
            raise Stopped

    setting = config(save_every=1, epochs=1, eval_every=2)
    with pytest.raises(Stopped):
        prefer(tmp_path, setting, held_out=pairs(6, 1), report=stop)
    result = prefer(tmp_path, setting, held_out=pairs(6, 1))
    assert result.before is not None
    assert result.before.right == 3, "nothing had moved: all were ties"
    assert result.before.loss == pytest.approx(np.log(2), abs=1e-6)
    assert result.after is not None
    assert result.after.loss != result.before.loss
