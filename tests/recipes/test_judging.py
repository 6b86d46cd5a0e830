"""A judge on a run's saved answers: raw, at equal length, corrected by labels; resumed, and told where it may not be believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from sapwood.cli.main import main
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate import exact, item_records, items_from, run_free_arm
from sapwood.recipes.judge_labels import read_winners, refreshed
from sapwood.recipes.judging import JudgeConfig, judge_run
from sapwood.records import Completion, Conversation, Ended, Message, Prompt, SamplingParams
from sapwood.run import open_run, read_records
from tiny.folder import write_model

COUNT = 60


class Likes:
    """Prefers the answer with the word `better`; goes away after so many calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.calls, self.asked = calls, 0

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: object) -> list[Completion]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.asked += len(prompts)
        return [Completion(p, (), self.one(p.messages[1].content), Ended.STOP) for p in prompts]

    def one(self, told: str) -> str:
        first, second = told.split("first answer ends")
        verdict = "first" if "better" in first else "second" if "better" in second else "tie"
        return json.dumps({"reason": "", "verdict": verdict})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    items = items_from([Conversation((Message("user", f"tell {n}"), Message("assistant", "x"))) for n in range(COUNT)])
    run = open_run(tmp_path / "run")
    run.append("items", *item_records(items))
    for arm, word in (("plain", "fine"), ("few-shot", "so"), ("tuned", "better")):
        scores = run_free_arm(
            arm, items, lambda item, word=word: word if int(item.conversation.messages[0].content[5:]) % 4 else "same", exact()
        )
        run.append("scores", *(score.record() for score in scores))
    run.close()
    return run.path


def config(run: Path, **more: object) -> JudgeConfig:
    return JudgeConfig(run=run, judge_model="likes", **more)  # type: ignore[arg-type]


def test_rates_of_a_judge_that_nobody_calibrated(run: Path) -> None:
    result = judge_run(config(run), sampler=Likes())
    assert result.arms == ("plain", "tuned")
    assert result.found["raw"]["rate"] == pytest.approx(0.75 + 0.125)
    assert "not calibrated" in result.lines[0]
    assert not result.found["equal_length"]["overlap"]
    assert "cannot be told apart" in result.lines[1]
    assert len(read_records(run / "judged.jsonl")) == COUNT
    other = judge_run(config(run, arms=("tuned", "few-shot")), sampler=Likes())
    assert other.found["raw"]["rate"] == pytest.approx(0.125)


def test_the_first_of_several_answers_is_judged_and_clusters_are_kept_together(run: Path) -> None:
    wide = judge_run(config(run), sampler=Likes()).found["raw"]
    records = read_records(run / "scores.jsonl")
    groups = {name: f"g{place % 4}" for place, name in enumerate(dict.fromkeys(record["item"] for record in records))}
    more = [{**record, "cluster": groups[record["item"]], "sample": sample} for record in records for sample in (0, 1)]
    for record in more:
        record["text"] = "fine" if record["sample"] else record["text"]
        record.pop("schema", None)
    (run / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in more))
    (run / "judged.jsonl").unlink()
    found = judge_run(config(run), sampler=Likes()).found["raw"]
    assert found["rate"] == wide["rate"], "the second answers are all the same, and would be ties"
    assert found["high"] - found["low"] > wide["high"] - wide["low"]


def test_labels_calibrate_and_correct(run: Path, tmp_path: Path) -> None:
    items = [record["item"] for record in read_records(run / "items.jsonl")]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"item": item, "winner": "a"}) + "\n" for item in items[:30]))
    result = judge_run(config(run, labels=labels), sampler=Likes(), today=date(2026, 5, 1))
    assert result.found["corrected"]["high"] < 0.4, "people prefer the first arm, whatever the judge says"
    assert json.loads((run / "judge-card.json").read_text())["agreement"] == 0
    labels.write_text("".join(json.dumps({"item": item, "winner": "a"}) + "\n" for item in items[:5]))
    few = judge_run(config(run, labels=labels), sampler=Likes())
    assert "corrected" not in few.found
    assert "5 pairs with a label and a verdict are too few" in few.lines[-1]


