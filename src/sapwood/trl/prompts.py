"""Rows of prompts as people hold them in code → what is asked, each accounted for.

In: a `datasets.Dataset`, a list of dictionaries or any iterable of them, with a column `prompt`. Out: prompts rendered once, with every
other column beside them for the rewards. A prompt that is a text is a user's question in the chat template.
Left out on purpose: prompts of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapwood.chat import Chat
from sapwood.errors import ConfigError, DataError
from sapwood.recipes import Screen
from sapwood.recipes.other_rows import Sides, prompts_to_ask, scan
from sapwood.recipes.prepare import DataConfig
from sapwood.train import Asked
from sapwood.trl.grpo_options import GRPOConfig
from sapwood.trl.rows import as_many_as_needed, listed, opened_rows, write_rows

COLUMNS = "columns"
"""Column of the written rows that holds those of the caller: none of them is taken for a part of the conversation."""
FOR_TEMPLATE = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Prompts:
    """Rows that were taken, and wait for a chat."""

    file: str
    conversational: bool
    """Whether prompts are lists of messages: so are completions then, as TRL has it."""
    columns: tuple[str, ...]
    """Of the first row, but for the prompt."""


def taken(dataset: Any, name: str, folder: Path, args: GRPOConfig, notes: list[str]) -> Prompts:
    """Write the rows down. Raises `ConfigError` for rows without a prompt, `DataError` naming a row."""
    if isinstance(dataset, str | Path):
        raise ConfigError(f"{name} is the file {dataset}. Load its rows, or use `sapwood grpo {dataset}`.")
    first, rows = opened_rows(dataset, name)
    if "prompt" not in first:
        old = next((column for column in ("question", "messages", "query", "instruction", "text") if column in first), next(iter(first)))
        raise ConfigError(
            f"{name} has no column `prompt`: it has {listed(first)}. Rename what is asked: dataset.rename_column({old!r}, 'prompt')."
        )
    conversational = not isinstance(first["prompt"], str)
    if name == "train_dataset":
        rows = as_many_as_needed(dataset, rows, args, max(1, args.answers // max(1, args.num_generations)), notes)
    file = folder / f"{name}.jsonl"
    wrapped = _wrapped(rows, name, conversational, dict(args.chat_template_kwargs or {}))
    write_rows(wrapped, file, name, None, nulls=hasattr(dataset, "features"), notes=notes)
    return Prompts(str(file), conversational, tuple(column for column in first if column != "prompt"))


def _wrapped(rows: Iterable[Mapping[str, Any]], name: str, conversational: bool, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        if isinstance(row.get("prompt"), str) == conversational:
            kinds = ("messages", "a text") if conversational else ("a text", "messages")
            raise DataError(f"{name}, row {number}: the prompt is not {kinds[0]}, as that of row 1 is. Give prompts of one kind.")
        own = {**arguments, **(row.get("chat_template_kwargs") or {})}
        beside = {"tools": row["tools"]} if row.get("tools") else {}
        yield {"prompt": row["prompt"], **beside, **({"chat_template_kwargs": own} if own else {}), COLUMNS: dict(row)}


def asked(prompts: Prompts, chat: Chat, args: GRPOConfig, screen: Screen) -> Sides[Asked]:
    """What is asked, and the ledger. Raises `DataError` and its kin with file:line, where a row of code is a line."""
    config = DataConfig(held_out=0, max_refused=args.max_refused)
    try:
        found = prompts_to_ask(scan([prompts.file], config, screen), chat, config, longest=args.max_prompt_length)
    except DataError as error:
        raise DataError(str(error).replace("pass --max-refused", "give max_refused in GRPOConfig:")) from None
    return replace(found, train=[_with_columns(one) for one in found.train])


def _with_columns(one: Asked) -> Asked:
    """The caller's own columns where rewards look for them; they belong to what is expected, so a resumed run must have the same."""
    columns = dict(one.item.meta[COLUMNS])
    return replace(one, item=replace(one.item, meta=columns, reference={name: columns[name] for name in columns if name != "prompt"}))
