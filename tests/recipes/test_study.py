"""A study from end to end on a tiny model: arms, checkpoints, skills, going on, what a plan forbids, and each knob."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

import sapwood
from sapwood.cli.main import main
from sapwood.config import from_dict
from sapwood.errors import CheckpointError, ConfigError, DataError, SapwoodError
from sapwood.evaluate.labels import read_labels
from sapwood.recipes.hosted import HostedConfig
from sapwood.recipes.item_set import ItemsConfig, build_items, looked
from sapwood.recipes.study import StudyConfig, StudyResult, config_for, study
from sapwood.requirements import Degree, ErrorType, Requirements
from sapwood.run import read_json, read_records
from tiny.folder import write_model, write_rows

FAST: dict[str, Any] = {"dtype": "fp32", "budget": 512, "max_new_tokens": 3, "shots": (), "held_out": 0.4, "batch": 16, "quiet": True}
NEEDS: dict[str, Any] = {
    "name": "colours",
    "metrics": [{"name": "right", "scorer": "exact", "primary": True}, {"name": "number", "scorer": "regex:.", "margin": 0.5}],
    "errors": [{"name": "cut", "found_by": "cut"}, {"name": "false promise", "severity": 5, "veto": True}],
    "prices": {"machine_hour": 1.0, "hosted_in": 1.0, "hosted_out": 1.0},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same rows."""
    place = tmp_path_factory.mktemp("study")
    write_model(place / "model")
    rows = write_rows(place / "my.jsonl", 80)
    (place / "requirements.yaml").write_text(yaml.safe_dump(NEEDS))
    for name, steps in (("short", 2), ("long", 6)):
        more = {"max_steps": steps, "save_every": 2, "keep": 5, "scorer": "none", "lr": 1e-2}
        sapwood.sft(rows, model=place / "model", out=place / name, **FAST, **more)
    skill = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(30)]
    (place / "skill.jsonl").write_bytes(b"\n".join(map(orjson.dumps, skill)))
    return place


def config(place: Path, out: Path, *runs: str, **changed: Any) -> StudyConfig:
    made = config_for([str(place / name) for name in runs or ("short", "long", "long@2")])
    given = {"requirements": place / "requirements.yaml", "out": out, "candidate": "long" if len(runs) != 1 else None, **changed}
    scoring = dataclasses.replace(made.evaluation, scorer="exact")
    return dataclasses.replace(made, evaluation=scoring, **given)


def done(place: Path, out: Path, *runs: str, **changed: Any) -> StudyResult:
    return study(config(place, out, *runs, **changed))


def arms_of(out: Path) -> Counter[str]:
    return Counter(record["arm"] for record in read_records(out / "scores.jsonl"))


