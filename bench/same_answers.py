"""Are our greedy tokens those of transformers' `generate`, and our log-probabilities those of training? In fp32, on a whole model.

    python -m bench.same_answers MODEL_FOLDER --json FILE

In: a model folder. Out: tokens compared, until the first place where an answer differs; how many of those places are ties (transformers'
own top two logits lie within 1e-4), and how many are not; the largest distance of a log-probability to the path that training takes, in
fp32 and in fp64; and that of training's own to themselves, all rows in one pass against one at a time, in fp32: so much is rounding.
Half of the prompts share a system prompt, and all run in one batch; transformers answers them one at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bench.setting import commit, machine
from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.records import Completion, Message, Prompt, Row, SamplingParams

TIE = 1e-4
"""Logits nearer than this are equal: sums in another order round them apart."""
SYSTEM = "You are a careful librarian. Answer in whole sentences, name a book where one helps, and say what you do not know."
THINGS = [
    "the colour of leaves",
    "how a clock keeps time",
    "why bread rises",
    "two rivers of Europe",
    "what a prime number is",
    "a poem on rain",
]


def prompts_of(chat: Chat) -> list[Prompt]:
    """Each thing asked under a system prompt and alone."""
    asked = [Message("user", f"Tell me about {thing}.") for thing in THINGS]
    return [chat.prompt(messages) for one in asked for messages in ([Message("system", SYSTEM), one], [one])]


def first_difference(ours: tuple[int, ...], theirs: list[int]) -> int | None:
    """Where two answers part; None where they are the same."""
    if list(ours) == theirs:
        return None
    return next((place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), min(len(ours), len(theirs)))


def measure(folder: Path, new: int) -> dict[str, Any]:
    """All numbers."""
    chat = Chat.load(folder)
    model = load_model(folder, "fp32", device="cpu")
    prompts = prompts_of(chat)
    answers = Engine(model, chat).generate(prompts, SamplingParams(max_new_tokens=new))
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    compared = ties = different = 0
    rows = [_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    alone = [model.logprobs([row])[0] for row in rows]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt.ids])
        with torch.inference_mode():
            found = peer.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=len(answer.ids),
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        place = first_difference(answer.ids, found.sequences[0, len(prompt.ids) :].tolist())
        compared += len(answer.ids) if place is None else place
        if place is not None:
            top, next_to_it = found.logits[place][0].topk(2).values.tolist()
            ties, different = ties + (top - next_to_it < TIE), different + (top - next_to_it >= TIE)
    return {
        "model": folder.name,
        "prompts": len(prompts),
        "tokens": compared,
        "ties": ties,
        "different": different,
        "logprob_distance": _furthest([np.array(answer.logprobs) for answer in answers], alone),
        "training_to_itself": _furthest(model.logprobs(rows), alone),
        "logprob_distance_fp64": _in_fp64(folder, chat, prompts, min(new, 16)),
        "torch": torch.__version__,
        "commit": commit(),
        "machine": machine(),
    }


def _row(prompt: Prompt, answer: Completion) -> Row:
    return Row(np.array(prompt.ids), np.array(answer.ids), np.ones(len(answer.ids), np.float32))


def _furthest(some: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(some, others, strict=True))


def _in_fp64(folder: Path, chat: Chat, prompts: list[Prompt], new: int) -> float:
    """How far the engine's log-probabilities are from training's where rounding hides nothing."""
    model = load_model(folder, "fp64")
    answers = Engine(model, chat).generate(prompts, SamplingParams(max_new_tokens=new))
    rows = [_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return _furthest([np.array(answer.logprobs) for answer in answers], [model.logprobs([row])[0] for row in rows])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.model, given.new)
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
