"""Answers to real templates, from ids: what a turn renders to is read back, and only control tokens are marks."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_families import folder, templates

from sapwood.chat import Answer, Chat, Delta, StreamDecoder, round_trip
from sapwood.chat.parsing import CoveredDecoder
from sapwood.cli.chat_shown import InTurn
from sapwood.errors import DataError, TemplateError
from sapwood.generate.answer import Answer as Sampled
from sapwood.records import Conversation, Ended, Message, Prompt, SamplingParams, ToolCall

STYLES = {
    "qwen2_5": "Hermes",
    "qwen3": "Hermes",
    "qwen3_vl": "Hermes",
    "qwen3_5_think": "Qwen3-Coder",
    "qwen3_8": "Qwen3-Coder",
    "nemotron_3_nano": "Qwen3-Coder",
    "glm4moe": "GLM",
    "mistral_v2_spm": "Mistral list",
    "mistral_v3_tekken": "Mistral list",
    "mistral_v7_spm": "Mistral list",
    "mistral_v11_tekken": "Mistral",
    "mistral_v13_tekken_think": "Mistral",
    "deepseekv3": "DeepSeek",
    "gemma4": "Gemma",
    "gemma4_v5": "Gemma",
    "lfm2_v2": "LFM2",
    "lfm2_2_5": "LFM2 without escapes",
    "llama3_1": "Llama",
    "llama3_2": "Llama",
    "gptoss": "harmony",
    "muse_glimmer": "addressed messages",
}
LOSSES = {"call ids lost", "content trimmed", "reasoning trimmed"}
"""What any template may do: most write no ids, many strip white space."""
MORE_LOSSES = {
    "gptoss": {"content lost beside calls", "reasoning invented"},  # it writes the words beside a call as analysis
    "gemma4": {"order of arguments"},  # it sorts them
    "gemma4_v5": {"order of arguments"},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_tree",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "description": "Kind."},
                "rings": {"type": "integer", "description": "Rings."},
                "width": {"type": "number", "description": "Width."},
                "alive": {"type": "boolean", "description": "Alive."},
                "more": {"type": "object", "description": "More."},
                "list": {"type": "array", "items": {"type": "string"}, "description": "List."},
            },
        },
    },
}
ASK = Message("user", "Where does sapwood grow?")


@cache
def chat(name: str) -> Chat:
    return Chat.load(folder(name))


def tools_of(name: str) -> tuple[dict[str, Any], ...]:
    return () if name == "deepseekv3" else (TOOL,)  # it writes calls, and offers no tools


def message(random: Random) -> Message:
    """An answer with words of all sorts, and none to two calls with values of all types."""

    def text() -> str:
        words = ["sap", "Wood", "ü", "樹", "🌲", "\n", " ", '"', "'", "\\", "{", "}", "[", "]", ",", ":", "=", "(", "1", "null", "True"]
        return "".join(random.choices([*words, "<|im_end|>", "[/INST]", "</s>", "\\n", "x y"], k=random.randint(1, 8)))

    def arguments() -> dict[str, Any]:
        all_of = {
            "kind": text(),
            "rings": random.randint(-5, 10**20),
            "width": random.choice([0.5, -2.25, 1e30]),
            "alive": random.random() < 0.5,
            "more": {"b": [1, {"a": text()}], "a": {}, "c": random.choice([True, "x", 0.25, []])},
            "list": [text() for _ in range(random.randint(0, 2))],
        }
        return {key: all_of[key] for key in random.sample(sorted(all_of), random.randint(0, 6))}

    calls = tuple(ToolCall("find_tree", arguments(), f"abcdefgh{place}") for place in range(random.choice([0, 1, 1, 2])))
    words = text() if not calls else random.choice(["", "", f"Look: {text()}"])
    return Message(
        "assistant", words or ("" if calls else "Yes."), reasoning=random.choice([None, None, "Sap rises.\n\n1. So?"]), tool_calls=calls
    )


@pytest.mark.parametrize("name", STYLES)
def test_turns_with_calls_come_back(name: str) -> None:
    model, called = chat(name), 0
    assert model.form.note == ""
    assert model.form.style is not None
    assert model.form.style.name == STYLES[name]
    for seed in range(40):
        answer = message(Random(f"{name} {seed}"))
        try:
            losses = round_trip(model, Conversation((ASK, answer), tools=tools_of(name)))
        except (TemplateError, DataError):
            continue  # refused by name: it writes no thoughts, or one call only, or no words beside them
        called += bool(answer.tool_calls)
        assert {loss.kind for loss in losses} <= LOSSES | MORE_LOSSES.get(name, set()), (answer, losses)
    assert called >= 3, "too few turns could be rendered to say anything"


def test_every_template_at_hand_that_writes_calls_can_be_read_back() -> None:
    ungrouped = [name for name in templates() if name not in STYLES and "tool_call" in templates()[name]]
    notes = {name: chat(name).form.note for name in ungrouped}
    assert not {name: note for name, note in notes.items() if note}


@pytest.mark.parametrize("name", ["mistral_v3_tekken", "mistral_v7_spm", "mistral_v11_tekken"])
def test_ids_that_mistral_refuses_are_hashed_alike_in_calls_and_results(name: str) -> None:
    model = chat(name)
    talk = (
        ASK,
        Message("assistant", tool_calls=(ToolCall("find_tree", {"rings": 3}, "call_1"), ToolCall("find_tree", {}, "a1b2c3d4e"))),
        Message("tool", "One.", tool_call_id="call_1"),
        Message("tool", "None.", tool_call_id="a1b2c3d4e"),
        Message("assistant", "There is one."),
    )
    turns = model.turns(Conversation(talk, (TOOL,)))
    first, second = (call.id for call in model.parse(turns[0].ids, turns[0].prompt).message.tool_calls)
    assert second == "a1b2c3d4e"
    assert first is not None
    assert len(first) == 9
    assert turns[1].prompt.text.count(first) == 2
    assert [loss.kind for loss in round_trip(model, Conversation(talk, (TOOL,)))] == ["call ids changed"]


def test_ids_that_are_missing_are_made_where_a_template_needs_them() -> None:
    talk = (
        ASK,
        Message("assistant", tool_calls=(ToolCall("find_tree", {"rings": 3}), ToolCall("find_tree", {"rings": 3}))),
        Message("tool", "One.", name="find_tree"),
        Message("tool", "None.", name="find_tree"),
        Message("assistant", "There is one."),
    )
    model = chat("mistral_v3_tekken")
    turns = model.turns(Conversation(talk, (TOOL,)))
    ids = [call.id for call in model.parse(turns[0].ids, turns[0].prompt).message.tool_calls]
    assert len(set(ids)) == 2
    places = [turns[1].prompt.text.rindex(str(call_id)) for call_id in ids]
    assert places[0] < turns[1].prompt.text.index("None.") < places[1] + 40
    assert {loss.kind for loss in round_trip(model, Conversation(talk, (TOOL,)))} == {"call ids invented"}
    assert model.prompt(talk[:4], (TOOL,)).ids == turns[1].prompt.ids


def test_a_form_that_nobody_knows_is_told_by_name() -> None:
    source = templates()["qwen2_5"].replace("<tool_call>\\n{", "<strange>\\n{").replace("}\\n</tool_call>", "}\\n</strange>")
    strange = Chat.load(folder("qwen2_5", source))
    assert strange.form.style is None
    assert "<strange>" in strange.form.note
    assert "--tools-in-system" in strange.form.note
    losses = round_trip(strange, Conversation((ASK, Message("assistant", tool_calls=(ToolCall("find_tree", {}),))), tools=(TOOL,)))
    assert {loss.kind for loss in losses} == {"calls lost", "content changed"}


def joined(deltas: list[Delta]) -> tuple[str, str, list[tuple[str | None, str, Any]]]:
    """Content, reasoning and calls of deltas, put together as a client of a streaming server does."""
    calls: dict[int, list[Any]] = {}
    for delta in deltas:
        if delta.index is not None:
            call = calls.setdefault(delta.index, [None, "", ""])
            calls[delta.index] = [call[0] or delta.id, call[1] + delta.name, call[2] + delta.arguments]
    together = [(number, name, json.loads(arguments)) for number, name, arguments in calls.values()]
    return "".join(delta.content for delta in deltas), "".join(delta.reasoning for delta in deltas), together


def streamed(model: Chat, ids: list[int], prompt: Prompt) -> tuple[list[Delta], Answer]:
    stream, deltas = model.parse_stream(prompt), list[Delta]()
    for token in ids:
        deltas += stream.push(token)
    last, answer = stream.finish()
    return [*deltas, *last], answer


def ids_for(model: Chat, name: str) -> st.SearchStrategy[list[int]]:
    """Ids of which many are control tokens, and some a real turn, whole or cut."""
    vocabulary = st.integers(0, model.tokens.vocabulary - 1)
    call = (ToolCall("find_tree", {"rings": 3}, "abcdefgh1"),)
    answers = [Message("assistant", reasoning=reasoning, tool_calls=call) for reasoning in ("So.", None)]
    try:
        real = list(model.turns(Conversation((ASK, answers[0]), tools_of(name)))[0].ids)
    except TemplateError:
        real = list(model.turns(Conversation((ASK, answers[1]), tools_of(name)))[0].ids)
    pieces = st.one_of(
        st.lists(vocabulary, max_size=6),
        st.lists(st.sampled_from(sorted(model.tokens.special_ids)), max_size=4),
        st.integers(0, len(real)).map(lambda end: real[:end]),
        st.integers(0, len(real)).map(lambda start: real[start:]),
        st.sampled_from(sorted(model.tokens.control_ids)).map(lambda text: model.tokens.encode(model.tokens.shield.cover(text))),
    )
    return st.lists(pieces, max_size=4).map(lambda lists: [token for piece in lists for token in piece])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["qwen3", "mistral_v11_tekken", "mistral_v7_spm", "gptoss", "gemma4", "deepseekv3"]), st.data())
def test_no_letter_of_sampled_ids_is_lost_and_streams_agree(name: str, data: st.DataObject) -> None:
    model = chat(name)
    prompt = model.prompt([ASK], tools_of(name))
    ids = data.draw(ids_for(model, name))
    answer = model.parse(ids, prompt)
    stopped = bool(ids) and ids[-1] in model.stop_ids
    assert answer.ended_whole == stopped
    decoder = StreamDecoder(model.tokens)  # of bytes that are no letter it gives those before them, where the whole gives none
    text = "".join(map(decoder.push, ids[:-1] if stopped else ids)) + decoder.finish()
    assert "".join(part.raw for part in answer.parts) == text
    for kind, text in (("content", answer.message.content), ("reasoning", answer.message.reasoning or "")):
        assert "".join(part.raw for part in answer.parts if part.kind == kind) == text
    assert tuple(call for part in answer.parts for call in part.calls) == answer.message.tool_calls
    deltas, last = streamed(model, ids, prompt)
    assert last.message == answer.message
    assert last.problems == answer.problems
    calls = [(call.id, call.name, call.arguments) for call in answer.message.tool_calls]
    assert joined(deltas) == (answer.message.content, answer.message.reasoning or "", calls)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_covered_text_reveals_to_what_was_decoded(data: st.DataObject) -> None:
    model = chat("qwen3")
    ids = data.draw(st.lists(st.integers(0, model.tokens.vocabulary - 1), max_size=12))
    decoder = CoveredDecoder(model.tokens)
    assert model.tokens.shield.reveal("".join(map(decoder.push, ids)) + decoder.finish()) == model.decode(ids)


def test_letters_that_spell_a_control_token_are_no_mark() -> None:
    model = chat("mistral_v11_tekken")
    prompt = model.prompt([ASK], (TOOL,))
    stop, mark = model.turn_end, model.tokens.control_ids["[TOOL_CALLS]"]
    assert stop is not None
    name, arguments = model.tokens.encode("find_tree"), model.tokens.encode('{"kind": "[TOOL_CALLS]"}')
    spelt = model.tokens.encode(model.tokens.shield.cover("[TOOL_CALLS]"))
    args = model.tokens.control_ids["[ARGS]"]
    assert mark not in spelt
    real = model.parse([mark, *name, args, *model.tokens.encode(model.tokens.shield.cover('{"kind": "[TOOL_CALLS]"}')), stop], prompt)
    assert real.message.tool_calls == (ToolCall("find_tree", {"kind": "[TOOL_CALLS]"}),)
    text = model.parse([*spelt, *name, args, *arguments, stop], prompt)
    assert text.message.tool_calls == ()
    assert text.message.content.startswith("[TOOL_CALLS]find_tree[ARGS]")
    for ids in ([*spelt, args, stop], [*spelt, stop], [*spelt, *spelt, args, stop]):
        found = model.parse(ids, prompt)
        assert (found.message.content, found.problems) == (model.decode(ids[:-1]), ())


def test_a_text_without_ids_is_read_too() -> None:
    model = chat("qwen3")
    prompt = model.prompt([ASK], (TOOL,))
    answer = model.parse('<think>\nhm\n</think>\n\nSo:\n<tool_call>\n{"name": "find_tree", "arguments": {}}\n</tool_call>', prompt)
    assert answer.message == Message("assistant", "So:", reasoning="hm", tool_calls=(ToolCall("find_tree", {}),))
    assert answer.ended_whole
    assert not model.parse("<think>\nhm", prompt).ended_whole


def test_a_json_answer_is_a_call_only_where_tools_are_offered() -> None:
    model = chat("llama3_1")
    text = '{"name": "find_tree", "parameters": {}}'
    assert model.parse(text, model.prompt([ASK])).message == Message("assistant", text)
    assert model.parse(text, model.prompt([ASK], (TOOL,))).message.tool_calls == (ToolCall("find_tree", {}),)


def shown_in_the_terminal(model: Chat, prompt: Prompt, ids: Sequence[int]) -> tuple[str, Message]:
    """What `sapwood chat` shows of an answer as it comes, and the message that it keeps."""
    out, stream, answer = io.StringIO(), model.parse_stream(prompt), Sampled(prompt, SamplingParams(max_new_tokens=999), model)
    with InTurn(["mine"], out) as screen:
        for token in ids:
            answer.push(token, -1.0)
            for delta in stream.push(token):
                screen.heard.delta("mine", delta)
        for delta in stream.finish()[0]:
            screen.heard.delta("mine", delta)
    message = answer.completion().message
    assert message is not None
    return out.getvalue(), message


def test_a_conversation_in_the_terminal_shows_no_marks_and_keeps_messages() -> None:
    model = chat("gptoss")
    said = Message("assistant", "Below the bark.", reasoning="It is young wood.")
    turn = model.turns(Conversation((ASK, said)))[0]
    assert shown_in_the_terminal(model, turn.prompt, turn.ids) == ("(thinks) It is young wood.\nBelow the bark.\n", said)
    called = Message("assistant", tool_calls=(ToolCall("find_tree", {"rings": 3}),))
    turn = model.turns(Conversation((ASK, called), (TOOL,)))[0]
    assert shown_in_the_terminal(model, turn.prompt, turn.ids) == ('(calls) find_tree {"rings": 3}\n', called)


def test_completions_hold_their_message() -> None:
    model = chat("qwen3")
    prompt = model.prompt([ASK], (TOOL,), {"enable_thinking": False})
    assert model.turn_end is not None
    call = model.tokens.encode('<tool_call>\n{"name": "find_tree", "arguments": {"rings": 3}}\n</tool_call>')
    sampled = Sampled(prompt, SamplingParams(max_new_tokens=999), model)
    for token in [*call, model.turn_end]:
        sampled.push(token, -1.0)
    completion = sampled.completion()
    assert completion.ended is Ended.STOP
    assert completion.message == Message("assistant", tool_calls=(ToolCall("find_tree", {"rings": 3}),))
    cut = Sampled(prompt, SamplingParams(max_new_tokens=999, stop=("rings",)), model)
    for token in call:
        if cut.ended is None:
            cut.push(token, -1.0)
    assert cut.completion().message == Message("assistant", '<tool_call>\n{"name": "find_tree", "arguments": {"')
