"""What may be wrong with one row that can be trained: each check is a generator of `RowNote`s.

In: a chat, a conversation, its trained turns. Out: notes with a stable kind, a sentence, and, by kind, the next step.
None of them stands in the way of training; what does is refused by `Chat.turns` before. Left out on purpose: taste.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sapwood.chat.chat import Chat
from sapwood.chat.roundtrip import compare
from sapwood.chat.trained import Turn
from sapwood.chat.turns import taken_apart
from sapwood.chat.validation import check_conversation
from sapwood.records import Conversation, Message

Severity = Literal["ok", "note", "problem"]

_MOJIBAKE = re.compile("Ã[\u0080-\u00bf¡-¿]|â(?:€|\u0080)[\u0080-\u00ff™œžŸ˜]|Â[\u00a0-\u00bf]|ï»¿|\ufffd")
"""UTF-8 that was once read as Latin-1 or Windows-1252, and U+FFFD, which stands for bytes that were lost."""
_BRACKETS = re.compile(r"[<\[{◁]")
"""With one of these begins all that a parser takes for more than text: calls, thoughts, control tokens."""
NEAR_LIMIT = 0.9
"""From this share of the context on, a row leaves little room for an answer that is a bit longer."""


@dataclass(frozen=True, slots=True)
class RowKind:
    """What all rows with one kind of trouble share. `title` is said of a number of rows: "3 rows TITLE"."""

    severity: Severity
    title: str
    next_step: str


ROW_KINDS = {
    "refused": RowKind("problem", "cannot be trained", "Mend them, or let the doctor: --fix mended.jsonl"),
    "control-text": RowKind(
        "note",
        "hold control tokens as text",
        "Here they stay text and end no turn, in training and at inference. Servers that tokenise the rendered prompt as a whole (vLLM, "
        "llama.cpp, transformers) read them as control tokens: there such a text can end a turn or begin one. Clean user input there.",
    ),
    "tool-calls": RowKind("note", "hold tools, calls and results that do not fit each other", "The model learns them as they are."),
    "read-back": RowKind("note", "come back from the model's own form changed", "What is lost there, a server's client never sees."),
    "tokenizer": RowKind("note", "hold an answer that the tokenizer does not give back unchanged", "Expect the model to blur these texts."),
    "duplicate": RowKind("note", "repeat an earlier row, word for word", "--fix mended.jsonl keeps the first of each."),
    "contradiction": RowKind("note", "answer a prompt otherwise than an earlier row does", "Keep one answer, if there is one right one."),
    "short-answer": RowKind("note", "train an answer that is far shorter than the others", "Look whether it was cut off."),
    "near-limit": RowKind("note", f"take over {NEAR_LIMIT:.0%} of the context", "Shorten them if answers may become longer."),
    "mojibake": RowKind("note", "hold letters that look like a wrong encoding", "Read the source again as UTF-8, and write the file anew."),
    "edges": RowKind("note", "train an answer with white space at its beginning or end", "The model learns to write it."),
    "empty-user": RowKind("note", "ask with an empty user turn", "Give the turn its text, or delete it."),
    "turn-order": RowKind("note", "have two turns of one speaker in a row", "Join them, unless it is meant."),
    "mixed-thought": RowKind("note", "have reasoning in some trained turns and none in others", "The model learns to guess which."),
    "arguments": RowKind("note", "need template arguments of their own", "Evaluate and serve with the same."),
}
"""Kinds in the order in which people see them."""


@dataclass(frozen=True, slots=True)
class RowNote:
    """One thing about one row. `kind` is a key of `ROW_KINDS`; `where` is file:line."""

    kind: str
    where: str
    sentence: str
    next_step: str = ""


def row_notes(chat: Chat, conversation: Conversation, turns: Sequence[Turn], limit: int | None) -> Iterator[RowNote]:
    """All that is worth knowing about a row that can be trained."""
    where = conversation.where
    protected = chat.protected(conversation)
    if protected:
        yield RowNote("control-text", where, f"{protected} control token{'s' * (protected != 1)} as text")
    longest = max(len(turn.prompt.ids) + len(turn.ids) for turn in turns)
    if limit is not None and longest > NEAR_LIMIT * limit:
        yield RowNote("near-limit", where, f"{longest:,} of {limit:,} tokens")
    yield from _texts(conversation)
    for turn in turns:
        if not _same_text(chat, turn):
            yield RowNote("tokenizer", where, f"message {turn.index + 1}: {quoted(turn.text)}")
            break
    mismatches = check_conversation(conversation.messages, conversation.tools)
    if mismatches:
        more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
        yield RowNote("tool-calls", where, f"{mismatches[0].kind}: {mismatches[0].sentence}{more}")
    for turn in turns:
        loss = _lost_on_the_way_back(chat, conversation.messages[turn.index], turn)
        if loss:
            yield RowNote("read-back", where, f"message {turn.index + 1}: {loss}")
            break
    added = {str(dict(turn.added_arguments)): turn for turn in turns if turn.added_arguments}
    for arguments, turn in added.items():
        yield RowNote("arguments", where, f"message {turn.index + 1}: {arguments}")


def _lost_on_the_way_back(chat: Chat, message: Message, turn: Turn) -> str:
    """What a reader of the turn, as generated, would get otherwise than the message has it; empty if nothing.

    A plain text without a bracket in it is what it is, and is not parsed: most turns are such. Ids of calls do not count: most
    templates write none, and servers make their own.
    """
    end = chat.tokens.token_of(turn.ids[-1]) or ""
    if turn.text == message.content + end and not (message.tool_calls or message.reasoning or _BRACKETS.search(message.content)):
        return ""
    losses = compare(message, chat.parse(turn.ids, turn.prompt).message)
    return next((f"{kind}: {sentence}" for kind, sentence in losses if not kind.startswith("call ids")), "")


def _texts(conversation: Conversation) -> Iterator[RowNote]:
    where, messages = conversation.where, conversation.messages
    broken = next(((i, found) for i, m in enumerate(messages) if (found := _MOJIBAKE.search(m.content))), None)
    if broken:
        text = messages[broken[0]].content
        around = text[max(0, broken[1].start() - 12) : broken[1].end() + 12]
        yield RowNote("mojibake", where, f"message {broken[0] + 1}: {quoted(around)}")
    trained = [(i, m) for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
    for index, message in trained:
        thought = taken_apart(message)
        answer = thought.answer.lstrip("\n") if thought.tag else thought.answer  # lines behind a thought are no slip
        if answer.strip() and answer != answer.strip():
            yield RowNote("edges", where, f"message {index + 1}: {quoted(answer)}")
            break
    empty = next((i for i, m in enumerate(messages) if m.role == "user" and not m.content.strip() and not m.media), None)
    if empty is not None:
        yield RowNote("empty-user", where, f"message {empty + 1} is empty")
    for index in range(1, len(messages)):
        role = messages[index].role
        if role == messages[index - 1].role and role in ("user", "assistant", "system"):
            yield RowNote("turn-order", where, f"messages {index} and {index + 1} are both by {role}")
            break
    thoughts = {bool(taken_apart(message).reasoning) for _, message in trained}
    if len(thoughts) == 2:
        yield RowNote("mixed-thought", where, f"{len(trained)} trained turns")


def features_of(conversation: Conversation) -> set[str]:
    """What of a template a conversation makes use of (see `doctor_rows.Survey.features`)."""
    messages = conversation.messages
    led = messages[0].role in ("system", "developer")
    found = {"system" if led else "no system"}
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        found.add("tools")
    if sum(message.role == "assistant" and message.weight > 0 for message in messages) > 1:
        found.add("turns")
    if any(taken_apart(message).reasoning for message in messages if message.role == "assistant"):
        found.add("reasoning")
    if any(message.content != message.content.strip() for message in messages):
        found.add("spaces")
    return found


def _same_text(chat: Chat, turn: Turn) -> bool:
    """Whether the ids give the text back, but for the space that a tokenizer with a dummy space hides at the front."""
    found = chat.decode(turn.ids)
    return found == turn.text or (chat.tokens.dummy_space and found == turn.text.removeprefix(" "))


def quoted(text: str, limit: int = 48) -> str:
    """A text on one line, cut for a sentence."""
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def agreeing(title: str, rows: int) -> str:
    """`rows hold …`, or `row holds …` for one."""
    if rows != 1:
        return f"rows {title}"
    verb, _, rest = title.partition(" ")
    one = {"have": "has", "cannot": "cannot"}.get(verb, f"{verb}s")
    return f"row {one} {rest}"
