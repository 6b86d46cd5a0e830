"""Tools, thoughts, formats and adapters through the `openai` client, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

import torch  # noqa: E402

from sapwood.model import LoraConfig, add_lora, load_model, save_adapter, trainable_parameters  # noqa: E402
from sapwood.model.routes import BASE  # noqa: E402
from sapwood.records import Completion, Ended, Message, SamplingParams  # noqa: E402
from sapwood.serve.answers import ChatDeltas  # noqa: E402
from sapwood.serve.asking import read_chat  # noqa: E402
from serve.serving import TOKEN, Serving, serving  # noqa: E402
from tiny.folder import SPECIALS, write_model  # noqa: E402

HERMES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if tools %}{{ 'tools: ' + (tools | tojson) + '\n' }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"tree": {"enum": ["oak", "elm"]}, "age": {"enum": [1, 2]}},
            "required": ["tree"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "rest", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "which tree?"}]
MESSAGES = [Message("user", "which tree?")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("tools")
    folder = write_model(place / "model", template=HERMES)
    for number, name in enumerate(("law", "verse")):
        model = add_lora(load_model(folder, "fp32"), LoraConfig(r=2, alpha=4), 0)
        generator = torch.Generator().manual_seed(number)
        for parameter in trainable_parameters(model).values():
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, place / name)
    models = {"tiny": BASE, "law": "law", "verse": "verse"}
    with serving(folder, models=models, adapters=[place / "law", place / "verse"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_demanded_call_is_one_whole_and_streamed(client: Any, choice: Any) -> None:
    asked = {
        "model": "tiny",
        "messages": ASK,
        "tools": [TOOL, OTHER],
        "tool_choice": choice,
        "max_tokens": 200,
        "temperature": 1,
        "seed": 2,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in whole.message.tool_calls]
    for name, arguments in calls:
        assert name in ("look_up", "rest")[: 1 if isinstance(choice, dict) else 2]
        jsonschema.validate(arguments, (TOOL if name == "look_up" else OTHER)["function"]["parameters"])
    pieces: dict[int, list[str]] = {}
    ids, reason = set(), None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name, arguments = pieces.setdefault(call.index, ["", ""])
            pieces[call.index] = [name + (call.function.name or ""), arguments + (call.function.arguments or "")]
            ids |= {call.id} - {None}
        reason = chunk.choices[0].finish_reason or reason
    assert [(name, json.loads(arguments)) for name, arguments in pieces.values()] == calls
    assert reason == "tool_calls"
    assert len(ids) == len(calls)


EIGHT: dict[str, Any] = {
    "model": "tiny",
    "messages": ASK,
    "tools": [TOOL, OTHER],
    "max_tokens": 200,
    "temperature": 1,
    "n": 8,
    "seed": 3,
}
"""Eight answers that may differ, with two tools to call."""


def test_one_call_alone_where_no_more_are_wanted(client: Any) -> None:

    def calls(**more: Any) -> list[int]:
        choices = client.chat.completions.create(**EIGHT, **more).choices
        return [len(choice.message.tool_calls) for choice in choices if choice.finish_reason == "tool_calls"]

    assert max(calls(tool_choice="required")) > 1
    assert set(calls(tool_choice="required", parallel_tool_calls=False)) == {1}


def allowed(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_some_of_the_tools_alone_are_called(server: Serving, client: Any) -> None:
    choices = client.chat.completions.create(**EIGHT, tool_choice=allowed("required", "rest")).choices
    assert {call.function.name for choice in choices for call in choice.message.tool_calls} == {"rest"}
    prompts = [
        read_chat({**EIGHT, "n": 1, "tool_choice": choice}, server.front.served).prompts for choice in ("auto", allowed("auto", "rest"))
    ]
    assert prompts[0] == prompts[1], "all are told"
    for wrong in (allowed("auto"), allowed("auto", "none"), allowed("any", "rest"), {"type": "allowed_tools"}):
        with pytest.raises(openai.BadRequestError, match="allowed_tools"):
            client.chat.completions.create(**EIGHT, tool_choice=wrong)


def test_when_free_answers_are_held(server: Serving) -> None:
    """A promise of the tools (`strict`) or of the request holds calls that the model need not make; nothing else does."""
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    for more, kind in (
        ({"tools": [TOOL]}, None),
        ({"tools": [TOOL, strict]}, "calls or text"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "call or text"),
        ({"tools": [TOOL], "parallel_tool_calls": True, "tool_choice": "auto"}, None),
        ({"tools": [strict], "tool_choice": "none"}, None),
        ({"parallel_tool_calls": False}, None),
        ({"tools": [TOOL, OTHER], "tool_choice": allowed("auto", "rest")}, "calls or text"),
        ({"tools": [TOOL, OTHER], "tool_choice": allowed("required", "rest", "look_up")}, "calls"),
        ({"tools": [TOOL, OTHER], "tool_choice": allowed("auto", "rest"), "parallel_tool_calls": False}, "call or text"),
    ):
        asked = read_chat({"model": "tiny", "messages": ASK, **more}, server.front.served)
        assert (asked.params.constraint and asked.params.constraint.kind) == kind


def test_the_first_piece_may_be_a_call(server: Serving, client: Any) -> None:
    def counted() -> int:
        headers = {"authorization": f"Bearer {TOKEN}"}
        page = httpx2.get(server.url.removesuffix("/v1") + "/metrics", headers=headers, trust_env=False).text
        return int(page.partition("sapwood_first_token_seconds_count ")[2].split()[0])

    before = counted()
    asked = {"model": "tiny", "messages": ASK, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "temperature": 1, "seed": 2}
    assert all(not chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True))
    assert counted() == before + 1


def test_calls_and_results_go_back_into_the_conversation(client: Any) -> None:
    asked = {"model": "tiny", "tools": [TOOL], "max_tokens": 120, "temperature": 1, "seed": 1}
    first = client.chat.completions.create(messages=ASK, tool_choice="required", **asked).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "an oak"}
    again = client.chat.completions.create(messages=[*ASK, first, result], **asked)
    assert again.choices[0].finish_reason in ("stop", "length", "tool_calls")
    none = client.chat.completions.create(messages=ASK, tool_choice="none", **{**asked, "tools": [TOOL] * 9})
    without = client.chat.completions.create(messages=ASK, **{**asked, "tools": []})
    assert none.usage.prompt_tokens == without.usage.prompt_tokens, "none offers none"


def test_a_format_holds(client: Any) -> None:
    schema = {"type": "object", "properties": {"tree": {"enum": ["oak", "elm"]}}, "required": ["tree"], "additionalProperties": False}
    more: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 120, "temperature": 1, "seed": 5}
    wanted = {"type": "json_schema", "json_schema": {"name": "tree", "schema": schema}}
    jsonschema.validate(json.loads(client.chat.completions.create(response_format=wanted, **more).choices[0].message.content), schema)
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        client.chat.completions.create(response_format=wanted, tools=[TOOL], tool_choice="required", **more)
    broken = {"type": "json_schema", "json_schema": {"name": "tree", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(response_format=broken, **more)


def test_each_name_answers_with_its_adapter(server: Serving, client: Any) -> None:
    said = {}
    for model, adapter in (("tiny", BASE), ("law", "law"), ("verse", "verse")):
        answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=12, temperature=0)
        prompt = server.chat.prompt(MESSAGES)
        (expected,) = server.engine.generate([prompt], SamplingParams(max_new_tokens=12), adapter=adapter)
        assert answer.model == model
        assert answer.choices[0].message.content == expected.message.content
        said[model] = answer.choices[0].message.content
    assert len(set(said.values())) == 3
    assert [one.id for one in client.models.list()] == ["tiny", "law", "verse"]


def test_deltas_joined_are_the_whole_for_any_answer(server: Serving) -> None:
    """Thoughts, calls, half calls and stop strings, written by hand: a random model would not get there."""
    prompt = server.chat.prompt(MESSAGES, [TOOL])
    call = '<tool_call>\n{"name": "look_up", "arguments": {"tree": "oak"}}\n</tool_call>'
    answers = [
        "plain",
        "<think>\nhm\n</think>\n\nsaid",
        f"so: {call}",
        f"<think>\nhm\n</think>\n\n{call}\n{call}",
        "<tool_call>\nbroken",
        "é€𝄞",
    ]
    for text in answers:
        for stop in ((), ("never",)):
            ids = [*server.chat.tokens.encode(text), SPECIALS.index("<|im_end|>")]
            message = server.chat.parse(ids, prompt).message
            deltas = ChatDeltas(server.chat, prompt, SamplingParams(stop=stop))
            found = [delta for token in ids for delta in deltas.push(token)]
            found += deltas.finish(Completion(prompt, tuple(ids), text, Ended.STOP, message=message))
            assert "".join(delta.get("content", "") for delta in found) == message.content
            assert "".join(delta.get("reasoning_content", "") for delta in found) == (message.reasoning or "")
            arguments: dict[int, str] = {}
            for delta in found:
                for piece in delta.get("tool_calls", ()):
                    arguments[piece["index"]] = arguments.get(piece["index"], "") + piece["function"]["arguments"]
            assert [json.loads(one) for one in arguments.values()] == [call.arguments for call in message.tool_calls]


def test_a_template_without_a_place_for_tools_offers_them_in_the_system_message(tmp_path: Path) -> None:
    with serving(write_model(tmp_path / "model"), tools_in_system=True) as server:
        call = server.ask(tools=[TOOL], tool_choice="required", max_tokens=200, temperature=1, seed=1).json()["choices"][0]
    assert [one["function"]["name"] for one in call["message"]["tool_calls"]] == ["look_up"]
