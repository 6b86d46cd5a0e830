"""The loop of reinforcement learning on a tiny model: it learns, it goes on bit for bit, and it tells what fails."""

from __future__ import annotations

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
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from generate.prompts_and_engines import Letters
from sapwood.attention import register
from sapwood.errors import CheckpointError, ConfigError, DataError, TrainingError
from sapwood.generate import Engine
from sapwood.model import LanguageModel, LoraConfig
from sapwood.records import Completion, Ended, Item, Prompt, Rewarded, SamplingParams
from sapwood.run import read_records
from sapwood.train import OptimConfig
from sapwood.train.grpo import GrpoConfig
from sapwood.train.grpo_report import GrpoStep
from sapwood.train.policy import PolicyConfig
from sapwood.train.rollouts import Rollouts, rows_to_train
from train.tiny_rollouts import asked, engine_of, low_ids, reinforce
from train.tiny_training import tiny_lm, trained_steps

OPTIM = OptimConfig(lr=2e-2, schedule="constant")


def config(**knobs: Any) -> GrpoConfig:
    settings: dict[str, Any] = {
        "steps": 4,
        "prompts": 2,
        "group": 4,
        "max_new_tokens": 6,
        "budget": 300,
        "lora": LoraConfig(r=4),
        "optim": OPTIM,
        "save_every": 2,
    }
    return GrpoConfig(**{**settings, **knobs})


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def figures(folder: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    return [
        {key: value for key, value in record.items() if "seconds" not in key and "second" not in key and key != "peak_bytes"}
        for record in trained_steps(folder)
    ]


def test_it_learns(tmp_path: Path) -> None:
    reinforce(tmp_path, config(steps=14, prompts=3, group=6, max_new_tokens=8))
    rewards = [record["reward"] for record in trained_steps(tmp_path)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3


def test_all_weights_learn_too(tmp_path: Path) -> None:
    result = reinforce(tmp_path, config(steps=8, full=True, lora=LoraConfig(), optim=OptimConfig(lr=5e-3, schedule="constant")))
    rewards = [record["reward"] for record in trained_steps(tmp_path)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert result.steps == 8


class Stopped(Exception):  # noqa: N818
    """What ends a sitting."""


@pytest.mark.parametrize(
    "knobs", [{}, {"inner": 2, "policy": PolicyConfig(kl=0.05, entropy=0.01)}, {"resample": 2}], ids=["plain", "inner", "resampled"]
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, knobs: dict[str, Any]) -> None:
    setting = config(steps=6, **knobs)
    reinforce(tmp_path / "whole", setting)

    def stop_at(step: int) -> Any:
        def report(done: GrpoStep, rollouts: Rollouts) -> None:
            if done.step == step:
                raise Stopped

        return report

    for step in (1, 3, 5):
        with pytest.raises(Stopped):
            reinforce(tmp_path / "stopped", setting, report=stop_at(step))
    reinforce(tmp_path / "stopped", setting)
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")


def sitting(folder: Path, pause: float) -> None:
    torch.set_num_threads(1)

    def slowly(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
        time.sleep(pause)
        return low_ids(items, completions)

    reinforce(folder, config(steps=6, inner=2, policy=PolicyConfig(kl=0.05)), judge=slowly)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
def test_killed_at_any_phase_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Kills fall into sampling, rewards, log-probabilities, updates, records and checkpoints alike: the pauses sweep over a step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def start(folder: Path) -> Any:
        process = context.Process(target=sitting, args=(folder, 0.05))
        process.start()
        return process

    start(tmp_path / "whole").join()
    kills = 0
    for number in range(5):
        process = start(tmp_path / "killed")
        begun = len(read_records(tmp_path / "killed" / "metrics.jsonl"))
        while process.is_alive() and len(read_records(tmp_path / "killed" / "metrics.jsonl")) < begun + (number % 2):
            time.sleep(0.002)
        time.sleep(0.043 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    last = start(tmp_path / "killed")
    last.join()
    assert last.exitcode == 0
    assert kills >= 3
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


KNOBS: dict[str, Any] = {
    "steps": 3,
    "prompts": 3,
    "group": 3,
    "inner": 2,
    "max_new_tokens": 4,
    "temperature": 0.7,
    "top_k": 3,
    "top_p": 0.5,
    "seed": 1,
    "lora": LoraConfig(r=2),
    "optim": OptimConfig(lr=1e-2, schedule="constant"),
    "policy.loss": PolicyConfig(loss="dr_grpo"),
    "policy.scaling": PolicyConfig(scaling="none"),
    "policy.kl": PolicyConfig(kl=0.5),
    "policy.entropy": PolicyConfig(entropy=0.1),
    "policy.mask_overlong": PolicyConfig(mask_overlong=True),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("plain")
    reinforce(folder, config())
    return adapter(folder)


@pytest.mark.parametrize("name", KNOBS)
def test_each_knob_changes_the_result(tmp_path: Path, plain: bytes, name: str) -> None:
    reinforce(tmp_path, config(**{name.split(".")[0]: KNOBS[name]}))
    assert adapter(tmp_path) != plain


@pytest.mark.parametrize(("knob", "strong"), [("clip_low", 0.01), ("clip_high", 0.01)])
def test_clips_change_later_updates(tmp_path: Path, knob: str, strong: float) -> None:
    reinforce(tmp_path / "a", config(steps=2, inner=3))
    reinforce(tmp_path / "b", config(steps=2, inner=3, policy=PolicyConfig(**{knob: strong})))
    assert adapter(tmp_path / "a") != adapter(tmp_path / "b")
    assert trained_steps(tmp_path / "b")[0]["clipped"] > trained_steps(tmp_path / "a")[0]["clipped"]


@pytest.mark.parametrize("knobs", [{"budget": 90}, {"save_every": 1}, {"keep": 1}, {"eval_every": 1}, {"checkpointing": True}], ids=str)
def test_knobs_of_speed_and_space_do_not(tmp_path: Path, knobs: dict[str, Any]) -> None:
    reinforce(tmp_path / "a", config(steps=2))
    seen: list[int] = []
    reinforce(tmp_path / "b", config(steps=2, **knobs), observe=lambda step, model: seen.append(step))
    one, two = (
        {key: value for key, value in record.items() if key in ("reward", "loss", "grad_norm")}
        for record in (trained_steps(tmp_path / "a")[0], trained_steps(tmp_path / "b")[0])
    )
    assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
    assert seen == [0, 1, 2]
    if "keep" in knobs:
        assert len(list((tmp_path / "b" / "checkpoints").glob("step-*"))) == 1


BAD = [
    {"steps": 0},
    {"prompts": 0},
    {"group": 1},
    {"inner": 0},
    {"temperature": 0},
    {"top_p": 0},
    {"seed": -1},
    {"budget": 0},
    {"keep": 0},
    {"resample": -1},
]


@pytest.mark.parametrize("knobs", BAD, ids=str)
def test_bad_knobs(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        config(**knobs)


def test_trained_ids_are_sampled_ids(tmp_path: Path) -> None:
    seen: list[Rollouts] = []
    reinforce(tmp_path, config(steps=1), report=lambda done, rollouts: seen.append(rollouts))
    examples, _, rows, tokens = rows_to_train(seen[0], PolicyConfig(kl=0.1))
    sampled = [completion.ids for group in seen[0].groups for completion in group.completions]
    assert [tuple(row.completion_T.tolist()) for example in examples for row in example.rows] == sampled
    assert (rows, tokens) == (8, sum(map(len, sampled)))


def alike(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
    return [Rewarded(1.0, {"alike": 1.0}, True) for _ in completions]


def test_groups_alike_are_drawn_anew_then_cost_no_pass_and_move_nothing(tmp_path: Path) -> None:
    result = reinforce(tmp_path, config(steps=2, resample=2), judge=alike)
    for record in trained_steps(tmp_path):
        assert record["dead"] == 1.0
        assert record["resampled"] == 4
        assert record["row_tokens"] == 0
        assert record["grad_norm"] == 0
    assert result.taken == 2 * 3 * 2
    start = tiny_lm()
    reinforce(tmp_path / "other", config(steps=1, resample=0), judge=alike, model=start)
    assert trained_steps(tmp_path / "other")[0]["resampled"] == 0


def test_what_no_reward_judged_is_counted_and_moves_nothing(tmp_path: Path) -> None:
    def sometimes(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
        found = low_ids(items, completions)
        found[0] = Rewarded(None, {"low": None}, None, ("low: it raised ZeroDivisionError: division by zero",))
        return found

    reinforce(tmp_path, config(steps=1), judge=sometimes)
    assert trained_steps(tmp_path)[0]["unjudged"] == pytest.approx(1 / 8)
    assert [record["note"] for record in read_records(tmp_path / "rollouts.jsonl") if record["which"] == "failed"] == [
        "low: it raised ZeroDivisionError: division by zero"
    ]


class Gone:
    """A sampler that answers nothing any more."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        return [Completion(prompt, (), "", Ended.ERROR, error="the server has gone away.") for prompt in prompts]


def test_a_sampler_that_went_away_ends_the_run_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="None of 8 answers could be sampled: the server has gone away"):
        reinforce(tmp_path, config(), sampler_of=lambda model: Gone())


class Apart:
    """Another program's sampler: the engine's answers, with probabilities of its own."""

    def __init__(self, model: Any) -> None:
        self.engine = Engine(model, Letters(), memory=1 << 24)

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        import dataclasses

        answers = self.engine.generate(prompts, params)
        rng = np.random.default_rng(params.seed % 1000)
        return [dataclasses.replace(one, logprobs=tuple(value + rng.normal(0, 0.3) for value in one.logprobs)) for one in answers]


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_a_remote_sampler_is_set_right(tmp_path: Path, kind: Any) -> None:
    for name, policy in (
        ("off", PolicyConfig()),
        ("on", PolicyConfig(correction=kind)),
        ("low", PolicyConfig(correction=kind, correction_cap=1.05)),
    ):
        reinforce(tmp_path / name, config(steps=1, policy=policy), sampler_of=Apart)
    assert len({adapter(tmp_path / name) for name in ("off", "on", "low")}) == 3


class Silent(Apart):
    """One that gives no probabilities."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        import dataclasses

        return [dataclasses.replace(one, logprobs=()) for one in super().generate(prompts, params)]


def test_a_correction_needs_the_samplers_probabilities(tmp_path: Path) -> None:
    reinforce(tmp_path / "off", config(steps=1), sampler_of=Silent)
    with pytest.raises(TrainingError, match="gave 0 log-probabilities"):
        reinforce(tmp_path / "on", config(steps=1, policy=PolicyConfig(correction="token")), sampler_of=Silent)


def test_other_prompts_or_settings_are_another_run(tmp_path: Path) -> None:
    reinforce(tmp_path, config(steps=2))
    with pytest.raises(CheckpointError, match="other rows"):
        reinforce(tmp_path, config(steps=2), asked=asked(5, seed=1))
    with pytest.raises(CheckpointError, match="other settings"):
        reinforce(tmp_path, config(steps=2, temperature=0.9))


def test_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to ask"):
        reinforce(tmp_path, config(), asked=[])


def test_the_reference_is_the_model_before_step_1(tmp_path: Path) -> None:
    """On the first update the divergence is 0, whatever adapter is there; it grows from then on."""
    reinforce(tmp_path, config(policy=PolicyConfig(kl=0.01)))
    values = [record["kl"] for record in trained_steps(tmp_path)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[-1] > 1e-4


def test_log_probabilities_of_sampling_and_training_agree(tmp_path: Path) -> None:
    from sapwood.records import Example
    from sapwood.train.reference import row_logprobs

    model = tiny_lm()
    setting = config(steps=1, temperature=0.7)
    rolled: list[Rollouts] = []
    result = reinforce(tmp_path, setting, model=model, report=lambda done, rollouts: rolled.append(rollouts))
    again = engine_of(result.model).generate([one.prompt for one in asked(5) for _ in range(3)], setting.sampling)
    from sapwood.records import Row

    rows = [Row(np.array(one.prompt.ids), np.array(one.ids), np.ones(len(one.ids), np.float32)) for one in again]
    found = row_logprobs(result.model, [Example((row,)) for row in rows], 300, temperature=0.7)
    for one, (value_T,) in zip(again, found, strict=True):
        assert np.allclose(one.logprobs, value_T, atol=1e-4)


def test_a_model_with_learned_positions_is_rehearsed_within_its_context(tmp_path: Path) -> None:
    """It has no position beyond the context, and no answer will get there: prompts of up to 24 tokens, and 9 new ones where they fit."""
    register()
    shape = {"vocab_size": 97, "n_positions": 26, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = LanguageModel(AutoModelForCausalLM.from_config(GPT2Config(**shape), attn_implementation="sapwood").eval())

    def sampler(current: LanguageModel) -> Engine:
        return Engine(current, Letters([], context_length=26), memory=1 << 24)

    setting = config(steps=1, max_new_tokens=9, full=True, lora=LoraConfig())
    reinforce(tmp_path, setting, model=model, sampler_of=sampler, context=26)
    (step,) = trained_steps(tmp_path)
    assert (step["unjudged"], step["cut"], step["outgrown"]) == (0.0, 1.0, 1.0), "every answer counts, as cut by the context"
