"""A small set of everyday questions with answers, of our own writing: did training hurt what it was not about?

Only bits per token are measured on it. It is a smoke alarm for forgetting, not a benchmark.
"""

from __future__ import annotations

from importlib.resources import files

import orjson

from sapwood.chat import Chat
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Example, Message


def general_examples(chat: Chat) -> list[Example]:
    """The set, rendered by the model's own template; questions that a template cannot express are left out."""
    lines = files("sapwood.recipes").joinpath("general.jsonl").read_bytes().splitlines()
    examples = []
    for line in lines:
        row = orjson.loads(line)
        turns = (Message("user", row["question"]), Message("assistant", row["answer"]))
        try:
            examples.append(chat.example(Conversation(turns)))
        except (DataError, TemplateError):
            continue
    return examples
