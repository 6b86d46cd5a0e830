"""A conversation that outgrows the context: refused, or without its oldest exchanges where the client asks for that; and images as data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.chat.overflow import fitted_prompt, summary_of, summary_tokens  # noqa: E402
from sapwood.records import Message, SamplingParams  # noqa: E402
from serve.serving import TOKEN, Serving, serving  # noqa: E402
from tiny.folder import write_model  # noqa: E402

SYSTEM, LAST = {"role": "system", "content": "answer"}, {"role": "user", "content": "the colour of the sky"}
LONG = [
    turn for number in range(30) for turn in ({"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "green"})
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(write_model(tmp_path_factory.mktemp("overflow") / "model", context=200)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as made:
        yield made


def test_refused_by_default(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[SYSTEM, *LONG, LAST], max_tokens=8)
    assert refused.value.code == "context_length_exceeded"


def test_the_oldest_go_where_the_client_lets_them_and_it_is_told_how_many(server: Serving, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0, "extra_body": {"overflow": "drop oldest"}}
    answer = client.chat.completions.create(messages=[SYSTEM, *LONG, LAST], **asked)
    dropped = answer.usage.dropped_messages
    assert 0 < dropped < len(LONG)
    assert dropped % 2 == 0, "whole exchanges"
    kept = [Message(turn["role"], turn["content"]) for turn in (SYSTEM, *LONG[dropped:], LAST)]
    (expected,) = server.engine.generate([server.chat.prompt(kept)], SamplingParams(max_new_tokens=8))
    assert answer.choices[0].message.content == expected.message.content
    assert answer.usage.prompt_tokens == len(expected.prompt.ids) <= 200 - 8
    fits = client.chat.completions.create(messages=[SYSTEM, LAST], **asked)
    assert "dropped_messages" not in fits.usage.model_dump()


def test_a_summary_is_written_first_where_the_client_asks_for_it(server: Serving, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0, "extra_body": {"overflow": "summarise"}}
    answer = client.chat.completions.create(messages=[SYSTEM, *LONG, LAST], **asked)
    messages = [Message(turn["role"], turn["content"]) for turn in (SYSTEM, *LONG, LAST)]
    fit = partial(fitted_prompt, server.chat, messages, overflow="summarise", room=8)
    short = SamplingParams(max_new_tokens=summary_tokens(server.chat))
    (summary,) = server.engine.generate([fit().to_summarise], short)
    fitted = fit(summary=summary_of(summary))
    (expected,) = server.engine.generate([fitted.prompt], SamplingParams(max_new_tokens=8))
    assert answer.choices[0].message.content == expected.message.content
    assert answer.usage.dropped_messages == fitted.dropped > 0
    assert answer.usage.prompt_tokens == len(fitted.prompt.ids)
    chunks = list(client.chat.completions.create(messages=[SYSTEM, *LONG, LAST], stream=True, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (expected.message.content or "")


def test_what_never_fits_is_refused_all_the_same(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "long " * 400}],
        "extra_body": {"overflow": "drop oldest"},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked)
    assert refused.value.code == "context_length_exceeded"


def test_an_unknown_policy_is_named(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="refuse, drop oldest, summarise"):
        client.chat.completions.create(model="tiny", messages=[LAST], extra_body={"overflow": "forget"})
