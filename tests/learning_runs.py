"""Run directories of rewards and preferences for tests of their pages, written by the functions that a run writes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapwood.run import open_run

GRPO = """data: [questions.jsonl]
rewards: [number, format*0.1]
start_from: {{model: smollm2-135m-instruct}}
train: {{steps: {steps}, prompts: 8, group: 8}}
"""
DPO = """data: [pairs.jsonl]
votes: null
start_from: {model: smollm2-135m-instruct}
train: {beta: 0.1, loss: sigmoid}
"""


def grpo_step(step: int, steps: int, **changes: Any) -> dict[str, Any]:
    """A record as the loop writes it: the share that is solved and the length grow, the entropy falls."""
    share = step / steps
    figures = {"reward": 0.3 + 0.3 * share, "spread": 0.4 - 0.2 * share, "solved": 0.3 + 0.25 * share, "length": 40 + 20 * share}
    figures |= {"dead": 0.2, "cut": 0.02, "repeated": 0.05, "entropy": 0.45 - 0.2 * share, "kl": 0.0, "clipped": 0.0, "unjudged": 0.0}
    seconds = {"sampling_seconds": 5.0, "reward_seconds": 0.1, "logprob_seconds": 0.0, "update_seconds": 2.0, "seconds": 7.1}
    rest = {"loss": 0.002, "lr": 5e-5, "grad_norm": 0.3, "resampled": 1, "rewards": {"number": figures["solved"], "format": 0.5}}
    return {"kind": "train", "step": step, "num_steps": steps, **figures, **seconds, **rest, **changes}


def rollout(step: int, which: str, text: str, **changes: Any) -> dict[str, Any]:
    """A kept answer."""
    return {
        "step": step,
        "which": which,
        "question": f"question {step} {text}",
        "answer": f"<think>thought {step} {text}</think>answer {step} {text}",
        "reference": f"reference {step}",
        "reward": 1.1 if which == "best" else 0.0,
        "parts": {"number": float(which == "best"), "format": None},
        "ended": "stop" if which == "best" else "length",
        "tokens": 40,
        **changes,
    }


def greedy(step: int, right: int, of: int = 40) -> dict[str, Any]:
    """An evaluation on held-out prompts, of which so many are solved; those that were solved before stay so."""
    return {"kind": "eval", "step": step, "reward": right / of, "values": [float(n < right) for n in range(of)], "length": 40.0}


def grpo_run(folder: Path, *, steps: int = 20, done: int = 20, text: str = "words", gain: int = 15, **changes: Any) -> Path:
    """A run of so many steps, of which some are done; finished where all are. `changes` are of each step's record."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(GRPO.format(steps=steps))
    run = open_run(folder)
    for step in range(1, done + 1):
        run.append("metrics", grpo_step(step, steps, **changes))
        run.append("rollouts", rollout(step, "best", text), rollout(step, "worst", text))
        if step == 1:
            run.append("rollouts", {"step": 1, "which": "failed", "note": f"judge: gone {text}"})
    run.append("metrics", *(greedy(step, 10 + gain * step // steps) for step in range(0, done + 1, 5)))
    run.write_json("preflight", {"prompts": 16, "group": 8, "solved": 0.25, "dead": 0.5, "spread": 0.3, "cut": 0.1, "length": 33.0})
    _finish(folder, finished=done == steps)
    run.close()
    return folder


def dpo_step(step: int, steps: int, **changes: Any) -> dict[str, Any]:
    """A record as the loop writes it: both answers part, the chosen one stays."""
    share = step / steps
    figures = {
        "loss": 0.69 - 0.4 * share,
        "accuracy": 0.5 + 0.4 * share,
        "margin": 2 * share,
        "chosen": 0.2 * share,
        "rejected": -1.8 * share,
    }
    return {
        "kind": "train",
        "step": step,
        "num_steps": steps,
        **figures,
        "grad_norm": 2.0,
        "lr": 5e-5,
        "kl": 0.0,
        "seconds": 0.5,
        **changes,
    }


def pairs_judged(step: int, accuracy: float, loss: float) -> dict[str, Any]:
    """An evaluation on held-out pairs."""
    bounds = {"accuracy_low": accuracy - 0.1, "accuracy_high": min(1.0, accuracy + 0.1)}
    return {"kind": "eval", "step": step, "loss": loss, "accuracy": accuracy, **bounds, "pairs": 60, "margin": 2 * accuracy - 1}


def dpo_run(folder: Path, *, steps: int = 20, done: int = 20, **changes: Any) -> Path:
    """As `grpo_run`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(DPO)
    run = open_run(folder)
    run.append("metrics", *(dpo_step(step, steps, **changes) for step in range(1, done + 1)))
    run.append("metrics", *(pairs_judged(step, 0.5 + 0.35 * step / steps, 0.69 - 0.3 * step / steps) for step in range(0, done + 1, 5)))
    _finish(folder, finished=done == steps)
    run.close()
    return folder


def _finish(folder: Path, *, finished: bool) -> None:
    if finished:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")