def test_every_arm_answers_every_item_once_and_a_study_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {**NEEDS, "general": [{"name": str(trained / "skill.jsonl"), "scorer": "exact", "items": 20}]}
    (tmp_path / "needs.yaml").write_text(yaml.safe_dump(needs))
    first = done(trained, tmp_path / "s", requirements=tmp_path / "needs.yaml", retrieved=(1,))
    counts = arms_of(tmp_path / "s")
    assert set(counts) == {"most common answer", "nearest training row", "plain prompt", "retrieved 1", "short", "long", "long@2"}
    assert set(counts.values()) == {32}
    assert first.shipping is not None
    assert any("skill.jsonl: no loss" in check.name for check in first.shipping.checks)
    assert Counter(one["arm"] for one in read_records(tmp_path / "s" / "skill-skill-jsonl.jsonl")) == {"plain prompt": 20, "long": 20}
    plan = read_json(tmp_path / "s" / "plan.json")
    assert (plan["before_any_answer"], plan["general"][0]["count"]) == (True, 20)
    lines = (tmp_path / "s" / "scores.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "s" / "scores.jsonl").write_bytes(b"".join(lines[:-40]) + lines[-40][:30])
    again = study(config_for([str(tmp_path / "s")]))
    assert arms_of(tmp_path / "s") == counts
    assert again.line == first.line
    monkeypatch.setattr("sapwood.recipes.study_arms.load_model", lambda *_: pytest.fail("all is answered: no model is needed"))
    third = study(dataclasses.replace(config_for([str(tmp_path / "s")]), texts=False))
    assert third.line == first.line
    assert "colour of" not in (tmp_path / "s" / "report.html").read_text()


def test_a_checkpoint_answers_as_the_state_that_it_holds(trained: Path, tmp_path: Path) -> None:
    done(trained, tmp_path / "s", "long", "long@6", "long@2", candidate="long")
    texts = {
        arm: [one["text"] for one in read_records(tmp_path / "s" / "scores.jsonl") if one["arm"] == arm] for arm in arms_of(tmp_path / "s")
    }
    assert texts["long"] == texts["long@6"], "the last checkpoint is the result"
    assert texts["long@2"] != texts["long"]
    with pytest.raises(ConfigError, match="keeps no checkpoint of step 3; it has: 2, 4, 6"):
        done(trained, tmp_path / "t", "long@3")


def test_several_samples_of_each_item(trained: Path, tmp_path: Path) -> None:
    done(trained, tmp_path / "s", "short", samples=2, temperature=1.0)
    counts = arms_of(tmp_path / "s")
    assert counts == {"most common answer": 32, "nearest training row": 32, "plain prompt": 64, "tuned": 64}
    record = read_json(tmp_path / "s" / "ship.json")
    assert record["variance"]["samples"] == 2
    assert next(arm for arm in record["arms"] if arm["name"] == "tuned")["items"] == 32, "items are counted, not answers"


def test_a_plan_is_declared_alone_and_does_not_move(trained: Path, tmp_path: Path) -> None:
    result = done(trained, tmp_path / "s", "short", plan_only=True)
    assert result.shipping is None
    assert not (tmp_path / "s" / "scores.jsonl").exists()
    (tmp_path / "softer.yaml").write_text(yaml.safe_dump({**NEEDS, "errors": []}))
    with pytest.raises(CheckpointError, match="declares another plan"):
        done(trained, tmp_path / "s", "short", requirements=tmp_path / "softer.yaml")
    with pytest.raises(CheckpointError, match="other settings"):
        done(trained, tmp_path / "s", "short", retrieved=(1,))
    went_on = study(config_for([str(tmp_path / "s")]))
    assert went_on.shipping is not None
    assert read_json(tmp_path / "s" / "plan.json")["before_any_answer"]


def test_labels_of_people_decide_vetoes(trained: Path, tmp_path: Path) -> None:
    def veto(labels: Path | None) -> str:
        result = done(trained, tmp_path / "s", "short", labels=labels)
        assert result.shipping is not None
        return next(check.outcome for check in result.shipping.checks if check.name == "veto: false promise")

    assert veto(None) == "open"
    item = read_records(tmp_path / "s" / "items.jsonl")[0]["item"]
    file = tmp_path / "labels.jsonl"
    file.write_bytes(orjson.dumps({"arm": "tuned", "item": item, "errors": []}))
    assert veto(file) == "met"
    file.write_bytes(orjson.dumps({"arm": "tuned", "item": item, "errors": ["false promise"]}))
    assert veto(file) == "missed"
    file.write_text('{"arm": "tuned"}')
    with pytest.raises(DataError, match=r"labels.jsonl:1: each line"):
        veto(file)
    file.write_bytes(orjson.dumps({"arm": "tuned", "item": item, "errors": ["fals promise"]}))
    with pytest.raises(ConfigError, match="Did you mean 'false promise'"):
        veto(file)
    vote = {"item": item, "left": "plain prompt", "right": "tuned", "gold": False}
    found = [{"arm": "plain prompt", "type": "false promise"}]
    file.write_bytes(orjson.dumps({**vote, "errors": found}))
    assert veto(file) == "met", "a vote of `sapwood review export` looked at both answers, and the error is the other one's"
    file.write_bytes(orjson.dumps({**vote, "errors": [{"arm": "tuned", "type": "false promise"}]}))
    assert veto(file) == "missed"
    file.write_bytes(orjson.dumps({**vote, "left": "gold", "item": "gold", "gold": True, "errors": []}))
    assert veto(file) == "open"


def test_errors_are_weighed_as_their_degrees_are_and_a_label_is_of_one_sample(tmp_path: Path) -> None:
    degrees = [{"name": "slight", "severity": 2}, {"name": "grave", "severity": 20}]
    needs = from_dict(Requirements, {"name": "x", "errors": [{"name": "wrong", "severity": 5, "degrees": degrees}, {"name": "cut"}]}, "x")
    file = tmp_path / "labels.jsonl"

    def read(*rows: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, float | None]]:
        file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        return read_labels(file, needs, ["tuned", "plain"], ["i"])

    vote = {"item": "i", "left": "plain", "right": "tuned", "gold": False}
    slight, grave = (
        {**vote, "errors": [{"arm": "tuned", "type": "wrong", "degree": degree, "severity": 1}]} for degree in ("slight", "grave")
    )
    assert read(slight) == {("plain", "i", 0): {}, ("tuned", "i", 0): {"wrong": 2}}
    assert read(slight, grave)["tuned", "i", 0] == {"wrong": 20}, "the worst that anybody saw"
    odd = {"arm": "tuned", "type": "wrong", "degree": "odd", "severity": 7}
    other = {**vote, "errors": [odd, {"arm": "tuned", "type": "cut", "severity": 3}]}
    assert read(other)["tuned", "i", 0] == {"wrong": 7, "cut": None}, "without a degree it costs what these requirements say"
    assert read({"arm": "tuned", "item": "i", "sample": 2, "errors": ["cut"]}) == {("tuned", "i", 2): {"cut": None}}
    with pytest.raises(ConfigError, match="two degrees of one name"):
        ErrorType(name="x", degrees=(Degree(name="a", severity=1), Degree(name="a", severity=2)))
    with pytest.raises(ConfigError, match="a: severity is 0"):
        ErrorType(name="x", degrees=(Degree(name="a", severity=0),))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ({"arm": "tune", "item": "?", "errors": []}, r"labels.jsonl:1: this study has no arm 'tune'. Did you mean 'tuned'"),
        ({"arm": "tuned", "item": "0123", "errors": []}, r"labels.jsonl:1: this study asks no item '0123'"),
        (None, "is no file"),
    ],
)
def test_labels_of_other_answers_are_refused_before_anything_is_asked(
    trained: Path, tmp_path: Path, label: dict[str, Any] | None, says: str
) -> None:
    file = tmp_path / "labels.jsonl"
    if label is not None:
        file.write_bytes(orjson.dumps(label))
    with pytest.raises(SapwoodError, match=says):
        done(trained, tmp_path / "s", "short", labels=file)
    assert not (tmp_path / "s" / "scores.jsonl").exists()


