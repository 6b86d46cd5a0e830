"""Held-out conversations in, items out: what is asked, and the answer that was given there as the reference.

Left out on purpose: reading files (room `data`) and rendering (room `chat`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from sapwood.chat import call_text
from sapwood.chat.turns import taken_apart
from sapwood.errors import DataError
from sapwood.records import Conversation, Document, Item, Message

ANSWER = "answer"
"""Key of `Item.meta` under which the reference turn itself is kept, for few-shot examples and the free arms."""

STANDS_FOR = "stands_for"
"""Column of rows, and key of records: how many logged queries an item of a sample stands for (`sapwood items build` writes it)."""

COPIES = "copies"
"""Key of `Item.meta`: how many rows asked and expected the very same."""


def items_from(
    conversations: Iterable[Conversation | Document], *, cluster: str | None = "cluster", reference: str | None = None
) -> list[Item]:
    """One item for each conversation: its last assistant turn is the reference, what stands before it is asked.

    The reference is the turn's text without the thought before it, which no scorer reads, or its calls as `{"name", "arguments"}`
    (a list where there are several).
    `cluster` names the column of `meta` that says which rows belong together; rows without it, or all if None, stand alone.
    `reference` names a column that holds the scorer's reference instead (such as BFCL's possible answers); with it, a
    conversation without an answer to train is asked as a whole.
    Tags are those of the columns `tags` (a list) and `task`.
    Rows that ask and expect the very same become one item, and `meta["copies"]` says of how many.
    Documents ask nothing, so they are no items. Raises `DataError` naming the row where there is no assistant turn, nothing
    asked before it, or no such column.
    """
    items: dict[str, Item] = {}
    for conversation in conversations:
        if isinstance(conversation, Document):
            continue
        item = _item(conversation, cluster, reference)
        first = items.setdefault(item.id, item)
        if first is not item:
            items[item.id] = dataclasses.replace(first, meta={**first.meta, COPIES: first.meta[COPIES] + 1})
    return list(items.values())


def clusters_of(conversations: Sequence[Conversation | Document], *, cluster: str | None = "cluster") -> list[Hashable]:
    """The cluster of each conversation, by the column `cluster` of `meta`; one without it is its own, as all are if it is None."""
    groups = [None if cluster is None else conversation.meta.get(cluster) for conversation in conversations]
    return [("alone", place) if group is None else str(group) for place, group in enumerate(groups)]


def _item(conversation: Conversation, cluster: str | None, reference: str | None) -> Item:
    places = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    if reference is not None and reference in conversation.meta and not any(conversation.messages[place].weight for place in places):
        whole = conversation  # a question whose answer nobody wrote down, only what is right
        return Item(whole, whole.meta[reference], None if cluster is None else _group(whole, cluster), _tags(whole), {COPIES: 1})
    if not places or places[-1] == 0:
        raise DataError(
            f"{conversation.where}: nothing to ask: an item needs an assistant turn as its reference and a message before it. "
            "Leave the row out of the held-out part, or add the turns."
        )
    answer = conversation.messages[places[-1]]
    if reference is not None and reference not in conversation.meta:
        raise DataError(f"{conversation.where}: no column `{reference}` to take the reference from; it has {sorted(conversation.meta)}.")
    return Item(
        conversation=dataclasses.replace(conversation, messages=conversation.messages[: places[-1]]),
        reference=conversation.meta[reference] if reference is not None else _reference(answer),
        cluster=None if cluster is None else _group(conversation, cluster),
        tags=_tags(conversation),
        meta={ANSWER: answer, COPIES: 1},
    )


def _tags(conversation: Conversation) -> tuple[str, ...]:
    """Of the column `tags`, a list of texts, and of `task`, as `task:NAME`."""
    tags, task = conversation.meta.get("tags"), conversation.meta.get("task")
    found = [str(tag) for tag in tags] if isinstance(tags, list | tuple) else []
    return tuple(dict.fromkeys([*found, *([f"task:{task}"] if isinstance(task, str) and task else [])]))


def _group(conversation: Conversation, cluster: str) -> str | None:
    group = conversation.meta.get(cluster)
    return None if group is None else str(group)


def _reference(answer: Message) -> Any:
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in answer.tool_calls]
    if not calls:
        thought = taken_apart(answer)
        return thought.answer.strip() if thought.tag else answer.content
    return calls[0] if len(calls) == 1 else calls


def stands_for(item: Item) -> float | None:
    """How many logged queries the item stands for; None where nobody counted."""
    number = item.conversation.meta.get(STANDS_FOR)
    return float(number) if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < float("inf") else None


def answer_message(item: Item) -> Message:
    """The turn that the item's conversation held. Raises `DataError` for items made in another way without one."""
    answer = item.meta.get(ANSWER)
    if isinstance(answer, Message):
        return answer
    if isinstance(item.reference, str):
        return Message("assistant", item.reference)
    raise DataError(f"{item.conversation.where}: this item holds no answer to show as an example. Make items with `items_from`.")


def answer_text(item: Item) -> str:
    """The reference turn as a model would write it: its text, or its calls as JSON."""
    answer = answer_message(item)
    return call_text(answer.tool_calls) if answer.tool_calls else answer.content


def asked_text(item: Item) -> str:
    """Everything that is asked, as one text, for looking up similar rows."""
    return "\n".join(message.content for message in item.conversation.messages)


def spoken_by_users(item: Item) -> str:
    """What users say in it, as one text: what a system message says to all of them is no mark of one question."""
    return "\n".join(message.content for message in item.conversation.messages if message.role == "user")


def _with_addresses(message: Message) -> dict[str, Any]:
    """A message as records hold it: its media with their address, or, where that is the bytes themselves, their hash."""
    fields = message.for_template()
    if message.media:
        waiting = iter(message.media)
        fields["content"] = [part if part["type"] == "text" else {**part, "uri": next(waiting).address} for part in fields["content"]]
    return fields


def item_records(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Records of `items.jsonl`: {item, messages: [{role, content, …}], tools, template_arguments, reference, tags, cluster, source}."""
    return [
        {
            "item": item.id,
            "messages": [_with_addresses(message) for message in item.conversation.messages],
            "tools": list(item.conversation.tools),
            "template_arguments": dict(item.conversation.template_arguments),
            "reference": item.reference,
            "tags": list(item.tags),
            "cluster": item.cluster,
            "source": item.conversation.where,
            **({STANDS_FOR: number} if (number := stands_for(item)) is not None else {}),
        }
        for item in items
    ]
