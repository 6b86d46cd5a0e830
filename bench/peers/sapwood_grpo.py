"""Sapwood's steps of reinforcement learning, timed by phase: what `sapwood grpo` does between its rehearsal and its result.

load    the model, an adapter (saved for the peer to begin with), the prompts, the rehearsal's budget, the engine
train   put the adapter back to its start, take all steps, give the seconds and phases of those behind the first
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.contestant import Request, serve, versions_of
from bench.peers.sapwood_objectives import asked_of, rewarded
from bench.workloads import read_steps
from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model, save_adapter, trainable_parameters
from sapwood.records import Example, SamplingParams
from sapwood.train.grpo import GrpoConfig
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.policy import PolicyConfig, total
from sapwood.train.reference import Reference, row_logprobs
from sapwood.train.rehearsal import rehearse
from sapwood.train.rollouts import Objective, roll_out, rows_to_train, with_logprobs
from sapwood.train.step import accumulate


class _Training:
    """What `load` leaves for `train`."""

    def __init__(self, model: LanguageModel, steps: list[list[Example]], optim: OptimConfig, budget: int, kl: float, chat: Chat) -> None:
        self.model, self.steps, self.optim, self.budget = model, steps, optim, budget
        self.policy = PolicyConfig(kl=kl)
        self.reference = Reference(model)
        self.start = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
        self.engine = Engine(model, chat)


_now: list[_Training] = []


def load(request: Request) -> dict[str, Any]:
    """Everything in front of the first step."""
    _now.clear()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    folder = Path(request["model"])
    steps = read_steps(Path(request["rows"]))
    model = add_lora(load_model(folder, request["dtype"], device="cpu"), LoraConfig(), request["seed"])
    save_adapter(model, Path(request["adapter"]))
    chat = copy.copy(Chat.load(folder))
    chat.stop_ids = frozenset()  # every answer has as many tokens as it may
    optim = OptimConfig(lr=request["learning_rate"], schedule="constant", warmup=0.0, beta2=request["beta2"])
    optimizer = Optimizer(trainable_parameters(model), optim)
    with tempfile.TemporaryDirectory() as run:
        budget = rehearse(model, optimizer, steps[0], [], Path(run), GrpoConfig().budget, batch=len(steps[0])).budget
    _now.append(_Training(model, steps, optim, budget, request["kl"], chat))
    return {"budget": budget, "dtype": str(model.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}


def train(request: Request) -> dict[str, Any]:
    """All steps from the adapter's start, as the loop of `sapwood.train.grpo` takes them."""
    now = _now[0]
    parameters = trainable_parameters(now.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(now.start[name])
    optimizer = Optimizer(parameters, now.optim)
    losses, norms, ends, phases, sampled, trained = [], [], [], [], [], []
    for number, step in enumerate(now.steps[: request["steps"]]):
        begin = time.perf_counter()
        asked = [asked_of(example.rows[0].prompt_T.tolist(), place) for place, example in enumerate(step)]
        longest = len(step[0].rows[0].completion_T)
        rollouts = roll_out(
            now.engine,
            lambda items, completions: [rewarded(one) for one in completions],
            lambda first, count, asked=asked: asked,  # type: ignore[misc]
            0,
            prompts=len(step),
            group=len(step[0].rows),
            rounds=0,
            params=SamplingParams(max_new_tokens=longest, temperature=1.0),
            seed=(request["seed"], number),
        )
        now.engine.forget()
        groups, facts, rows, tokens = rows_to_train(rollouts, now.policy)

        probing = time.perf_counter()
        before = None
        if now.policy.kl:
            with now.reference.in_force():
                before = row_logprobs(now.model, groups, now.budget)

        updating = time.perf_counter()
        objective = Objective(with_logprobs(facts, None, before), now.policy)
        weight = total(now.policy, rows=rows, tokens=tokens, longest=longest)
        sums = accumulate(now.model, groups, now.budget, draw=(0, number), objective=objective, weight=weight)
        moving = time.perf_counter()
        norms.append(optimizer.step(now.optim.lr))
        ends.append(time.perf_counter())
        losses.append(sums.mean_loss)
        phases.append(
            {
                "sample": probing - begin - rollouts.reward_seconds,
                "reward": rollouts.reward_seconds,
                "log-probs": updating - probing,
                "forward and backward": moving - updating,
                "step": ends[-1] - moving,
            }
        )
        sampled.append(sum(len(one.ids) for group in rollouts.groups for one in group.completions))
        trained.append(int(tokens))
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)],
        "phases": phases[1:],
        "losses": losses,
        "norms": norms,
        "sampled_tokens": sampled[1:],
        "trained_tokens": trained[1:],
    }


if __name__ == "__main__":
    serve({"load": load, "train": train}, versions_of(["sapwood", "torch", "transformers", "peft", "numpy"]))
