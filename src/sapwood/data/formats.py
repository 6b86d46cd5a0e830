"""The four row formats: which columns each has, how a file's format is found, and how a row becomes a conversation.

The format is found from all rows of a file, not from the first. Left out on purpose: plain `text` columns (there is no
turn in them to train on) and preference pairs (another noun, read elsewhere).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sapwood.config import did_you_mean
from sapwood.data.messages import Notes, check_turns, note_unoffered, read_messages, read_template_arguments, read_tools
from sapwood.data.refusal import Refused, kind_of
from sapwood.errors import DataError
from sapwood.records import Conversation, Message, Source

Format = Literal["messages", "sharegpt", "prompt-completion", "alpaca"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""In order of precedence, for files whose rows have the columns of several."""

REQUIRED: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
OPTIONAL: dict[Format, tuple[str, ...]] = {
    "messages": (),
    "sharegpt": ("system",),
    "prompt-completion": (),
    "alpaca": ("input", "system", "history"),
}
ANYWHERE = ("tools", "chat_template_kwargs", "template_arguments")
_MEDIA_COLUMNS = ("images", "audios", "videos")
_PAIRS = (
    ("question", "answer"),
    ("input", "output"),
    ("input", "ideal"),
    ("query", "response"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("problem", "solution"),
    ("question", "response"),
)
CLEAR_MAJORITY = 0.95
"""From this share of rows on, a row without the format's columns is a broken row, not a sign of another format."""

Columns = Mapping[str, str]
"""Field of the format → the file's own name for that column."""


def columns_from(entries: Sequence[str]) -> dict[str, str]:
    """`["prompt=question", …]` as written on a command line → the `columns` of `read`. Raises `DataError`."""
    for entry in entries:
        if not all(entry.partition("=")):
            raise DataError(f"columns: {entry!r} is not FIELD=COLUMN. Write for example `prompt=question completion=answer`.")
    return {entry.partition("=")[0]: entry.partition("=")[2] for entry in entries}


def fitting(row: Mapping[str, Any], columns: Columns) -> list[Format]:
    """The formats whose columns the row has; a null column counts only where nothing better is there."""
    whole = [f for f in FORMATS if all(row.get(columns.get(name, name)) is not None for name in REQUIRED[f])]
    return whole or [f for f in FORMATS if all(columns.get(name, name) in row for name in REQUIRED[f])]


@dataclass(slots=True)
class Tally:
    """What the rows of one file look like; feed every row that is an object, then ask for the format."""

    file: str
    columns: Columns
    rows: int = 0
    counts: Counter[Format] = field(default_factory=Counter)
    firsts: dict[Format, Source] = field(default_factory=dict)
    shapes: Counter[tuple[Format, ...]] = field(default_factory=Counter)
    first_without: tuple[Source, list[str]] | None = None

    def add(self, source: Source, row: Mapping[str, Any]) -> None:
        """Count one row."""
        formats = fitting(row, self.columns)
        self.rows += 1
        self.shapes[tuple(formats)] += 1
        for found in formats:
            self.counts[found] += 1
            self.firsts.setdefault(found, source)
        if not formats and self.first_without is None:
            self.first_without = (source, list(row))

    def decide(self) -> Format:
        """The one format of the file. Raises `DataError` where the rows have two, or none clearly."""
        best = max(FORMATS, key=lambda f: (self.counts[f], -FORMATS.index(f)))
        without = self.shapes[()]
        other = sum(count for shape, count in self.shapes.items() if shape and best not in shape)
        if other:
            raise DataError(self._mixed(best))
        if not self.counts[best] or self.counts[best] < CLEAR_MAJORITY * self.rows:
            assert self.first_without is not None
            source, names = self.first_without
            raise DataError(
                f"{self.file}: {without} of {self.rows} rows have the columns of no known format; the first is {source}, with "
                f"{', '.join(names[:12]) or 'no columns'}.{_hint(names)} Known: "
                + "; ".join(f"{f} ({', '.join(REQUIRED[f])})" for f in FORMATS)
                + ". Name the file's own columns with --columns"
                + (f", or pass --format {best} to have these rows refused one by one." if self.counts[best] else ".")
            )
        return best

    def _mixed(self, best: Format) -> str:
        kinds = [f for f in FORMATS if any(f in shape and (f == best or best not in shape) for shape in self.shapes)]
        found = "; ".join(f"{self.counts[f]} rows of {f} (first: {self.firsts[f]})" for f in kinds)
        return (
            f"{self.file}: two formats in one file: {found}. Split the file into one for each format, "
            f"or pass --format {best} to have the other rows refused one by one."
        )

    def sentence(self, chosen: Format, given: bool) -> str:
        """What was decided, for a person."""
        how = "as asked" if given else "found from the columns"
        also = [f for f in FORMATS if f != chosen and self.counts[f]]
        more = f" {self.counts[also[0]]} rows would also fit {also[0]}; pass --format to choose it." if also and not given else ""
        return f"{self.file}: read as {chosen} ({how}); {self.counts[chosen]} of {self.rows} rows have its columns.{more}"


def _hint(names: Sequence[str]) -> str:
    if "chosen" in names and "rejected" in names:
        return " These look like preference pairs, which are not conversations to imitate."
    for prompt, completion in _PAIRS:
        if prompt in names and completion in names:
            return f" If {prompt!r} is answered by {completion!r}, pass --columns prompt={prompt} completion={completion}."
    wanted = [name for f in FORMATS for name in REQUIRED[f]]
    return next((hint for name in names if name not in wanted and (hint := did_you_mean(name, wanted))), "")


def check_columns(columns: Columns, format: Format | None) -> None:  # noqa: A002 - the word that users know
    """Raise `DataError` for a field that the format (or, if none is given, every format) lacks."""
    formats = [format] if format else list(FORMATS)
    known = sorted({name for f in formats for name in REQUIRED[f] + OPTIONAL[f]} | {*ANYWHERE, "system"})
    for name in columns:
        if name not in known:
            raise DataError(f"columns: unknown field {name!r}.{did_you_mean(name, known)} Known here: {', '.join(known)}.")


def to_conversation(row: Mapping[str, Any], form: Format, columns: Columns, source: Source, notes: Notes) -> Conversation:
    """One row as a conversation; columns that the format does not read become `meta`. Raises `Refused`."""
    names = {name: columns.get(name, name) for name in REQUIRED[form] + OPTIONAL[form] + ANYWHERE}
    if "system" in columns:
        names["system"] = columns["system"]  # asked for by name: every format then reads it
    for name in REQUIRED[form]:
        if row.get(names[name]) is None:
            state = "is null" if names[name] in row else "is missing"
            found = ", ".join(sorted(row)[:8]) or "no columns"
            raise Refused(f"missing column: `{names[name]}` {state}; found {found}", f"give the row a `{names[name]}`, or delete it")
    for name in _MEDIA_COLUMNS:
        if row.get(name):
            raise Refused(f"unsupported part: the row has `{name}`", f"`{name}` are not supported yet for this model; remove the row")
    messages = _with_system(_MESSAGES[form](row, names, notes), row, names)
    check_turns(messages, notes)
    arguments = [key for key in ("chat_template_kwargs", "template_arguments") if row.get(names[key])]
    if len(arguments) > 1:
        raise Refused("broken template arguments: both `chat_template_kwargs` and `template_arguments` are given", "keep one of the two")
    used = set(names.values())
    tools = read_tools(row.get(names["tools"]))
    if tools:
        note_unoffered(messages, tools, notes)
    return Conversation(
        messages=tuple(messages),
        tools=tools,
        template_arguments=read_template_arguments(row[names[arguments[0]]], arguments[0]) if arguments else {},
        meta={key: value for key, value in row.items() if key not in used},
        source=source,
    )


def _with_system(messages: list[Message], row: Mapping[str, Any], names: Mapping[str, str]) -> list[Message]:
    system = row.get(names["system"]) if "system" in names else None
    if not system:
        return messages
    if not isinstance(system, str):
        raise Refused(f"content is not text: `{names['system']}` is {kind_of(system)}", "give the system message as text")
    if messages and messages[0].role == "system":
        raise Refused(f"two system messages: one in `{names['system']}`, one in the first turn", "keep one of the two")
    return [Message("system", system), *messages]


def _list_of_messages(row: Mapping[str, Any], names: Mapping[str, str], notes: Notes) -> list[Message]:
    column = names.get("messages") or names["conversations"]
    return read_messages(row[column], notes, field=column)


def _prompt_completion(row: Mapping[str, Any], names: Mapping[str, str], notes: Notes) -> list[Message]:
    prompt, completion = row[names["prompt"]], row[names["completion"]]
    before = (
        [Message("user", prompt)]
        if isinstance(prompt, str)
        else read_messages(prompt, notes, field=names["prompt"], default_weight=0.0)  # what the prompt says is context
    )
    after = (
        [Message("assistant", completion)]
        if isinstance(completion, str)
        else read_messages(completion, notes, field=names["completion"], first=len(before) + 1)
    )
    return before + after


def _alpaca(row: Mapping[str, Any], names: Mapping[str, str], notes: Notes) -> list[Message]:
    texts = {name: row.get(names[name]) for name in ("instruction", "input", "output")}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise Refused(f"content is not text: `{names[name]}` is {kind_of(text)}", "give text")
    asked = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    history = row.get(names["history"]) or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise Refused(f"broken history: `{names['history']}` is not a list of [question, answer] texts", 'write [["…", "…"], …]')
    turns = [Message(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*turns, Message("user", asked), Message("assistant", texts["output"] or "")]


_MESSAGES = {"messages": _list_of_messages, "sharegpt": _list_of_messages, "prompt-completion": _prompt_completion, "alpaca": _alpaca}
