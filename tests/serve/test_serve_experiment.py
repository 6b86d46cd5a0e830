"""An experiment behind the plain `openai` client: it sees one model, arms stick, outcomes arrive, and harm ends in the control."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from ab.trial import PLAN  # noqa: E402
from remote.scripted_server import response, said  # noqa: E402
from remote.scripted_server import serving as scripted  # noqa: E402
from sapwood.ab.analysis import analyse  # noqa: E402
from sapwood.ab.assign import unit_of  # noqa: E402
from sapwood.ab.plan import Arm, Metric, Override, Plan  # noqa: E402
from sapwood.ab.records import Book, begin  # noqa: E402
from sapwood.chat import Chat  # noqa: E402
from sapwood.errors import ConfigError  # noqa: E402
from sapwood.serve.asking import Served  # noqa: E402
from sapwood.serve.experiment import Experiment, Watch, fall_back, shape, share_changed  # noqa: E402
from sapwood.serve.fields import RefusalError  # noqa: E402
from sapwood.serve.limits import ServeLimits  # noqa: E402
from serve.serving import TOKEN, Serving, serving  # noqa: E402
from tiny.folder import write_model  # noqa: E402

ASK = [{"role": "user", "content": "the colour of the sky"}]
METRICS = (
    Metric(name="resolved"),
    Metric(name="thumbs"),
    Metric(name="edit", better="lower"),
    *(Metric(name="failed", better="lower"), Metric(name="seconds", high=100, clip=True, better="lower")),
    Metric(name="answer_tokens", high=1000, clip=True),
)
LOCAL = replace(
    PLAN,
    model="tiny",
    arms=(Arm(name="as it is"), Arm(name="brief", share=0.5, system="Be brief.", max_tokens=3)),
    metrics=METRICS,
    guardrails=("failed",),
    overrides=(Override(unit="tester", arm="brief"),),
)


def unit_in(book: Book, arm: int, prefix: str = "u") -> str:
    """The name of a unit that falls to an arm."""
    names = (f"{prefix}{number}" for number in range(1000))
    return next(name for name in names if book.plan.arm_at(unit_of(book.plan, name).place, 0) == arm)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Book]]:
    book = begin(LOCAL, tmp_path_factory.mktemp("ab") / "ab.db")
    with serving(model, book=book) as server:
        yield server, book
    book.close()


@pytest.fixture(scope="module")
def client(running: tuple[Serving, Book]) -> Iterator[Any]:
    with openai.OpenAI(base_url=running[0].url, api_key=TOKEN, max_retries=0) as made:
        yield made


def ask(client: Any, user: str | None, **more: Any) -> Any:
    given = {"user": user} if user is not None else {}
    return client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, temperature=0, **given, **more)


def test_the_client_sees_one_model_and_the_arm_does_what_the_plan_says(client: Any, running: tuple[Serving, Book]) -> None:
    server, book = running
    control, treated = ask(client, unit_in(book, 0)), ask(client, unit_in(book, 1))
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert control.model == treated.model == "tiny"
    assert treated.usage.completion_tokens <= 3 < control.usage.completion_tokens
    told = server.ask(user=unit_in(book, 1), messages=[{"role": "system", "content": "Be brief."}, *ASK], return_token_ids=True).json()
    plain = server.chat.prompt(_messages(), where="here")
    assert told["prompt_token_ids"] == list(plain.ids), "the arm's system prompt, once"
    assert control.model_dump().keys() == treated.model_dump().keys()


def _messages() -> Any:
    from sapwood.records import Message

    return (Message("system", "Be brief."), Message("user", "the colour of the sky"))


def test_a_unit_keeps_its_arm_streamed_and_whole_and_hears_of_it_only_if_it_asks(running: tuple[Serving, Book]) -> None:
    server, book = running
    name = unit_in(book, 1, "s")
    quiet = server.ask(user=name)
    assert not [key for key in quiet.headers if "arm" in key]
    assert "brief" not in quiet.text
    for more in ({}, {"stream": True}, {}):
        body = {"model": "tiny", "messages": ASK, "user": name, **more}
        asked = server.post("/chat/completions", body, headers={"x-sapwood-show-arm": "1"})
        assert asked.headers["x-sapwood-arm"] == "brief"


def test_what_is_streamed_is_the_whole_in_every_arm(client: Any, running: tuple[Serving, Book]) -> None:
    for arm in (0, 1):
        name = unit_in(running[1], arm, "w")
        chunks = list(ask(client, name, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask(client, name).choices[0].message.content
        assert {chunk.model for chunk in chunks} == {"tiny"}


def test_exposures_and_what_the_server_measures_are_recorded(client: Any, running: tuple[Serving, Book]) -> None:
    book = running[1]
    before = book.read()
    answer = ask(client, unit_in(book, 0, "m"))
    after = book.read()
    assert after.exposures == before.exposures + 1
    new = {row.metric: row for row in after.outcomes[len(before.outcomes) :]}
    assert new["failed"].value == 0
    assert new["answer_tokens"].value == answer.usage.completion_tokens
    assert 0 < new["seconds"].value < 60
    assert answer.id == f"chatcmpl-{new['failed'].exposure}"


def test_the_page_of_metrics_tells_the_arms_apart(client: Any, running: tuple[Serving, Book]) -> None:
    server, book = running

    def numbers() -> dict[str, float]:
        page = httpx2.get(server.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False).text
        lines = [line for line in page.splitlines() if line.startswith("sapwood_arm_")]
        assert len(lines) == len({line.rpartition(" ")[0] for line in lines})
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = numbers()
    answer = ask(client, unit_in(book, 1, "p"))
    after = numbers()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed['sapwood_arm_completion_tokens_total{arm="brief"}'] == answer.usage.completion_tokens
    assert changed['sapwood_arm_seconds_count{arm="brief"}'] == 1
    assert changed['sapwood_arm_seconds_bucket{arm="brief",le="+Inf"}'] == 1
    assert all('arm="brief"' in name for name in changed)
    assert after['sapwood_arm_failed_total{arm="as it is"}'] == 0


def test_who_names_no_unit_or_is_sent_by_hand_is_not_counted(client: Any, running: tuple[Serving, Book]) -> None:
    book = running[1]
    before = book.read()
    assert ask(client, None).usage.completion_tokens > 3
    assert book.read().exposures == before.exposures
    assert ask(client, "tester").usage.completion_tokens <= 3
    assert [unit.chosen for unit in book.read().units][-1]


def test_a_request_that_is_refused_is_no_exposure(running: tuple[Serving, Book]) -> None:
    server, book = running
    before = book.read().exposures
    assert server.ask(user="new", temperature=9).status_code == 400
    assert server.ask(user=7).status_code == 400
    other = server.ask(model="base", user="new")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert "brief" not in other.text
    assert server.post("/completions", {"model": "tiny", "prompt": "a", "user": "new"}).status_code == 400
    assert book.read().exposures == before


def test_feedback_becomes_outcomes(client: Any, running: tuple[Serving, Book]) -> None:
    server, book = running
    name = unit_in(book, 1, "f")
    answer = ask(client, name)
    outcomes = {"thumbs": "up", "resolved": True, "edit": {"before": "a b c d", "after": "a b c e"}}
    given = server.post("/feedback", {"id": answer.id, "outcomes": outcomes})
    assert given.json()["outcomes"] == {"thumbs": 1.0, "resolved": 1.0, "edit": 0.25}
    assert server.post("/feedback", {"user": name, "outcomes": {"thumbs": 0.5}}).status_code == 200
    rows = book.read().outcomes[-4:]
    assert [(row.metric, row.value) for row in rows] == [("thumbs", 1.0), ("resolved", 1.0), ("edit", 0.25), ("thumbs", 0.5)]
    assert [row.served for row in rows] == [1, 1, 1, None]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "Feedback is"),
        ({"outcomes": {"thumbs": 1}}, 400, "names an answer by its `id`, or a unit by `user`"),
        ({"id": "x", "outcomes": {"thums": 1}}, 400, "Did you mean 'thumbs'"),
        ({"id": "x", "outcomes": {"thumbs": 2}}, 400, "goes from 0 to 1"),
        ({"id": "x", "outcomes": {"thumbs": "good"}}, 400, "give a number"),
        ({"id": "x", "outcomes": {"thumbs": None}}, 400, "give a number"),
        ({"id": "x", "outcomes": {"failed": 1}}, 400, "measured by the server"),
        ({"id": "x", "outcomes": {"edit": {"before": "a " * 5000, "after": ""}}}, 400, "not compared here"),
        ({"id": "chatcmpl-x", "outcomes": {"thumbs": 1}}, 404, "No answer of that name"),
        ({"user": "stranger", "outcomes": {"thumbs": 1}}, 404, "No unit of that name"),
        ({"id": "x", "outcome": {}, "outcomes": {"thumbs": 1}}, 400, "Did you mean 'outcomes'"),
    ],
)
def test_feedback_that_is_none_is_refused(running: tuple[Serving, Book], body: dict[str, Any], status: int, words: str) -> None:
    given = running[0].post("/feedback", body)
    assert given.status_code == status
    assert words in given.json()["error"]["message"]
    assert running[0].post("/feedback", body, token=None).status_code == 401


def test_without_an_experiment_there_is_no_feedback(model: Path) -> None:
    with serving(model) as server:
        assert server.post("/feedback", {}).status_code == 404


def crowd(book: Book, rates: tuple[float, float], n: int) -> None:
    """Units that resolve as their arm lets them; no chance in it."""
    counts = [0, 0]
    for number in range(n):
        name = unit_of(book.plan, f"crowd{number}")
        arm = book.expose(name, None, f"crowd{number}").arm
        counts[arm] += 1
        book.outcome({"resolved": float(counts[arm] * rates[arm] % 1 < rates[arm])}, unit=name)


def test_harm_ends_in_the_control_by_itself(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(model, book=(book := begin(LOCAL, tmp_path / "ab.db"))) as server:
        name = unit_in(book, 1)
        assert server.ask(user=name).json()["usage"]["completion_tokens"] <= 3
        assert fall_back(book) == []
        crowd(book, (0.9, 0.1), 80)
        assert server.front.experiment is not None
        with caplog.at_level(logging.WARNING):
            watch = Watch(server.front.experiment, 0.01)
            while not book.read().events:
                pass
            watch.close()
        assert "brief is worse than as it is" in caplog.text
        assert server.ask(user=name).json()["usage"]["completion_tokens"] > 3
        assert analyse(book.read()).decision == "stop for harm"
    book.close()


def remote_plan(url: str) -> Plan:
    arm = Arm(name="hosted", share=0.5, url=url, model="their-model", key="THEIR_KEY", temperature=0.3)
    return replace(LOCAL, arms=(LOCAL.arms[0], arm), overrides=())


def streamed(*texts: str) -> bytes:
    chunks = [{"id": "theirs", "model": "their-model", "choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"id": "theirs", "model": "their-model", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return response(body.encode(), headers={"content-type": "text/event-stream"})


def test_a_remote_arm_answers_like_any_other(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret-key")
    answers = iter([said("From afar.", system_fingerprint="theirs"), streamed("From ", "afar."), response({"error": {}}, 500)])
    with scripted(lambda body, count: next(answers)) as theirs:
        book = begin(remote_plan(theirs.url), tmp_path / "ab.db")
        with serving(model, book=book) as server, openai.OpenAI(base_url=server.url, api_key=TOKEN, max_retries=0) as client:
            name = unit_in(book, 1)
            whole = ask(client, name, metadata={"a": "b"})
            assert (whole.choices[0].message.content, whole.model) == ("From afar.", "tiny")
            assert whole.id == f"chatcmpl-{book.read().outcomes[0].exposure}"
            chunks = list(ask(client, name, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "From afar."
            assert {chunk.model for chunk in chunks} == {"tiny"}
            with pytest.raises(openai.InternalServerError, match="does not answer just now") as failed:
                ask(client, name)
            assert theirs.url not in str(failed.value)
        body = theirs.bodies[0]
        assert (body["model"], body["temperature"]) == ("their-model", 0.3)
        assert not {"user", "metadata"} & body.keys(), "who asks stays here"
        assert theirs.headers[0]["authorization"] == "Bearer secret-key"
        assert [row.value for row in book.read().outcomes if row.metric == "failed"] == [0, 0, 1]
        book.close()


def test_a_plan_whose_models_are_not_served_is_refused(tmp_path: Path) -> None:
    plan = replace(LOCAL, arms=(LOCAL.arms[0], Arm(name="law", share=0.5, model="lwa")), overrides=())
    book = begin(plan, tmp_path / "ab.db")
    with pytest.raises(ConfigError, match=r"answered by 'lwa'.*Did you mean 'law'"):
        Experiment(book, Served({"tiny": None, "law": "law"}, None, None, {}))  # type: ignore[arg-type]
    book.close()


def test_every_setting_of_an_arm_takes_the_place_of_the_requests() -> None:
    arm = Arm(name="a", temperature=0.1, top_p=0.2, top_k=3, min_p=0.4, presence_penalty=0.5, frequency_penalty=0.6, repetition_penalty=1.1)
    body = {"messages": [{"role": "system", "content": "x"}, *ASK], "max_completion_tokens": 9, "temperature": 2, "seed": 1}
    shaped = shape(body, replace(arm, max_tokens=5, model="m", system="y"), LOCAL, True)
    assert shaped.pop("messages") == [{"role": "system", "content": "y"}, *ASK]
    assert shaped == {
        "model": "m",
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "min_p": 0.4,
        "seed": 1,
        "max_tokens": 5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.1,
    }
    assert shape(body, Arm(name="a"), LOCAL, True) == {**body, "model": "tiny"}


def test_an_arm_that_would_answer_nobody_is_refused_at_the_start(model: Path, tmp_path: Path) -> None:
    """A request of its units would be refused for what the plan says, and the split would be broken."""
    served = Served({"tiny": None}, Chat.load(model), ServeLimits(), {})
    for number, (wrong, words) in enumerate(
        [
            ({"temperature": 2.5}, "from 0 to 2"),
            ({"max_tokens": 10_000}, "writes at most"),
            ({"system": "word " * 600}, "context holds 512"),
        ]
    ):
        arms = (LOCAL.arms[0], Arm(name="far", share=0.5, **wrong))  # type: ignore[arg-type]
        book = begin(replace(LOCAL, arms=arms, overrides=()), tmp_path / f"{number}.db")
        with pytest.raises(ConfigError, match=f"arm 'far' would answer nobody: .*{words}"):
            Experiment(book, served)
        book.close()


def test_units_are_found_where_the_plan_says(model: Path, tmp_path: Path) -> None:
    served = Served({"tiny": None}, Chat.load(model), ServeLimits(), {})
    body = {"user": "u", "metadata": {"session": "s"}, "safety_identifier": "i"}
    for unit, name in [("user", "u"), ("safety_identifier", "i"), ("metadata:session", "s"), ("header:x-user", "h"), ("metadata:no", None)]:
        book = begin(replace(LOCAL, unit=unit), tmp_path / f"{name}.db")
        assert Experiment(book, served)._unit_name({"x-user": "h"}, body) == name
        book.close()
    book = begin(replace(LOCAL, name="strict", without_unit="refuse"), tmp_path / "strict.db")
    with pytest.raises(RefusalError, match="names no unit: give `user`"):
        Experiment(book, served).route({}, {"model": "tiny"}, True)
    book.close()


def test_an_edit_is_the_share_of_words_changed() -> None:
    assert share_changed("a b c", "a b c") == 0
    assert share_changed("a b", "c d") == 1
    assert share_changed("a b c d", "a b c e") == 0.25
