"""Which column of a file is which field of a format: names, texts made from several columns, and which rows are read.

In: what a person writes, `prompt=question` or `"Title: {title}"`. Out: `Columns`, and `Only` for leaving rows out by name.
Left out on purpose: expressions. A text puts columns side by side, and `--only` compares for equality; all else is code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sapwood.data.refusal import Refused, kind_of
from sapwood.errors import ConfigError, DataError

_FIELD = re.compile(r"\{([^{}\"':]+)\}")
"""A column's name in braces. JSON's own braces hold quotes and colons, so they stay what they are."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text with columns in it: `"Title: {title}"`. One without any is the same in every row."""

    template: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns in it."""
        return tuple(dict.fromkeys(_FIELD.findall(self.template)))

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text of one row. Raises `Refused` where a column is missing, null, or holds a list or an object."""

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if row.get(name) is None:
                state = "is null" if name in row else "is missing"
                raise Refused(f"missing column: `{name}` {state}; `{self}` needs it", f"give the row a `{name}`, or delete it")
            return text_of(row[name], name)

        return _FIELD.sub(value, self.template)

    def __str__(self) -> str:
        short = self.template if len(self.template) <= 40 else self.template[:39] + "…"
        return short.replace("\n", "\\n")


Columns = Mapping[str, str | Text]
"""Field of the format → the file's own name for that column, or a text made from its columns."""


def text_of(value: Any, name: str) -> str:
    """A cell as text: numbers and true and false as JSON writes them. Raises `Refused` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    raise Refused(f"content is not text: `{name}` is {kind_of(value)}", "give text")


def _is_text(value: str) -> bool:
    """Whether a value given for a column is a text with columns in it, not a column's name."""
    return _FIELD.search(value) is not None


def columns_from(
    entries: Sequence[str], *, prompt: str | None = None, completion: str | None = None, system: str | None = None
) -> dict[str, str | Text]:
    """`["prompt=question", …]` as written on a command line → the `columns` of `read`.

    `prompt` and `completion` are a column's name or a text such as `"Title: {title}"`; in texts, `\\n` and `\\t` written out
    mean what they mean in code. `system` is a text, given to rows that have no system message. Raises `DataError`.
    """
    for entry in entries:
        if not all(entry.partition("=")):
            raise DataError(f"columns: {entry!r} is not FIELD=COLUMN. Write for example `prompt=question completion=answer`.")
    found: dict[str, str | Text] = {}
    for field, value in (entry.split("=", 1) for entry in entries):
        found[field] = Text(_unescaped(value)) if _is_text(value) else value
    for field, given in (("prompt", prompt), ("completion", completion), ("system", system)):
        if given is None:
            continue
        if field in found:
            raise DataError(f"columns: `{field}` is named twice, by --columns and by --{field}. Keep one of the two.")
        if not given.strip():
            raise DataError(f"{field} is empty. Give {'a text' if field == 'system' else 'a column name or a text with {columns}'}.")
        found[field] = Text(_unescaped(given)) if field == "system" or _is_text(given) else given
    return found


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def names_in(value: str | Text) -> tuple[str, ...]:
    """The file's columns that a value of `Columns` reads."""
    return value.columns if isinstance(value, Text) else (value,)


def quoted(value: str | Text) -> str:
    """A column's name or a text, as a message quotes it."""
    return f"`{value}`"


@dataclass(frozen=True, slots=True)
class Only:
    """Rows to read: for each column the values of which one must be there. An empty one keeps all."""

    wanted: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Only:
        """`["lang=de", "lang=en", "split=train"]`: one of the values of each column. Raises `ConfigError`."""
        wanted: dict[str, frozenset[str]] = {}
        for entry in entries:
            column, found, value = entry.partition("=")
            if not column or not found:
                raise ConfigError(f"only: {entry!r} is not COLUMN=VALUE. Write for example `--only lang=de lang=en`.")
            wanted[column] = wanted.get(column, frozenset()) | {value}
        return cls(wanted)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is kept. Numbers, true, false and null compare as JSON writes them; a missing column is null."""
        return all(_written(row.get(column)) in values for column, values in self.wanted.items())

    def __str__(self) -> str:
        return " ".join(f"{column}={value}" for column, values in self.wanted.items() for value in sorted(values))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
