"""Rows damaged at random: each becomes a right conversation or a refusal with its place, and none is lost."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from sapwood.data import Reading, read
from sapwood.errors import DataError
from sapwood.records.conversation import ROLES

CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"x": [1, {"y": None}]}}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1 + 1, é?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "add"},
            {"role": "tool", "tool_call_id": "c", "name": "add", "content": "2"},
            {"role": "assistant", "content": "2", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        "template_arguments": {"enable_thinking": False},
    },
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(CALL)}],
        "system": "s",
        "tools": "[]",
    },
    {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "tools": None},
    {"instruction": "q", "input": "", "output": "a", "history": [["x", "y"]]},
]
JUNK = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "[",
    "{}",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "\u0000",
    "<|im_end|>",
    2**63,
    ["text"],
    {"type": "image"},
]


def damage_structure(row: Any, random_: random.Random) -> Any:
    """Replace, delete, rename or double one value anywhere in the row."""
    row = copy.deepcopy(row)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(row)
    parent, key = random_.choice(places)
    action = random_.randrange(4)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[random_.choice(["role", "content", "messages", "prompt", "zzz", "from"])] = parent.pop(key)
    elif action == 2 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(random_.choice(JUNK))
    return row


def damage_bytes(line: bytes, random_: random.Random) -> bytes:
    """Change, delete, insert or cut a few bytes; a line end would make two rows of one, so none is inserted."""
    data = bytearray(line)
    for _ in range(random_.randrange(1, 4)):
        at, byte = random_.randrange(len(data)), random_.choice([0x00, 0x22, 0x5C, 0x7B, 0x7D, 0x5B, 0x2C, 0xFF, 0xC3, 0x20, 0x31, 0x0D])
        match random_.randrange(4):
            case 0:
                data[at] = byte
            case 1:
                del data[at]
            case 2:
                data.insert(at, byte)
            case 3:
                del data[max(at, 1) :]
    return bytes(data)


def check(reading: Reading, rows: int) -> None:
    assert reading.total == rows == len(reading.conversations) + len(reading.refused)
    places = [c.source for c in reading.conversations] + [refusal.source for refusal in reading.refused]
    assert sorted(place.line for place in places if place) == list(range(1, rows + 1))
    for conversation in reading.conversations:
        assert any(m.role == "assistant" and m.weight > 0 for m in conversation.messages)
        for message in conversation.messages:
            assert message.role in ROLES
            assert isinstance(message.content, str)
            assert message.weight >= 0
            assert all(isinstance(call.name, str) and isinstance(call.arguments, dict) for call in message.tool_calls)
            json.dumps(message.for_template())
            if message.role == "assistant":
                assert message.content.strip() or message.tool_calls or message.reasoning
    for refusal in reading.refused:
        assert refusal.reason
        assert refusal.fix
        assert str(refusal).startswith(f"{refusal.source}: ")


@pytest.mark.parametrize("base", range(len(ROWS)))
def test_rows_with_damaged_structure(tmp_path: Path, base: int) -> None:
    random_ = random.Random(base)
    good = ROWS[base]
    damaged = [damage_structure(good, random_) for _ in range(150)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *damaged]), encoding="utf-8")
    form = ("messages", "sharegpt", "prompt-completion", "alpaca")[base]
    reading = read([path], format=form)  # type: ignore[arg-type]
    check(reading, 151)
    assert len(reading.refused) > 30, "damage of this kind is seen"
    assert len(reading.conversations) > 10, "and what does no harm is taken"


@pytest.mark.parametrize("base", range(len(ROWS)))
def test_rows_with_damaged_bytes(tmp_path: Path, base: int) -> None:
    random_ = random.Random(100 + base)
    good = json.dumps(ROWS[base], ensure_ascii=False).encode()
    head = b"\n".join([good] * 40)  # so that the head of the file is text, whatever is damaged
    assert len(head) > 8192 or base > 0
    damaged = [line for _ in range(150) if (line := damage_bytes(good, random_)) and not line.isspace() and (base == 0 or 0 not in line)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(head + b"\n" + b"\n".join(damaged) + b"\n")
    form = ("messages", "sharegpt", "prompt-completion", "alpaca")[base]
    check(read([path], format=form), 40 + len(damaged))  # type: ignore[arg-type]
    assert len(damaged) > 100


def test_files_damaged_as_a_whole_are_read_or_refused_in_a_paragraph(tmp_path: Path) -> None:
    """No format given, formats mixed, bytes cut anywhere: a `Reading` that adds up, or a `DataError`."""
    random_ = random.Random(7)
    refusals = []
    for trial in range(150):
        lines = [json.dumps(damage_structure(random_.choice(ROWS[:2]), random_)).encode() for _ in range(random_.randrange(1, 4))]
        path = tmp_path / random_.choice(["rows.jsonl", "rows.json"])
        path.write_bytes(damage_bytes(b"\n".join(lines), random_))
        try:
            reading = read([path])
        except DataError as error:
            refusals.append(str(error))
        else:
            assert reading.total == len(reading.conversations) + len(reading.refused) > 0, trial
    assert 20 < len(refusals) < 150
    assert all(said.startswith(str(tmp_path)) for said in refusals)
