"""The row formats: which columns each has, how a file's format is found, and how a row becomes a record.

The format is found from all rows of a file, not from the first. The two weak formats, `prompts` and `text`, are taken
only where no row has the columns of another; and a file of texts with what looks like labels is asked about, not guessed.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sapwood.config import did_you_mean
from sapwood.data.columns import Columns, Text, columns_from, names_in, quoted
from sapwood.data.converting import Names, alpaca, answered_twice, list_of_messages, prompt_and_completion, prompt_turns, value_of
from sapwood.data.media import ANY_COLUMN as MEDIA_COLUMNS
from sapwood.data.media import with_media
from sapwood.data.messages import Notes, check_turns, note_calls, read_template_arguments, read_tools
from sapwood.data.refusal import Refused, kind_of
from sapwood.data.tokenised import MASKS, tokenised
from sapwood.errors import DataError
from sapwood.records import Conversation, Document, Message, Preference, Record, Source

Format = Literal[
    "messages",
    "sharegpt",
    "prompt-completion",
    "preference",
    "alpaca",
    "question-answer",
    "input-output",
    "input-ideal",
    "query-response",
    "instruction-response",
    "prompt-response",
    "problem-solution",
    "question-response",
    "tokens",
    "prompts",
    "text",
]
FORMATS: tuple[Format, ...] = get_args(Format)
"""In order of precedence, for files whose rows have the columns of several."""

PAIRS: dict[Format, tuple[str, str]] = {
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "input-output": ("input", "output"),
    "input-ideal": ("input", "ideal"),
    "query-response": ("query", "response"),
    "instruction-response": ("instruction", "response"),
    "prompt-response": ("prompt", "response"),
    "problem-solution": ("problem", "solution"),
    "question-response": ("question", "response"),
}
"""Formats of two columns, of which the second answers the first."""
REQUIRED: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
    "alpaca": ("instruction", "output"),
    **PAIRS,
    "tokens": ("input_ids",),
    "prompts": ("prompt",),
    "text": ("text",),
}
OPTIONAL: dict[Format, tuple[str, ...]] = {
    "sharegpt": ("system",),
    "preference": ("prompt",),
    "alpaca": ("input", "system", "history"),
    "tokens": (*MASKS, "attention_mask"),
}
WEAK: tuple[Format, ...] = ("prompts", "text")
ANYWHERE = ("tools", "chat_template_kwargs", "template_arguments", *MEDIA_COLUMNS)
LABELS = ("label", "labels", "category", "class", "target", "sentiment", "intent", "topic", "summary", "translation", "answer", "output")
"""Columns beside `text` that look like what a model should answer."""
CLEAR_MAJORITY = 0.95
"""From this share of rows on, a row without the format's columns is a broken row, not a sign of another format."""


def column(columns: Columns, name: str) -> tuple[str, ...]:
    """The file's columns that a field of a format reads."""
    return names_in(columns.get(name, name))


def fitting(row: Mapping[str, Any], columns: Columns) -> list[Format]:
    """The formats whose columns the row has; null columns, and then weak formats, count only where nothing better is there."""

    def found(formats: Sequence[Format], *, filled: bool) -> list[Format]:
        return [
            form
            for form in formats
            if all(row.get(name) is not None if filled else name in row for field in REQUIRED[form] for name in column(columns, field))
        ]

    return found(_STRONG, filled=True) or found(_STRONG, filled=False) or found(WEAK, filled=True) or found(WEAK, filled=False)


_STRONG = tuple(form for form in FORMATS if form not in WEAK)


