"""Constrained answers: always what was asked for, and the distribution over what is allowed is the model's own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest

from generate.prompts_and_engines import Letters, engine, prompts
from generate.random_schemas import random_schema
from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.generate import Engine
from sapwood.generate.constraints import WRITTEN
from sapwood.model import load_model
from sapwood.records import Completion, Constraint, Ended, Message, SamplingParams
from sapwood.records.sampling import ConstraintKind
from tiny.folder import TEMPLATE, write_model

FELL = {"type": "object", "properties": {"how": {"$ref": "#/$defs/way"}}, "required": ["how"], "$defs": {"way": {"enum": ["saw", "axe"]}}}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "find_tree",
            "parameters": {
                "type": "object",
                "properties": {"kind": {"type": "string", "maxLength": 6}, "rings": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["kind"],
            },
        },
    },
    {
        "name": "fell",
        "parameters": {
            "type": "object",
            "properties": {"how": {"$ref": "#/$defs/way"}},
            "required": ["how"],
            "$defs": {"way": {"enum": ["saw", "axe"]}},
        },
    },
    {"name": "rest", "parameters": None},
)
STYLES = {
    "Hermes": ("<tool_call>\n{{ {'name': c.name, 'arguments': c.arguments} | tojson }}\n</tool_call>", "\n"),
    "Mistral list": ("{{ {'name': c.name, 'arguments': c.arguments} | tojson }}", ", "),
    "Mistral": ("[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments | tojson }}", ""),
    "Cohere": ("{{ {'tool_call_id': '0', 'tool_name': c.name, 'parameters': c.arguments} | tojson }}", ", "),
    "Llama": ("{{ {'name': c.name, 'parameters': c.arguments} | tojson }}", ""),
}
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|START_ACTION|>", "<|END_ACTION|>")
AROUND = {"Mistral list": ("[TOOL_CALLS][", "]"), "Cohere": ("<|START_ACTION|>[", "]<|END_ACTION|>")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llguidance")
    return write_model(tmp_path_factory.mktemp("constraints") / "model", context=4096)


@pytest.fixture(scope="module")
def constrained(folder: Path, step: str) -> Engine:
    """Made anew for each kind of `step`."""
    return Engine(load_model(folder, "fp32"), Chat.load(folder))


def ask(engine: Engine, constraints: Sequence[Constraint | None], **settings: Any) -> list[Completion]:
    """One question, with each constraint, in one batch."""
    chat: Any = engine.chat_like
    prompt = chat.prompt([Message("user", "the colour of grass")])
    usual: dict[str, Any] = {"max_new_tokens": 400, "temperature": 1.0}
    with engine.open() as session:
        answers = [
            session.add(prompt, SamplingParams(**{**usual, "constraint": constraint, **settings}), index=index)
            for index, constraint in enumerate(constraints)
        ]
        while not session.idle:
            session.step()
    return [answer.completion() for answer in answers]


def test_random_schemas_are_always_kept_to(constrained: Engine) -> None:
    schemas = [random_schema(seed) for seed in range(60)]
    found = ask(constrained, [Constraint("json_schema", schema) for schema in schemas])
    for schema, completion in zip(schemas, found, strict=True):
        assert completion.ended is Ended.STOP, completion
        jsonschema.validate(json.loads(completion.text), schema)
        assert completion.ids[-1] in constrained.chat_like.stop_ids
    assert len({completion.text for completion in found}) > 20


def test_each_kind_in_one_batch_beside_free_answers(constrained: Engine) -> None:
    regex = '[a-c]{3,5}|x"y'
    wanted = [
        Constraint("choice", ("yes", 'no "way"')),
        None,
        Constraint("regex", regex),
        Constraint("lark", 'start: "one" (" " NUMBER){2}\nNUMBER: /[1-9]/'),
    ] * 6
    found = ask(constrained, wanted, max_new_tokens=20)
    assert {answer.text for answer in found[0::4]} == {"yes", 'no "way"'}
    assert all(re.fullmatch(regex, answer.text) for answer in found[2::4])
    assert all(re.fullmatch("one [1-9] [1-9]", answer.text) for answer in found[3::4])
    free = ask(constrained, [None] * 24, max_new_tokens=20)
    assert [answer.ids for answer in found[1::4]] == [free[index].ids for index in range(1, 24, 4)]


def test_any_json_object(constrained: Engine) -> None:
    ended = [answer for answer in ask(constrained, [Constraint("json")] * 12, max_new_tokens=200) if answer.ended is Ended.STOP]
    assert ended
    assert all(isinstance(json.loads(answer.text), dict) for answer in ended)


def test_what_is_allowed_keeps_the_models_own_proportions(constrained: Engine) -> None:
    chat: Any = constrained.chat_like
    words = ("a", "b", "c")  # one token each, and no token begins another
    prompt = chat.prompt([Message("user", "the colour of grass")])
    first = [chat.tokens.encode(word) for word in words]
    assert [len(ids) for ids in first] == [1, 1, 1]
    [told] = constrained.generate([prompt], SamplingParams(max_new_tokens=1, top_logprobs=320))
    likely = dict(told.top_logprobs[0])
    weights = np.exp([likely[ids[0]] for ids in first])
    draws = Counter(answer.text for answer in ask(constrained, [Constraint("choice", words)] * 600))
    expected = 600 * weights / weights.sum()
    assert sum((draws[word] - count) ** 2 / count for word, count in zip(words, expected, strict=True)) < 13.8, "χ² at 0.1 %"
    [one] = ask(constrained, [Constraint("choice", words)])
    assert one.logprobs[0] == pytest.approx(likely[one.ids[0]], abs=1e-5), "log-probabilities are those of the model, unconstrained"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("as_token", [False, True])
def test_calls_always_validate_and_read_back(style: str, as_token: bool, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    chat = Chat.load(_folder(tmp_path, style, as_token))
    assert chat.form.style is not None
    assert chat.form.style.name == style
    _check_calls(Engine(load_model(tmp_path / "model", "fp32"), chat), several=style != "Llama")


def test_calls_offered_in_the_system_message(folder: Path) -> None:
    _check_calls(Engine(load_model(folder, "fp32"), Chat.load(folder).with_tools_in_system()), several=False)


def _check_calls(engine: Engine, several: bool) -> None:
    chat: Any = engine.chat_like
    prompt = chat.prompt([Message("user", "grass")], tools=TOOLS)
    schemas = {tool.get("function", tool)["name"]: tool.get("function", tool)["parameters"] or {"type": "object"} for tool in TOOLS}
    names: set[str] = set()
    for kind in get_args(ConstraintKind)[-4:]:
        only = "text" not in kind
        params = SamplingParams(max_new_tokens=180 if only else 25, temperature=1.0, constraint=Constraint(kind, TOOLS))
        found = engine.generate([prompt] * 6, params)
        for completion in found:
            assert completion.message is not None
            calls = completion.message.tool_calls
            if only and completion.ended is Ended.STOP:
                assert calls
                assert not completion.message.content.strip()
                assert (several and kind == "calls") or len(calls) == 1
            for call in calls:
                jsonschema.validate(dict(call.arguments), schemas[call.name])
                names.add(call.name)
        assert not only or sum(completion.ended is Ended.STOP for completion in found) >= 2
    assert len(names) > 1


def _folder(place: Path, style: str, as_token: bool) -> Path:
    one, between = STYLES[style]
    opening, closing = AROUND.get(style, ("", ""))
    calls = (
        "{% if message.tool_calls %}"
        + opening
        + "{% for t in message.tool_calls %}{% set c = t.function %}"
        + one
        + "{% if not loop.last %}"
        + between
        + "{% endif %}{% endfor %}"
        + closing
        + "{% endif %}"
    )
    template = "{{ tools | tojson if tools }}" + TEMPLATE.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{{ message['content'] or '' }}" + calls + "{{ '<|im_end|>\n' }}",
    )
    folder = write_model(place / "model", template=template, context=4096)
    marks = [
        mark for mark in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|START_ACTION|>", "<|END_ACTION|>") if mark in template
    ]
    if as_token:
        _add_tokens(folder, marks)
    return folder


def _add_tokens(folder: Path, marks: list[str]) -> None:
    """Make marks tokens of their own, in the place of the last ones of the vocabulary (the model has no more rows)."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    size = len(vocabulary)
    last = {token: number for token, number in vocabulary.items() if number >= size - len(marks)}
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) not in last]
    for token in last:
        del vocabulary[token]
    like = content["added_tokens"][0]
    content["added_tokens"] += [{**like, "id": size - len(marks) + place, "content": mark} for place, mark in enumerate(marks)]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_what_cannot_be_used_is_refused_by_name(constrained: Engine, folder: Path) -> None:
    cases = [
        (Constraint("json_schema", {"type": "objekt"}), "objekt"),
        (Constraint("json_schema", {"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Constraint("regex", "(a"), "unclosed"),
        (Constraint("lark", "begin: x"), "start"),
        (Constraint("calls", TOOLS), "writes no calls"),
    ]
    for constraint, told in cases:
        with pytest.raises(ConfigError, match=told):
            ask(constrained, [constraint])
    with pytest.raises(ConfigError, match="has no name"):
        ask(Engine(constrained.model, Chat.load(folder).with_tools_in_system()), [Constraint("calls", ({},))])
    with pytest.raises(ConfigError, match="need a Chat"):
        engine("llama", Letters()).generate(prompts([[3]]), SamplingParams(constraint=Constraint("json")))
    assert set(WRITTEN) == {*STYLES, "tool prompt"}


@pytest.mark.parametrize(
    ("kind", "value"), [("json", {}), ("json_schema", "{}"), ("regex", 3), ("choice", "yes"), ("calls", ()), ("sql", "")]
)
def test_a_constraint_of_the_wrong_kind_of_value_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="constraint"):
        Constraint(kind, value)
