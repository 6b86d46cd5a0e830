"""Makes the tables of docs/from-trl.md that the code knows: every option and what becomes of it.

`python tests/trl_table.py` writes them into the page.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sapwood.trl import SFTConfig
from sapwood.trl.config import known_options
from sapwood.trl.names import ELSEWHERE, MET, METHODS, REFUSED, RENAMED, TRAINER_REFUSED

PAGE = Path(__file__).parents[1] / "docs" / "from-trl.md"
HEADING = "## Every option\n"


def documented() -> dict[str, str]:
    """The docstring of each honoured option, from the source."""
    source = (Path(__file__).parents[1] / "src" / "sapwood" / "trl" / "config.py").read_text()
    found = re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""$', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def cell(text: str) -> str:
    """A text inside a table."""
    return text.replace("|", "\\|")


def tables() -> str:
    """Everything behind the heading."""
    words, honoured = documented(), list(dataclasses.fields(SFTConfig))
    lines = ["", "Made by `python tests/trl_table.py` from the code; a test fails where it is anything else.", "", "### Honoured", ""]
    lines += ["| option | default | what it does here |", "|---|---|---|"]
    lines += [f"| `{field.name}` | `{field.default!r}` | {cell(words[field.name])} |" for field in honoured]
    lines += ["", "### Former names", "", "| written | taken as | since |", "|---|---|---|"]
    lines += [f"| `{old}` | `{new}` | {since} |" for old, (new, since) in RENAMED.items()]
    lines += ["", "### Answered with a line", "", "They change speed, memory or records alone.", "", "| option | the line |", "|---|---|"]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in MET.items() if name not in REFUSED]
    lines += [
        "",
        "### Refused",
        "",
        "They would change what is learned, or promise what is not there.",
        "",
        "| option | instead |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in REFUSED.items()]
    lines += [f"| `SFTTrainer({name}=…)` | {cell(text)} |" for name, text in TRAINER_REFUSED.items()]
    lines += [f"| `SFTTrainer.{name}()` | {cell(text)} |" for name, text in METHODS.items()]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in ELSEWHERE.items()]
    rest = sorted(known_options() - {field.name for field in honoured} - {*MET, *REFUSED, *RENAMED})
    lines += [
        "",
        "### At their defaults only",
        "",
        "Options of transformers that Sapwood does not have: they pass where they ask for nothing.",
    ]
    lines += ["", ", ".join(f"`{name}`" for name in rest) + ".", ""]
    return "\n".join(lines)


def page() -> str:
    """The page with the tables in it."""
    return PAGE.read_text(encoding="utf-8").partition(HEADING)[0] + HEADING + tables()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
