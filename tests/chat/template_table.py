"""Measures each template on each property and writes the table of docs/templates.md.

`python tests/chat/template_table.py` writes the page; a test fails where the page is not what the run makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from template_conversations import CONTROL_TEXTS, FEATURES, random_conversation, with_texts
from template_families import family_of, folder, templates

from sapwood.chat import Chat, Turn
from sapwood.chat.roundtrip import compare
from sapwood.chat.turns import TAGS, closing, taken_apart
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Message

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
SEEDS = range(4)
"""Random conversations a template; every other holds control tokens as text."""


_EATEN = ("", "\n", None)
"""What `str.strip` is given for nothing, newlines, and all white space."""
Trim = tuple[int, int]
"""What is dropped before and behind a text: 0 nothing, 1 newlines, 2 white space."""
TRIMS: list[Trim] = sorted(product(range(3), range(3)), key=sum)
"""The least first: whichever is first to explain every turn is listed."""


def _trimmed(text: str, trim: Trim) -> str:
    text = text.lstrip(_EATEN[trim[0]]) if trim[0] else text
    return text.rstrip(_EATEN[trim[1]]) if trim[1] else text


def _said(trim: Trim, part: str) -> str:
    kinds = ("", "newlines", "white space")
    if trim[0] == trim[1]:
        text = f"{kinds[trim[0]]} around {part}"
    else:
        text = " and ".join(f"{kinds[size]} {place} {part}" for size, place in zip(trim, ("before", "behind"), strict=True) if size)
    return f"{text[0].upper()}{text[1:]}: dropped."


ESCAPES: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "json": lambda text: text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"),
    "python": lambda text: text.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "\\'"),
    "ascii": lambda text: json.dumps(text)[1:-1],
}
"""How texts among a call's arguments are written; a parser undoes it, so it is no loss."""


Shape = tuple[bool, bool, bool]
"""Whether a turn has calls, has reasoning, and has it inline."""
Way = tuple[Trim, Trim, str]
"""What is dropped of the answer and of the reasoning, and how texts among arguments are escaped."""
_EDGED = ("content", "reasoning")


@dataclass
class Findings:
    """What was found for one template. `failures` must be empty; the rest goes into the table."""

    refused: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    trims: set[str] = field(default_factory=set)
    own_words: set[str] = field(default_factory=set)
    added_stops: set[str] = field(default_factory=set)
    losses: set[str] = field(default_factory=set)
    turns: int = 0


@cache
def findings(name: str) -> Findings:
    """Try a template on every feature and on random conversations of the features that it can hold."""
    chat, found = Chat.load(folder(name)), Findings()
    served = {}
    for feature, conversation in FEATURES.items():
        try:
            served[feature] = chat.turns(conversation)
        except (TemplateError, DataError) as error:
            found.refused[feature] = _reason(error)
    conversations = [(FEATURES[feature], turns) for feature, turns in served.items()]
    for feature in served:
        edged = with_texts(FEATURES[feature], lambda place, part: f"\n \n{part} {place} \n \n" if part in _EDGED else "oak")
        conversations.append((edged, chat.turns(edged)))
    _tools_in_system(chat, name, found)
    for seed in SEEDS[:1] if name.endswith("_training") else SEEDS:
        conversation = random_conversation(seed, list(served), (*CONTROL_TEXTS, family_of(name).eos) if seed % 2 else ())
        try:
            conversations.append((conversation, chat.turns(conversation)))
        except (TemplateError, DataError) as error:
            found.failures.append(f"a conversation of features that are served each by itself is refused: {error}")
    named = set(chat.stop_ids) - {stop for note in chat.notes for stop in map(int, re.findall(r"\(id (\d+)\)", note))}
    explained: dict[Shape, list[Way]] = {}
    for conversation, turns in conversations:
        _prompts(chat, name, conversation, turns, found)
        _read_back(chat, name, conversation, turns, found)
        _texts(chat, conversation, turns, explained, found)
        for turn in turns:
            found.turns += 1
            if turn.ids[-1] not in chat.stop_ids or not chat.stop_ids.isdisjoint(turn.ids[:-1]):
                found.failures.append(f"{conversation.where}: the turn does not end at its one stop token: {turn.text!r}")
            if turn.ids[-1] not in named:
                found.added_stops.add(str(chat.tokens.token_of(turn.ids[-1])))
    found.trims |= set(_trims(explained))
    return found


FOLDED = "tools in system"
"""The column for a call whose tools are offered in the system message, with or without reasoning as the template asks."""


def _tools_in_system(chat: Chat, name: str, found: Findings) -> None:
    folded, reasons = chat.with_tools_in_system(), []
    for feature in ("call", "call with reasoning"):
        try:
            turns = folded.turns(FEATURES[feature])
        except (TemplateError, DataError) as error:
            reasons.append(_reason(error))
            continue
        _read_back(folded, name, FEATURES[feature], turns, found)
        if any(turn.ids[-1] not in folded.stop_ids for turn in turns):
            found.failures.append(f"tools in the system message: a turn does not end at a stop token: {turns[0].text!r}")
        return
    found.refused[FOLDED] = reasons[0]