def test_a_judge_that_was_stopped_goes_on(run: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        judge_run(config(run), sampler=Likes(calls=2))
    assert len(read_records(run / "judged.jsonl")) == 32
    rest = Likes()
    judge_run(config(run), sampler=rest)
    assert rest.asked == 2 * (COUNT - 32)
    assert len({record["id"] for record in read_records(run / "judged.jsonl")}) == COUNT
    stricter = Likes()
    judge_run(config(run, criteria=("Prefer what is short.",)), sampler=stricter)
    assert stricter.asked == 2 * COUNT, "another judge is asked anew"


def test_a_judge_of_rubbish_gives_no_rate(run: Path) -> None:
    class Rubbish(Likes):
        def one(self, told: str) -> str:
            return "dunno"

    result = judge_run(config(run), sampler=Rubbish())
    assert "raw" not in result.found
    said = f"{COUNT} of {COUNT} pairs without a verdict: its answer is no JSON object: 'dunno'"
    assert result.lines == (said, "the judge gave no verdict at all, so there is no rate")


def test_a_model_of_this_machine_judges_in_its_own_template(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="the extra `constrain` is not installed")
    model = write_model(tmp_path / "model", context=4096)
    (run / "config.yaml").write_text("")
    assert main(["eval", str(run), "--judge-model", str(model), "--pairs", "3"]) == 0
    said = capsys.readouterr().err
    assert f"3 pairs, each in both orders, with questions and references, are judged by {model}, here." in " ".join(said.split())
    records = list(read_records(run / "judged.jsonl"))
    assert len(records) == 3
    assert all(record["winner"] is not None or "no JSON object" in " ".join(record["reasons"]) for record in records), (
        "held to the schema, a model of random weights gives verdicts, or is cut before the end of its reason"
    )


def test_what_cannot_be_judged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.jsonl"
    for line, why in (('{"item": "x", "winner": "a"}', "no item"), ("x", "a line is"), ('{"item": "x", "winner": "c"}', "no verdict")):
        labels.write_text(line + "\n")
        with pytest.raises(DataError, match=why):
            judge_run(config(run, labels=labels), sampler=Likes())
    with pytest.raises(ConfigError, match="plain, few-shot, tuned"):
        judge_run(config(run, arms=("plain", "tunned")), sampler=Likes())
    assert main(["eval", str(run), "--judge-url", "http://127.0.0.1:9/v1"]) == 2
    assert "--judge-model" in capsys.readouterr().err
    assert main(["eval", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m"]) == 2
    assert "finished run" in capsys.readouterr().err
    assert not (run / "judged.jsonl").exists()


def test_the_arms_are_those_of_the_verdict(run: Path) -> None:
    (run / "verdict.json").write_text(json.dumps({"best_other": "few-shot", "tuned": "tuned"}))
    assert judge_run(config(run), sampler=Likes()).arms == ("few-shot", "tuned")
    (run / "verdict.json").write_text(json.dumps({"best_other": "gone", "tuned": "tuned"}))
    assert judge_run(config(run), sampler=Likes()).arms == ("plain", "tuned"), "a verdict of other arms says nothing of these"


def votes_of(items: list[str], verdict: str, **more: object) -> list[dict[str, object]]:
    return [{"item": item, "left": "tuned", "right": "plain", "verdict": verdict, "winner": "", "gold": False, **more} for item in items]


def test_votes_of_reviewers_calibrate_the_judge(run: Path, tmp_path: Path) -> None:
    items = [record["item"] for record in read_records(run / "items.jsonl")]
    labels = tmp_path / "votes.jsonl"
    votes = votes_of(items[:24], "a") + votes_of(items[:8], "b") + votes_of(items[:8], "slightly_a")
    votes += votes_of(items[30:35], "b", gold=True) + votes_of(items[30:35], "cannot_judge") + votes_of(items[30:35], "a", right="few-shot")
    labels.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    said = read_winners(labels, ("plain", "tuned"), set(items))
    assert said.passed_over == 15
    assert said.by_item == dict.fromkeys(items[:24], "b"), "of a vote for it, one against it and a weaker one for it the mean is for it"
    result = judge_run(config(run, labels=labels), sampler=Likes(), today=date(2026, 5, 1))
    assert json.loads((run / "judge-card.json").read_text())["labels"] == 24
    assert result.found["corrected"]["low"] > 0.5


def test_a_card_is_made_anew_from_later_votes(run: Path) -> None:
    items = [record["item"] for record in read_records(run / "items.jsonl")]
    judge_run(config(run), sampler=Likes())
    same = {verdict["id"] for verdict in read_records(run / "judged.jsonl") if verdict["winner"] == "tie"}
    writer = open_run(run)
    try:
        assert refreshed(writer, votes_of(items[:19], "a"), date(2026, 5, 1)) is None, "too few"
        first = refreshed(writer, votes_of(sorted(set(items) - same)[:24], "a"), date(2026, 5, 1))
        assert first is not None
        assert (first.labels, first.model, first.beyond_chance) == (24, "likes", False), "people who say one thing tell nothing of chance"
        told = [vote for item in items for vote in votes_of([item], "tie" if item in same else "a")]
        second = refreshed(writer, told, date(2026, 6, 1))
        assert second is not None
        assert (second.agreement, second.beyond_chance, second.made) == (1.0, True, "2026-06-01")
        assert json.loads((run / "judge-card.json").read_text())["labels"] == COUNT
    finally:
        writer.close()


def test_a_judge_that_guesses_is_called_that(run: Path, tmp_path: Path) -> None:
    class Guesses(Likes):
        def one(self, told: str) -> str:
            return json.dumps({"reason": "", "verdict": "first"})

    items = [record["item"] for record in read_records(run / "items.jsonl")]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"item": item, "winner": "ab"[n % 2]}) + "\n" for n, item in enumerate(items[:40])))
    said = "\n".join(judge_run(config(run, labels=labels), sampler=Guesses(), today=date(2026, 5, 1)).lines)
    assert "not shown to agree more than guessing would" in said
    assert "100% follow the order" in said


def test_a_part_of_the_pairs_is_judged_and_a_larger_one_goes_on(run: Path, tmp_path: Path) -> None:
    items = [record["item"] for record in read_records(run / "items.jsonl")]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"item": item, "winner": "b"}) + "\n" for item in items))
    some = Likes()
    found = judge_run(config(run, pairs=10, labels=labels), sampler=some).found
    assert (found["pairs"], some.asked) == (10, 20)
    more = Likes()
    assert judge_run(config(run, pairs=25), sampler=more).found["pairs"] == 25
    assert more.asked == 30, "those that were judged are among them"
    with pytest.raises(ConfigError, match="pairs is -1"):
        config(run, pairs=-1)
