"""Constrained decoding: do random schemas always come out valid, and what share of decoding does the constraint cost?

    python -m bench.constrained MODEL_FOLDER --schemas 1000 --rounds 5 --json FILE

In: a model folder. Out: how many of the answers to random JSON schemas end, parse and validate; and the time of decoding 32 answers of a
deep schema divided by that of 32 free answers of the same length, alternating, as the median of the rounds' ratios. Processor time tells
what the constraint costs also where the machine is busy; on the clock most of it runs beside the forward.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from bench.setting import commit, machine
from generate.random_schemas import random_schema
from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.records import Constraint, Ended, Message, SamplingParams

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "kind": {"enum": ["oak", "ash", "elm"]},
        "rings": {"type": "integer", "minimum": 0, "maximum": 9999},
        "notes": {"type": "array", "items": {"type": "string", "minLength": 3, "maxLength": 40}, "minItems": 2, "maxItems": 5},
    },
    "required": ["name", "kind", "rings", "notes"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": RECORD, "minItems": 50, "maxItems": 60}
"""Longer than any of the timed answers."""
ENDS = {"": statistics.median, "_lowest": min, "_highest": max}


def valid_share(engine: Engine, chat: Chat, count: int, temperature: float) -> dict[str, int]:
    """How many answers to `count` random schemas ended, and how many of all are valid."""
    prompt = chat.prompt([Message("user", "Make up some data, as JSON.")])
    outcome = {"schemas": count, "ended": 0, "valid": 0, "tokens": 0}
    with engine.open() as session:
        seeds = {}
        for seed in range(count):
            params = SamplingParams(
                max_new_tokens=400, temperature=temperature, seed=seed, constraint=Constraint("json_schema", random_schema(seed))
            )
            seeds[session.add(prompt, params)] = seed
        while not session.idle:
            for answer in session.step():
                completion = answer.completion()
                outcome["tokens"] += len(completion.ids)
                outcome["ended"] += completion.ended is Ended.STOP
                outcome["valid"] += completion.ended is Ended.STOP and _validates(completion.text, random_schema(seeds[answer]))
    return outcome


def overhead(engine: Engine, chat: Chat, rounds: int, slots: int, new: int) -> dict[str, float]:
    """The median of the rounds' ratios less 1, of time on the clock and of processor time, the helping threads' included."""
    prompt = chat.prompt([Message("user", "Tell me of trees.")])
    free = Engine(engine.model, _unending(chat), slots=slots)
    held = SamplingParams(max_new_tokens=new, temperature=1.0, constraint=Constraint("json_schema", ENDLESS))
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    for number in range(rounds + 1):
        plain = _timed(free, prompt, SamplingParams(max_new_tokens=new, temperature=1.0), slots)
        constrained = _timed(engine, prompt, held, slots)
        if number:  # the first is not counted
            ratios["wall"].append(constrained[0] / plain[0])
            ratios["cpu"].append(constrained[1] / plain[1])
    return {f"overhead_{kind}{end}": of(found) - 1 for kind, found in ratios.items() for end, of in ENDS.items()}


def _timed(engine: Engine, prompt: Any, params: SamplingParams, count: int) -> tuple[float, float]:
    """Seconds of decoding, and seconds of all threads."""
    with engine.open() as session:
        answers = [session.add(prompt, params, index=index) for index in range(count)]
        while not all(answer.ids for answer in answers):
            session.step()
        begun, spent = time.perf_counter(), time.process_time()
        while not session.idle:
            session.step()
        took = time.perf_counter() - begun, time.process_time() - spent
    assert all(len(answer.ids) == params.max_new_tokens for answer in answers), "all answers are of one length"
    return took


def _unending(chat: Chat) -> Chat:
    """The same chat, whose answers end at their limit alone."""
    other = copy.copy(chat)
    other.stop_ids = frozenset()
    return other


def _validates(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chat, model = Chat.load(given.model), load_model(given.model, given.dtype, device="cpu")
    engine = Engine(model, chat, slots=given.slots)
    found: dict[str, Any] = {"model": given.model.name, "dtype": str(model.dtype), "slots": given.slots, "new_tokens": given.new}
    if given.schemas:
        found |= valid_share(engine, chat, given.schemas, given.temperature)
    if given.rounds:
        found |= overhead(engine, chat, given.rounds, given.slots, given.new)
    found |= {"commit": commit(), "machine": machine()}
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
