"""The part of Go's text/template that Ollama's templates need here, read and rendered, so that a template can be checked.

In: a template and values. Out: text. Understood: text, comments, trim marks, `if … else if … else … end`, `range $i, $x := …`, `$x := …`,
fields, and the functions eq, ne, and, or, not, len and slice; all as https://pkg.go.dev/text/template defines them.
Anything else raises `TemplateError`: nothing is guessed. `render_as_ollama` gives a template what Ollama gives it
(`Template.Execute` and `collate` in its template/template.go): messages of one role that follow one another are joined.
Left out on purpose: everything that the templates made here do not use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sapwood.errors import TemplateError
from sapwood.records import Message

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_QUOTED_BRACES = re.compile(r'\{\{ "\{\{" \}\}')
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\$?[A-Za-z_]\w*(?:\.\w+)*|\$(?:\.\w+)*|(?:\.\w+)+|\.|-?\d+|:=|[(),|])')

Values = dict[str, Any]


@dataclass
class _Block:
    """`if` or `range`, or the whole: branches of (condition, nodes); a condition of None always holds."""

    kind: str
    branches: list[tuple[list[str] | None, list[Any]]] = field(default_factory=list)


def parse(source: str) -> list[Any]:
    """A template as nodes: texts, actions as lists of words, and blocks. Raises `TemplateError`."""
    stack = [_Block("", [(None, [])])]
    for piece in _pieces(source):
        if isinstance(piece, str):
            stack[-1].branches[-1][1].append(piece)
            continue
        words = piece
        head = words[0] if words else ""
        if head in ("if", "range"):
            block = _Block(head, [(words[1:], [])])
            stack[-1].branches[-1][1].append(block)
            stack.append(block)
        elif head == "else":
            if len(stack) == 1 or (words[1:2] not in ([], ["if"])):
                raise TemplateError(f"The Go template has an `else` that is not understood: {' '.join(words)}.")
            stack[-1].branches.append((words[2:] if words[1:] else None, []))
        elif head == "end":
            if len(stack) == 1:
                raise TemplateError("The Go template has an `end` too many.")
            stack.pop()
        else:
            stack[-1].branches[-1][1].append(words)
    if len(stack) > 1:
        raise TemplateError(f"The Go template lacks an `end` for {stack[-1].kind}.")
    return stack[0].branches[0][1]


def _pieces(source: str) -> list[str | list[str]]:
    """Texts, with white space taken away where a trim mark says so, and the words of each action."""
    pieces: list[str | list[str]] = []
    begin, trim = 0, False
    for match in _ACTION.finditer(source):
        text = source[begin : match.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        pieces.append(text.rstrip(" \t\r\n") if match[1] else text)
        begin, trim = match.end(), bool(match[3])
        if not match[2].strip().startswith("/*"):
            pieces.append(_words(match[2]))
    text = source[begin:]
    pieces.append(text.lstrip(" \t\r\n") if trim else text)
    return [piece for piece in pieces if piece != ""]


def _words(action: str) -> list[str]:
    words, at = [], 0
    while action[at:].strip():
        match = _WORD.match(action, at)
        if match is None or match[1] == "|":
            raise TemplateError(f"The Go template holds {action.strip()!r}, which Sapwood does not understand.")
        words.append(match[1])
        at = match.end()
    return words


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that Go would render. Raises `TemplateError` for what is not understood."""
    out: list[str] = []
    _run(parse(source), {"$": dict(values), ".": dict(values)}, out)
    return "".join(out)


def _run(nodes: Sequence[Any], scope: Values, out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, _Block):
            _block(node, scope, out)
        elif len(node) > 2 and node[1] == ":=":
            scope[node[0]] = _value(node[2:], scope)
        else:
            out.append(_shown(_value(node, scope)))


def _block(block: _Block, scope: Values, out: list[str]) -> None:
    if block.kind == "range":
        (words, nodes), *others = block.branches
        names, words = _range_names(words or [])
        found = _value(words, scope)
        for number, entry in enumerate(found):
            inner = {**scope, ".": entry, **dict(zip(names, (number, entry), strict=False))}
            _run(nodes, inner, out)
        if not found and others:
            _run(others[0][1], dict(scope), out)
        return
    for words, nodes in block.branches:
        if words is None or _value(words, scope):
            _run(nodes, dict(scope), out)
            return


def _range_names(words: list[str]) -> tuple[list[str], list[str]]:
    if ":=" not in words:
        return [], words
    place = words.index(":=")
    names = [word for word in words[:place] if word != ","]
    if len(names) != 2:
        raise TemplateError("The Go template ranges with other than two variables, which Sapwood does not understand.")
    return names, words[place + 1 :]


def _value(words: list[str], scope: Values) -> Any:
    """What a pipeline of one command gives."""
    terms, at = [], 0
    while at < len(words):
        if words[at] == "(":
            depth, end = 1, at + 1
            while depth:
                if end == len(words):
                    raise TemplateError(f"The Go template has a bracket that is not closed: {' '.join(words)}.")
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
            inner = words[at + 1 : end - 1]
            terms.append(lambda inner=inner: _value(inner, scope))
            at = end
        else:
            word = words[at]
            terms.append(lambda word=word: _term(word, scope))
            at += 1
    head = words[0] if words else ""
    if head in _FUNCTIONS:
        return _FUNCTIONS[head](*terms[1:])
    if len(terms) != 1:
        raise TemplateError(f"The Go template calls {' '.join(words)!r}, which Sapwood does not understand.")
    return terms[0]()


def _term(word: str, scope: Values) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.startswith("`"):
        return word[1:-1]
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    head, *path = word.split(".")
    name = head or "."
    if name not in scope:
        raise TemplateError(f"The Go template names {word!r}, which nothing defines.")
    found = scope[name]
    for part in filter(None, path):
        if not isinstance(found, Mapping):
            raise TemplateError(f"The Go template asks for {word!r} of something that has no fields.")
        found = found.get(part, "")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise TemplateError(f"The Go template writes out a {type(value).__name__}, which Sapwood does not understand.")


def _and(*terms: Callable[[], Any]) -> Any:
    value: Any = True
    for term in terms:
        value = term()
        if not value:
            break
    return value


def _or(*terms: Callable[[], Any]) -> Any:
    value: Any = False
    for term in terms:
        value = term()
        if value:
            break
    return value


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda first, *others: any(first() == other() for other in others),
    "ne": lambda first, other: first() != other(),
    "and": _and,
    "or": _or,
    "not": lambda term: not term(),
    "len": lambda term: len(term()),
    "slice": lambda term, *ends: term()[slice(*(ends[0](), *(end() for end in ends[1:])))] if ends[1:] else term()[ends[0]() :],
}


def render_as_ollama(source: str, messages: Sequence[Message]) -> str:
    """What Ollama would send for these messages: system messages gathered, neighbours of one role joined."""
    system = [message.content for message in messages if message.role == "system"]
    collated: list[dict[str, str]] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message.role and message.role != "tool":
            collated[-1]["Content"] += "\n\n" + message.content
        else:
            collated.append({"Role": message.role, "Content": message.content, "Thinking": message.reasoning or ""})
    return render(source, {"System": "\n\n".join(system), "Messages": collated, "Tools": [], "Response": ""})