@dataclass(slots=True)
class Tally:
    """What the rows of one file look like; feed every row that is an object, then ask for the format."""

    file: str
    columns: Columns
    rows: int = 0
    counts: Counter[Format] = field(default_factory=Counter)
    firsts: dict[Format, Source] = field(default_factory=dict)
    shapes: Counter[tuple[Format, ...]] = field(default_factory=Counter)
    names: dict[str, None] = field(default_factory=dict)
    """Every column of the file, in the order in which they were met."""
    letters: Counter[str] = field(default_factory=Counter)
    """Letters in the texts of each column, over the rows without a format."""
    first_without: tuple[Source, list[str]] | None = None
    wrapped: str | None = None
    """The column of a row without a format that holds a list of objects: perhaps the rows themselves."""
    _kinds: dict[tuple[Any, ...], list[Format]] = field(default_factory=dict)

    def add(self, source: Source, row: Mapping[str, Any]) -> None:
        """Count one row."""
        kind = tuple((name, value is not None) for name, value in row.items())
        formats = self._kinds.get(kind)
        if formats is None:
            formats = fitting(row, self.columns)
            self.names.update(dict.fromkeys(row))
            if len(self._kinds) < 10_000:  # rows of a file have few kinds; rows that are all of their own kind need no memory
                self._kinds[kind] = formats
        self.rows += 1
        self.shapes[tuple(formats)] += 1
        for found in formats:
            self.counts[found] += 1
            self.firsts.setdefault(found, source)
        if not formats:
            self.first_without = self.first_without or (source, list(row))
            self.wrapped = next((name for name, value in row.items() if isinstance(value, list) and dict in map(type, value)), None)
            self.letters.update({name: len(value) for name, value in row.items() if isinstance(value, str)})

    def decide(self) -> Format:
        """The one format of the file. Raises `DataError` where the rows have two, or none clearly."""
        strong = [form for form in _STRONG if self.counts[form]]
        best = max(strong or WEAK, key=lambda form: (self.counts[form], -FORMATS.index(form)))
        other = sum(count for shape, count in self.shapes.items() if shape and best not in shape and shape[0] not in WEAK)
        weak = sum(count for shape, count in self.shapes.items() if shape and best not in shape and shape[0] in WEAK)
        clear = self.counts[best] >= CLEAR_MAJORITY * self.rows > 0
        if other or (weak and not clear):
            raise DataError(self._mixed(best))
        if not clear:
            raise DataError(self._unknown(best))
        if best == "text" and (labels := [name for name in LABELS if name in self.names]):
            raise DataError(
                f"{self.file}: texts with a column `{labels[0]}`. If that is what the model should answer to `text`, pass --prompt text "
                f"--completion {labels[0]}; to go on training on the texts alone, pass --format text."
            )
        return best

    def _unknown(self, best: Format) -> str:
        assert self.first_without is not None
        source, names = self.first_without
        known = [form for form in FORMATS if form not in PAIRS]
        pairs = ", ".join("/".join(pair) for pair in PAIRS.values())
        longest = dict(self.letters.most_common(2)) if len(self.letters) > 1 else ("text", "category")
        prompt, completion = (shlex.quote(name) for name in sorted(longest, key=[*names, *longest].index))
        begin = (
            f"{self.file}: {self.shapes[()]} of {self.rows} rows have the columns of no known format; the first is {source}, with "
            f"{', '.join(names[:12]) or 'no columns'}."
        )
        if log := next((sentence for columns, sentence in _LOGS.items() if columns <= set(names)), ""):
            return f"{begin} {log}"
        if self.rows == 1 and self.wrapped is not None:
            file, key = shlex.quote(self.file), shlex.quote(f'.["{self.wrapped}"]')
            return f"{begin} If the list in `{self.wrapped}` holds the rows, write that list alone: `jq {key} {file} > rows.json`."
        return (
            f"{begin}{_hint(names)} Known: "
            + "; ".join(f"{form} ({', '.join(REQUIRED[form])})" for form in known)
            + f"; and the pairs {pairs}. Name the file's own columns, such as --prompt {prompt} --completion {completion}"
            + (f", or pass --format {best} to have these rows refused one by one." if self.counts[best] else ".")
        )

    def _mixed(self, best: Format) -> str:
        kinds = [form for form in FORMATS if any(form in shape and (form == best or best not in shape) for shape in self.shapes)]
        found = "; ".join(f"{self.counts[form]} rows of {form} (first: {self.firsts[form]})" for form in kinds)
        return (
            f"{self.file}: two formats in one file: {found}. Split the file into one for each format, "
            f"or pass --format {best} to have the other rows refused one by one."
        )

    def sentence(self, chosen: Format, given: bool) -> str:
        """What was decided, for a person: the format, why, what is read as what, and which columns only travel along."""
        how = "as asked" if given else "found from the columns"
        own = REQUIRED[chosen] + OPTIONAL.get(chosen, ())
        also = [form for form in _STRONG if form != chosen and self.counts[form] and not set(REQUIRED[form]) <= set(own)]
        more = f" {self.counts[also[0]]} rows would also fit {also[0]}; pass --format to choose it." if also and not given else ""
        read = {name for field in (*own, *ANYWHERE, *self.columns) for name in column(self.columns, field)}
        left = [name for name in self.names if name not in read]
        rest = f" Kept beside them, not sent to the model: {', '.join(left[:8])}{', …' if len(left) > 8 else ''}." if left else ""
        meaning = _MEANINGS.get(chosen, "")
        if chosen in PAIRS:
            prompt, completion = (self.columns.get(field, field) for field in PAIRS[chosen])
            meaning = f": {quoted(completion)} answers {quoted(prompt)}"
        return f"{self.file}: read as {chosen} ({how}){meaning}; {self.counts[chosen]} of {self.rows} rows have its columns.{more}{rest}"