def test_skills_whose_names_end_alike_keep_their_answers_apart(trained: Path, tmp_path: Path) -> None:
    """Two files of one name had one file of answers, and each was judged by the answers of both."""
    for place, count in (("a", 9), ("b", 14)):
        (tmp_path / place).mkdir()
        rows = [{"messages": [{"role": "user", "content": f"{place} {n}"}, {"role": "assistant", "content": "x"}]} for n in range(count)]
        (tmp_path / place / "test.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    skills = [{"name": str(tmp_path / place / "test.jsonl"), "scorer": "exact"} for place in "ab"]
    (tmp_path / "needs.yaml").write_text(yaml.safe_dump({**NEEDS, "general": skills}))
    done(trained, tmp_path / "s", "short", requirements=tmp_path / "needs.yaml")
    general = read_json(tmp_path / "s" / "ship.json")["general"]
    assert [found["n"] for found in general.values()] == [9, 14]


def test_a_look_is_counted_once_a_study_and_its_warning_stays(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "logs.jsonl", 40)
    build_items(ItemsConfig(logs=(str(rows),), out=tmp_path / "items", dev=0.1))
    looked(tmp_path / "items")
    made = dataclasses.replace(
        config(trained, tmp_path / "s", "short"), runs=(), candidate=None, data=(str(tmp_path / "items" / "test.jsonl"),)
    )
    made = dataclasses.replace(made, rows=dataclasses.replace(made.rows, held_out=0))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sapwood.recipes.study.ask_all", killed)
        with pytest.raises(KeyboardInterrupt):
            study(made)
    for _ in range(2):
        study(made)
        assert any("looked at 2 times" in note for note in read_json(tmp_path / "s" / "ship.json")["notes"])
    assert read_json(tmp_path / "items" / "card.json")["looks_at_test"] == 2


def test_without_a_tuned_arm_the_arms_are_compared(trained: Path, tmp_path: Path) -> None:
    base = dataclasses.replace(config(trained, tmp_path / "s", "short"), runs=(), candidate=None, data=(str(trained / "my.jsonl"),))
    result = study(base)
    assert result.shipping is None
    assert read_json(tmp_path / "s" / "ship.json")["answer"] == "no candidate"
    assert "Compared" in result.report.read_text()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"candidate": None}, "Name the one that may be shipped with --candidate"),
        ({"candidate": "lonk"}, "the tuned arms are: short, long"),
        ({"retrieved": (0,)}, "retrieved is"),
        ({"samples": 2}, "samples is 2 at temperature 0"),
        ({"max_cost": 1.0}, "none is named"),
    ],
)
def test_odd_settings(trained: Path, tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        done(trained, tmp_path / "s", "short", "long", **changed)


def test_rows_of_the_training_are_not_asked(trained: Path, tmp_path: Path) -> None:
    made = config(trained, tmp_path / "s", "short")
    with pytest.raises(DataError, match="may have been trained on them"):
        study(dataclasses.replace(made, rows=dataclasses.replace(made.rows, held_out=0.6)))


def test_the_verb_gives_the_answer_as_its_exit_code(trained: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    words = ["study", str(trained / "short"), "--requirements", str(trained / "requirements.yaml"), "--out", str(tmp_path / "s")]
    code = main([*words, "--scorer", "exact", "--json"])
    record = orjson.loads(capsysbinary.readouterr().out)
    assert code == {"ship": 0, "don't ship": 3, "inconclusive": 4}[record["answer"]]
    assert code in (3, 4)
    assert record["plan"]["hash"] == read_json(tmp_path / "s" / "plan.json")["hash"]
    assert main(["study", str(trained / "nothing")]) != 0


@pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning")
def test_our_own_server_is_a_hosted_arm(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model behind `sapwood serve` and the base model here are one model: they say the same of every item, at another price."""
    serving = pytest.importorskip("serve.serving", reason="the server is not installed (extra `web`)")
    monkeypatch.setenv("OUR_KEY", serving.TOKEN)
    with serving.serving(trained / "model") as ours:
        remote = HostedConfig(hosted_url=ours.url, hosted_model="tiny", hosted_key="OUR_KEY")
        result = done(trained, tmp_path / "s", "short", remote=remote, max_cost=10.0)
    texts: dict[str, dict[str, str]] = {}
    for record in read_records(tmp_path / "s" / "scores.jsonl"):
        texts.setdefault(record["arm"], {})[record["item"]] = record["text"]
    assert texts["hosted model"] == texts["plain prompt"]
    assert any(texts["hosted model"].values())
    ship = read_json(tmp_path / "s" / "ship.json")
    hosted, plain = ({arm["name"]: arm for arm in ship["arms"]}[name] for name in ("hosted model", "plain prompt"))
    assert (hosted["rate"], hosted["cost"]["tokens_in"]) == (plain["rate"], plain["cost"]["tokens_in"]), "it reads the very same tokens"
    assert hosted["cost"]["dollars_a_thousand"] == pytest.approx(1e-3 * (hosted["cost"]["tokens_in"] + hosted["cost"]["tokens_out"]))
    assert "hosted model" in ship["break_even"]
    assert result.shipping is not None
    assert done(trained, tmp_path / "s", "short", remote=remote, max_cost=10.0).line == result.line, "the server is gone, and not missed"
