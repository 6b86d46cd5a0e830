"""The plain `openai` client against the server: its answers are the engine's, whole and streamed, without a surprise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.chat import Chat  # noqa: E402
from sapwood.records import Message, Prompt, SamplingParams  # noqa: E402
from sapwood.remote import Remote, RemoteSampler  # noqa: E402
from serve.serving import TOKEN, Serving, serving  # noqa: E402
from tiny.folder import write_model  # noqa: E402

ASK = [{"role": "system", "content": "answer"}, {"role": "user", "content": "the colour of the sky"}]
MESSAGES = (Message("system", "answer"), Message("user", "the colour of the sky"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(write_model(tmp_path_factory.mktemp("serve") / "model")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as made:
        yield made


def own(server: Serving, params: SamplingParams, samples: int = 1) -> list[Any]:
    """What the engine itself says. The worker must be idle meanwhile: an engine belongs to one thread."""
    prompt = Chat.load(server.chat.folder).prompt(MESSAGES)
    return server.engine.generate([prompt] * samples, params)


def test_a_whole_answer_is_the_engines(server: Serving, client: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, temperature=0)
    (expected,) = own(server, SamplingParams(max_new_tokens=12))
    assert answer.choices[0].message.content == expected.message.content
    assert answer.choices[0].finish_reason == {"stop": "stop", "length": "length"}[str(expected.ended)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(expected.prompt.ids), len(expected.ids))


def test_samples_and_seeds_are_the_engines(server: Serving, client: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, temperature=1.5, n=3, seed=7, top_p=0.9)
    expected = own(server, SamplingParams(max_new_tokens=12, temperature=1.5, seed=7, top_p=0.9), 3)
    assert [choice.message.content for choice in answer.choices] == [one.message.content for one in expected]
    assert len({choice.message.content for choice in answer.choices}) > 1


@pytest.mark.parametrize("more", [{}, {"temperature": 1.3, "seed": 5, "n": 3}, {"stop": ["e", "o"], "temperature": 1.3, "seed": 2, "n": 4}])
def test_what_is_streamed_is_the_whole(client: Any, more: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 0, **more}
    whole = client.chat.completions.create(**asked)
    texts, reasons = [""] * len(whole.choices), [""] * len(whole.choices)
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert not any(stop in text for text in texts for stop in more.get("stop", ()))


def test_logprobs_are_the_engines_whole_and_streamed(server: Serving, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    (expected,) = own(server, SamplingParams(max_new_tokens=6, top_logprobs=3))
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [entry.logprob for entry in whole] == pytest.approx(expected.logprobs, abs=1e-5)
    assert all(len(entry.top_logprobs) == 3 for entry in whole)
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx(expected.logprobs, abs=1e-5)


def test_texts_are_continued_as_they_are(server: Serving, client: Any) -> None:
    prompt = server.chat.prompt(MESSAGES)
    (expected,) = own(server, SamplingParams(max_new_tokens=9))
    for given in (prompt.text, list(prompt.ids)):
        answer = client.completions.create(model="tiny", prompt=given, max_tokens=9, temperature=0, logprobs=1)
        assert answer.choices[0].text == expected.text
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    several = client.completions.create(model="tiny", prompt=["one two", prompt.text], max_tokens=9, temperature=0)
    assert several.choices[1].text == expected.text
    pieces = client.completions.create(model="tiny", prompt=["one two", prompt.text], max_tokens=9, temperature=0, stream=True)
    assert "".join(c.text for chunk in pieces for c in chunk.choices if c.index == 1) == expected.text


def test_what_is_wrong_is_said_in_the_clients_own_errors(server: Serving, client: Any) -> None:
    def create(**more: Any) -> Any:
        return client.chat.completions.create(**{"model": "tiny", "messages": ASK, "max_tokens": 4, **more})

    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt'"):
        create(model="gpt")
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        create(logit_bias={"1": 5})
    with pytest.raises(openai.BadRequestError, match="the model's context holds 512"):
        create(messages=[{"role": "user", "content": "one two " * 900}])
    with pytest.raises(openai.BadRequestError, match="nothing is fetched here"):
        create(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}])
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"), openai.OpenAI(base_url=server.url, api_key="x") as other:
        other.models.list()
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_remote_sampler_gets_the_very_tokens(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", TOKEN)
    sampler = RemoteSampler(Remote(url=server.url, model="tiny", key="TINY_KEY", token_ids=True))
    sampler.check()
    (answer,) = sampler.generate([Prompt(MESSAGES, (), "")], SamplingParams(max_new_tokens=10))
    (expected,) = own(server, SamplingParams(max_new_tokens=10))
    assert answer.ids == expected.ids
    assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert (answer.ended, answer.counted) == (expected.ended, (len(expected.prompt.ids), len(expected.ids)))
    assert answer.message is not None
    assert answer.message.content == expected.message.content
    told: list[str] = []
    streamed = sampler.stream(Prompt(MESSAGES, (), ""), SamplingParams(max_new_tokens=10), lambda delta: told.append(delta.content))
    assert "".join(told) == streamed.text == answer.text
    assert (streamed.ended, streamed.counted) == (answer.ended, answer.counted)