_JOIN = "Join the two by `custom_id` into rows of `messages`; docs/data.md has the lines that do it."
_LOGS = {
    frozenset({"custom_id", "response"}): f"This is what a batch job gave back: answers, whose questions stand in the job's input. {_JOIN}",
    frozenset({"custom_id", "body"}): f"This is the input of a batch job: questions, whose answers stand in the job's output. {_JOIN}",
}
"""Columns of files that others know well, and that are no rows to train on as they are."""
_MEANINGS: dict[Format, str] = {
    "prompts": ": questions without answers",
    "text": ": whole texts to go on training on, without questions and answers",
    "preference": ": pairs of answers, of which one is preferred",
    "tokens": ": token ids as they are, which no template touches",
}


def _hint(names: Sequence[str]) -> str:
    wanted = [name for form in FORMATS for name in REQUIRED[form]]
    return next((hint for name in names if name not in wanted and (hint := did_you_mean(name, wanted))), "")


def check_columns(columns: Columns, format: Format | None) -> None:  # noqa: A002 - the word that users know
    """Raise `DataError` for a field that the format (or, if none is given, every format) lacks."""
    formats = [format] if format else list(FORMATS)
    known = sorted({name for form in formats for name in REQUIRED[form] + OPTIONAL.get(form, ())} | {*ANYWHERE, "system"})
    for name in columns:
        if name not in known:
            raise DataError(f"columns: unknown field {name!r}.{did_you_mean(name, known)} Known here: {', '.join(known)}.")


def asked_format(format: Format | None, columns: Columns) -> Format | None:  # noqa: A002 - the word that users know
    """The format that was asked for: outright, or by naming what is the prompt and what is the completion."""
    return format or ("prompt-completion" if {"prompt", "completion"} <= columns.keys() else None)


def check_imitated(formats: Mapping[str, Format]) -> None:
    """Raise `DataError` for a file whose rows hold nothing to imitate as they are: preferences, and prompts without answers."""
    for file, form in formats.items():
        if form == "preference":
            raise DataError(
                f"{file}: pairs of a chosen and a rejected answer, which are not one answer to imitate. To train on the chosen ones, pass "
                "--prompt prompt --completion chosen; where `chosen` is a whole conversation, --format messages --columns messages=chosen. "
                "To learn from what was preferred: sapwood dpo."
            )
        if form == "prompts":
            raise DataError(
                f"{file}: prompts without answers, so there is nothing to imitate or to compare with. Name the column that answers, with "
                "--prompt prompt --completion COLUMN; to evaluate on them, name the one that holds what is right, with --reference COLUMN."
            )


def to_record(row: Mapping[str, Any], form: Format, columns: Columns, source: Source, notes: Notes, *, allow_urls: bool = False) -> Record:
    """One row as a conversation, document or preference. Raises `Refused`. `allow_urls` lets media be fetched."""
    if form == "text":
        return _document(row, columns, source)
    if form == "tokens":
        names = _names(form, columns)
        return tokenised(row, {field: str(name) for field, name in names.items()}, _rest(row, names), source)
    if form == "preference":
        return _preference(row, columns, source, notes)
    return to_conversation(row, form, columns, source, notes, allow_urls=allow_urls)


