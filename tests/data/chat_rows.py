"""Files of conversations, some of them broken, for tests of everything behind reading."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

WORDS = ["where", "does", "the", "sap", "rise", "in", "spring", "<|im_end|>", "12", "rings", "…", "bark,", "", "Größe"]


def conversations(random: Random, count: int) -> list[Any]:
    """Rows in the messages format: 1 to 3 turns, a system message or none, now and then something to refuse."""

    def text() -> str:
        return " ".join(random.choices(WORDS, k=random.randint(1, 9)))

    rows: list[Any] = []
    for number in range(count):
        messages = [{"role": "system", "content": text()}] if random.random() < 0.3 else []
        for _ in range(random.randint(1, 3)):
            messages += [{"role": "user", "content": f"{number} {text()}"}, {"role": "assistant", "content": text() or "yes"}]
        if random.random() < 0.3:
            messages = [m if m["role"] == "user" else {**m, "reasoning_content": text()} for m in messages if m["role"] != "system"]
        if random.random() < 0.05:
            messages[-1]["content"] = ""
        if random.random() < 0.1:
            messages[-1]["weight"] = 0.5
        rows.append({"messages": messages, "topic": f"t{number % 12}"} if random.random() > 0.03 else ["not an object"])
    return rows


def write(file: Path, rows: list[Any]) -> Path:
    """One JSON line a row."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file
