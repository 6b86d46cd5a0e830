"""What the model must write for one turn, found by comparing two renderings.

In: an assistant message, the rendered prompt before it, and the rendering that holds it as the last turn. Out: the text
that continues the prompt, or a `Refusal` that says why there is none. Texts only: no tokenizer and no template here.

Usually the rendering starts with the prompt, and the rest is the answer. Reasoning templates break this in three ways:
the prompt may open a thought (`<think>\\n`) that the rendering lost together with the reasoning; a template may insert an
empty thought that the message does not have, which must never be trained; or the prompt may close a thought that the
message does have. The tags known are in `TAGS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sapwood.records import Message

TAGS = ("<think>", "<thinking>", "<thought>", "<reasoning>", "<seed:think>", "[THINK]", "◁think▷")
"""Opening thought tags; a closing one has a slash behind its first letter."""


def closing(tag: str) -> str:
    """The tag that ends what `tag` opens."""
    return f"{tag[0]}/{tag[1:]}"


_OPEN = "|".join(map(re.escape, TAGS))
_CLOSE = "|".join(re.escape(closing(tag)) for tag in TAGS)
_EMPTY = "|".join(rf"{re.escape(tag)}\s*{re.escape(closing(tag))}" for tag in TAGS)
_INLINE = re.compile("|".join(rf"\s*{re.escape(tag)}(.*?){re.escape(closing(tag))}" for tag in TAGS), re.DOTALL)
_STARTS_EMPTY = re.compile(rf"\s*(?:{_EMPTY})")
_STARTS_CLOSING = re.compile(rf"\s*(?:{_CLOSE})")
_FIRST_LETTERS = frozenset(tag[0] for tag in TAGS)
_ENDS_OPEN = re.compile(rf"({_OPEN})\s*\Z")
_ENDS_EMPTY = re.compile(rf"(?:{_EMPTY})\s*\Z")
_ENDS_CLOSED = re.compile(rf"(?:{_CLOSE})\s*\Z")

THOUGHT_TAGS = (*TAGS, *map(closing, TAGS))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a turn cannot be trained on its prompt, and what a person can do."""

    reason: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.reason} {self.next_step}"


@dataclass(frozen=True, slots=True)
class Thought:
    """A message taken apart: its reasoning (None if it has none), the answer behind it, and an empty thought of its own.

    `tag` is the opening tag of a thought that stands in the content; empty for one in its own field, and for none.
    """

    reasoning: str | None
    answer: str
    own_empty: bool
    tag: str = ""


def taken_apart(message: Message) -> Thought:
    """Reasoning and answer, whether the reasoning stands in its field or inline in the content."""
    if message.reasoning and message.reasoning.strip():
        return Thought(message.reasoning.strip(), message.content, False)
    match = _INLINE.match(message.content)
    if match is None:
        return Thought(None, message.content, False)
    inside = next(group for group in match.groups() if group is not None).strip()
    return Thought(inside or None, message.content[match.end() :], not inside, next(tag for tag in TAGS if tag in match[0]))


def may_think(content: str) -> bool:
    """Whether a text may begin in an inline thought: False is certain."""
    return content.lstrip()[:1] in _FIRST_LETTERS


def ends_in_thought(prompt: str) -> bool:
    """Whether a prompt leaves a thought open or closes one before the model speaks."""
    return any(pattern.search(prompt) for pattern in (_ENDS_OPEN, _ENDS_EMPTY, _ENDS_CLOSED))


def completion_text(message: Message, prompt: str, full: str, source: str) -> str | Refusal:
    """The text behind `prompt`, up to the end of the rendering `full`. `source` is the template's, for its closing tags."""
    thought = taken_apart(message)
    opened = _ENDS_OPEN.search(prompt)
    rest = _behind(prompt, full, opened)
    if rest is None:
        return Refusal(
            f"The template does not render this turn as a continuation of its prompt: the prompt ends in {prompt[-40:]!r}, "
            f"the rendered turn goes on from {full[_common(prompt, full) :][:40]!r}.",
            "Make what stands before it simpler (take away words beside calls, say), or choose another template with `--template FILE`.",
        )
    if thought.reasoning is None:
        return _without_reasoning(thought, rest, opened)
    return _with_reasoning(thought.reasoning, thought.answer, rest, prompt, opened, source)


def _behind(prompt: str, full: str, opened: re.Match[str] | None) -> str | None:
    """The rendered turn behind the prompt, or behind the prompt without its prefill; None where they part earlier."""
    if full.startswith(prompt):
        return full[len(prompt) :]
    if opened is not None and full.startswith(prompt[: opened.start()]):
        rest = full[opened.start() :]
        bare = rest.lstrip()
        return bare[len(opened[1]) :].lstrip() if bare.startswith(opened[1]) else rest
    empty = _ENDS_EMPTY.search(prompt)
    if empty is not None and full.startswith(prompt[: empty.start()]):
        rest = full[empty.start() :]
        return rest[match.end() :].lstrip() if (match := _STARTS_EMPTY.match(rest)) else rest
    bare_prompt = prompt.rstrip()
    return full[len(bare_prompt) :].lstrip() if full.startswith(bare_prompt) else None


def _without_reasoning(thought: Thought, rest: str, opened: re.Match[str] | None) -> str | Refusal:
    if thought.own_empty:
        return f"\n{closing(opened[1])}\n\n{rest.lstrip()}" if opened and not _STARTS_CLOSING.match(rest) else rest
    if _STARTS_EMPTY.match(rest) or (opened and _STARTS_CLOSING.match(rest)):
        return Refusal(
            "The template inserts an empty thought before this answer, which the message does not have; it would be trained as if the "
            "model should write it.",
            "Give the turn its `reasoning`, or choose a template that leaves empty thoughts out, with `--template FILE`.",
        )
    if opened:
        return Refusal(
            f"The prompt opens a thought ({opened[1]}), but this turn has no reasoning to continue it with.",
            f"Add `reasoning` to the turn (or {opened[1]}…{closing(opened[1])} at the start of its content; nothing between the two "
            "trains an answer without a thought), leave the turn out with `weight: 0`, or choose a template whose prompt opens no thought.",
        )
    return rest


def _with_reasoning(reasoning: str, answer: str, rest: str, prompt: str, opened: re.Match[str] | None, source: str) -> str | Refusal:
    if opened:
        end = closing(opened[1])
        before, found, _ = rest.partition(end)
        if found and reasoning in before:
            return rest
        if rest.lstrip().startswith(end):
            return reasoning + rest
        return f"{reasoning}\n{end}\n\n{rest.lstrip()}"
    if _ENDS_CLOSED.search(prompt):
        return Refusal(
            "The prompt closes the thought before the model speaks, but this turn has reasoning.",
            "Remove the `reasoning`, or the template argument that switches thinking off.",
        )
    if rest.count(reasoning) > answer.count(reasoning):
        return rest  # it stands there in its own right, not only as a part of the answer
    tag = next((tag for tag in TAGS if closing(tag) in source), None)
    if tag is None:
        return Refusal(
            "The template does not render this turn's `reasoning`, so it would be lost.",
            "Remove it, write it into the content, or choose a template for reasoning models with `--template FILE`.",
        )
    return f"{tag}\n{reasoning}\n{closing(tag)}\n\n{rest.lstrip()}"


def _common(left: str, right: str) -> int:
    """Length of the longest common beginning."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
