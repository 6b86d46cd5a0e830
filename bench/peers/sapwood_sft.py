"""Sapwood's training, asked for timed steps: what `sapwood sft`, `dpo` and `grpo` do between their rehearsal and their result.

load    the model, an adapter (drawn and saved into `adapter`, for the peer to begin with), the rows, the rehearsal's budget
train   put the adapter back to its start, take all steps, give the seconds of those behind the first
profile where the time of one step goes
limit   the seconds that the matrix products of the same steps would take alone
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.contestant import Request, serve, versions_of
from bench.limit import Limit, products_of, size_of
from bench.peers.sapwood_objectives import OBJECTIVES, Update
from bench.workloads import read_steps
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model, save_adapter, trainable_parameters
from sapwood.records import Example
from sapwood.train import SftConfig
from sapwood.train.memory import peak_memory, synchronize
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.rehearsal import rehearse

PROFILED = 30
"""Operations that a profile names."""


class _Training:
    """What `load` leaves for the other tasks."""

    def __init__(self, model: LanguageModel, steps: list[list[Example]], optim: OptimConfig, budget: int, update: Update) -> None:
        self.model, self.steps, self.optim, self.budget, self.update = model, steps, optim, budget, update
        self.start = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
        self.limit = Limit(products_of(model), model.device)


_now: list[_Training] = []


def load(request: Request) -> dict[str, Any]:
    """Everything in front of the first step."""
    _now.clear()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    steps = read_steps(Path(request["rows"]))
    model = add_lora(load_model(Path(request["model"]), request["dtype"], device=request["device"]), LoraConfig(), request["seed"])
    if request["adapter"] is not None:
        save_adapter(model, Path(request["adapter"]))
    optim = OptimConfig(lr=request["learning_rate"], schedule="constant", warmup=0.0, beta2=request["beta2"])
    budget = request["budget"] or _rehearsed(model, [example for step in steps for example in step], optim, len(steps[0]))
    update = OBJECTIVES[request["objective"]](model, request["kl"])
    _now.append(_Training(model, steps, optim, budget, update))
    return {"budget": budget, "dtype": str(model.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}


def _rehearsed(model: LanguageModel, examples: list[Example], optim: OptimConfig, batch: int) -> int:
    """The budget that `sapwood sft` would choose."""
    optimizer = Optimizer(trainable_parameters(model), optim)
    with tempfile.TemporaryDirectory() as run:
        return rehearse(model, optimizer, examples, [], Path(run), SftConfig().budget, batch=batch).budget


def train(request: Request) -> dict[str, Any]:
    """All steps from the adapter's start, as the loop of `sapwood.train.sft` takes them."""
    now = _now[0]
    parameters = trainable_parameters(now.model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(now.start[name])
    optimizer = Optimizer(parameters, now.optim)
    losses, norms, ends, computed = [], [], [], []
    for number, step in enumerate(now.steps[: request["steps"]]):
        sums = now.update(step, now.budget, (0, number))
        norms.append(optimizer.step(now.optim.lr))
        losses.append(sums.mean_loss)
        computed.append(sums.unique_tokens)
        synchronize(now.model.device)
        ends.append(time.perf_counter())
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    return {"seconds": seconds, "losses": losses, "norms": norms, "computed_tokens": computed[1:], "gpu_bytes": gpu_bytes()}


def gpu_bytes() -> int:
    """The most that this process has held on a GPU; 0 on a CPU."""
    return peak_memory() if torch.cuda.is_available() and torch.cuda.max_memory_allocated() else 0


def profile(request: Request) -> dict[str, Any]:
    """Torch's operations in one step by their own time, the longest first, and what is no operation of torch's."""
    now = _now[0]
    step, optimizer = now.steps[-1], Optimizer(trainable_parameters(now.model), now.optim)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen:  # on a GPU: the seconds in which work is handed over
        begin = time.perf_counter()
        now.update(step, now.budget, (0, 0))
        optimizer.step(now.optim.lr)
        synchronize(now.model.device)
        whole = time.perf_counter() - begin
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    lines = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in events]
    lines.append(("outside of torch's operations", whole - sum(seconds for _, seconds, _ in lines), 1))
    longest = sorted(lines, key=lambda line: -line[1])[:PROFILED]
    return {
        "operations": [
            {"operation": name, "seconds": seconds, "share": seconds / whole, "calls": calls} for name, seconds, calls in longest
        ]
    }


def limit(request: Request) -> dict[str, Any]:
    """Of each step that `train` times: seconds by part, floating-point operations, tokens."""
    now = _now[0]
    steps = now.steps[1 : request["steps"]]
    sizes = [size_of(step) for step in steps]
    products, asks = now.limit.products, request["reference"]
    return {
        "seconds": [_with(now.limit.seconds(step), now.limit.reference_seconds(step) if asks else {}) for step in steps],
        "flops": [products.step_flops(size) + (products.reference_flops(size) if asks else 0) for size in sizes],
        "sizes": [vars(size) for size in sizes],
    }


def _with(step: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    return {**step, **({"reference": sum(reference.values())} if reference else {})}


if __name__ == "__main__":
    serve(
        {"load": load, "train": train, "profile": profile, "limit": limit},
        versions_of(["sapwood", "torch", "transformers", "peft", "numpy"]),
    )
