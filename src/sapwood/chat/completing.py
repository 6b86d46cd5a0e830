"""What a turn adds to its prompt: the text that the model must write, its stop token last.

In: the turn, its prompt as rendered, the rendering that holds it as the last message, and what was learned of the template
(`Stops`, the generation prompt). Out: the text, or a `Refusal`. `turns` compares prompt and rendering; here two habits of
whole templates are met: one that rewrites the history once the turn is there (gpt-oss drops old reasoning), and one whose
prompt leaves out the turn's header behind tool results, though the rendering has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sapwood.chat.checks import CHANCE, MARK, check_turn
from sapwood.chat.probes import ASK
from sapwood.chat.stops import Stops
from sapwood.chat.turns import Refusal, closing, completion_text, taken_apart
from sapwood.errors import TemplateError
from sapwood.records import Message

Render = Callable[[Sequence[Message], bool], str]
"""Renders (messages, whether with the generation prompt), without tools."""


def opening_of(render: Render) -> str:
    """What the template writes to let the assistant speak behind a plain question; empty where it writes nothing, or refuses."""
    try:
        bare, asked = render([ASK], False), render([ASK], True)
    except TemplateError:
        return ""
    return asked[len(bare) :] if asked.startswith(bare) else ""


def completion(
    messages: Sequence[Message], prompt: str, full: str, source: str, stops: Stops, opening: str, render: Render
) -> str | Refusal:
    """The text of the last of `messages` behind `prompt`; `full` is the rendering of all of them, `source` the template's."""
    turn = messages[-1]
    text = completion_text(turn, prompt, full, source)
    if isinstance(text, Refusal):
        rewritten = _behind_a_rewritten_history(turn, prompt, full, source, render)
        if rewritten is None:
            return text
        text = rewritten
    if opening and text.startswith(opening) and not prompt.endswith(opening):
        text = text.removeprefix(opening)  # the template's own header, which its prompt leaves out: it must not be trained
    cut = stops.cut(text, bool(turn.tool_calls))
    if cut is None:
        return Refusal(
            f"The rendered turn ends in {text[-30:]!r}, which is no stop token: the model would never stop.",
            "Choose a template that ends every assistant turn in a stop token, with `--template FILE`.",
        )
    return check_turn(turn, cut) or _check_short_texts(turn, source, render) or cut


def _check_short_texts(turn: Message, source: str, render: Render) -> Refusal | None:
    """Whether texts so short that they may stand in the turn by chance ("]" in a call, say) are written as longer ones would be."""
    thought = taken_apart(turn)
    beside_calls = bool(turn.tool_calls) and 0 < len(thought.answer.strip()) < CHANCE
    if not beside_calls and not (thought.reasoning and len(thought.reasoning) < CHANCE):
        return None
    reasoning = f"{thought.reasoning}{MARK}" if thought.reasoning else None
    answer = f"{thought.answer.rstrip()}{MARK}" if thought.answer.strip() else ""
    if thought.tag and reasoning:
        longer = replace(turn, content=f"{thought.tag}\n{reasoning}\n{closing(thought.tag)}\n\n{answer.lstrip()}", reasoning=None, media=())
    else:
        longer = replace(turn, content=answer, reasoning=reasoning, media=())
    try:
        asked, answered = render([ASK], True), render([ASK, longer], False)
    except TemplateError:
        return None  # it has rendered in its own place
    text = completion_text(longer, asked, answered, source)
    refusal = text if isinstance(text, Refusal) else check_turn(longer, text)
    return refusal and Refusal(refusal.reason.replace(MARK, ""), refusal.next_step)


def _behind_a_rewritten_history(turn: Message, prompt: str, full: str, source: str, render: Render) -> str | None:
    """The text that the template writes for this turn behind a plain question, if the whole rendering ends in it as well."""
    try:
        bare, asked, answered = render([ASK], False), render([ASK], True), render([ASK, turn], False)
    except TemplateError:
        return None
    opening = asked.removeprefix(bare)
    if not opening or opening == asked or not prompt.endswith(opening):
        return None
    text = completion_text(turn, asked, answered, source)
    return text if isinstance(text, str) and answered == asked + text and full.endswith(opening + text) else None
