"""Where a turn ends: the stop tokens of the model's files, and the one that the template really writes.

In: a function that renders probe conversations, the tokenizer, and the stop ids with the files that name them. Out:
`Stops`. The token that ends a turn is the first one behind a probe answer that the files name, else the first control
token there; behind a probe call, the last (calls may be wrapped in control tokens of their own). Some templates end no turn
themselves: the next message's header does, if it is a token that the files name (GLM stops at `<|user|>` and
`<|observation|>`); what it adds is learned from a probe that goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sapwood.chat.tokens import Tokens
from sapwood.errors import TemplateError
from sapwood.records import Message, ToolCall

_ASK, _ANSWER = "Where does sapwood grow?", "right below the bark"
_PROBES = (
    (Message("user", _ASK), Message("assistant", _ANSWER)),
    (Message("system", "Be brief."), Message("user", _ASK), Message("assistant", _ANSWER)),
)
_CALL_PROBE = (Message("user", _ASK), Message("assistant", tool_calls=(ToolCall("probe_function", {"tree": _ANSWER}, "a1b2c3d4e"),)))
_FIRST_CALL = ToolCall("probe_function", {"tree": "It is the first."}, "b1b2c3d4e")
_TWO_CALLS = (_CALL_PROBE[0], Message("assistant", tool_calls=(_FIRST_CALL, *_CALL_PROBE[1].tool_calls)))
_NEXT = Message("user", "And heartwood?")
_RESULT = Message("tool", "Inside it.", tool_call_id="a1b2c3d4e", name="probe_function")


@dataclass(frozen=True)
class Stops:
    """Stop ids, the id that ends a turn (or the `problem`), and what a person should know."""

    ids: frozenset[int]
    turn_end: int | None
    notes: tuple[str, ...]
    problem: str
    pattern: re.Pattern[str]
    implied: str = ""
    """What ends a turn that the template itself leaves open: the beginning of the next message, up to its stop token."""
    implied_call: str = ""
    """The same behind a turn that ends in a call."""

    def cut(self, text: str, calls: bool = False) -> str | None:
        """A rendered turn up to its first stop token, which stays; None if it has none. `calls`: it ends in a call."""
        match = self.pattern.search(text)
        if match is not None:
            return text[: match.end()]
        return text + implied if (implied := self.implied_call if calls else self.implied) else None


def learn_stops(render: Callable[[Sequence[Message]], str], tokens: Tokens, named: Mapping[int, list[str]]) -> Stops:
    """Find where the template ends a turn. `render` raises `TemplateError` for a probe that the template refuses."""
    tail, problem = _tail(render, _PROBES, _ANSWER)
    turn_end = _first(tail, tokens, named)
    implied = implied_call = ""
    if tail is not None and turn_end is None:
        implied, turn_end = _implied(render, _PROBES, _NEXT, tokens, named)
    if tail is not None and turn_end is None:
        problem = (
            f"the chat template ends an assistant turn in {tail[:40]!r}, which holds no stop token: the model would never stop. Choose a "
            "template that ends every assistant turn in the tokenizer's end-of-turn token, with `--template FILE`."
        )
    ids = set(named)
    notes = []
    if turn_end is not None and turn_end not in named:
        ids.add(turn_end)
        notes.append(_note(turn_end, tokens, "a turn"))
    call_tail, _ = _tail(render, (_CALL_PROBE,), _ANSWER)
    call_end = _last(call_tail, tokens, ids)
    if call_tail is not None and call_end is None:
        implied_call, call_end = _implied(render, (_CALL_PROBE,), _RESULT, tokens, named)
    if call_end is not None and call_end not in ids and _stands_between_calls(render, tokens.token_of(call_end) or ""):
        call_end = None  # it ends a call, not a turn: stopping there would cut off the second of two
    if call_end is not None and call_end not in ids:
        ids.add(call_end)
        notes.append(_note(call_end, tokens, "a turn with tool calls"))
    strings = {text for stop in ids if (text := tokens.token_of(stop)) in tokens.control_ids}
    longest_first = sorted((text for text in strings if text), key=lambda text: (-len(text), text))
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    return Stops(frozenset(ids), turn_end, tuple(notes), problem, pattern, implied, implied_call)


def _stands_between_calls(render: Callable[[Sequence[Message]], str], control: str) -> bool:
    try:
        text = render(_TWO_CALLS)
    except TemplateError:
        return False  # the template writes one call a turn
    _, found, rest = text.partition(str(_FIRST_CALL.arguments["tree"]))
    between, also_found, _ = rest.partition(_ANSWER)
    return bool(found and also_found) and control in between


def _implied(
    render: Callable[[Sequence[Message]], str],
    probes: Sequence[Sequence[Message]],
    following: Message,
    tokens: Tokens,
    named: Mapping[int, list[str]],
) -> tuple[str, int | None]:
    """What `following` adds behind a probe up to the first control token, if the files name that as a stop token."""
    for probe in probes:
        try:
            short, long = render(probe), render((*probe, following))
        except TemplateError:
            continue
        added = long.removeprefix(short)
        control = _first(added, tokens, {}) if len(added) < len(long) else None
        text = tokens.token_of(control) if control in named and control is not None else None
        if text is not None:
            return added[: added.index(text) + len(text)], control
    return "", None


def _tail(render: Callable[[Sequence[Message]], str], probes: Sequence[Sequence[Message]], marker: str) -> tuple[str | None, str]:
    """What stands behind the answer of the first probe that renders, or why none does."""
    problem = ""
    for probe in probes:
        try:
            text = render(probe)
        except TemplateError as error:
            problem = problem or str(error)
            continue
        if marker in text:
            return text[text.rindex(marker) + len(marker) :], ""
        problem = problem or "the chat template leaves out or rewrites the assistant's answers. Choose another with `--template FILE`."
    return None, problem


def _controls(tail: str, tokens: Tokens) -> list[int]:
    strings = sorted(tokens.control_ids, key=lambda text: (-len(text), text))
    return [tokens.control_ids[found] for found in re.findall("|".join(map(re.escape, strings)) or "(?!)", tail)]


def _first(tail: str | None, tokens: Tokens, named: Mapping[int, list[str]]) -> int | None:
    found = _controls(tail or "", tokens)
    return next((control for control in found if control in named), found[0] if found else None)


def _last(tail: str | None, tokens: Tokens, ids: set[int]) -> int | None:
    found = _controls(tail or "", tokens)
    ends = bool(found) and (tail or "").rstrip().endswith(tokens.token_of(found[-1]) or "")
    return next((control for control in found if control in ids), found[-1] if ends else None)


def _note(stop: int, tokens: Tokens, what: str) -> str:
    return (
        f"The template ends {what} with {tokens.token_of(stop)!r} (id {stop}), which generation_config.json, config.json and the tokenizer "
        "do not name as a stop token: Sapwood trains it and stops there, but servers that read only those files (vLLM, llama.cpp, "
        f"transformers) would run on; add {stop} to `eos_token_id` in generation_config.json."
    )
