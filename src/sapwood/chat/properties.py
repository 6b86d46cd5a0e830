"""What a template does to what it is given: faults, found by rendering small conversations and comparing.

In: a way to render messages. Out: `Fault`s, one for each kind of harm: a turn that never ends, a message left out, a text
changed or trimmed, a doubled BOS. Nothing is guessed from a template's source. Left out on purpose: tools and reasoning,
which are looked at where they are used (`checks`, `turns`), row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sapwood.errors import TemplateError
from sapwood.records import Message

if TYPE_CHECKING:
    from sapwood.chat.chat import Chat

Kind = Literal["no-stop", "unusable", "system-refused", "system-dropped", "message-dropped", "text-changed", "text-trimmed", "bos-doubled"]
Render = Callable[[Sequence[Message], bool], str]
"""Renders (messages, whether with the generation prompt)."""

_ANOTHER = "Choose another template with `--template FILE`, or mend this one."
_TEXTS = (
    "  Where does\n\n  Sapwood GROW?  1 ",
    "\n Right  BELOW the Bark; it is ÉLAN.\t\n",
    " And\tHeartwood, über alles?\n",
    "  INSIDE of it:\n    indented Text  ",
    "What of a PALM Tree? ",
    " None\nThere. ",
)
"""Texts whose every letter counts: capitals, accents, white space inside and on both sides."""
_SYSTEM = " Speak of TREES,\n\n  and of nothing Else.\n"


@dataclass(frozen=True, slots=True)
class Fault:
    """One harm that a template does. A `problem` spoils what is trained or sent; a `note` is worth knowing."""

    kind: Kind
    sentence: str
    next_step: str
    severity: Literal["note", "problem"] = "problem"


def faults(chat: Chat) -> list[Fault]:
    """All faults of a chat's template, the grave ones first; empty if it carries every text letter for letter."""
    return sorted([*_ending(chat), *chat.faults], key=lambda fault: fault.severity != "problem")


def rendering_faults(render: Render, bos: str | None) -> list[Fault]:
    """The faults that show in what `render` makes of three questions and answers, with and without a system message."""
    turns = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(_TEXTS)]
    system = Message("system", _SYSTEM)
    found: list[Fault] = []
    try:
        plain = render(turns, False)
    except TemplateError as error:
        return [Fault("unusable", f"Three plain questions and answers cannot be rendered: {error}", _ANOTHER)]
    try:
        whole: str | None = render([system, *turns], False)
    except TemplateError as error:
        whole = None
        found.append(
            Fault(
                "system-refused",
                f"The template has no place for system messages: {error}",
                "Write their text into the first user message.",
                "note",
            )
        )
    if whole is not None:
        found += _system(whole, plain, render, turns)
    found += _texts(turns, plain)
    if bos and bos + bos in plain:
        found.append(Fault("bos-doubled", f"The template writes {bos!r} twice in a row, which no model has been trained on.", _ANOTHER))
    return found


def _ending(chat: Chat) -> Iterator[Fault]:
    if chat.turn_end is None:
        known = ", ".join(sorted(repr(chat.tokens.token_of(stop)) for stop in chat.stop_ids)) or "none"
        yield Fault(
            "no-stop",
            f"An assistant turn ends in no stop token, so the model would never stop. Stop tokens of the model's files: {known}.",
            "Choose a template that ends every assistant turn in the tokenizer's end-of-turn token, with `--template FILE`.",
        )


def _system(whole: str, plain: str, render: Render, turns: Sequence[Message]) -> Iterator[Fault]:
    change = _change(_SYSTEM, whole)
    if change is None:
        return
    if change == "lost" and (whole == plain or render([Message("system", "Else."), *turns], False) == whole):
        yield Fault(
            "system-dropped",
            "The template leaves the system message out of the prompt, without a word.",
            "Write its text into the first user message, or choose another template with `--template FILE`.",
        )
    elif change == "trimmed":
        yield Fault("text-trimmed", "The template trims white space from system messages.", "Nothing is lost but spaces.", "note")
    else:
        yield Fault("text-changed", "The template rewrites the text of system messages.", _ANOTHER)


def _texts(turns: Sequence[Message], rendered: str) -> Iterator[Fault]:
    """What happened to the texts of the turns, one fault for each kind of change."""
    changed: dict[str, list[tuple[int, Message]]] = {}
    for place, message in enumerate(turns):
        change = _change(message.content, rendered)
        if change is not None:
            changed.setdefault(change, []).append((place, message))
    for place, message in changed.get("lost", []):
        yield Fault(
            "message-dropped",
            f"The template leaves message {place + 1} of {len(turns)} ({message.role}) out: its text is not in what it renders.",
            _ANOTHER,
        )
    if rewritten := changed.get("rewritten"):
        roles = " and ".join(sorted({message.role for _, message in rewritten}))
        yield Fault("text-changed", f"The template rewrites the text of {roles} messages (capitals, or white space inside).", _ANOTHER)
    if trimmed := changed.get("trimmed"):
        roles = " and ".join(sorted({message.role for _, message in trimmed}))
        yield Fault(
            "text-trimmed", f"The template trims white space at the ends of {roles} messages.", "Nothing is lost but spaces.", "note"
        )


def _change(text: str, rendered: str) -> Literal["trimmed", "rewritten", "lost"] | None:
    """What became of a text: nothing, its ends trimmed, capitals or white space changed, or not to be found."""
    if text in rendered:
        return None
    if text.strip() in rendered:
        return "trimmed"
    return "rewritten" if _bare(text) in _bare(rendered) else "lost"


def _bare(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
