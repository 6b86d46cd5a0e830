"""Files in; what other loops than SFT learn from out: prompts to ask, pairs of answers, single votes. And the ledger of every row.

Rows in = rows trained + rows held out + rows refused, each refusal with file:line, reason and next action, before a model is loaded.
Left out on purpose: rows on the disk. Prompts and pairs are few beside rows to imitate, and are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from sapwood.chat import Chat
from sapwood.chat.other_rows import preference_example
from sapwood.data import Ledger, Only, Refusal, columns_from, split
from sapwood.data.locations import locate
from sapwood.data.messages import Notes
from sapwood.data.prepared import kept_scan
from sapwood.data.preparing import refusal_of
from sapwood.data.reading import Scan
from sapwood.errors import ConfigError, DataError, TemplateError
from sapwood.recipes.prepare import MOST_HELD_OUT, DataConfig
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Document, Example, Item, Preference, Record
from sapwood.train import Asked

T = TypeVar("T")


@dataclass(frozen=True)
class Sides(Generic[T]):
    """What is trained on and what is held out, and where every row went."""

    train: list[T]
    held_out: list[T]
    ledger: Ledger
    notes: list[str]


def scan(files: Sequence[str], config: DataConfig, screen: Screen) -> Scan:
    """Every row checked; of any format. Raises `DataError` with file:line."""
    if not files:
        raise ConfigError("No data is named. Give files of rows; --help says what kinds.")
    with screen.progress("reading") as advance:
        return kept_scan(
            locate(files, advance),
            format=config.format,
            columns=columns_from(config.columns, prompt=config.prompt, completion=config.completion, system=config.system),
            only=Only.parse(config.only) if config.only else None,
            keep=config.cache,
            allow_urls=config.allow_urls,
            report=advance,
        )


def refuse_unread(config: DataConfig, by: str, *names: str, task: str | None = None) -> None:
    """An option of rows that `by` does not read must not be accepted; where a task gives the prompts, none is. Raises `ConfigError`."""
    if task is not None:
        names, by = (
            tuple(field.name for field in fields(DataConfig) if field.name != "cache"),
            f"the task {task} gives the prompts, and {by}",
        )
    for name in names:
        if getattr(config, name) != getattr(DataConfig, name):
            raise ConfigError(f"rows.{name} is {getattr(config, name)!r}, but {by} does not read it. Leave it out.")


def prompts_to_ask(rows: Scan, chat: Chat, config: DataConfig, *, longest: int | None = None) -> Sides[Asked]:
    """One prompt a row. What stands before the last answer is asked; that answer, or the column `reference`, is what is right.

    A row of prompts alone has no reference: its rewards must do without. Other columns go to rewards by their names. A prompt of more
    than `longest` tokens is refused.
    """
    return _sides(rows, config, lambda record: _asked(record, chat, config, longest))


def pairs_to_prefer(rows: Scan, chat: Chat, config: DataConfig) -> Sides[Example]:
    """One example of two rows a pair, the chosen answer first."""

    def made(record: Record) -> Example | Refusal:
        if isinstance(record, Preference):
            return preference_example(chat, record)
        return Refusal(record.source, "no pair: it has no chosen and rejected answer", "give rows of pairs, or name a column of --votes")

    return _sides(rows, config, made)


def votes_to_learn(rows: Scan, chat: Chat, config: DataConfig, column: str) -> Sides[tuple[Example, bool]]:
    """One answer with its vote a row, as `column` says: true or false, 1 or 0, "good" or "bad" and the like."""

    def made(record: Record) -> tuple[Example, bool] | Refusal:
        if not isinstance(record, Conversation):
            return Refusal(record.source, "no single answer with a vote", "give rows of a prompt, a completion and a vote")
        if column not in record.meta:
            return Refusal(record.source, f"no column `{column}`: it has {sorted(record.meta)}", "name the column of --votes")
        good = vote_of(record.meta[column])
        if good is None:
            return Refusal(record.source, f"`{column}` is {record.meta[column]!r}, which is no vote", "give true or false")
        return chat.example(record, last_turn_only=True), good

    return _sides(rows, config, made)


_VOTES = {"true": True, "1": True, "good": True, "yes": True, "up": True, "+": True, "👍": True}
_VOTES |= {"false": False, "0": False, "bad": False, "no": False, "down": False, "-": False, "👎": False, "-1": False}


def vote_of(value: Any) -> bool | None:
    """What a cell of a file votes; None where it is no vote."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _VOTES.get(str(value).strip().casefold())


