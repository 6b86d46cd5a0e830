"""An Ollama Modelfile, whose Go template is learned from the model's own renderings and checked against them.

In: a `Chat`, and prompts of its run. Out: the Modelfile's text, and sentences about what it cannot say. What stands before and
behind a message of each role, the text that leads, and what asks for an answer are read off probes; the template made of these
is rendered (`go_template`) for conversations of all shapes and for the run's own prompts, and compared letter by letter.
Where it differs, no TEMPLATE is written. A difference in the white space around contents alone, which some templates strip and Go's
language cannot, is told instead.
Left out on purpose: tools. Go writes JSON with other spaces and in another order than Jinja, so no template of Ollama offers tools as
the model was trained with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sapwood.chat import Chat
from sapwood.errors import DataError, TemplateError
from sapwood.export.go_template import render_as_ollama
from sapwood.records import Conversation, Message, Prompt

_SYSTEM, _USER, _ANSWER, _AGAIN = (f"probe {word} probe" for word in ("hazel", "rowan", "alder", "aspen"))
_CONTEXT = 8192
"""Ollama cuts a prompt at its own, shorter, context without a word; this is what the Modelfile asks for at most."""


@dataclass(frozen=True)
class Wrapping:
    """What a template writes around messages."""

    lead: str
    """In front of everything."""
    default: str
    """In front of the first message where there is no system message."""
    before: Mapping[str, str]
    """By role: what stands before a content."""
    behind: Mapping[str, str]
    ask: str
    """What asks for an answer."""
    inside: bool = False
    """Whether the system message stands inside the first user message: it is then written instead of what stands before that."""


def _learn_wrapping(chat: Chat, arguments: Mapping[str, Any], bos: str) -> Wrapping | None:
    """Read it off probes; None for a template of another shape. `bos` is taken off the front, where llama.cpp adds it."""
    user, answer, again = Message("user", _USER), Message("assistant", _ANSWER), Message("user", _AGAIN)
    alone = _prompt(chat, (user,), arguments, bos)
    talk = _prompt(chat, (user, answer, again), arguments, bos)
    ruled = _prompt(chat, (Message("system", _SYSTEM), user, answer, again), arguments, bos)
    if alone is None or talk is None or not _in_order(talk, (_USER, _ANSWER, _AGAIN)):
        return None
    start, tail = alone.split(_USER)
    between_ua, between_au = talk.split(_USER)[1].split(_ANSWER)[0], talk.split(_ANSWER)[1].split(_AGAIN)[0]
    behind_answer = chat.render(Conversation((user, answer), template_arguments=arguments)).split(_ANSWER)[-1]
    if not between_au.startswith(behind_answer):
        behind_answer = between_au[: len(between_au) - len(_common_end(start, between_au))]
    before_user = between_au[len(behind_answer) :]
    behind_user = chat.render(Conversation((user,), template_arguments=arguments)).split(_USER)[-1]
    if not (tail.startswith(behind_user) and between_ua.startswith(behind_user)):
        behind_user = _common_start(tail, between_ua)
    if not start.endswith(before_user):
        return None
    lead, default, inside = start[: len(start) - len(before_user)], "", False
    before = {"user": before_user, "assistant": between_ua[len(behind_user) :]}
    behind = {"user": behind_user, "assistant": behind_answer}
    if ruled is not None and _in_order(ruled, (_SYSTEM, _USER)):
        front, between = ruled.split(_SYSTEM)[0], ruled.split(_SYSTEM)[1].split(_USER)[0]
        lead, default = (lead, "") if front.startswith(lead) else ("", lead)
        before["system"] = front.removeprefix(lead)
        inside = not between.endswith(before_user)
        behind["system"] = between if inside else between[: len(between) - len(before_user)]
    return Wrapping(lead, default, before, behind, tail[len(behind_user) :], inside)


def go_template(found: Wrapping) -> str:
    """The template in Go's language."""
    roles = [role for role in ("system", "user", "assistant") if role in found.before]
    parts = [_literal(found.lead)]
    if found.default:
        parts.append(f"{{{{ if not .System }}}}{_literal(found.default)}{{{{ end }}}}")
    parts.append("{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}")
    for number, role in enumerate(roles):
        before = _literal(found.before[role])
        if found.inside and role == "user":
            before = f"{{{{ if not (and $.System (eq $i 1)) }}}}{before}{{{{ end }}}}"
        parts.append(f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}')
        behind = _literal(found.behind[role])
        parts.append(f"{{{{ if not $last }}}}{behind}{{{{ end }}}}" if role == "assistant" else behind)
    parts.append("{{ end }}")
    parts.append(f'{{{{ if and $last (ne .Role "assistant") }}}}{_literal(found.ask)}{{{{ end }}}}{{{{ end }}}}')
    return "".join(parts)


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _prompt(chat: Chat, messages: Sequence[Message], arguments: Mapping[str, Any], bos: str) -> str | None:
    try:
        return chat.prompt(messages, (), arguments).text.removeprefix(bos)
    except (TemplateError, DataError):
        return None


