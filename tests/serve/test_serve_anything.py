"""Whatever is sent, the server answers in the protocol's form and lives on; and its page says what its options are."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from sapwood.cli.serve_verb import ServeConfig
from sapwood.serve.limits import ServeLimits
from serve.serving import Serving, serving, with_limits
from tiny.folder import write_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
MESSAGE = st.fixed_dictionaries({"role": ROLES | JSON, "content": st.text(max_size=12) | JSON}, optional={"tool_calls": JSON, "name": JSON})
FIELDS = [
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "stream",
    "stream_options",
]
FIELDS += ["response_format", "max_completion_tokens", "presence_penalty", "chat_template_kwargs", "user", "reasoning_effort", "min_p"]
SENSE = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "n": st.integers(0, 4),
    "stop": st.lists(st.text(max_size=3), max_size=3),
    "stream": st.booleans(),
    "logprobs": st.booleans(),
    "seed": st.integers(),
}
BODY = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3) | JSON},
    optional={field: SENSE.get(field, JSON) | JSON for field in FIELDS},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(write_model(tmp_path_factory.mktemp("anything") / "model"), with_limits(max_samples=4)) as running:
        yield running


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODY)
def test_whatever_is_sent(server: Serving, body: dict[str, Any]) -> None:
    response = server.post("/chat/completions", {"model": "tiny", "max_tokens": 2, **body})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]
    elif body.get("stream") is True:
        assert response.text.endswith("data: [DONE]\n\n"), response.text
    else:
        choices = response.json()["choices"]
        assert len(choices) == (body.get("n") or 1)
        assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(JSON, JSON)
def test_whatever_text_is_to_be_continued(server: Serving, prompt: Any, logprobs: Any) -> None:
    response = server.post("/completions", {"model": "tiny", "max_tokens": 2, "prompt": prompt, "logprobs": logprobs})
    assert response.status_code in (200, 400), response.text
    assert response.json().keys() & {"error", "choices"}


def test_what_nests_beyond_reason(server: Serving) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    for field in ({"tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]}, {"metadata": deep}, {"stop": deep}):
        assert server.ask(**field).status_code in (200, 400), json.dumps(field)[:60]


def test_the_page_says_what_the_options_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    known = {f.name.replace("_", "-"): f.default for cls in (ServeConfig, ServeLimits) for f in dataclasses.fields(cls)}
    shown = dict(re.findall(r"`--([a-z-]+) (\d+)`", page))
    assert {"max-requests", "max-body", "max-new-tokens", "max-samples", "slots", "grace", "requests-a-minute"} == shown.keys()
    assert {name: float(value) for name, value in shown.items()} == {name: known[name] for name in shown}
    assert set(re.findall(r"`--([a-z-]+)", page)) <= known.keys()