def _asked(record: Record, chat: Chat, config: DataConfig, longest: int | None) -> Asked | Refusal:
    if not isinstance(record, Conversation):
        return Refusal(record.source, "nothing to ask: no conversation and no prompt", "give rows with a prompt")
    messages, meta = record.messages, record.meta
    answered = messages[-1].role == "assistant"
    if config.reference is not None and config.reference not in meta:
        return Refusal(
            record.source, f"no column `{config.reference}` to compare with: it has {sorted(meta)}", "name the column of --reference"
        )
    right = meta[config.reference] if config.reference is not None else messages[-1].content if answered else None
    asked = replace(record, messages=messages[:-1] if answered else messages)
    if not asked.messages:
        return Refusal(record.source, "nothing stands before the answer", "give the question too")
    prompt = chat.prompt(asked.messages, asked.tools, asked.template_arguments, where=record.where)
    if chat.context_length is not None and len(prompt.ids) >= chat.context_length:
        reason = f"the prompt has {len(prompt.ids)} tokens, and the model's context holds {chat.context_length}, the answer included"
        return Refusal(record.source, reason, "shorten it")
    if longest is not None and len(prompt.ids) > longest:
        return Refusal(record.source, f"the prompt has {len(prompt.ids)} tokens, and at most {longest} are wanted", "shorten it")
    return Asked(Item(asked, right, meta=dict(meta)), prompt)


def _sides(rows: Scan, config: DataConfig, made: Callable[[Record], T | Refusal]) -> Sides[T]:
    """Make each row, refuse with its reason what cannot be made, hold some out, and account for all."""
    ledger = Ledger(rows.total, rows.left_out)
    kept: list[T] = []
    records: list[Conversation | Document] = []
    for form, source, value in rows.recipe.rows():
        record = rows.recipe.record(form, source, value, Notes())
        found: T | Refusal
        if isinstance(record, Refusal):
            found = record
        else:
            try:
                found = made(record)
            except (DataError, TemplateError) as error:
                found = refusal_of(record, str(error))  # type: ignore[arg-type]
        if isinstance(found, Refusal):
            ledger.refuse(found)
        else:
            assert not isinstance(record, Refusal), "a refused row makes nothing"
            kept.append(found)
            records.append(_split_on(record))
    ledger.check(config.max_refused)
    wanted = 0
    if config.held_out:
        wanted = max(1, min(MOST_HELD_OUT, round(config.held_out * len(kept)))) if config.held_out < 1 else int(config.held_out)
    if kept and wanted >= len(kept):
        raise DataError(
            f"{wanted} rows should be held out, and there are only {len(kept)}. Add rows, or lower --held-out; 0 holds none out."
        )
    train, held = list(range(len(kept))), list[int]()
    if wanted:
        train, held = split(records, held_out=wanted, seed=config.split_seed, cluster=config.cluster)
    for index in train:
        ledger.train(records[index].source)
    for index in held:
        ledger.hold_out(records[index].source)
    ledger.assert_whole()
    return Sides([kept[index] for index in train], [kept[index] for index in held], ledger, rows.lines_for_people())


def _split_on(record: Record) -> Conversation | Document:
    """What decides on which side a row falls: pairs with one prompt belong together."""
    if isinstance(record, Preference):
        return Conversation(record.prompt, record.tools, record.template_arguments, record.meta, record.source)
    return record