def to_conversation(
    row: Mapping[str, Any], form: Format, columns: Columns, source: Source, notes: Notes, *, allow_urls: bool = False
) -> Conversation:
    """One row as a conversation; columns that the format does not read become `meta`. Raises `Refused`.

    `prompts` gives conversations that nothing answers; `text` and `preference` are no conversations: see `to_record`.
    """
    names = _names(form, columns)
    messages = _with_system(_turns(row, form, names, notes), row, names)
    media = {name: row.get(str(names[name])) for name in MEDIA_COLUMNS}
    messages = with_media(messages, media, source, notes, allow_urls=allow_urls)
    if form == "prompts":
        if any(message.role == "assistant" and not message.content.strip() and not message.tool_calls for message in messages):
            raise Refused("empty completion: an assistant turn of the prompt has no content", "write it, or delete the row")
    else:
        check_turns(messages, notes)
    tools, arguments = _tools_and_arguments(row, names)
    if tools or any(message.tool_calls or message.role == "tool" for message in messages):
        note_calls(messages, tools, notes)
    return Conversation(tuple(messages), tools, arguments, meta=_rest(row, names), source=source)


def _document(row: Mapping[str, Any], columns: Columns, source: Source) -> Document:
    names = _names("text", columns)
    text = value_of(row, names["text"])
    if not isinstance(text, str):
        raise Refused(f"content is not text: `{names['text']}` is {kind_of(text)}", "give text")
    if not text.strip():
        raise Refused(f"empty text: `{names['text']}` holds nothing but white space", "delete the row")
    return Document(text, _rest(row, names), source)


def _preference(row: Mapping[str, Any], columns: Columns, source: Source, notes: Notes) -> Preference:
    names = _names("preference", columns)
    prompt, chosen, rejected = answered_twice(row, names, notes)
    if any(row.get(str(names[name])) for name in MEDIA_COLUMNS) or any(message.media for message in (*prompt, *chosen, *rejected)):
        raise Refused("unsupported part: a preference with media", "preferences of images and sounds are not supported yet; remove the row")
    tools, arguments = _tools_and_arguments(row, names)
    before = tuple(_with_system(prompt, row, names))
    return Preference(before, tuple(chosen), tuple(rejected), tools, arguments, _rest(row, names), source)


def _names(form: Format, columns: Columns) -> Names:
    """Field of the format → the column or text that it is read from."""
    fields = REQUIRED[form] + OPTIONAL.get(form, ()) + ANYWHERE
    names = {name: columns.get(name, name) for name in fields}
    if "system" in columns:
        names["system"] = columns["system"]  # asked for by name: every format then reads it
    return names


def _turns(row: Mapping[str, Any], form: Format, names: Names, notes: Notes) -> list[Message]:
    if form in PAIRS:
        prompt, completion = PAIRS[form]
        return prompt_and_completion(row, names[prompt], names[completion], notes)
    if form == "prompts":
        return prompt_turns(row, names["prompt"], notes)
    if form == "alpaca":
        for name in REQUIRED[form]:
            value_of(row, names[name])
        return alpaca(row, names)
    return list_of_messages(row, names["messages" if form == "messages" else "conversations"], notes)


def _tools_and_arguments(row: Mapping[str, Any], names: Names) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    given = [key for key in ("chat_template_kwargs", "template_arguments") if row.get(str(names[key]))]
    if len(given) > 1:
        raise Refused("broken template arguments: both `chat_template_kwargs` and `template_arguments` are given", "keep one of the two")
    arguments = read_template_arguments(row[str(names[given[0]])], given[0]) if given else {}
    return read_tools(row.get(str(names["tools"]))), arguments


def _rest(row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The columns that the format does not read. Those inside a text made from columns stay: they are data of their own."""
    used = {name for name in names.values() if isinstance(name, str)}
    return {key: value for key, value in row.items() if key not in used}


def _with_system(messages: list[Message], row: Mapping[str, Any], names: Names) -> list[Message]:
    name = names.get("system")
    if isinstance(name, Text):  # a text for the rows that have none of their own
        return messages if messages and messages[0].role in ("system", "developer") else [Message("system", name.fill(row)), *messages]
    system = row.get(name) if name is not None else None
    if not system:
        return messages
    if not isinstance(system, str):
        raise Refused(f"content is not text: `{name}` is {kind_of(system)}", "give the system message as text")
    if messages and messages[0].role == "system":
        raise Refused(f"two system messages: one in `{name}`, one in the first turn", "keep one of the two")
    return [Message("system", system), *messages]


__all__ = ["FORMATS", "Columns", "Format", "Tally", "asked_format", "check_columns", "columns_from", "to_conversation", "to_record"]
