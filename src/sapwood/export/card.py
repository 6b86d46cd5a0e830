"""The model card (README.md) of an export: what it is made of, what was measured, how to use it, and what is not known.

In: what a run's directory says (`RunFacts`), and the comparison of the export. Out: Markdown with the front matter that hubs read
(https://huggingface.co/docs/hub/model-cards). Numbers come with their intervals or not at all; what was not measured is said to be
so. No row's text goes into a card, and files are named without their folders: a card may be made public.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import orjson
import yaml

from sapwood.errors import storage
from sapwood.export.verify import Parity
from sapwood.run import read_records


@dataclass(frozen=True)
class RunFacts:
    """What a run says about itself."""

    name: str
    base_model: str
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    """Training settings by dotted key."""
    dtype: str
    """Type of the base weights in training."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    """The ledger's summary."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Reason → rows."""
    versions: Mapping[str, str] = field(default_factory=dict)
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


def facts_of_run(run: Path, base_model: str, data: Sequence[str], settings: Mapping[str, Any], dtype: str) -> RunFacts:
    """Read a run directory; files that are not there are left out."""
    records = read_records(run / "ledger.jsonl")
    summary: dict[str, Any] = next((record for record in reversed(records) if record.get("kind") == "summary"), {})
    refusals = Counter(str(record.get("reason", "")).split(":")[0] for record in records if record.get("status") == "refused")
    environment = _json(run / "environment.json")
    return RunFacts(
        name=run.resolve().name,
        base_model=base_model,
        data=tuple(PurePath(name).name for name in data),
        settings=settings,
        dtype=dtype,
        verdict=_json(run / "verdict.json"),
        ledger=summary,
        refusals=refusals,
        versions=environment.get("versions", {}),
        template_arguments=environment.get("template_arguments", {}),
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    with storage(file, "read"):
        found: dict[str, Any] = orjson.loads(file.read_bytes())
    return found


def licence_of(base: Path) -> str | None:
    """The licence of a base model, where its folder says one: Sapwood's own note, or the front matter of its card."""
    noted = _json(base / "sapwood.json").get("licence")
    if isinstance(noted, str):
        return noted
    card = base / "README.md"
    if card.is_file():
        with storage(card, "read"):
            parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        try:
            front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        except yaml.YAMLError:
            front = None
        named = front.get("license") if isinstance(front, dict) else None
        return named if isinstance(named, str) else None
    return None


def write_card(
    facts: RunFacts, form: str, licence: str | None, parity: Mapping[str, Parity], notes: Sequence[str], use: Sequence[str]
) -> str:
    """The card. `use` are lines of code or commands that load the export."""
    front: dict[str, Any] = {
        "library_name": {"adapter": "peft", "gguf": "gguf"}.get(form, "transformers"),
        "pipeline_tag": "text-generation",
    }
    if "/" in facts.base_model and not PurePath(facts.base_model).is_absolute():
        front |= {"base_model": facts.base_model, "base_model_relation": {"gguf": "quantized", "adapter": "adapter"}.get(form, "finetune")}
    if licence is not None:
        front["license"] = licence.lower()
    front["tags"] = ["sapwood", "sft", *(["lora"] if not facts.settings.get("full") else [])]
    base = PurePath(facts.base_model).name if PurePath(facts.base_model).is_absolute() else facts.base_model
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {facts.name}\n",
        f"`{base}`, fine-tuned with [Sapwood](https://github.com/sapwood/sapwood) by supervised training on conversations.\n",
        "## Use\n",
        "```\n" + "\n".join(use) + "\n```\n",
        "## Is it better?\n",
        *_evaluation(facts.verdict),
        "## Data\n",
        *_data(facts),
        "## Training\n",
        *_training(facts),
        "## Does this export compute what was trained?\n",
        *[f"- {name}: {one.sentence}" for name, one in parity.items()],
        *[f"- {note}" for note in notes],
        "",
        "## Limits\n",
        *_limits(facts, base, licence),
    ]
    return "\n".join(parts) + "\n"


def _evaluation(verdict: Mapping[str, Any]) -> list[str]:
    if not verdict:
        return ["Not measured.\n"]
    lines = [str(verdict.get("line", "")), ""]
    arms = verdict.get("arms") or {}
    if arms:
        lines += ["| arm | rate | 95 % interval | items |", "|---|---|---|---|"]
        for name, arm in arms.items():
            lines.append(f"| {_cell(name)} | {_percent(arm['rate'])} | {_percent(arm['low'])} – {_percent(arm['high'])} | {arm['n']} |")
        lines += ["", f"Judged by `{verdict.get('scorer', '')}` on held-out items."]
    for name, change in (verdict.get("bits_per_token") or {}).items():
        before, after, moved = change["before"], change["after"], change["change"]
        lines.append(
            f"- {name}: {before['mean']:.3f} → {after['mean']:.3f} bits a token ({moved['mean']:+.3f} "
            f"[{moved['low']:+.3f}, {moved['high']:+.3f}])"
        )
    lines += [f"- {caveat}" for caveat in verdict.get("caveats", ())]
    return [*lines, ""]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _data(facts: RunFacts) -> list[str]:
    names = ", ".join(f"`{name}`" for name in facts.data) or "not named"
    ledger = facts.ledger
    lines = [f"Files: {names}."]
    if ledger:
        lines.append(
            f"{ledger['rows_in']:,} rows in: {ledger['trained']:,} trained ({ledger['trained_tokens']:,} tokens), "
            f"{ledger['held_out']:,} held out for evaluation, {ledger['refused']:,} refused."
        )
    lines += [f"- refused, {_cell(reason)}: {count}" for reason, count in facts.refusals.items()]
    return [*lines, ""]


def _training(facts: RunFacts) -> list[str]:
    lines = ["| setting | value |", "|---|---|"]
    lines += [f"| {_cell(key)} | {_cell(str(value))} |" for key, value in facts.settings.items()]
    lines.append(f"| type of the base weights | {facts.dtype} |")
    if facts.template_arguments:
        lines.append(f"| template arguments | `{_cell(orjson.dumps(dict(facts.template_arguments)).decode())}` |")
    if facts.versions:
        lines += ["", "Made with " + ", ".join(f"{name} {number}" for name, number in facts.versions.items()) + "."]
    return [*lines, ""]


def _limits(facts: RunFacts, base: str, licence: str | None) -> list[str]:
    lines = [
        "- What is said above holds for items like those held out from the same files; nothing is known of other uses.",
        "- Safety was not evaluated. Training on any data can weaken what the base model refuses.",
        f"- The limits and the terms of `{base}` apply.",
    ]
    if licence is None:
        lines.append("- The licence of the base model is not recorded in its folder: look it up before you pass this on.")
    if facts.verdict.get("decision") != "better":
        lines.append("- It was not shown to be better than its base model with the best prompt.")
    return lines
