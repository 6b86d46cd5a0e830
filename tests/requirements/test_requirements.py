"""requirements.yaml: what it may say, how a mistake in it is told, and that its hash is of what it says and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sapwood.config import from_dict, to_dict
from sapwood.errors import ConfigError
from sapwood.requirements import Criterion, ErrorType, Metric, Requirements, Skill, Slice, read_requirements

WHOLE: dict[str, Any] = {
    "name": "refund mails",
    "about": "Answers to customers who want their money back.",
    "tasks": [{"name": "refund", "about": "Say whether it is granted, and why."}],
    "metrics": [{"name": "right", "scorer": "exact", "primary": True, "at_least": 0.8}, {"name": "length", "margin": 0.05}],
    "slices": [{"name": "typos", "tags": ["edge:typos"], "margin": 0.1}],
    "errors": [{"name": "wrong amount", "severity": 5, "veto": True}, {"name": "rude", "severity": 2, "found_by": "matches:(?i)idiot"}],
    "rubric": [{"name": "faithful", "question": "Does it say only what the policy says?", "anchors": ["no", "mostly", "yes"]}],
    "general": [{"name": "mmlu-slice", "margin": 0.03, "items": 100}],
    "prices": {"machine_hour": 0.4},
    "decision": {"gain": 0.02},
}


def read(tmp_path: Path, **changed: Any) -> Requirements:
    file = tmp_path / "requirements.yaml"
    file.write_text(yaml.safe_dump({**WHOLE, **changed}))
    return read_requirements(file)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.primary == Metric(name="right", scorer="exact", primary=True, at_least=0.8)
    assert found.slices == (Slice(name="typos", tags=("edge:typos",), margin=0.1),)
    assert [error.name for error in found.vetoes] == ["wrong amount"]
    assert found.error("rude").found_by == "matches:(?i)idiot"
    assert found.criterion("faithful").anchors == ("no", "mostly", "yes")
    assert found.general == (Skill(name="mmlu-slice", items=100),)
    assert from_dict(Requirements, to_dict(found), "again") == found


def test_the_hash_is_of_what_is_said(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert from_dict(Requirements, dict(reversed(to_dict(found).items())), "again").hash == found.hash
    others = {read(tmp_path, decision={"gain": gain}).hash for gain in (0.0, 0.02, 0.03)}
    assert len(others) == 3
    assert found.hash in others


def test_a_name_alone_is_enough() -> None:
    assert Requirements(name="x").primary.name == "right"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"metrcis": []}, "unknown option `metrcis`. Did you mean 'metrics'"),
        ({"errors": [{"name": "a"}, {"name": "b", "severty": 2}]}, "`errors[1].severty`. Did you mean 'errors[1].severity'"),
        ({"errors": [{"severity": 2}]}, "`errors[0]` lacks `name`"),
        ({"errors": [{"name": "a", "severity": "much"}]}, "`errors[0].severity` should be float, found 'much'"),
        ({"errors": [{"name": "a", "severity": 0}]}, "error 'a': severity is 0"),
        ({"errors": [{"name": "a"}, {"name": "a"}]}, "errors: the name 'a' is empty or stands twice"),
        ({"errors": [{"name": "a", "found_by": "magic"}]}, "allowed: wrong, no answer, cut, people, matches:REGEX"),
        ({"errors": [{"name": "a", "found_by": "matches:("}]}, "no regular expression"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": [{"name": "a"}, {"name": "b"}]}, "0 of 2 are primary (none)"),
        ({"metrics": [{"name": "a", "primary": True}, {"name": "b", "primary": True}]}, "2 of 2 are primary (a, b)"),
        ({"metrics": [{"name": "a", "at_least": 80}]}, "metric 'a': at_least is 80.0; give a share from 0 to 1"),
        ({"metrics": [{"name": "a", "primary": True, "margin": 0.1}]}, "a primary metric has no margin"),
        ({"slices": [{"name": "s", "tags": []}]}, "slice 's': `tags` is []"),
        ({"rubric": [{"name": "r", "anchors": ["only"]}]}, "criterion 'r': 1 anchors; give 2 to 9"),
        ({"general": [{"name": "g", "items": 0}]}, "skill 'g': items is 0"),
        ({"prices": {"machine_hour": -1}}, "machine_hour is -1"),
        ({"decision": {"level": 95}}, "decision.level"),
        ({"decision": {"looks": 0}}, "decision.looks is 0"),
        ({"name": " "}, "name is empty"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **changed)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "requirements.yaml"))


def test_an_unknown_error_is_told_with_the_known_ones() -> None:
    found = Requirements(name="x", errors=(ErrorType(name="wrong amount"),), rubric=(Criterion(name="kind"),))
    with pytest.raises(ConfigError, match=r"Did you mean 'wrong amount'\? It has: wrong amount"):
        found.error("wrong amont")
    with pytest.raises(ConfigError, match="rubric has no 'x'"):
        found.criterion("x")


@given(st.floats(0, 1), st.floats(0, 1))
def test_every_share_is_kept_as_it_is(at_least: float, margin: float) -> None:
    made = Slice(name="s", tags=("t",), at_least=at_least, margin=margin)
    assert from_dict(Slice, to_dict(made), "x") == made
