"""Function calling from bfcl as conversations: a request and the functions on offer, answered by one call.

The functions stand in the user's turn, not in the system prompt, so that few-shot examples are a beginning that all
questions share. Functions that are ever offered together form a family, and a family is never on both sides of the split:
no function that is held out was seen in training, not even as one that was offered and not called.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from sapwood.assets import Report, pull
from sapwood.data import Reading
from sapwood.errors import AssetError
from sapwood.records import Conversation, Message, Source

TASK = "bfcl-calls"
"""The name under which `sapwood sft` finds these conversations."""

LONGEST = 1100
"""Characters of functions and question that a request may have: keeps the quick start quick."""

SUBSETS = ("simple_python", "multiple", "live_simple")

SYSTEM = 'Answer with one function call in JSON and nothing else: {"name": FUNCTION, "arguments": {NAME: VALUE}}.'


def read_calls(report: Report) -> Reading:
    """The requests as rows that were read, fetching the data set if needed."""
    conversations = conversations_from(pull("bfcl", report=report))
    guess = f"{TASK}: requests to call one function, of at most {LONGEST:,} characters, with the family of their functions"
    return Reading(conversations, [], len(conversations), {TASK: "messages"}, guess)


def conversations_from(folder: Path) -> list[Conversation]:
    """Requests of the three single-call subsets that are short enough.

    `meta` holds `family` and `allowed`, the answers that count as right. Raises `AssetError` for a folder of another kind.
    """
    rows = [row for subset in SUBSETS for row in rows_of(folder, subset)]
    family = _families([[function["name"] for function in row["function"]] for _, row, _ in rows])
    conversations = []
    for source, row, allowed in rows:
        request = _request(row)
        if len(request) <= LONGEST:
            meta = {"family": family[row["function"][0]["name"]], "allowed": allowed, "id": row["id"]}
            turns = (Message("system", SYSTEM), Message("user", request), Message("assistant", answer_of(allowed)))
            conversations.append(Conversation(turns, meta=meta, source=source))
    return conversations


def rows_of(folder: Path, subset: str) -> Iterator[tuple[Source, dict[str, Any], dict[str, Any]]]:
    """Place, row and allowed calls of one subset's requests. Raises `AssetError` for a folder of another kind."""
    file = folder / f"BFCL_v4_{subset}.json"
    answers = folder / "possible_answer" / file.name
    try:
        allowed = {row["id"]: row["ground_truth"][0] for row in map(orjson.loads, answers.read_bytes().splitlines())}
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            row = orjson.loads(line)
            yield Source(file.name, number), row, allowed[row["id"]]
    except (OSError, orjson.JSONDecodeError, KeyError, IndexError) as error:
        raise AssetError(f"{file}: not the set that was expected ({error!r}). Delete {folder} and pull it again.") from error


def _request(row: dict[str, Any]) -> str:
    """The functions, one JSON line each, and behind them what is asked."""
    functions = []
    for function in row["function"]:
        parameters = function["parameters"]
        functions.append(
            {
                "name": function["name"],
                "description": function["description"],
                "parameters": parameters["properties"],
                "required": parameters.get("required", []),
            }
        )
    asked = "\n\n".join(turn["content"] for turn in row["question"][0])
    return "Functions:\n" + "\n".join(orjson.dumps(function).decode() for function in functions) + f"\n\n{asked}"


def answer_of(allowed: dict[str, Any]) -> str:
    """The first allowed value of each argument; one that may be left out is left out."""
    ((name, arguments),) = allowed.items()
    return orjson.dumps({"name": name, "arguments": _first(arguments)}).decode()


def _first(arguments: dict[str, list[Any]]) -> dict[str, Any]:
    chosen = {}
    for name, values in arguments.items():
        if "" in values or not values:
            continue
        chosen[name] = _plain(values[0])
    return chosen


def _plain(value: Any) -> Any:
    """Allowed values of nested objects are lists of choices themselves."""
    if isinstance(value, dict):
        return {key: _plain(choices[0]) for key, choices in value.items() if isinstance(choices, list) and choices and choices[0] != ""}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def _families(offers: list[list[str]]) -> dict[str, str]:
    """Name of each function's family: the connected components of "offered together"."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    for names in offers:
        for name in names:
            parent[root(name)] = root(names[0])
    return {name: root(name) for name in parent}
