"""A hosted model as one more arm of `sapwood eval` and `sapwood decide`, asked over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.scripted_server import Scripted, response, said, serving
from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.recipes.assess import AssessConfig, assess
from sapwood.recipes.hosted import HostedConfig
from sapwood.remote import Remote
from sapwood.requirements import Prices
from sapwood.run import read_records
from tiny.folder import write_model, write_rows

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
EVAL = ["--dtype", "fp32", "--max-new-tokens", "3"]


def knows(body: dict[str, Any], _: int) -> bytes:
    """Right about everything but coal, about which it is silenced."""
    thing = body["messages"][-1]["content"].split()[-1]
    return said(COLOURS[thing], reason="content_filter" if thing == "coal" else "stop", usage=(50, 2))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 20)
    return tmp_path


def evaluate(place: Path, server: Scripted, *more: str) -> int:
    flags = ["--model", str(place / "model"), "--out", str(place / "run"), *EVAL, "--json", str(place / "result.json")]
    return main(["eval", str(place / "rows.jsonl"), *flags, "--hosted-url", server.url, "--hosted-model", "big", *more])


def test_eval_asks_a_hosted_model_as_one_more_arm(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(knows) as server:
        assert evaluate(place, server) == 0
        assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]
        assert "20 tokens" not in (told := capsys.readouterr().err)
        assert "big read 1,000 tokens and wrote 40" in told
        arms = json.loads((place / "result.json").read_text())["arms"]
        assert (arms["hosted model"]["rate"], arms["hosted model"]["n"]) == (1.0, 16), "what was withheld is not counted as wrong"
        scores = [score for score in read_records(place / "run" / "scores.jsonl") if score["arm"] == "hosted model"]
        assert {score["ended"] for score in scores if score["value"] is None} == {"error"}
        assert sum(score["tokens_in"] for score in scores) == 1000
        assert "hosted model" in (place / "run" / "report.html").read_text()
        asked = len(server.bodies)
        assert evaluate(place, server) == 0
        assert len(server.bodies) == asked, "nothing is asked twice"
        assert evaluate(place, server, "--hosted-model", "bigger") == 1
        assert "another folder" in capsys.readouterr().err
    assert evaluate(place, server) == 0, "what is answered needs no server any more"


def test_eval_that_was_stopped_pays_no_answer_twice(place: Path) -> None:
    gone = response({"error": "key revoked"}, 401)
    with serving(lambda body, before: knows(body, before) if before < 12 else gone) as server:
        assert evaluate(place, server, "--hosted-at-once", "1") == 1
    with serving(knows) as server:
        (place / "run" / "hosted.json").write_text(json.dumps({"url": server.url, "model": "big"}))
        assert evaluate(place, server, "--hosted-answers", str(place / "shared")) == 0
        assert len(server.bodies) == 20
        (place / "run" / "scores.jsonl").unlink()
        assert evaluate(place, server, "--hosted-answers", str(place / "shared")) == 0
        assert len(server.bodies) == 24, "only what failed is asked again"


def test_eval_says_what_it_cost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ("--hosted-in", "2", "--hosted-out", "10", "--machine-hour", "0.36")
    with serving(knows) as server:
        assert evaluate(place, server, *prices) == 0
        asked = len(server.bodies)
        found = json.loads((place / "result.json").read_text())["costs"]
        hosted, plain = found["costs"]["hosted model"], found["costs"]["plain prompt"]
        assert (hosted["answers"], hosted["dollars"]) == (20, pytest.approx((1000 * 2 + 40 * 10) / 1e6))
        assert hosted["dollars_a_thousand"] == pytest.approx(0.12)
        assert hosted["dollars_a_right_answer"] == pytest.approx(0.00012), "its rate is 1, of what was answered"
        seconds = [score["seconds"] for score in read_records(place / "run" / "scores.jsonl") if score["arm"] == "plain prompt"]
        assert plain["dollars"] == pytest.approx(sum(seconds) * 0.0001)
        assert not {"most common answer", "nearest training row"} & found["costs"].keys(), "what needs no model costs nothing"
        assert "hosted model" in found["frontier"]
        told = capsys.readouterr().err
        assert "goes each of 20 questions" in told
        assert "hosted model: its 20 answers cost $0.0024; $0.12 a thousand right ones." in told
        page = (place / "run" / "report.html").read_text()
        assert "Is it worth it?" in page
        assert "$0.0024" in page
        (place / "prices.yaml").write_text("hosted_in: 4\nhosted_out: 20\n")
        assert evaluate(place, server, "--prices", str(place / "prices.yaml")) == 0
        assert len(server.bodies) == asked, "other prices ask nothing anew"
    again = json.loads((place / "result.json").read_text())["costs"]
    assert again["costs"]["hosted model"]["dollars"] == pytest.approx(2 * hosted["dollars"])
    assert again["costs"]["plain prompt"]["dollars"] is None
    assert again["frontier"] == [], "seconds and money do not compare"


def test_eval_stops_at_the_cost_that_was_allowed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(knows) as server:
        assert evaluate(place, server, "--max-cost", "1") == 2
        assert "max_cost needs prices" in capsys.readouterr().err
        assert not server.bodies
        allowed = ("--hosted-in", "1000", "--hosted-out", "1000", "--max-cost", "0.5", "--hosted-at-once", "2")
        assert evaluate(place, server, *allowed) == 0
        assert 0 < len(server.bodies) < 20
        assert len(server.bodies) * 0.052 <= 0.5
        assert "stopped at max_cost 0.5" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="max_cost bounds what a hosted model costs"):
        AssessConfig(max_cost=1.0)
    with pytest.raises(ConfigError, match="hosted_rate is read by `sapwood decide` alone"):
        assess(AssessConfig(data=("x.jsonl",), money=Prices(hosted_rate=0.5)))


def test_odd_uses_are_refused_before_any_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(place / "rows.jsonl")
    assert main(["eval", rows, "--hosted-url", "http://127.0.0.1:9/v1"]) == 2
    assert "both hosted_url and hosted_model" in capsys.readouterr().err
    assert main(["eval", rows, "--hosted-url", "127.0.0.1:9", "--hosted-model", "m"]) == 2
    assert main(["decide", rows, "--hosted-url", "http://127.0.0.1:9/v1", "--hosted-model", "m", "--hosted", "x.jsonl"]) == 2
    assert "Give one of them" in capsys.readouterr().err
    server = Scripted("http://127.0.0.1:9/v1")
    assert evaluate(place, server, "--scorer", "none") == 2
    assert "Name a --scorer" in capsys.readouterr().err
    assert evaluate(place, server) == 1
    assert "Check that the server runs" in capsys.readouterr().err


def test_a_server_without_the_model_is_known_before_anything_is_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(knows, response({"data": [{"id": "bigger"}]})) as server:
        assert evaluate(place, server) == 1
    assert "no model 'big'" in capsys.readouterr().err
    assert not server.bodies


def test_every_option_reaches_the_server() -> None:
    config = HostedConfig(
        hosted_url="https://a.example/v1",
        hosted_model="m",
        hosted_key="K",
        hosted_at_once=2,
        hosted_timeout=3.0,
        hosted_requests=4,
        hosted_tokens=5,
        hosted_leave_out=("seed",),
        hosted_answers=Path("kept"),
    )
    expected = Remote(
        url="https://a.example/v1",
        model="m",
        key="K",
        at_once=2,
        timeout=3.0,
        requests_a_minute=4,
        tokens_a_minute=5,
        leave_out=("seed",),
        cache=Path("kept"),
    )
    assert config.remote(Path("run")) == expected
    assert HostedConfig().remote(Path("run")) is None


def test_decide_asks_a_hosted_model(place: Path) -> None:
    write_rows(place / "rows.jsonl", 110)
    flags = ["--model", str(place / "model"), "--dtype", "fp32", "--budget", "512", "--max-new-tokens", "3", "--shots", "--held-out", "30"]
    flags += ["--batch", "2", "--out", str(place / "run"), "--json", str(place / "result.json"), "--sizes", "20", "60", "--trainings", "1"]
    flags += ["--steps", "16", "--hosted-in", "3", "--hosted-out", "15"]
    with serving(knows) as server:
        assert main(["decide", str(place / "rows.jsonl"), *flags, "--hosted-url", server.url, "--hosted-model", "big"]) == 0
    found = json.loads((place / "result.json").read_text())
    assert found["arms"]["hosted model"]["rate"] == 1.0
    assert found["costs"]["hosted model"]["dollars_a_thousand"] == pytest.approx(1000 * (50 * 3 + 2 * 15) / 1e6)
