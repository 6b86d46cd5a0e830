"""Makes the tables of docs/from-trl.md that the code knows: every option and what becomes of it.

`python tests/trl_table.py` writes them into the page.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from sapwood.trl import DPOTrainer, GRPOTrainer, KTOTrainer, SFTConfig
from sapwood.trl.base import Face
from sapwood.trl.names import ELSEWHERE, MET, METHODS, REFUSED, RENAMED, TRAINER_REFUSED
from sapwood.trl.options import Options, known_options

PAGE = Path(__file__).parents[1] / "docs" / "from-trl.md"
HEADING = "## Every option\n"


def documented(file: str = "config.py") -> dict[str, str]:
    """The docstring of each honoured option, from the source of all trainers' options and of one's own."""
    folder = Path(__file__).parents[1] / "src" / "sapwood" / "trl"
    source = (folder / "options.py").read_text() + (folder / file).read_text()
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
    rest = sorted(known_options(SFTConfig) - {field.name for field in honoured} - {*MET, *REFUSED, *RENAMED})
    lines += [
        "",
        "### At their defaults only",
        "",
        "Options of transformers that Sapwood does not have: they pass where they ask for nothing.",
    ]
    lines += ["", ", ".join(f"`{name}`" for name in rest) + ".", ""]
    for trainer, file in ((GRPOTrainer, "grpo_options.py"), (DPOTrainer, "dpo_options.py"), (KTOTrainer, "dpo_options.py")):
        lines += further(trainer, file)
    return "\n".join(lines)


def further(trainer: type[Face[Any]], file: str) -> list[str]:
    """What is a trainer's own, beside what the tables above say of all."""
    kind, words, shared = trainer.kind, documented(file), {field.name for field in dataclasses.fields(Options)}
    fields = [field for field in dataclasses.fields(kind) if field.name not in shared or field.default != getattr(Options, field.name)]
    lines = [f"### `{trainer.__name__}`", "", "| option | default | what it does here |", "|---|---|---|"]
    lines += [f"| `{field.name}` | `{field.default!r}` | {cell(words[field.name])} |" for field in fields]
    lines += ["", "| option | the line |", "|---|---|"]
    lines += [f"| `{old}` | called `{new}` |" for old, (new, _) in kind.renamed.items() if old not in RENAMED]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in kind.met.items() if MET.get(name) != text and name not in kind.refused]
    lines += ["", "| refused | instead |", "|---|---|"]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in kind.refused.items() if REFUSED.get(name) != text]
    lines += [
        f"| `{trainer.__name__}({name}=…)` | {cell(text)} |" for name, text in trainer.refused.items() if TRAINER_REFUSED.get(name) != text
    ]
    rest = sorted(
        known_options(kind) - known_options(SFTConfig) - {field.name for field in fields} - {*kind.met, *kind.refused, *kind.renamed}
    )
    return [*lines, "", "At their defaults only: " + ", ".join(f"`{name}`" for name in rest) + ".", ""] if rest else [*lines, ""]


def page() -> str:
    """The page with the tables in it."""
    return PAGE.read_text(encoding="utf-8").partition(HEADING)[0] + HEADING + tables()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
