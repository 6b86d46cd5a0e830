"""The plain `openai` client against the server: its answers are the engine's, whole and streamed, without a surprise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.chat import Chat  # noqa: E402
from sapwood.records import Constraint, Message, Prompt, SamplingParams  # noqa: E402
from sapwood.remote import Remote, RemoteSampler  # noqa: E402
from sapwood.remote.sampler import seed_of  # noqa: E402
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


def test_a_bias_forbids_a_token_and_forces_another(server: Serving, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 6, "temperature": 0, "extra_body": {"return_token_ids": True}}
    free = client.chat.completions.create(**asked).choices[0].token_ids
    held = client.chat.completions.create(**asked, logit_bias={str(free[0]): -100}).choices[0].token_ids
    assert free[0] not in held
    assert client.chat.completions.create(**asked, logit_bias={str(held[0]): 100}).choices[0].token_ids == [held[0]] * 6
    few = client.chat.completions.create(**asked, logit_bias={str(free[0]): -0.5, str(held[0]): 0.25}).choices[0].token_ids
    (expected,) = own(server, SamplingParams(max_new_tokens=6, logit_bias=((free[0], -0.5), (held[0], 0.25))))
    assert few == list(expected.ids)
    text = client.completions.create(model="tiny", prompt="one two", max_tokens=4, temperature=0, logit_bias={str(held[0]): 100})
    assert text.choices[0].text == server.chat.decode([held[0]] * 4)


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


def test_what_changes_no_answer_is_taken(client: Any) -> None:
    more: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": False, "modalities": ["text"]}
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 4, "temperature": 0}
    plain = client.chat.completions.create(**asked).choices
    assert client.chat.completions.create(**asked, **more, extra_body={"prompt_cache_retention": "24h"}).choices == plain
    with pytest.raises(openai.BadRequestError, match="modalities"):
        client.chat.completions.create(**asked, modalities=["text", "audio"])


def test_what_is_wrong_is_said_in_the_clients_own_errors(server: Serving, client: Any) -> None:
    def create(**more: Any) -> Any:
        return client.chat.completions.create(**{"model": "tiny", "messages": ASK, "max_tokens": 4, **more})

    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt'"):
        create(model="gpt")
    for wrong in ({"1": 101}, {"1": True}, {"a": 1}, {"-1": 1}, [1], {"1": 1, "01": 2}, {"999999": 1}):
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            create(logit_bias=wrong)
    with pytest.raises(openai.BadRequestError, match="the model's context holds 512"):
        create(messages=[{"role": "user", "content": "one two " * 900}])
    with pytest.raises(openai.BadRequestError, match="nothing is fetched here"):
        create(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}])
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"), openai.OpenAI(base_url=server.url, api_key="x") as other:
        other.models.list()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'org/gpt' here"):
        client.models.retrieve("org/gpt")
    with pytest.raises(openai.BadRequestError, match="an object with one of json"):
        create(extra_body={"structured_outputs": {"choices": ["a"]}})
    with pytest.raises(openai.BadRequestError, match="give a sequence of texts"):
        create(extra_body={"structured_outputs": {"choice": "a"}})
    with pytest.raises(openai.BadRequestError, match="a list of token ids"):
        create(extra_body={"stop_token_ids": ["a"]})


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
    assert (streamed.ids, streamed.logprobs) == (answer.ids, pytest.approx(answer.logprobs, abs=1e-5))


def test_token_ids_come_whole_and_streamed(server: Serving, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 8, "temperature": 0, "extra_body": {"return_token_ids": True}}
    (expected,) = own(server, SamplingParams(max_new_tokens=8))
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert tuple(whole.choices[0].token_ids) == expected.ids
    assert tuple(token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", ())) == expected.ids
    assert whole.prompt_token_ids == chunks[0].prompt_token_ids == list(expected.prompt.ids)


def test_what_our_own_sampler_asks_in_vllms_words_is_understood(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setenv("TINY_KEY", TOKEN)
    sampler = RemoteSampler(Remote(url=server.url, model="tiny", key="TINY_KEY", token_ids=True))
    loose = SamplingParams(max_new_tokens=10, temperature=1.5, seed=4)
    free = own(server, replace(loose, seed=seed_of(loose.seed, 0)))[0]
    ends = next(token for token in free.ids[1:] if server.chat.decode([token]).isalpha() and token not in server.chat.stop_ids)
    for params in (
        replace(loose, stop_ids=(ends,)),
        replace(loose, logit_bias=((free.ids[0], -3.5), (ends, 2.0))),
        SamplingParams(max_new_tokens=10, constraint=Constraint("choice", ("yes", "no"))),
        SamplingParams(max_new_tokens=10, constraint=Constraint("regex", "[0-9]{3}")),
    ):
        (expected,) = own(server, replace(params, seed=seed_of(params.seed, 0)))
        (answer,) = sampler.generate([Prompt(MESSAGES, (), "")], params)
        streamed = sampler.stream(Prompt(MESSAGES, (), ""), params, lambda delta: None)
        assert answer.ids == streamed.ids == expected.ids
        assert answer.text == streamed.text == expected.message.content
        assert answer.ended == expected.ended == ("length" if params.logit_bias else "stop")


def test_how_likely_a_text_is(server: Serving, client: Any) -> None:
    """As lm-eval asks for it: the prompt is given back with its log-probabilities, and nothing is added."""
    ids = server.chat.tokens.encode("the colour of the sky is blue")
    (expected,) = server.engine.generate(
        [Prompt((), tuple(ids), "")], SamplingParams(prompt_logprobs=True, top_logprobs=2, max_new_tokens=3)
    )
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the colour of the sky is blue", "echo": True, "logprobs": 2, "temperature": 0}
    answer = client.completions.create(**asked, max_tokens=0)
    found = answer.choices[0].logprobs
    assert answer.choices[0].text == asked["prompt"]
    assert "".join(found.tokens) == asked["prompt"]
    assert found.text_offset == [asked["prompt"].index(token, at) for token, at in zip(found.tokens, found.text_offset, strict=True)]
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(expected.prompt_logprobs, abs=1e-5)
    assert [max(top.values()) for top in found.top_logprobs[1:]] == pytest.approx([top[0][1] for top in expected.prompt_top_logprobs])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
    longer = client.completions.create(**asked, max_tokens=3).choices[0]
    assert longer.text == asked["prompt"] + expected.text
    assert longer.logprobs.token_logprobs[1:] == pytest.approx((*expected.prompt_logprobs, *expected.logprobs), abs=1e-5)
    pieces = list(client.completions.create(**{**asked, "logprobs": None}, max_tokens=0, stream=True))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == asked["prompt"]
    with pytest.raises(openai.BadRequestError, match="leave out `stream`"):
        client.completions.create(**asked, max_tokens=3, stream=True)
    with pytest.raises(openai.BadRequestError, match="nothing is asked for but the prompt"):
        client.completions.create(model="tiny", prompt="a", max_tokens=0)
