"""Readers of answers: each way of writing calls, by hand and by chance; no letter lost, whatever the borders of the pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sapwood.chat.calls import STYLES
from sapwood.chat.readers import Layout, Part, reader_for
from sapwood.records import ToolCall

STYLE = {style.name: style for style in STYLES}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "grow",
            "parameters": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string"},
                    "rings": {"type": "integer"},
                    "deep": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                    "open": {},
                },
            },
        },
    }
]
OAK = ToolCall("grow", {"kind": "oak", "rings": 3})
ONE = json.dumps({"name": "grow", "arguments": {"kind": "oak", "rings": 3}})
D = {"begin": "<｜tool▁calls▁begin｜>", "end": "<｜tool▁calls▁end｜>", "one": "<｜tool▁call▁begin｜>", "sep": "<｜tool▁sep｜>"}
D["done"] = "<｜tool▁call▁end｜>"
HARMONY = "<|start|>assistant"


def read(style: str, text: str, *, prompt: str = "", pieces: list[int] | None = None, layout: Layout | None = None) -> tuple[Any, ...]:
    """(content, reasoning, calls, problems, parts) of a text that comes in pieces cut at the given places."""
    reader = reader_for(STYLE.get(style), layout or Layout(), TOOLS, prompt)
    parts: list[Part] = []
    cuts = [0, *sorted(pieces or []), len(text)]
    for start, end in itertools.pairwise(cuts):
        parts += reader.push(text[start:end])
    parts += reader.finish()
    content, reasoning = ("".join(part.raw for part in parts if part.kind == kind) for kind in ("content", "reasoning"))
    return content, reasoning, [call for part in parts for call in part.calls], reader.problems, parts


@pytest.mark.parametrize(
    ("style", "text", "content"),
    [
        ("Hermes", f"<tool_call>\n{ONE}\n</tool_call>", ""),
        ("Hermes", f"Sure.<tool_call>{ONE}</tool_call>", "Sure."),
        ("Hermes", '<tool_call>{"name": "grow", "parameters": "{\\"kind\\": \\"oak\\", \\"rings\\": 3}"}</tool_call>', ""),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=grow>\n<parameter=kind>\noak\n</parameter>\n<parameter=rings>\n3\n</parameter>\n</function>\n</tool_call>",
            "",
        ),
        (
            "GLM",
            "Now\n<tool_call>grow\n<arg_key>kind</arg_key>\n<arg_value>oak</arg_value>\n<arg_key>rings</arg_key>\n<arg_value>3</arg_value>\n"
            "</tool_call>",
            "Now\n",
        ),
        ("Mistral list", f"[TOOL_CALLS] [{ONE}]", ""),
        ("Mistral", '[TOOL_CALLS]grow[ARGS]{"kind": "oak", "rings": 3}', ""),
        ("DeepSeek", f'{D["begin"]}{D["one"]}function{D["sep"]}grow\n```json\n{{"kind": "oak", "rings": 3}}\n```{D["done"]}{D["end"]}', ""),
        ("DeepSeek", f'Hm{D["begin"]}{D["one"]}grow{D["sep"]}{{"kind": "oak", "rings": 3}}{D["done"]}{D["end"]}', "Hm"),
        ("Cohere", '<|START_ACTION|>[{"tool_name": "grow", "parameters": {"kind": "oak", "rings": 3}}]<|END_ACTION|>', ""),
        ("Gemma", '<|tool_call>call:grow{kind:<|"|>oak<|"|>,rings:3}<tool_call|>Done.', "Done."),
        ("LFM2", "<|tool_call_start|>[grow(kind='oak', rings=3)]<|tool_call_end|>", ""),
        ("Python in code tags", '<code>grow(kind="oak", rings=3)</code>', ""),
        ("Llama", '{"name": "grow", "parameters": {"kind": "oak", "rings": 3}}', ""),
        ("Llama", '<|python_tag|>{"name": "grow", "parameters": {"kind": "oak", "rings": 3}}', ""),
        ("Llama", '<|python_tag|>grow.call(kind="oak", rings=3)', ""),
        ("Python", " [grow(kind='oak', rings=3)]\n", ""),
        ("Python", "<|python_start|>[grow(kind='oak', rings=3,)]<|python_end|>", ""),
        ("harmony", f'{HARMONY} to=functions.grow<|channel|>commentary json<|message|>{{"kind": "oak", "rings": 3}}<|call|>', ""),
        ("harmony", f'{HARMONY}<|channel|>commentary to=functions.grow <|constrain|>json<|message|>{{"kind": "oak", "rings": 3}}', ""),
        (
            "addressed messages",
            f'{HARMONY} to=grow<|message|><atem:function_calls>\n<atem:invoke name="grow">\n'
            '<atem:parameter name="kind">oak</atem:parameter>\n'
            '<atem:parameter name="rings">3</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>',
            "",
        ),
        ("tool prompt", ONE, ""),
        ("tool prompt", f"<tool_call>{ONE}</tool_call>", ""),
    ],
)
def test_a_call_is_read_in_each_style(style: str, text: str, content: str) -> None:
    said, reasoning, calls, problems, _ = read(style, text)
    assert (said, reasoning, calls, problems) == (content, "", [OAK], [])
    assert read(style, text, pieces=list(range(len(text))))[:4] == (content, "", [OAK], [])


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("Hermes", f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>\n"),
        ("Mistral list", f"[TOOL_CALLS][{ONE}, {ONE}]"),
        ("Mistral", '[TOOL_CALLS]grow[CALL_ID]a[ARGS]{"kind": "oak", "rings": 3}[TOOL_CALLS]grow[ARGS]{"kind": "oak", "rings": 3}'),
        ("Llama", f"{ONE}; {ONE}"),
        ("LFM2", "<|tool_call_start|>[grow(kind='oak', rings=3), grow(rings=3, kind=\"oak\")]<|tool_call_end|>"),
        ("tool prompt", f"[{ONE}, {ONE}]"),
    ],
)
def test_parallel_calls_are_read(style: str, text: str) -> None:
    content, _, calls, problems, _ = read(style, text)
    assert (content, [(call.name, dict(call.arguments)) for call in calls], problems) == ("", [(OAK.name, dict(OAK.arguments))] * 2, [])


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("Hermes", '<tool_call>{"name": "grow", "arguments": {"kind": "oak"'),
        ("Hermes", '<tool_call>{"name": "grow", "arguments": {"kind": NaN}}</tool_call>'),
        ("Hermes", '<tool_call>{"name": "grow", "arguments": {"kind": 1e999}}</tool_call>'),
        ("Hermes", '<tool_call>{"name": "grow"}</tool_call>'),
        ("Hermes", '<tool_call>{"name": "grow", "arguments": [1]}</tool_call>'),
        ("Hermes", '<tool_call>{"name": "grow", "arguments": {"a": "\\ud800"}}</tool_call>'),
        ("Hermes", '<tool_call>{"name": "grow", "arguments": ' + '{"a":' * 300 + "1" + "}" * 301 + "</tool_call>"),
        ("Qwen3-Coder", "<tool_call>\n<function=grow>\n<parameter=kind>\noak\n</function>\n</tool_call>"),
        ("GLM", "<tool_call>grow\n<arg_key>kind</arg_key>\n</tool_call>"),
        ("Mistral", "[TOOL_CALLS]grow[ARGS]oak"),
        ("Mistral list", "[TOOL_CALLS]grow"),
        ("DeepSeek", f"{D['begin']}{D['one']}function{D['sep']}grow\n```json\nno\n```{D['done']}{D['end']}"),
        ("Gemma", "<|tool_call>call:grow{kind:oak}<tool_call|>"),
        ("LFM2", "<|tool_call_start|>[grow(kind=__import__('os').getcwd())]<|tool_call_end|>"),
        ("LFM2", "<|tool_call_start|>[grow('oak')]<|tool_call_end|>"),
        ("LFM2", "<|tool_call_start|>[grow(rings=2**99)]<|tool_call_end|>"),
        ("LFM2", "<|tool_call_start|>[grow(kind=f'{1}')]<|tool_call_end|>"),
        ("Python in code tags", "<code>import os</code>"),
        ("Llama", '{"name": "grow", "parameters": {"kind": "oak"}} and so on'),
        ("Llama", "<|python_tag|>print(1)"),
        ("harmony", f"{HARMONY} to=functions.grow<|channel|>commentary json<|message|>{{oak<|call|>"),
        ("tool prompt", 'Sure: {"name": "grow", "arguments": {}}'),
    ],
)
def test_what_is_no_call_stays_content_letter_for_letter(style: str, text: str) -> None:
    content, _, calls, problems, parts = read(style, text)
    assert calls == []
    assert problems or style == "tool prompt"
    assert content == text or style == "harmony"
    assert "".join(part.raw for part in parts) == text


def test_a_broken_call_does_not_hide_a_good_one_behind_it() -> None:
    content, _, calls, problems, _ = read("Hermes", f'<tool_call>{{"name": 3}}</tool_call><tool_call>{ONE}</tool_call>')
    assert calls == [OAK]
    assert content == '<tool_call>{"name": 3}</tool_call>'
    assert len(problems) == 1


def test_a_call_without_its_closing_mark_counts_and_is_told() -> None:
    content, _, calls, problems, _ = read("DeepSeek", f'{D["begin"]}{D["one"]}grow{D["sep"]}{{"kind": "oak", "rings": 3}}')
    assert (content, calls) == ("", [OAK])
    assert "closing mark is missing" in problems[0]


@pytest.mark.parametrize(
    ("style", "value"),
    [
        ("Hermes", "a </tool_call> b"),
        ("Hermes", 'a } "] {'),
        ("Qwen3-Coder", "a\n</parameter>\n b"),
        ("Qwen3-Coder", "\n  a\n\n"),
        ("Qwen3-Coder", "</function>\n</tool_call>"),
        ("GLM", "</tool_call>"),
        ("LFM2", "it's [<|tool_call_end|>] \\ \" \n"),
    ],
)
def test_a_string_that_looks_like_the_end_of_a_call_ends_nothing(style: str, value: str) -> None:
    written = {
        "Hermes": f"<tool_call>{json.dumps({'name': 'grow', 'arguments': {'kind': value}})}</tool_call>",
        "Qwen3-Coder": f"<tool_call>\n<function=grow>\n<parameter=kind>\n{value}\n</parameter>\n</function>\n</tool_call>",
        "GLM": f"<tool_call>grow\n<arg_key>kind</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
        "LFM2": f"<|tool_call_start|>[grow(kind={value!r})]<|tool_call_end|>",
    }
    for pieces in ([], list(range(len(written[style])))):
        assert read(style, written[style], pieces=pieces)[2] == [ToolCall("grow", {"kind": value})]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("kind", "3", "3"),
        ("kind", "true", "true"),
        ("rings", "3", 3),
        ("rings", "three", "three"),
        ("deep", '{"a": [1, null]}', {"a": [1, None]}),
        ("deep", "None", None),
        ("open", "True", True),
        ("open", '"3"', '"3"'),
        ("open", "2.5", 2.5),
        ("unknown", "12345678901234567890123", 12345678901234567890123),
    ],
)
def test_a_tags_text_gets_the_type_of_its_schema(key: str, text: str, value: Any) -> None:
    written = f"<tool_call>\n<function=grow>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    ((call,),) = [read("Qwen3-Coder", written)[2]]
    assert call.arguments == {key: value}
    assert type(call.arguments[key]) is type(value)


@pytest.mark.parametrize(
    ("prompt", "text", "content", "reasoning"),
    [
        ("…<think>\n", "hm\n</think>\n\nYes.", "Yes.", "hm"),
        ("…<think>\n", "<think>\nhm</think>Yes.", "Yes.", "hm"),
        ("…<think>\n", "</think>Yes.", "Yes.", ""),
        ("…<think>\n\n</think>\n\n", "\nYes.", "\nYes.", ""),
        ("…<think></think>", "\nYes.", "Yes.", ""),
        ("…", "\n<think>\n\n</think>\n\nYes.", "Yes.", ""),
        ("…", "<think>\nhm\n\nha \n</think>\n\n Yes. ", " Yes. ", "hm\n\nha"),
        ("…", "Yes <think>hm</think>", "Yes <think>hm</think>", ""),
        ("…", "[THINK]hm[/THINK]Yes.", "Yes.", "hm"),
        ("…", "<|channel>thought\nhm\n<channel|>Yes.", "Yes.", "hm"),
        ("…", " \n ", " \n ", ""),
    ],
)
def test_thoughts_are_told_from_answers(prompt: str, text: str, content: str, reasoning: str) -> None:
    for pieces in ([], list(range(len(text)))):
        assert read("Hermes", text, prompt=prompt, pieces=pieces)[:4] == (content, reasoning, [], [])


def test_a_thought_that_is_never_closed_is_told() -> None:
    content, reasoning, _, problems, _ = read("Hermes", "hm <tool_call>", prompt="<think>")
    assert (content, reasoning) == ("", "hm <tool_call>")
    assert "not closed" in problems[0]


def test_harmony_channels() -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    assert read("harmony", text, prompt="…<|start|>assistant")[:4] == ("Yes.", "hm", [], [])
    opened = "Yes.<|end|><|start|>assistant<|channel|>final<|message|> No."
    assert read("harmony", opened, prompt="…<|start|>assistant<|channel|>analysis<|message|>")[:2] == (" No.", "Yes.")
    content, _, _, problems, _ = read("harmony", "Hello", prompt="…<|start|>assistant")
    assert content == "Hello"
    assert "header" in problems[0]


FRAGMENTS = st.sampled_from(
    [
        *{mark for style in STYLES for mark in getattr(style, "opens", getattr(style, "ends", ()))},
        *("</tool_call>", "<think>", "</think>", "\n", " ", "\n\n", "hm", "{", "}", "[", "]", '"', "'", ",", ":", "grow", "(", ")", "\\"),
        *(
            "<|start|>",
            "<|message|>",
            " to=grow",
            "<|channel|>analysis",
            "<arg_key>",
            "<function=grow>",
            "</function>",
            "[ARGS]",
            "<tool_call|>",
        ),
        *(D.values()),
        *("<|END_ACTION|>", "<|tool_call_end|>", "<tail>", "call:grow", "<parameter=kind>", "</parameter>", ONE, '{"kind": "oak"}'),
        f"<tool_call>{ONE}</tool_call>",
        f"[TOOL_CALLS][{ONE}]",
        '[TOOL_CALLS]grow[ARGS]{"a": 1}',
    ]
)
LAYOUTS = st.sampled_from([Layout(), Layout(" ", "<tail>", "\n"), Layout("", "\n", "\n\n"), Layout("<think", "", "hm")])


def agree(style: str, text: str, layout: Layout, prompt: str, cuts: list[int]) -> None:
    whole = read(style, text, prompt=prompt, layout=layout)
    assert "".join(part.raw for part in whole[4]) == text
    assert read(style, text, prompt=prompt, layout=layout, pieces=cuts)[:4] == whole[:4]
    assert read(style, text, prompt=prompt, layout=layout, pieces=list(range(len(text))))[:4] == whole[:4]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*STYLE, "none"]),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    LAYOUTS,
    st.sampled_from(["", "<think>\n", "<think></think>", "<|start|>assistant", "<|start|>assistant<|channel|>analysis<|message|>"]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_no_letter_is_lost_and_pieces_make_no_difference(style: str, text: str, layout: Layout, prompt: str, cuts: list[int]) -> None:
    agree(style, text, layout, prompt, [cut for cut in cuts if cut <= len(text)])


@pytest.mark.parametrize(
    "text",
    [
        f"hm\n\n<tool_call>{ONE}</tool_call>\n\nhm\n\n<tool_call>{ONE}</tool_call>\n",
        f"\n\n\n<tool_call>{ONE}</tool_call>",
        "hm\n<tool_call>[",
        "\n\n<tool_call>[",
        f"hm<tail>hm<tool_call>{ONE}</tool_call>hm\n<tail>",
        " hm<tail>",
        f"<tool_call>{ONE}</tool_call>hm\n",
    ],
)
def test_what_stands_around_calls_is_kept_or_cut_alike_in_pieces(text: str) -> None:
    for layout in (Layout(), Layout(" ", "<tail>", "\n"), Layout("", "\n", "\n\n")):
        for cut in range(len(text)):
            agree("Hermes", text, layout, "", [cut])


JSON_STYLES = ["Hermes", "Mistral", "Mistral list", "Llama"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=3), st.sampled_from(JSON_STYLES))
@example({"": "\x00\u2028", "a": 10**40}, "Hermes")
def test_arguments_of_json_styles_come_back_exactly(arguments: dict[str, Any], style: str) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    text = {
        "Hermes": f'<tool_call>{{"name": "grow", "arguments": {written}}}</tool_call>',
        "Mistral": f"[TOOL_CALLS]grow[ARGS]{written}",
        "Mistral list": f'[TOOL_CALLS][{{"name": "grow", "arguments": {written}}}]',
        "Llama": f'{{"name": "grow", "parameters": {written}}}',
    }[style]
    try:
        written.encode()
    except UnicodeEncodeError:
        return
    content, _, calls, problems, _ = read(style, text)
    assert (content, problems) == ("", [])
    assert json.dumps(calls[0].arguments) == json.dumps(arguments)
