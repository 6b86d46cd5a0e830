"""`sapwood eval RUN --rescore NAME`: saved answers judged by other scorers, without asking any model again.

In: a run's `items.jsonl` and `scores.jsonl`, and names of scorers. Out: `rescored.jsonl`, one record an answer and scorer, and the rates
with their paired differences to the first arm, over items and their clusters. What the run found itself stays as it was.

Calls and thoughts are read out of the saved text by the run's own template, as they were when it was written; where the model's folder
is gone, the text itself is scored, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sapwood.chat import Chat
from sapwood.errors import ConfigError, DataError, SapwoodError, storage
from sapwood.evaluate import scores_from
from sapwood.evaluate.experiment import ArmScore
from sapwood.recipes.benchmarks import BenchmarkRow, summary
from sapwood.recipes.reward_model import scorer_by_name
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model, load_chat
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt
from sapwood.run import open_run, read_records, run_named

RECORDS = "rescored"


@dataclass(frozen=True, kw_only=True)
class RescoreConfig:
    """Saved answers, judged again."""

    run: Path
    """The run directory."""
    rescore: tuple[str, ...] = ()
    """Scorers by name, such as rouge or my_scorer.py:polite; several with spaces or commas between them."""
    allow_code: bool = False
    """Let the scorer code-tests run programs that the model wrote, in a child process that reaches no network and no file of yours."""


@dataclass(frozen=True)
class RescoreResult:
    """Rates by scorer and arm."""

    path: Path
    rows: tuple[BenchmarkRow, ...]


def config_for(names: Sequence[str]) -> RescoreConfig:
    """The config that flags are laid over. Raises `ConfigError` where no run is named."""
    run = run_named(names)
    if run is None:
        raise ConfigError("Rescoring needs a finished run directory: sapwood eval runs/my-1 --rescore rouge")
    return RescoreConfig(run=run)


def rescore(config: RescoreConfig, *, screen: Screen | None = None) -> RescoreResult:
    """Score every saved answer anew. Raises a `SapwoodError` before anything is written."""
    screen = screen or Screen(quiet=True)
    names = [name.strip() for entry in config.rescore for name in _divided(entry) if name.strip()]
    if not names:
        raise ConfigError("Name a scorer: --rescore rouge. docs/evaluation.md lists them.")
    scorers = {name: scorer_by_name(name, allow_code=config.allow_code) for name in names}
    items = {record["item"]: item_from(record) for record in read_records(config.run / "items.jsonl")}
    scores = scores_from(read_records(config.run / "scores.jsonl"))
    asked = [score for score in scores if score.item in items]
    if not asked:
        raise DataError(f"{config.run} holds no answers to score again: items.jsonl and scores.jsonl are missing or empty.")
    chat = _chat_of(config.run, screen)
    records = []
    with screen.progress("scoring saved answers") as advance:
        for number, score in enumerate(asked, 1):
            item = items[score.item]
            completion = saved_completion(score, item, chat)
            for name, scorer in scorers.items():
                found = scorer(item, completion)
                key = {"benchmark": name, "arm": score.arm, "item": score.item, "sample": score.sample, "cluster": score.cluster, "cut": 0}
                records.append(key | {"value": found.value, "answer": found.answer, "explanation": found.explanation})
            advance(number, len(asked), "")
    with open_run(config.run) as run:
        kept = [record for record in run.read(RECORDS) if record["benchmark"] not in scorers]
        run.replace(RECORDS, *kept, *records)
    return RescoreResult(config.run, summary(records))


def item_from(record: Mapping[str, Any]) -> Item:
    """An item as `items.jsonl` holds it. Media are named there, not held, so what is left of them is their place in the text."""
    messages = tuple(Message(message["role"], _text(message.get("content"))) for message in record["messages"])
    conversation = Conversation(messages, tuple(record.get("tools") or ()), record.get("template_arguments") or {})
    return Item(conversation, record["reference"], record.get("cluster"), tuple(record.get("tags") or ()))


def saved_completion(score: ArmScore, item: Item, chat: Chat | None) -> Completion:
    """The answer as it was: its text, how it ended, and what the template's reader makes of it."""
    conversation = item.conversation
    ended = Ended(score.ended)
    if chat is not None and ended is not Ended.ERROR:
        try:
            prompt = chat.prompt(conversation.messages, conversation.tools, conversation.template_arguments)
            return Completion(prompt, (), score.text, ended, message=chat.parse(score.text, prompt).message)
        except SapwoodError:
            pass  # an item whose turns hold calls or media is not written out whole; its answer's text is
    prompt = Prompt(conversation.messages, (), "", conversation.tools, conversation.template_arguments)
    error = score.explanation or "generation failed" if ended is Ended.ERROR else None
    return Completion(prompt, (), score.text, ended, error=error)


def _chat_of(run: Path, screen: Screen) -> Chat | None:
    try:
        with storage(run / "config.yaml", "read"):
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        folder = fetch_model(str(config["model"]), screen, weights=False)
        return load_chat(folder, config.get("template"), tools_in_system=bool(config.get("tools_in_system")))
    except (SapwoodError, OSError, KeyError, TypeError, yaml.YAMLError) as error:
        screen.say(f"The texts are scored as they stand, calls and thoughts unread: the run's template cannot be had ({error}).", "yellow")
        return None


def _divided(entry: str) -> list[str]:
    """Commas divide names, but in a pattern they belong to it."""
    return [entry] if entry.startswith(("regex:", "tags:")) else entry.split(",")


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