def _writes_the_date(chat: Chat, arguments: Mapping[str, Any]) -> bool:
    """Is a prompt of another day another prompt?"""
    plan = chat.plan()
    if plan is None or not any("strftime_now" in source for source in chat.template_sources):
        return False
    content, _, folded = orjson.loads(plan)
    other = Chat.planned(orjson.dumps([content, "1999-12-31T00:00:00", folded], option=orjson.OPT_NON_STR_KEYS))
    return _prompt(chat, (Message("user", _USER),), arguments, "") != _prompt(other, (Message("user", _USER),), arguments, "")


def _in_order(text: str, words: Sequence[str]) -> bool:
    places = [text.find(word) for word in words]
    return min(places) >= 0 and places == sorted(places) and all(text.count(word) == 1 for word in words)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _common_start(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _shapes() -> list[tuple[tuple[Message, ...], bool]]:
    """Conversations of all shapes; whether white space stands around a content."""
    texts = [
        "Where does sapwood grow?",
        "Two\nlines, «ünïcödé» 木",
        'Braces {{ .Content }} and "quotes" \\n',
        "{% if x %}{{ y }}{% endif %}",
    ]
    bare = [(text, False) for text in texts] + [("  spaces around \n", True)]
    made = []
    for text, spaced in bare:
        ask, rule, answer = Message("user", text), Message("system", text), Message("assistant", text)
        made += [((ask,), spaced), ((rule, ask), spaced), ((ask, answer, ask), spaced), ((rule, ask, answer, ask, answer, ask), spaced)]
    return made


def checked_template(
    chat: Chat, prompts: Sequence[Prompt], arguments: Mapping[str, Any], *, adds_bos: bool
) -> tuple[str | None, list[str]]:
    """The Go template that renders as the model's own does, or None; and sentences about it."""
    bos = chat.special_tokens.get("bos_token", "") if adds_bos else ""
    if _writes_the_date(chat, arguments):
        return None, ["The model's template writes the day's date, which a template of Ollama cannot, so the Modelfile has no TEMPLATE."]
    jinja = "the Modelfile has no TEMPLATE: Ollama then goes by the Jinja template in the GGUF file, as far as its version can."
    if any(prompt.tools for prompt in prompts):
        return None, [
            f"The rows offer tools, which no template of Ollama writes as this model's does, so {jinja} llama-server --jinja does."
        ]
    found = _learn_wrapping(chat, arguments, bos)
    if found is None:
        return None, [f"The model's template is of a shape that Ollama's language has no exact form of, so {jinja}"]
    source = go_template(found)
    notes = []
    asked = [(messages, spaced) for messages, spaced in _shapes() if _prompt(chat, messages, arguments, bos) is not None]
    theirs = [(prompt.messages, prompt.text.removeprefix(bos)) for prompt in prompts if not prompt.media]
    for messages, spaced in asked:
        if _prompt(chat, messages, arguments, bos) == render_as_ollama(source, messages):
            continue
        if not spaced:
            return None, [f"The model's template is of a shape that Ollama's language has no exact form of, so {jinja}"]
        notes = ["The model's template strips white space around contents, which Ollama's cannot: send contents without it."]
    for messages, text in theirs:
        if render_as_ollama(source, messages) != text:
            return None, [f"A prompt of the run comes out otherwise by Ollama's rules, so {jinja}"]
    if '"""' in source:
        return None, [f"The template holds three quotes, which a Modelfile cannot, so {jinja}"]
    if arguments:
        notes.append(f"The template is the one of {dict(arguments)}, with which the rows were trained; other settings need another.")
    return source, notes


def modelfile(chat: Chat, file: str, template: str | None, sampling: Mapping[str, float]) -> str:
    """The Modelfile for a GGUF file beside it. `sampling` are Ollama's parameters by name."""
    stops = [token for stop in sorted(chat.stop_ids) if (token := chat.tokens.token_of(stop))]
    lines = [f"FROM ./{file}"]
    if template is not None:
        lines += ["# Renders letter by letter what the model was trained on.", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(chat.context_length or _CONTEXT, _CONTEXT)}")
    lines += [f"PARAMETER {name} {value:g}" for name, value in sampling.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f'"""{text}"""'
