"""Images as data through the `openai` client: the answer is the engine's to the same image."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.data.messages import read_messages  # noqa: E402
from sapwood.model.processor import load_processor  # noqa: E402
from sapwood.records import SamplingParams  # noqa: E402
from serve.serving import TOKEN, Serving, serving  # noqa: E402
from tiny.media_models import image_bytes, write_media_model  # noqa: E402


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = write_media_model(tmp_path_factory.mktemp("images") / "model", request.param)
    with serving(folder, processor=load_processor(folder)) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as made:
        yield made


def question(url: str) -> list[Any]:
    parts = [{"type": "text", "text": "what is it? "}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def as_data(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(image_bytes(seed)).decode()}"


def test_an_answer_to_an_image_is_the_engines_and_depends_on_it(server: Serving, client: Any) -> None:
    said = []
    for seed in (0, 1):
        messages = question(as_data(seed))
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0, logprobs=True)
        (expected,) = server.engine.generate([server.chat.prompt(read_messages(messages, {}))], SamplingParams(max_new_tokens=8))
        assert answer.choices[0].message.content == expected.message.content
        assert answer.usage.prompt_tokens == len(expected.prompt.ids)
        said.append([entry.logprob for entry in answer.choices[0].logprobs.content])
    assert said[0] != said[1], "the two prompts differ in their image alone"


@pytest.mark.parametrize("url", ["https://example.com/oak.png", "/etc/passwd", "file:///etc/passwd"])
def test_nothing_is_fetched_and_no_file_is_read(client: Any, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is fetched here"):
        client.chat.completions.create(model="tiny", messages=question(url), max_tokens=2)


def test_what_is_no_image_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=question("data:image/png;base64,aGVsbG8="), max_tokens=2)
