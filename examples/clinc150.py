"""CLINC150 as rows: a request, and the intent that it has, out of all intents named in the system message.

python examples/clinc150.py train_val.json intents.jsonl [rows of each intent] [intent ...]

`train_val.json` is the file of clinc/oos-eval (CC BY 3.0): lists of [text, intent]. With intents named, only those are asked for.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(source: Path, target: Path, each: int = 40, only: tuple[str, ...] = ()) -> int:
    """Write `each` rows of every intent to `target`; return how many. What is out of scope in the source is left out."""
    texts: dict[str, list[str]] = defaultdict(list)
    sides = json.loads(source.read_text(encoding="utf-8"))
    for text, intent in [*sides["train"], *sides["val"]]:
        if not only or intent in only:
            texts[intent].append(text)
    asked = f"Name the intent of the request. Answer with one of: {', '.join(sorted(texts))}."
    rows = [(text, intent) for intent in sorted(texts) for text in texts[intent][:each]]
    with target.open("w", encoding="utf-8") as file:
        for text, intent in rows:
            turns = (("system", asked), ("user", text), ("assistant", intent))
            file.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")
    return len(rows)


if __name__ == "__main__":
    given = sys.argv[1:]
    each = int(given.pop(2)) if len(given) > 2 and given[2].isdigit() else 40
    print(main(Path(given[0]), Path(given[1]), each, tuple(given[2:])), "rows")
