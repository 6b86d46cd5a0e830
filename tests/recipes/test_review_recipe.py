"""From a run to the first vote, and from a correction to a trained row, by the command line's own functions."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import httpx2
import orjson
import pytest

from review.corrected import write_corrections
from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.recipes import Screen, TuneConfig
from sapwood.recipes.review import ReviewConfig, begin, close_review, export_review, open_review
from sapwood.recipes.tune import with_corrections
from sapwood.review.batch import BatchConfig
from sapwood.review.desk import Ballot, cast, next_case
from sapwood.run import read_json, read_records
from tiny.folder import write_model, write_rows


def write_run(folder: Path, count: int = 6) -> Path:
    """What `sapwood eval` leaves of two arms."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: acme/secret-7b\n")
    items, scores = [], []
    for number in range(count):
        asked = [{"role": "user", "content": f"question {number}"}]
        items.append(
            {"item": f"i{number}", "messages": asked, "tools": [], "reference": "r", "cluster": None, "source": f"x.jsonl:{number}"}
        )
        for arm, value in (("tuned", 1.0), ("plain prompt", 0.0)):
            score = {
                "arm": arm,
                "item": f"i{number}",
                "cluster": None,
                "value": value,
                "answer": None,
                "explanation": "",
                "text": f"{arm}'s",
            }
            scores.append({**score, "ended": "stop", "tokens_in": 1, "tokens_out": 1, "seconds": 0.1})
    for name, rows in (("items", items), ("scores", scores)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return folder


def test_one_command_leads_from_a_run_to_the_first_vote(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "refunds-1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = tmp_path / "told.json"
    words = ["review", str(run), "--port", str(port), "--runs", str(tmp_path / "runs"), "--people", "ann", "--json", str(told)]
    process = subprocess.Popen([sys.executable, "-m", "sapwood", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path)
    try:
        for _ in range(1200):
            if told.exists() or process.poll() is not None:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        links = orjson.loads(told.read_bytes())["links"]
        with httpx2.Client(follow_redirects=True, timeout=30) as client:
            assert "Hello, ann" in client.get(links["ann"]).text
            token = links["ann"].rsplit("/", 1)[1]
            page = client.post(f"http://127.0.0.1:{port}/in", data={"token": token}).text
            assert "question" in page, "a rater with one open batch stands at its desk at once"
            form, seat = re.search(r'name="form" value="([^"]+)"', page), re.search(r'name="seat" value="(\d+)"', page)
            assert form is not None
            assert seat is not None
            data = {"form": form[1], "seat": seat[1], "verdict": "a"}
            assert "1</strong> by you" in client.post(f"http://127.0.0.1:{port}/desk/1/vote", data=data).text
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0
    assert "Every vote that was confirmed is kept" in said


def test_a_run_that_is_named_again_goes_on_and_its_report_learns_what_people_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs" / "refunds-1")
    config = ReviewConfig(runs=tmp_path / "runs", batch=BatchConfig(overlap=1))
    with open_review(config) as store:
        first = begin(store, run, config, Screen(quiet=True))
        again = begin(store, run, config, Screen(quiet=True))
        assert first.batch is not None
        assert again.batch is not None
        assert (first.cases, again.cases, again.batch.id, again.links) == (6, 0, first.batch.id, {})
        assert len(first.links) == 2, "one link to judge by, one to look after it all"
        with store.writing() as connection:
            for turn in range(6):
                shown = next_case(connection, first.batch, 1, float(turn))
                assert shown is not None
                tuned_left = (shown.case.arm_a == "tuned") == (shown.left == "a")
                cast(connection, first.batch, 1, shown.seat, Ballot("a" if tuned_left else "b"), turn + 0.5)
    done, reports = export_review(config, [], tmp_path / "out")
    assert (done.counts["votes"], done.blind, reports) == (6, True, [])
    assert "tuned" not in {row["winner"] for row in read_records(tmp_path / "out" / "votes.jsonl")}, "exporting is no way around the blind"
    close_review(config, ["refunds-1"])
    done, reports = export_review(config, [str(run)], tmp_path / "out")
    assert {row["winner"] for row in read_records(tmp_path / "out" / "votes.jsonl")} == {"tuned"}
    people = read_json(run / "people.json")
    assert (people["rates"][0]["name"], people["rates"][0]["mean"], people["judge"]["share"]) == ("tuned", 1.0, 1.0)
    page = reports[0].read_text()
    assert "What people say" in page
    assert "6 of 6 cases" in page
    (run / "plan.json").write_text("{}")
    (run / "report.html").write_text("the study's own")
    words = ["review", "export", "--store", str(tmp_path / "runs" / "review.db"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert (run / "report.html").read_text() == "the study's own"
    assert f"sapwood study {run} --labels" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match=r"no batch 'refunds-2'.*refunds-1"):
        export_review(config, ["refunds-2"], tmp_path / "out")


def test_corrected_rows_are_named_by_what_they_hold(tmp_path: Path) -> None:
    write_corrections(tmp_path / "review.db", 3)
    config = TuneConfig(data=("my.jsonl",), from_review=(str(tmp_path / "review.db"),))
    once, twice = with_corrections(config), with_corrections(config)
    assert once == twice
    assert once.from_review == ()
    assert once.data[0] == "my.jsonl"
    rows = read_records(Path(once.data[1]))
    assert [row["messages"][-1]["content"] for row in rows] == ["0 is good", "1 is good", "2 is good"]
    write_corrections(tmp_path / "none.db", 0)
    with pytest.raises(ConfigError, match="no corrected answer"):
        with_corrections(TuneConfig(from_review=(str(tmp_path / "none.db"),)))


@pytest.mark.slow
def test_corrected_rows_train(tmp_path: Path) -> None:
    write_corrections(tmp_path / "review.db", 6)
    write_model(tmp_path / "model")
    write_rows(tmp_path / "my.jsonl", 30)
    fast = ["--dtype", "fp32", "--budget", "1024", "--max-new-tokens", "4", "--shots", "", "--held-out", "5", "--max-steps", "2"]
    words = ["sft", str(tmp_path / "my.jsonl"), "--from-review", str(tmp_path / "review.db"), "--model", str(tmp_path / "model")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*words, "--out", str(tmp_path / "run"), *fast]) == 0
    trained = [row for row in read_records(tmp_path / "run" / "ledger.jsonl") if Path(row.get("file", "")).name.startswith("corrections-")]
    assert len(trained) == 6
    assert {row["status"] for row in trained} <= {"trained", "held out", "held_out"}
    assert "trained" in {row["status"] for row in trained}
    assert "corrections-" in (tmp_path / "run" / "config.yaml").read_text(), "the run names the file that was trained"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["review", "a", "b"], "Give one run directory or file"),
        (["review", "--peple", "ann"], "unknown option `--peple`. Did you mean"),
        (["review", "none.jsonl", "--port", "0"], "no such run, file"),
        (["review", "--people", "ann:boss", "--port", "0"], "no role 'boss'"),
        (["review", "--days", "0"], "days is 0"),
        (["review", "--address", "example.org"], "write it whole"),
        (["review", "export"], "no such file"),
        (["review", "close"], "Name the batch"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
