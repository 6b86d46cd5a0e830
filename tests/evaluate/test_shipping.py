"""Ship or not: each kind of condition met, missed and open; what odd input does; the error rates of the whole rule, simulated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import arm, right

from sapwood.config import from_dict
from sapwood.errors import CheckpointError, DataError
from sapwood.evaluate.declared import Plan, declare, questions
from sapwood.evaluate.faults import count_faults, harm
from sapwood.evaluate.shipping import Shipping, Skills, ship
from sapwood.records import Conversation, Item, Message
from sapwood.requirements import ErrorType, Requirements
from sapwood.run import open_run


def needs(**parts: Any) -> Requirements:
    return from_dict(Requirements, {"name": "test", **parts}, "test")


def judged(scores: list[Any], requirements: Requirements | None = None, **more: Any) -> Shipping:
    return ship(scores, requirements or needs(), candidate="tuned", alternatives=["plain", "few-shot 4"], **more)


def outcome(result: Shipping, name: str) -> str:
    return next(check.outcome for check in result.checks if check.name == name)


BETTER = [*arm("plain", right(40, 200)), *arm("few-shot 4", right(60, 200)), *arm("tuned", right(100, 200))]
EQUAL = [*arm("plain", right(60, 200)), *arm("tuned", right(60, 200, 6))]
WORSE = [*arm("plain", right(100, 200)), *arm("tuned", right(60, 200))]


def test_three_answers() -> None:
    assert judged(BETTER).answer == "ship"
    assert "over few-shot 4, and all 2 conditions of the plan hold" in judged(BETTER).line
    assert judged(WORSE).answer == "don't ship"
    assert judged(WORSE).line.startswith("Do not ship tuned. Missed is right: gain – −20.0 points [")
    assert judged(EQUAL).answer == "inconclusive"
    assert "1 of 2 conditions is open (right: gain)" in judged(EQUAL).line
    close = [*arm("plain", right(60, 200)), *arm("tuned", right(66, 200, 0))]
    close[200:] = arm("tuned", [float(k < 56 or 60 <= k < 72) for k in range(200)])
    result = judged(close)
    assert result.answer == "inconclusive"
    assert "more items would settle it" in result.line


def test_the_gain_that_is_asked_for() -> None:
    assert judged(BETTER, needs(decision={"gain": 0.1})).answer == "ship"
    assert judged(BETTER, needs(decision={"gain": 0.18})).answer == "inconclusive"
    assert judged(BETTER, needs(decision={"gain": 0.5})).answer == "don't ship"


def test_more_items_are_counted_for_the_power_that_is_asked_for() -> None:
    """Of the gain, and of a slice that may not lose: the surer one wants to be, the more."""
    tags = {f"i{n}": ("short",) for n in range(200)}
    slices = [{"name": "short", "tags": ["short"], "margin": 0.001}]
    scores = [*arm("plain", right(60, 200)), *arm("tuned", [float(k < 56 or 60 <= k < 72) for k in range(200)])]
    usual, surer = (
        {
            check.name: check.more
            for check in judged(scores, needs(slices=slices, decision={"power": power}), tags=tags).checks
            if check.more
        }
        for power in (0.8, 0.95)
    )
    assert set(usual) == {"right: gain", "short: no loss"}
    assert all(surer[name] > more for name, more in usual.items())


def test_levels_of_metrics_and_slices() -> None:
    metric = {"name": "right", "primary": True}
    for wanted, expected in ((0.4, "met"), (0.55, "open"), (0.7, "missed")):
        assert outcome(judged(BETTER, needs(metrics=[{**metric, "at_least": wanted}])), "right: level") == expected
    tags = {f"i{n}": ("edge:typos",) if n < 50 else () for n in range(200)}
    slices = [{"name": "typos", "tags": ["edge:typos"], "at_least": 0.8, "margin": 0.05}]
    result = judged(BETTER, needs(slices=slices), tags=tags)
    assert (outcome(result, "typos: level"), result.slices[0].items) == ("met", 50)
    worse = [*arm("plain", right(50, 200)), *arm("tuned", right(150, 200, 50))]
    result = judged(worse, needs(slices=slices), tags=tags)
    assert outcome(result, "typos: no loss") == outcome(result, "typos: level") == "missed"
    assert result.answer == "don't ship", "a gain in all does not pay for a declared slice"


def test_an_empty_slice_is_open_and_told() -> None:
    result = judged(BETTER, needs(slices=[{"name": "none", "tags": ["x"], "margin": 0.05}]))
    assert result.answer == "inconclusive"
    assert result.checks[-1].text == "No item carries x: the slice is empty."
    assert result.slices[0].difference is None


def test_tasks_are_slices_where_there_are_several() -> None:
    tasks = [{"name": "refund"}, {"name": "delay"}]
    tags = {f"i{n}": ("task:refund",) if n < 50 else ("task:delay",) for n in range(200)}
    several = judged(BETTER, needs(tasks=tasks), tags=tags).slices
    assert {one.slice.name: one.items for one in several} == {"refund": 50, "delay": 150}
    assert not judged(BETTER, needs(tasks=tasks[:1])).slices, "a single task is all items, whether or not they say so"


def test_a_second_metric_may_not_fall() -> None:
    metrics = [{"name": "right", "primary": True}, {"name": "brief", "margin": 0.05}]
    scores = [*arm("plain", right(60, 200), others={"brief": 1.0}), *arm("tuned", right(100, 200), others={"brief": 0.0})]
    assert outcome(judged(scores, needs(metrics=metrics)), "brief: no loss") == "missed"
    kept = [dataclasses.replace(score, others={"brief": 1.0}) for score in scores]
    assert judged(kept, needs(metrics=metrics)).answer == "ship"
    unread = [dataclasses.replace(score, others={}) for score in scores]
    assert outcome(judged(unread, needs(metrics=metrics)), "brief: no loss") == "open"


def test_vetoes_and_rates_of_errors() -> None:
    errors = [{"name": "rude", "found_by": "matches:idiot", "veto": True}, {"name": "cut", "found_by": "cut", "at_most": 0.1}]
    assert judged(BETTER, needs(errors=errors)).answer == "ship"
    assert "may still be up to 1.8 %" in next(check.text for check in judged(BETTER, needs(errors=errors)).checks if "rude" in check.name)
    rude = [*BETTER[:-1], dataclasses.replace(BETTER[-1], text="you idiot")]
    result = judged(rude, needs(errors=errors))
    assert result.answer == "don't ship"
    assert "Seen in 1 of 200 answers, such as item i199" in result.line
    cut = [dataclasses.replace(score, ended="length") if score.arm == "tuned" and int(score.item[1:]) < 60 else score for score in BETTER]
    assert outcome(judged(cut, needs(errors=errors)), "cut: rate") == "missed"


def test_what_only_people_find_waits_for_people() -> None:
    errors = [{"name": "false promise", "severity": 5, "veto": True}]
    assert judged(BETTER, needs(errors=errors)).answer == "inconclusive"
    labels: dict[tuple[str, str, int], dict[str, float | None]] = {("tuned", f"i{n}", 0): {} for n in range(50)}
    assert judged(BETTER, needs(errors=errors), labels=labels).answer == "ship"
    assert judged(BETTER, needs(errors=errors), labels={**labels, ("tuned", "i3", 0): {"false promise": None}}).answer == "don't ship"


def test_harm_weighs_errors_by_severity() -> None:
    errors = (ErrorType(name="wrong", found_by="wrong"), ErrorType(name="cut", found_by="cut", severity=4))
    (score,) = arm("tuned", [0.0], ended="length")
    assert harm(score, errors, {}) == 5
    assert harm(dataclasses.replace(score, value=None), errors, {}) == 4, "what could not be judged is not counted as wrong"
    assert harm(dataclasses.replace(score, value=None, ended="error"), errors, {}) is None
    weighed = {("tuned", score.item, 0): {"cut": 9.0}}
    assert harm(score, errors, weighed) == 10, "as people weighed this occurrence"
    assert harm(dataclasses.replace(score, sample=1), errors, weighed) == 5, "they saw another answer"
    result = judged(BETTER, needs(errors=[{"name": "wrong", "found_by": "wrong", "severity": 3}]))
    assert result.harm is not None
    assert result.harm.mean == pytest.approx(-3 * 40 / 200)


def test_general_skills_must_not_be_lost() -> None:
    general = [{"name": "mmlu", "margin": 0.05}]
    for after, expected in ((right(200, 400), "met"), (right(120, 400), "missed"), (right(185, 400), "open")):
        skills = Skills("mmlu", arm("plain", right(200, 400)), arm("tuned", after))
        assert outcome(judged(BETTER, needs(general=general), general=[skills]), "mmlu: no loss") == expected
    assert outcome(judged(BETTER, needs(general=general)), "mmlu: no loss") == "open"
    assert "It was not asked." in judged(BETTER, needs(general=general)).checks[-1].text


def test_odd_input_is_told_and_nothing_is_wrong_by_default() -> None:
    unscored = judged([*arm("plain", right(60, 200)), *arm("tuned", [None] * 200)])
    assert unscored.answer == "inconclusive"
    assert "200 of 200 answers of the candidate have no score" in unscored.checks[0].text
    assert unscored.arms["tuned"].rate is None
    few = judged([*arm("plain", right(0, 8)), *arm("tuned", right(8, 8))])
    assert few.answer == "inconclusive"
    assert few.checks[0].text == "Only 8 items were scored on both sides, and 20 are needed."
    one = ["same"] * 100
    cluster = judged([*arm("plain", right(0, 100), one), *arm("tuned", right(100, 100), one)])
    assert cluster.answer == "inconclusive"
    assert "only 1 independent cluster" in cluster.checks[0].text
    same = judged([*arm("plain", right(50, 100)), *arm("few-shot 4", right(50, 100)), *arm("tuned", right(50, 100))])
    assert same.answer == "inconclusive"
    with pytest.raises(DataError, match="found plain"):
        judged(arm("plain", right(1, 2)))
    with pytest.raises(DataError, match="twice"):
        judged([*EQUAL, EQUAL[0]])


def test_every_slice_is_adjusted_together() -> None:
    tags = {f"i{n}": (f"t{n % 20}",) for n in range(200)}
    result = judged(EQUAL, tags=tags)
    assert len(result.slices) == 20
    assert not any(one.marked for one in result.slices)
    assert all(one.adjusted is not None and one.difference and one.adjusted >= one.difference.p_value for one in result.slices)


def drawn(rng: np.random.Generator, n: int, up: float, down: float) -> list[Any]:
    change = rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=n)
    return [*arm("plain", (change < 0).astype(float).tolist()), *arm("tuned", (change > 0).astype(float).tolist())]


@pytest.mark.parametrize(
    ("up", "down", "answer", "most"), [(0.1, 0.1, "ship", 0.035), (0.08, 0.14, "ship", 0.01), (0.2, 0.08, "don't ship", 0.01)]
)
def test_the_whole_rule_is_seldom_wrong(up: float, down: float, answer: str, most: float) -> None:
    rng, skill = np.random.default_rng(8), needs(general=[{"name": "g", "margin": 0.03}])
    wrong = 0
    for _ in range(200):
        g = drawn(rng, 200, 0.05, 0.05)
        result = judged(drawn(rng, 120, up, down), skill, general=[Skills("g", g[:200], g[200:])])
        wrong += result.answer == answer
    assert wrong / 200 <= most


def asked(n: int) -> list[Item]:
    return [Item(Conversation((Message("user", f"q{k}"),)), str(k)) for k in range(n)]


def plan(**changed: Any) -> Plan:
    given = {"candidate": "tuned", "arms": ("plain", "tuned"), "alternatives": ("plain",), "base": "plain", **changed}
    return Plan(**{"requirements": needs(decision={"gain": 0.02}), "items": questions("items", asked(30)), **given})


def test_a_plan_is_written_once_and_does_not_move(tmp_path: Path) -> None:
    run = open_run(tmp_path / "study")
    first = declare(run, plan())
    assert first.before
    run.append("scores", {"arm": "plain"})
    assert declare(run, plan()) == first, "it was declared before, and stays so"
    for changed in ({"candidate": "other"}, {"requirements": needs(decision={"gain": 0.01})}, {"items": questions("items", asked(29))}):
        with pytest.raises(CheckpointError, match=r"declares another plan; .*(candidate|gain|items).* differ"):
            declare(run, plan(**changed))
    run.close()
    late = open_run(tmp_path / "late")
    late.append("scores", {"arm": "plain"})
    assert not declare(late, plan()).before
    late.close()


def test_a_plan_says_its_rule_in_sentences() -> None:
    said = plan(
        requirements=needs(
            metrics=[{"name": "right", "primary": True, "at_least": 0.8}, {"name": "brief", "margin": 0.1}],
            slices=[{"name": "typos", "tags": ["t"], "margin": 0.05}],
            errors=[{"name": "rude", "veto": True}],
            general=[{"name": "mmlu"}],
        )
    ).lines_for_people()
    words = [
        "`right` gains more than 0.0 points",
        "reaches 80 %",
        "`brief` loses at most 10.0",
        "In typos",
        "No 'rude'",
        "mmlu loses at most 3.0",
    ]
    for part in words:
        assert any(part in line for line in said), part
    assert "30 items" in said[-1]


def test_items_are_the_same_in_any_order() -> None:
    assert questions("x", asked(5)) == questions("x", asked(5)[::-1])
    assert questions("x", asked(5)) != questions("x", asked(4))


def test_faults_count_answers_that_were_looked_at() -> None:
    errors = (ErrorType(name="no", found_by="no answer"), ErrorType(name="p"))
    scores = [*arm("a", [1.0, 0.0], answer=""), *arm("b", [None, None], ended="error")]
    labels: dict[tuple[str, str, int], dict[str, float | None]] = {("a", "i0", 0): {"p": None}, ("a", "i1", 0): {}}
    found = {(one.error, one.arm): (one.count, one.of) for one in count_faults(scores, errors, labels)}
    assert found == {("no", "a"): (2, 2), ("no", "b"): (0, 0), ("p", "a"): (1, 2), ("p", "b"): (0, 0)}
