"""Makes docs/options.md: every option of `sapwood sft`, from the dataclasses, the tests that turn it, and options.yaml.

`python tests/options_table.py` writes the page.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import yaml

from recipes.test_knobs_of_tune import TABLE as AROUND
from sapwood.config import known_keys
from sapwood.recipes.tune import TuneConfig
from train.test_knobs import TABLE as TRAINING

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
TOOLS = {"trl": "TRL", "axolotl": "Axolotl", "llamafactory": "LLaMA-Factory"}
SECTIONS = {
    "": "What is trained on what",
    "rows": "Rows",
    "evaluation": "Evaluation",
    "train": "Training",
    "train.lora": "The adapter",
    "train.optim": "The optimizer",
    "watch": "What is seen while it trains",
}
OWN_NAMES = {
    "trl": ("trl/trainer/sft_config.py", "trl/trainer/base_config.py", "trl/trainer/model_config.py", "trl/scripts/utils.py"),
    "transformers": ("transformers/training_args.py",),
    "peft": ("peft/tuners/lora/config.py",),
}
"""Files of the installed wheels whose dataclasses hold the options of those who use TRL."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One row of the table."""

    key: str
    text: str
    default: str
    changes: str
    elsewhere: dict[str, str]


def elsewhere() -> dict[str, dict[str, str]]:
    """options.yaml."""
    found: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "options.yaml").read_text())
    return found


def names_in_wheels() -> set[str]:
    """Fields of all dataclasses of TRL, transformers and peft that a user of TRL's SFTTrainer fills in, read and not imported."""
    found: set[str] = set()
    for package, wanted in OWN_NAMES.items():
        paths = [path for path in files(package) or [] if str(path) in wanted]
        assert len(paths) == len(wanted), f"{package}: {wanted}"
        for path in paths:
            classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
            fields = [part for node in classes for part in node.body if isinstance(part, ast.AnnAssign)]
            found |= {field.target.id for field in fields if isinstance(field.target, ast.Name)}
    return found


def changed_by_test(key: str) -> str:
    """What the test that turns this option sees change."""
    inner = key.removeprefix("train.")
    return TRAINING[inner][1] if key.startswith("train.") else AROUND[key][1]


def options() -> Iterator[Option]:
    """Every option, in the order of the dataclasses."""
    known = elsewhere()
    for key in known_keys(TuneConfig):
        text, default = _documented(key)
        yield Option(key, text, default, changed_by_test(key), known.get(key, {}))


def _documented(key: str) -> tuple[str, str]:
    """The docstring and the default of an option, by its dotted key."""
    kind: Any = TuneConfig
    *outer, name = key.split(".")
    for part in outer:
        kind = typing.get_type_hints(kind)[part]
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    place = next(i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name)
    text = inspect.cleandoc(ast.literal_eval(body[place + 1].value))
    [field] = [field for field in dataclasses.fields(kind) if field.name == name]
    default = "nothing" if field.default in (None, ()) else repr(field.default[0] if field.default == ("all-linear",) else field.default)
    return " ".join(text.split()), default.strip("'")


def page() -> str:
    """The whole of docs/options.md."""
    lines = [
        "# Options",
        "",
        "Every option of `sapwood sft`, made by `python tests/options_table.py`; a test fails where this page is not what that makes.",
        "On the command line an option is the last part of its name (`--lr 1e-3`, `--held-out 0.2`); in a `config.yaml` and in Python",
        "it stands where the name says. For each one there is a test that turns it and sees something **change**; an option that would",
        "change nothing beside the others is refused (`--beta1` with Adafactor, say), and so is a misspelt one.",
        "The last columns say what others call the same thing: TRL 1.16 with transformers and peft (checked against their code),",
        "Axolotl and LLaMA-Factory (from their documentation; empty where there is none, or nothing is certain).",
    ]
    section = None
    for option in options():
        outer = option.key.rpartition(".")[0]
        if outer != section:
            section = outer
            lines += [
                "",
                f"## {SECTIONS[outer]}",
                "",
                f"| `{outer + '.' if outer else ''}…` | what it is | default, and why | changes | TRL | Axolotl | LLaMA-Factory |",
                "|---|---|---|---|---|---|---|",
            ]
        names = [", ".join(f"`{part}`" for part in option.elsewhere.get(tool, "").split(", ") if part) for tool in TOOLS]
        why = f"{option.default}: {option.elsewhere.get('why', '')}"
        cells = [f"`{option.key.rpartition('.')[2]}`", option.text, why, option.changes, *names]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
