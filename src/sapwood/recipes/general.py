"""A small set of everyday questions with answers, of our own writing: did training hurt what it was not about?

Only bits per token are measured on it. It is a smoke alarm for forgetting, not a benchmark. The token that ends the turn
does not count: when an answer ends is a habit that any tuning on short answers changes (5.4 to 0.5 bits in the quick start),
and counted, it would make a model that forgot look better.
"""

from __future__ import annotations

from importlib.resources import files

import orjson

from sapwood.chat import Chat
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Example, Message, Row


def general_examples(chat: Chat) -> list[Example]:
    """The set, rendered by the model's own template; questions that a template cannot express are left out."""
    lines = files("sapwood.recipes").joinpath("general.jsonl").read_bytes().splitlines()
    examples = []
    for line in lines:
        row = orjson.loads(line)
        turns = (Message("user", row["question"]), Message("assistant", row["answer"]))
        try:
            example = chat.example(Conversation(turns))
        except (DataError, TemplateError):
            continue
        examples.append(Example(tuple(_without_end(row) for row in example.rows), example.source, example.meta))
    return examples


def _without_end(row: Row) -> Row:
    weights_T = row.weights_T.copy()
    weights_T[-1] = 0
    return Row(row.prompt_T, row.completion_T, weights_T)