def _trims(explained: dict[Shape, list[Way]]) -> Iterator[str]:
    """What is dropped of answers and of reasoning; of turns with calls only where that is more."""
    for place, part in ((0, "the answer"), (1, "the reasoning")):
        most = {True: (0, 0), False: (0, 0)}
        for shape, ways in explained.items():
            before, behind = ways[0][place]
            most[shape[0]] = (max(most[shape[0]][0], before), max(most[shape[0]][1], behind))
        plain, called = most[False], most[True]
        if any(plain):
            yield _said(plain, part)
        if called[0] > plain[0] or called[1] > plain[1]:
            yield _said(called, f"{part} of a turn with calls")


def _reason(error: Exception) -> str:
    """The refusal as the user is told, without the place."""
    text = re.sub(r"^a conversation made in code(, message \d+ \(assistant\))?: ", "", str(error))
    text = re.sub(r"\(/[^)]*/(chat_template\.jinja)\)", r"(\1)", text)
    return re.sub(r" Roles so far: [a-z, ]*\.", "", f"{text[0].upper()}{text[1:]}")


def _prompts(chat: Chat, name: str, conversation: Conversation, turns: Sequence[Turn], found: Findings) -> None:
    """Property (a): the ids of a prompt are those of transformers for the same folder."""
    if chat.protected(conversation):
        return
    for turn in turns:
        expected = reference(name).apply_chat_template(
            chat.written(turn.prompt.messages),
            tools=[dict(tool) for tool in turn.prompt.tools] or None,
            add_generation_prompt=True,
            return_dict=True,
            **turn.prompt.template_arguments,
        )["input_ids"]
        if list(turn.prompt.ids) != expected:
            found.failures.append(f"{conversation.where}: the prompt's ids differ from transformers': {turn.prompt.text[-80:]!r}")


@cache
def reference(name: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder(name))


def _texts(
    chat: Chat,
    conversation: Conversation,
    turns: Sequence[Turn],
    explained: dict[Shape, list[Way]],
    found: Findings,
) -> None:
    """Properties (b) and (d): a turn's text is its own texts in the form in which the template writes any texts, and no more."""
    marked = with_texts(conversation, lambda place, part: f"MARK{place}{part.replace(' ', '')}X")
    forms = chat.turns(marked)
    if [form.index for form in forms] != [turn.index for turn in turns]:
        found.failures.append(f"{conversation.where}: other turns are trained when their texts are others")
        return
    for form, turn in zip(forms, turns, strict=True):
        message = conversation.messages[turn.index]
        thought = taken_apart(message)
        shape = (bool(message.tool_calls), thought.reasoning is not None, bool(thought.tag))
        ways = explained.setdefault(shape, list(product(TRIMS, TRIMS if shape[1] else TRIMS[:1], ESCAPES if shape[0] else ("",))))
        fitting = [way for way in ways if _filled(form, message, way) == turn.text]
        if not fitting:
            found.failures.append(f"{conversation.where}: {turn.text!r} is not {message!r} in the form {form.text!r}")
            return
        explained[shape] = fitting
        if any(form.text.count(mark) != 1 for mark in re.findall(r"MARK\d+[a-z]+\d*X", form.text)) or "MARK" not in form.text:
            found.failures.append(f"{conversation.where}: a text is trained twice, or none: {form.text!r}")
        _form(chat, form, marked.messages[turn.index], found)


def _filled(form: Turn, message: Message, way: Way) -> str:
    thought, text = taken_apart(message), form.text
    answer = thought.answer.removeprefix("\n\n") if thought.tag else thought.answer  # they belong to the tag
    why = message.content.removeprefix("<think>\n").partition("\n</think>")[0] if thought.tag else message.reasoning or ""
    text = text.replace(f"MARK{form.index}contentX", _trimmed(answer, way[0]))
    text = text.replace(f"MARK{form.index}reasoningX", _trimmed(why, way[1]))
    for number, call in enumerate(message.tool_calls):
        text = text.replace(f"MARK{form.index}kind{number}X", ESCAPES[way[2]](str(call.arguments["kind"])))
    return text


_WORDS_AS_REASONING = ("gptoss", "gptoss_training")
LOSSES: dict[str, tuple[str, Sequence[str] | None]] = {
    "content trimmed": ("White space around the answer does not come back where the template or its thought tags have eaten it.", None),
    "reasoning trimmed": ("White space around the reasoning does not come back.", None),
    "call ids lost": ("The ids of calls are not written: who reads an answer numbers its calls.", None),
    "reasoning invented": ("Words beside a call come back as its reasoning: the template writes them so.", _WORDS_AS_REASONING),
    "content lost beside calls": ("Words beside a call come back as its reasoning: the template writes them so.", _WORDS_AS_REASONING),
}
"""Kinds of loss, what the page says of them, and the templates that may have it (None: any)."""


