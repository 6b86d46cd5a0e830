"""A `Sampler` over HTTP against a server on loopback: what is asked, what is understood, and what each fault becomes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.scripted_server import Scripted, response, said, serving
from sapwood.errors import ConfigError, RemoteError
from sapwood.records import Completion, Constraint, Ended, Message, Prompt, SamplingParams, ToolCall
from sapwood.remote import Remote, RemoteSampler

GREEDY, SAMPLED = SamplingParams(max_new_tokens=9), SamplingParams(max_new_tokens=9, temperature=1.0)
KEY = "sk-very-secret-0123456789"


def asked(text: str = "hello", **more: Any) -> Prompt:
    return Prompt((Message("system", "be short"), Message("user", text)), (), "", **more)


def sampler(server: Scripted, **knobs: Any) -> RemoteSampler:
    return RemoteSampler(Remote(**{"url": server.url, "model": "m", "backoff": 0.01, "timeout": 5.0, **knobs}))


def ask(server: Scripted, prompt: Prompt | None = None, params: SamplingParams = GREEDY, **knobs: Any) -> Completion:
    (answer,) = sampler(server, **knobs).generate([prompt or asked()], params)
    return answer


def test_the_request_says_what_the_prompt_and_the_parameters_say() -> None:
    call = ToolCall("look", {"at": 'a "b"', "deep": {"x": [1]}}, "id1")
    messages = (Message("user", "hi"), Message("assistant", tool_calls=(call,)), Message("tool", "seen", tool_call_id="id1"))
    tool = {"name": "look", "parameters": {"type": "object"}}
    prompt = Prompt(messages, (), "", (tool,), {"enable_thinking": False})
    params = SamplingParams(max_new_tokens=5, temperature=0.7, top_p=0.9, top_k=4, stop=("a", "b"), frequency_penalty=0.5, seed=3)
    with serving(lambda body, _: said("x")) as server:
        ask(server, prompt, params)
        ask(server, asked(), SamplingParams(max_new_tokens=5, constraint=Constraint("json_schema", {"type": "object"})))
    first, second = server.bodies
    assert json.loads(first["messages"][1]["tool_calls"][0]["function"]["arguments"]) == call.arguments
    assert first["messages"][2] == {"role": "tool", "content": "seen", "tool_call_id": "id1"}
    assert first["tools"] == [{"type": "function", "function": tool}]
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    wanted = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 4, "stop": ["a", "b"], "frequency_penalty": 0.5}
    assert first.items() >= wanted.items()
    assert 0 <= first["seed"] < 2**31
    assert second.keys() == {"model", "messages", "max_tokens", "temperature", "response_format"}, "what has its default is not sent"
    assert second["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_cannot_be_asked_is_refused_by_name() -> None:
    with serving(lambda body, _: said("x")) as server:
        with pytest.raises(ConfigError, match="prompt_logprobs"):
            ask(server, params=SamplingParams(prompt_logprobs=True))
        with pytest.raises(ConfigError, match="lark"):
            ask(server, params=SamplingParams(constraint=Constraint("lark", "start: /a/")))
        with pytest.raises(ConfigError, match="on_token"):
            sampler(server).generate([asked()], GREEDY, on_token=lambda index, token: None)
    assert not server.bodies


ANSWERS: dict[str, tuple[bytes, Message, Ended]] = {
    "plain": (said("hi"), Message("assistant", "hi"), Ended.STOP),
    "too long": (said("hi", reason="length"), Message("assistant", "hi"), Ended.LENGTH),
    "reasoning_content": (said("hi", reasoning_content="hm"), Message("assistant", "hi", reasoning="hm"), Ended.STOP),
    "reasoning": (said("hi", reasoning="hm"), Message("assistant", "hi", reasoning="hm"), Ended.STOP),
    "thought in content": (said("<think>\nhm\n</think>\n\nhi"), Message("assistant", "hi", reasoning="hm"), Ended.STOP),
    "thought opened in the prompt": (said("hm\n</think>\n\nhi"), Message("assistant", "hi", reasoning="hm"), Ended.STOP),
    "refusal": (said(None, refusal="I will not"), Message("assistant", "I will not"), Ended.STOP),  # type: ignore[arg-type]
    "parts": (said([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), Message("assistant", "hi"), Ended.STOP),  # type: ignore[arg-type]
    "calls": (
        said(None, reason="tool_calls", tool_calls=[{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]),  # type: ignore[arg-type]
        Message("assistant", tool_calls=(ToolCall("f", {"a": 1}, "c"),)),
        Ended.STOP,
    ),
    "withheld": (said("", reason="content_filter"), Message("assistant"), Ended.ERROR),
    "unfinished": (said("h", reason=None), Message("assistant", "h"), Ended.ERROR),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_understood(name: str) -> None:
    data, message, ended = ANSWERS[name]
    with serving(lambda body, _: data) as server:
        answer = ask(server)
    assert (answer.message, answer.ended) == (message, ended)
    assert answer.counted == (7, 3)
    assert bool(answer.error) == (ended is Ended.ERROR)


def test_a_call_that_cannot_be_read_stays_letter_for_letter() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}]
    with serving(lambda body, _: said("so:", tool_calls=calls)) as server:
        answer = ask(server)
    assert answer.message is not None
    assert not answer.message.tool_calls
    assert answer.text.startswith("so:\n")
    assert json.loads(answer.text.partition("\n")[2]) == calls


def test_token_ids_and_logprobs_where_the_server_gives_them() -> None:
    def script(body: dict[str, Any], before: int) -> bytes:
        choice = json.loads(said("hi").partition(b"\r\n\r\n")[2])
        entries = [{"token": "h", "logprob": -0.5, "id": 4}, {"token": "token_id:9", "logprob": -1.0}]
        choice["choices"][0]["logprobs"] = {"content": entries if before < 2 else [{"token": "hi", "logprob": -1.0}]}
        if before == 1:
            choice["choices"][0]["token_ids"] = [4, 9]
        return response(choice)

    with serving(script) as server:
        for _ in range(2):
            answer = ask(server, token_ids=True)
            assert (answer.ids, answer.logprobs) == ((4, 9), (-0.5, -1.0))
        assert ask(server, token_ids=True).ids == ()
    assert all(body["logprobs"] and body["return_token_ids"] for body in server.bodies)


def test_an_old_or_strict_server_is_asked_the_same_in_another_form() -> None:
    def script(body: dict[str, Any], _: int) -> bytes:
        if "max_tokens" in body:
            return response({"error": {"message": "Use 'max_completion_tokens' instead of 'max_tokens'."}}, 400)
        if "return_token_ids" in body:
            return response({"error": {"message": "Unrecognized request argument supplied: return_token_ids"}}, 400)
        if "n" in body:
            return response({"error": {"message": "'n' must be 1"}}, 400)
        return said(f"{body['seed']}")

    with serving(script) as server:
        remote = sampler(server, token_ids=True)
        answers = remote.generate([asked()] * 3, SAMPLED)
    assert len({answer.text for answer in answers}) == 3, "each sample has a seed of its own"
    assert [answer.ended for answer in answers] == [Ended.STOP] * 3
    assert any("return_token_ids" in note for note in remote.notes)
    assert server.bodies[-1]["max_completion_tokens"] == 9


def test_equal_prompts_are_one_request() -> None:
    with serving(lambda body, _: said(*map(str, range(body.get("n", 1))))) as server:
        answers = sampler(server).generate([asked("a"), asked("b"), asked("a"), asked("a")], SAMPLED)
        assert [answer.text for answer in answers] == ["0", "0", "1", "2"]
        assert sorted(body.get("n", 1) for body in server.bodies) == [1, 3]
        assert sum(answer.counted[0] for answer in answers if answer.counted) == 14, "a prompt is paid once a request"
        del server.bodies[:]
        greedy = sampler(server).generate([asked("a")] * 4, GREEDY)
    assert len(server.bodies) == 1
    assert {answer.text for answer in greedy} == {"0"}


def test_answers_keep_the_order_of_the_prompts_and_few_are_asked_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def script(body: dict[str, Any], _: int) -> bytes:
        barrier.wait()  # three must be under way together, or nothing is answered
        return said(body["messages"][-1]["content"])

    with serving(script) as server:
        answers = sampler(server, at_once=3).generate([asked(f"{number}") for number in range(12)], GREEDY)
    assert [answer.text for answer in answers] == [f"{number}" for number in range(12)]
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("faults", "sent"),
    [
        ([response({"error": {"message": "busy"}}, 500)] * 2, 3),
        ([response(b"<html><title>Bad gateway</title>", 502)], 2),
        ([response({"error": "slow down"}, 429, {"retry-after": "0"})], 2),
        ([said("cut")[:-4]], 2),
        ([response(b'{"choices": [')], 2),
        ([response(b"<html>hello")], 2),
        ([response({"choices": []})], 2),
        ([response({"error": {"message": "overloaded", "code": 529}})], 2),
        ([b""], 2),
        ([b"HTTP/1.1 200 X\r\nnonsense"], 2),
    ],
)
def test_what_may_pass_is_asked_again(faults: list[bytes], sent: int) -> None:
    with serving(lambda body, before: faults[before] if before < len(faults) else said("there")) as server:
        answer = ask(server)
    assert answer.text == "there"
    assert len(server.bodies) == sent


@pytest.mark.parametrize(
    ("status", "message", "full"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens", True),
        (400, "the request exceeds the available context size. try increasing the context size", True),
        (400, "The prompt has 9 tokens and the model's context holds 8, the answer included.", True),
        (422, "The decoder prompt (length 9) is longer than the maximum model length of 8", True),
        (400, "top_k is unknown in this context", False),
    ],
)
def test_a_prompt_that_does_not_fit_the_servers_context_is_marked(status: int, message: str, full: bool) -> None:
    with serving(lambda body, _: response({"error": {"message": message}}, status)) as server:
        answer = ask(server)
    assert (answer.ended, answer.outgrown) == (Ended.ERROR, full)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (response({"error": {"message": "busy"}}, 500), ["status 500: busy", "3 times"]),
        (response(b"<html><head><title>Welcome</title>"), ["an HTML page", "Welcome"]),
        (response(b"[1]"), ["a list, expected an object"]),
        (response({"choices": "x"}), ["`choices` is a text"]),
        (response({"object": "y"}), ["`choices` is missing", "`object`"]),
        (response({"choices": [{"text": "x"}]}), ["`choices[0].message` is missing"]),
        (response({"choices": [{"message": {"content": 7}}]}), ["content` is a number"]),
        (response(b""), ["nothing"]),
        (response({"error": {"message": "later"}}, 429, {"retry-after": "9999"}), ["429", "9999 s"]),
        (response({"detail": [{"msg": "top_k: unknown"}]}, 422), ["status 422", "top_k: unknown"]),
        (response({"error": {"message": f"bad key {KEY}"}}, 400), ["bad key (the key)"]),
        (None, ["no whole answer within 0.3 s"]),
    ],
)
def test_what_never_passes_is_a_failure_that_says_why(fault: bytes | None, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving(lambda body, _: fault) as server:
        answer = ask(server, tries=3, timeout=0.3 if fault is None else 5.0, key="SOME_KEY")
    assert answer.ended is Ended.ERROR
    assert answer.error is not None
    assert all(word in answer.error for word in (*words, server.url)), answer.error
    assert KEY not in answer.error


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (response({"error": {"message": "Incorrect API key"}}, 401), "401: Incorrect API key.*environment variable"),
        (response({"detail": "Not Found"}, 404), "404: Not Found.*ends in /v1"),
        (response(b"", 307, {"location": "https://elsewhere.example"}), "elsewhere.example"),
    ],
)
def test_what_no_request_survives_stops_the_call(fault: bytes, words: str) -> None:
    with serving(lambda body, _: fault) as server, pytest.raises(RemoteError, match=words):
        sampler(server, at_once=2).generate([asked(f"{number}") for number in range(20)], GREEDY)
    assert len(server.bodies) <= 2, "the others are not even sent"


def test_nobody_there() -> None:
    with serving(lambda body, _: said("x")) as server:
        pass
    with pytest.raises(RemoteError, match=r"no connection.*tried 2 times"):
        ask(server, tries=2)
    with pytest.raises(RemoteError, match="Check that the server runs"):
        sampler(server).check()


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving(lambda body, _: said("x")) as server:
        ask(server, key="SOME_KEY", cache=tmp_path / "answers")
        ask(server)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in server.headers[1]
    files = [file for file in (tmp_path / "answers").rglob("*") if file.is_file()]
    assert files
    assert not any(KEY in file.read_text() for file in files)
    monkeypatch.setenv("SOME_KEY", "two wörds")
    with pytest.raises(ConfigError, match="SOME_KEY' holds is no key"):
        ask(server, key="SOME_KEY")
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="SOME_KEY"):
        ask(server, key="SOME_KEY")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"url": "localhost:8000"}, "with its scheme"),
        ({"url": "https://me:secret@a.example/v1"}, "a key has no place in it"),
        ({"url": "https://a.example/v1?key=secret"}, "a key has no place in it"),
        ({"url": "http://a.example/v1", "key": "K"}, "in the clear"),
        ({"model": ""}, "no name"),
        ({"at_once": 0}, "at least 1"),
        ({"timeout": 0.0}, "above 0"),
        ({"tokens_a_minute": -1}, "no limit"),
    ],
)
def test_odd_settings_are_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        Remote(**{"url": "https://a.example/v1", "model": "m", **knobs})
    assert "secret" not in str(found.value)


def test_answers_are_kept_and_found_whatever_else_is_asked(tmp_path: Path) -> None:
    def script(body: dict[str, Any], before: int) -> bytes:
        if body["messages"][-1]["content"] == "broken":
            return response({"error": "no"}, 400)
        return said(*(f"{before}.{number}" for number in range(body.get("n", 1))))

    with serving(script) as server:
        first = sampler(server, cache=tmp_path).generate([asked("a"), asked("a"), asked("broken")], SAMPLED)
        del server.bodies[:]
        again = sampler(server, cache=tmp_path).generate([asked("broken"), asked("a"), asked("a"), asked("a")], SAMPLED)
        assert [answer.text for answer in again[1:3]] == [answer.text for answer in first[:2]]
        assert again[1].counted == first[0].counted, "what it cost is known"
        contents = [body["messages"][-1]["content"] for body in server.bodies]
        assert sorted(contents) == ["a", "broken"], "one more sample is asked for, and what failed"
        del server.bodies[:]
        for params in (
            GREEDY,
            SamplingParams(max_new_tokens=9, temperature=1.0, seed=1),
            SamplingParams(max_new_tokens=8, temperature=1.0),
        ):
            ask(server, asked("a"), params, cache=tmp_path)
        assert len(server.bodies) == 3, "other parameters are another question"
        file = next(file for file in tmp_path.rglob("*.json"))
        file.write_bytes(file.read_bytes()[:-9])
        assert ask(server, asked("a"), SAMPLED, cache=tmp_path).ended is Ended.STOP


def test_cancelling_leaves_what_was_answered() -> None:
    answered = threading.Event()

    def script(body: dict[str, Any], before: int) -> bytes | None:
        if before:
            return None
        answered.set()
        return said("first")

    with serving(script) as server:
        seen: list[bool] = []

        def cancelled() -> bool:
            seen.append(len(server.bodies) == 2)
            return seen[-1]

        answers = sampler(server, at_once=1).generate([asked("a"), asked("b"), asked("c")], GREEDY, cancelled=cancelled)
    assert [answer.text for answer in answers] == ["first", "", ""]
    assert [answer.error for answer in answers[1:]] == ["Cancelled."] * 2


def test_fields_that_a_server_refuses_are_left_out_where_told() -> None:
    def script(body: dict[str, Any], _: int) -> bytes:
        return response({"error": {"message": "temperature is not supported"}}, 400) if "temperature" in body else said("fine")

    with serving(script) as server:
        refused = ask(server)
        assert "temperature is not supported" in str(refused.error)
        assert ask(server, leave_out=("temperature",)).text == "fine"
        assert ask(server, params=SAMPLED, leave_out=("temperature", "seed")).text == "fine"
    assert "seed" not in server.bodies[-1]


@pytest.mark.parametrize("limits", [{"requests_a_minute": 1}, {"tokens_a_minute": 20}])
def test_a_minute_holds_what_was_allowed(limits: dict[str, int]) -> None:
    with serving(lambda body, _: said("x")) as server:
        answers = sampler(server, **limits).generate([asked("a"), asked("b")], GREEDY, cancelled=settled(server))
    assert len(server.bodies) == 1
    assert sorted(str(answer.ended) for answer in answers) == ["error", "stop"]


def settled(server: Scripted) -> Callable[[], bool]:
    """A `cancelled` that ends a call once something was sent and nothing more follows."""
    looks: list[int] = []

    def cancelled() -> bool:
        looks.append(len(server.bodies))
        return looks[-1] > 0 and looks[-8:] == looks[-1:] * 8

    return cancelled


def test_a_wait_that_the_server_asks_for_holds_for_all_requests() -> None:
    with serving(lambda body, _: response({"error": "slow down"}, 429, {"retry-after": "60"})) as server:
        answers = sampler(server, at_once=2).generate([asked(f"{number}") for number in range(6)], GREEDY, cancelled=settled(server))
    assert len(server.bodies) <= 2, "none is sent again, and no other begins"
    assert {answer.error for answer in answers} == {"Cancelled."}


def test_time_that_a_request_waits_for_its_turn_is_not_its_own() -> None:
    def script(body: dict[str, Any], _: int) -> bytes:
        time.sleep(0.3)
        return said("x")

    with serving(script) as server:
        answers = sampler(server, at_once=1, timeout=1.2, tries=1).generate([asked(f"{number}") for number in range(6)], GREEDY)
    assert [answer.text for answer in answers] == ["x"] * 6


def test_choices_are_told_apart_by_their_indices() -> None:
    found = json.loads(said("0", "1", "2").partition(b"\r\n\r\n")[2])
    found["choices"].reverse()
    with serving(lambda body, _: response(found)) as server:
        answers = sampler(server).generate([asked()] * 3, SAMPLED)
    assert [answer.text for answer in answers] == ["0", "1", "2"]


def test_it_works_inside_a_running_loop() -> None:
    async def notebook(server: Scripted) -> Completion:
        return ask(server)

    with serving(lambda body, _: said("x")) as server:
        assert asyncio.run(notebook(server)).text == "x"


def test_the_check_names_the_models_there() -> None:
    listed = response({"data": [{"id": "small"}, {"id": "large"}]})
    with serving(lambda body, _: said("x"), listed) as server:
        sampler(server, model="small").check()
        with pytest.raises(RemoteError, match=r"no model 'smal'. Did you mean 'small'.*It has: small, large"):
            sampler(server, model="smal").check()
    with serving(lambda body, _: said("x")) as server:
        sampler(server).check()  # a server without a list of models is none the worse
    with serving(lambda body, _: said("x"), response({"error": "key"}, 401)) as server, pytest.raises(RemoteError, match="holds the key"):
        sampler(server).check()
    assert not server.bodies
