"""Sapwood's engine, asked for timed generations. Each one begins with an empty tree: nothing is left from the one before.

load      the model in a type
generate  all prompts at once, `samples` answers of exactly `new` tokens each; seconds to everyone's first token, and to the end
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from bench.contestant import Request, serve, versions_of
from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import LanguageModel, load_model
from sapwood.records import Prompt, SamplingParams

_now: list[tuple[LanguageModel, Chat]] = []


def load(request: Request) -> dict[str, Any]:
    """The model, and a chat whose answers end at their limit alone."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    folder = Path(request["model"])
    chat = copy.copy(Chat.load(folder))
    chat.stop_ids = frozenset()
    model = load_model(folder, request["dtype"], device="cpu")
    _now[:] = [(model, chat)]
    return {"dtype": str(model.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}


def generate(request: Request) -> dict[str, Any]:
    """Every prompt `samples` times; greedy for one, else at temperature 1."""
    [(model, chat)] = _now
    samples = request["samples"]
    params = SamplingParams(max_new_tokens=request["new"], temperature=1.0 if samples > 1 else 0.0)
    begin = time.perf_counter()
    with Engine(model, chat, slots=32).open() as session:
        answers = [session.add(Prompt((), tuple(ids), ""), params, index=index) for ids in request["prompts"] for index in range(samples)]
        soonest = 0.0
        while not all(answer.ids for answer in answers):
            session.step()
            soonest = soonest or (time.perf_counter() - begin if any(answer.ids for answer in answers) else 0.0)
        first = time.perf_counter() - begin
        while not session.idle:
            session.step()
    seconds = time.perf_counter() - begin
    assert all(len(answer.ids) == request["new"] for answer in answers), "all answers are of one length"
    return {"soonest": soonest, "first": first, "seconds": seconds, "tokens": [answer.ids for answer in answers]}


if __name__ == "__main__":
    serve({"load": load, "generate": generate}, versions_of(["torch", "transformers"]))