def _read_back(chat: Chat, name: str, conversation: Conversation, turns: Sequence[Turn], found: Findings) -> None:
    """Property (e): what is read from a turn's ids is the message, up to the losses listed."""
    for turn in turns:
        message = conversation.messages[turn.index]
        for kind, sentence in compare(message, chat.parse(turn.ids, turn.prompt).message):
            note, only = LOSSES.get(kind, ("", ()))
            if only is None or name in only:
                found.losses.add(note)
            else:
                found.failures.append(f"{conversation.where}: {sentence}")


def _form(chat: Chat, form: Turn, message: Message, found: Findings) -> None:
    """What a turn without calls holds beside its own texts: control tokens, white space, and listed words."""
    if message.tool_calls:
        return
    rest, thought = form.text, taken_apart(message)
    for text in (*chat.tokens.control_ids, thought.answer.strip(), thought.reasoning or "MARK"):
        rest = rest.replace(text, " ")
    tags = [tag for tag in (*TAGS, *map(closing, TAGS)) if tag in rest]
    if tags and thought.reasoning is None:
        found.failures.append(f"the template's own thought is trained: {form.text!r}")
    for tag in tags:
        rest = rest.replace(tag, " ")
    found.own_words |= set(rest.split())


def page() -> str:
    """The whole of docs/templates.md."""
    notes = _Notes()
    first = [f"| {name} | " + " | ".join(_cells(findings(name), notes)) + " |" for name in sorted(templates())]
    second = [f"| {name} | " + " | ".join(_features(findings(name), notes)) + " |" for name in sorted(templates())]
    return "\n".join([*_opening(), *first, "", *_middle(), *second, "", "## Notes", "", *notes.lines(), ""])


class _Notes:
    """Numbered footnotes, each text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        number = self._numbers.setdefault(text, len(self._numbers) + 1)
        return f"[{number}](#n{number})"

    def lines(self) -> Iterator[str]:
        for text, number in self._numbers.items():
            yield f'{number}. <a id="n{number}"></a>{text.replace("<", "&lt;")}'


def _cells(found: Findings, notes: _Notes) -> Iterator[str]:
    yield "fails" if found.failures else "✓"
    trims = [notes.mark(trim) for trim in sorted(found.trims)]
    yield " ".join(["✓", *trims])
    stops = [notes.mark(f"`{stop}` is named by none of the model's files: the user is told to add it there.") for stop in found.added_stops]
    yield " ".join(["✓", *stops])
    words = ", ".join(f"`{word}`" for word in sorted(found.own_words))
    said = f"The model itself writes {words} beside its texts, as the template has it: a channel, a receiver, its own turn's name."
    yield f"✓ {notes.mark(said)}" if words else "✓"
    yield " ".join(["✓", *(notes.mark(loss) for loss in sorted(found.losses))])


def _features(found: Findings, notes: _Notes) -> Iterator[str]:
    for feature in (*FEATURES, FOLDED):
        reason = found.refused.get(feature)
        yield "✓" if reason is None else f"refused {notes.mark(reason)}"


def _opening() -> list[str]:
    return [
        "# Templates and what holds for each of them",
        "",
        "This page is made by `python tests/chat/template_table.py`; a test fails where it is not what that makes.",
        "",
        f"Each template is tried on two small conversations for each feature below and on {len(SEEDS)} random ones of the features that",
        "it can hold (1 for the variants called `_training`): with and without a system message, 1 to 6 turns, reasoning, calls and",
        "results, letters of many kinds, empty texts, texts that begin or end in white space, and control tokens written as text.",
        "",
        "Where the names come from: `mistral_…` is what `mistral-common` generates for a tokenizer version (`spm`: SentencePiece);",
        "`deepseek_r1`, `llama2`, `qwen1_5`, `qwen2`, `smollm2` and `smollm3` are written for the tests after the public formats;",
        "all others are the template files of the wheel `trl==1.16.0`.",
        "",
        "## What holds for every row that is trained",
        "",
        "- **prompt**: its ids are those of transformers' `apply_chat_template(add_generation_prompt=True)`, for texts that hold no",
        "  control token",
        "- **turns**: n trained turns give n trained texts, each of them its own turn's, letter for letter or as noted",
        "- **stops**: each ends in a token at which generation stops, and holds no other such token",
        "- **nothing else**: nothing that the template inserts by itself is trained",
        "- **read back**: what `Chat.parse` reads from a turn's tokens is the message, or as noted",
        "",
        "| template | prompt | turns | stops | nothing else | read back |",
        "|---|---|---|---|---|---|",
    ]


def _middle() -> list[str]:
    return [
        "## What a conversation may hold",
        "",
        "A refused row is named with its place and this reason, before anything is trained; nothing is dropped in silence.",
        "",
        "In the last column tools are offered in the system message, and calls and results are text (`--tools-in-system`).",
        "",
        "| template | " + " | ".join((*FEATURES, FOLDED)) + " |",
        "|---|" + "---|" * (len(FEATURES) + 1),
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
