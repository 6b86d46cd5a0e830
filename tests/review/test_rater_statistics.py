"""Simulated raters with known truth: what the pages say is what is so, and a careless rater is found by known answers."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from review_runs import ARMS, candidates, fill, known
from sqlalchemy import select

from sapwood.review.batch import BatchConfig
from sapwood.review.desk import Ballot, cast, next_case
from sapwood.review.raters import Rater, raters_of
from sapwood.review.results import Cast, cast_votes, more_votes, results_of
from sapwood.review.tables import cases
from sapwood.stats import mean_interval


@pytest.fixture(autouse=True)
def same_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who judges what when is drawn from a batch's secret: the same one in every run, so that the same votes are judged."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5a" * size)


@dataclass(frozen=True)
class Someone:
    """A simulated rater."""

    name: str
    careful: float = 0.95
    """How often the known answer is seen."""
    habit: str = ""
    """Always this verdict, in terms of sides."""
    tired_after: int = 10**9
    """Votes after which it is a coin."""
    said: list[int] = field(default_factory=list)


def judged(
    folder: Path, people: list[Someone], items: int, rounds: int, share: float = 0.75
) -> tuple[list[Cast], list[Cast], dict[int, str], dict[str, int]]:
    """Everybody votes so many times; an item's better answer is tuned's with probability `share`."""
    dice = np.random.default_rng(4)
    truth = {f"item-{number}": ARMS[0] if dice.random() < share else ARMS[1] for number in range(items)}
    config = BatchConfig(overlap=len(people), gold_every=5)
    store, batch, _, ids = fill(
        folder / "r.db", [*candidates(items), *known(20)], config, people=tuple(one.name for one in people), now=0.0
    )
    with store.writing() as connection:
        for turn in range(rounds):
            for one in people:
                shown = next_case(connection, batch, ids[one.name], float(turn))
                if shown is None:
                    continue
                right = shown.case.gold or ("a" if shown.case.arm_a == truth[shown.case.key] else "b")
                sees = dice.random() < (one.careful if turn < one.tired_after else 0.5)
                better = right if sees else ("b" if right == "a" else "a")
                verdict = one.habit or ("a" if better == shown.left else "b")
                cast(connection, batch, ids[one.name], shown.seat, Ballot(verdict, ms=500), turn + 0.9)
        answers = connection.execute(select(cases.c.id, cases.c.gold).where(cases.c.gold.is_not(None)))
        right_answers = {row.id: row.gold for row in answers}
        found = cast_votes(connection, batch), cast_votes(connection, batch, known=True), right_answers, ids
    store.close()
    return found


def of(raters: list[Rater], ids: dict[str, int], name: str) -> Rater:
    return next(rater for rater in raters if rater.person == ids[name])


def test_known_answers_find_the_careless_and_leave_the_careful_alone(tmp_path: Path) -> None:
    people = [Someone("ann"), Someone("bob", careful=0.9), Someone("careless", careful=0.5), Someone("lefty", habit="a")]
    cast_, known_, right, ids = judged(tmp_path, people, 80, 70)
    raters = raters_of(cast_, known_, right)
    assert of(raters, ids, "ann").reasons == of(raters, ids, "bob").reasons == ()
    assert any("known answers right" in reason for reason in of(raters, ids, "careless").reasons)
    assert any("to the left" in reason for reason in of(raters, ids, "lefty").reasons)
    assert any("“a” on" in reason for reason in of(raters, ids, "lefty").reasons)
    assert of(raters, ids, "ann").known >= 12


def test_a_rater_who_tires_drifts(tmp_path: Path) -> None:
    people = [Someone("ann"), Someone("bob"), Someone("tired", tired_after=60)]
    cast_, known_, right, ids = judged(tmp_path, people, 120, 120)
    raters = raters_of(cast_, known_, right)
    assert any(reason.startswith("agreement with others went from") for reason in of(raters, ids, "tired").reasons)
    assert of(raters, ids, "ann").reasons == of(raters, ids, "bob").reasons == (), "who judges as ever is not blamed for another's change"


def made(
    dice: np.random.Generator, careful: np.ndarray, votes: int, overlap: int, *, tired: bool = False, together: bool = False
) -> list[Cast]:
    """Votes in the order in which they come: each rater has a quality, two votes of twenty are ties; `tired` makes the first one a coin
    from half way on. `together` lets everybody go the same way through the items, else each goes another."""
    raters = len(careful)
    items = votes * raters // overlap
    truth_I, who_I = dice.integers(0, 2, items), np.argsort(dice.random((items, raters)), axis=1)[:, :overlap]
    own = [
        dice.permutation(mine) if not together else mine for rater in range(raters) for mine in [np.flatnonzero((who_I == rater).any(1))]
    ]
    found = []
    for turn in range(max(map(len, own))):
        for rater in range(raters):
            if turn < len(own[rater]):
                case = int(own[rater][turn])
                quality = 0.5 if tired and rater == 0 and turn >= len(own[0]) / 2 else careful[rater]
                better = "ab"[int(truth_I[case]) ^ int(dice.random() >= quality)]
                left, tie = "ab"[int(dice.random() < 0.5)], dice.random() < 0.1
                verdict, lean = ("tie", 0.5) if tie else ("a" if better == left else "b", float(better == "a"))
                found.append(vote(rater, case, verdict, lean, left))
    return found


def vote(rater: int, case: int, verdict: str, lean: float, left: str = "a", arm_b: str | None = "y") -> Cast:
    return Cast(rater, case, str(case), "x", arm_b, lean, left, verdict, {}, (), 900, 0.0, 0, (1, 1))


def test_raters_who_judge_as_ever_are_rarely_suspected_however_often_one_looks() -> None:
    """2,000 raters of constant quality, each looked at after every fifteenth of 120 votes: what docs/review.md says of false alarms."""
    dice = np.random.default_rng(0)
    suspected = {"agreement": 0, "wins": 0, "cases": 0}
    for number in range(500):
        given, said = made(dice, dice.uniform(0.7, 0.98, 4), 120, overlap=2 + 2 * (number % 2)), set[tuple[int, str]]()
        for end in range(60, len(given) + 60, 60):
            for rater in raters_of(given[:end], [], {}):
                said |= {(rater.person, word) for reason in rater.reasons for word in suspected if word in reason}
        for _, word in said:
            suspected[word] += 1
    rates = {word: count / 2000 for word, count in suspected.items()}
    assert 0.005 <= rates["agreement"] <= 0.03, rates
    assert rates["wins"] <= 0.03, rates
    assert rates["cases"] == 0, rates


@pytest.mark.parametrize(("raters", "overlap", "power"), [(3, 3, 0.65), (3, 2, 0.45), (5, 3, 0.6)])
def test_one_who_tires_is_found_and_nobody_else_is_blamed(raters: int, overlap: int, power: float) -> None:
    """Even where all judge the same cases at the same time, so that everybody's agreement falls with that of the one who tires."""
    dice = np.random.default_rng(2)
    found = blamed = 0
    for _ in range(100):
        told = raters_of(made(dice, dice.uniform(0.85, 0.98, raters), 120, overlap, tired=True, together=True), [], {})
        found += sum(any("agreement" in reason for reason in rater.reasons) for rater in told if rater.person == 0)
        blamed += sum(any("agreement" in reason for reason in rater.reasons) for rater in told if rater.person != 0)
    assert found / 100 >= power
    assert blamed / 100 / (raters - 1) <= 0.05


def test_of_two_alone_nobody_can_say_which_one_changed() -> None:
    first = [vote(rater, case, "a", 1.0) for case in range(20) for rater in (0, 1)]
    second = [vote(rater, case, "a", float(rater)) for case in range(20, 40) for rater in (0, 1)]
    reasons = [reason for rater in raters_of([*first, *second], [], {}) for reason in rater.reasons if "agreement" in reason]
    assert reasons == ["agreement with the one other rater went from 100% to 0%: one of the two changed"] * 2


def test_what_everybody_says_is_no_habit() -> None:
    """Most answers are good and all say so; one who says so of every answer is asked about where the others do not."""

    def told(bad_of_ten: int) -> list[tuple[str, ...]]:
        marks = [("bad", 0.0) if case % 10 < bad_of_ten else ("good", 1.0) for case in range(60)]
        careful = [vote(rater, case, *marks[case], arm_b=None) for case in range(60) for rater in (0, 1)]
        always = [vote(2, case, "good", 1.0, arm_b=None) for case in range(60)]
        return [rater.reasons for rater in sorted(raters_of([*careful, *always], [], {}), key=lambda rater: rater.person)]

    assert told(0) == [(), (), ()]
    assert told(4) == [(), (), ("“good” on 60 of 60 cases",)]


def test_a_careful_rater_is_rarely_suspected() -> None:
    """The test by known answers keeps its word: a rater who sees 9 of 10 is suspected in less than one batch of a hundred."""
    from scipy import special

    from sapwood.review.raters import GOOD_ENOUGH, SURE_CARELESS

    for count in (5, 10, 20, 40):
        worst = max((right for right in range(count + 1) if special.bdtr(right, count, GOOD_ENOUGH) < SURE_CARELESS), default=-1)
        assert worst < 0 or special.bdtr(worst, count, 0.9) < 0.01
        assert worst < 0 or special.bdtr(worst, count, 0.5) > (0.15 if count < 10 else 0.35)
    dice, counts = np.random.default_rng(0), np.arange(1, 41)
    for sees, once_in in ((0.9, 70), (0.8, 6.5)):
        right = (dice.random((10_000, 40)) < sees).cumsum(axis=1)
        ever = (special.bdtr(right, counts, GOOD_ENOUGH) < SURE_CARELESS).any(axis=1).mean()
        assert 1 / ever == pytest.approx(once_in, rel=0.15), "looked at after every known answer"


def test_votes_are_counted_for_arms_whatever_stood_where(tmp_path: Path) -> None:
    people = [Someone("ann", careful=1.0), Someone("bob", careful=1.0)]
    cast_, _, _, _ = judged(tmp_path, people, 60, 80, share=0.8)
    store, batch, _, _ = fill(tmp_path / "other.db", candidates(2), now=0.0)
    results = results_of(batch, cast_)
    wins = {batch.shown_name("tuned"): 0, batch.shown_name("acme/secret-7b"): 0}
    dice = np.random.default_rng(4)
    truth = ["a" if dice.random() < 0.8 else "b" for _ in range(60)]
    wins[batch.shown_name("tuned")] = 2 * truth.count("a")
    wins[batch.shown_name("acme/secret-7b")] = 2 * truth.count("b")
    rate = results.rates[0]
    assert (rate.wins, rate.losses, rate.ties) == (wins[rate.name], wins[rate.against], 0)
    assert results.agreement.alpha == 1.0
    assert "tuned" not in str(results.rates), "an open batch shows no names"
    store.close()


@pytest.mark.parametrize("share", [0.5, 0.65, 0.9])
def test_the_win_rate_covers_the_truth_with_several_raters_an_item(share: float) -> None:
    dice = np.random.default_rng(9)
    inside, repeats = 0, 400
    for _ in range(repeats):
        truth = dice.random(60) < share
        votes = [float(bool(right) != (dice.random() < 0.15)) for right in truth for _ in range(3)]
        expected = share * 0.85 + (1 - share) * 0.15
        inside += expected in mean_interval(votes, [item for item in range(60) for _ in range(3)])
    assert inside / repeats >= 0.93


def test_so_many_more_votes_are_about_enough() -> None:
    """With the votes that it asks for, four studies of five see the difference."""
    dice = np.random.default_rng(1)
    first = [1.0] * 58 + [0.0] * 42
    more = more_votes(0.58, mean_interval(first), 100)
    assert more is not None
    seen = sum(0.5 not in mean_interval((dice.random(100 + more) < 0.58).astype(float)) for _ in range(400))
    assert 0.72 <= seen / 400 <= 0.88
    assert more_votes(0.7, mean_interval([1.0] * 70 + [0.0] * 30), 100) == 0
    assert more_votes(0.5, mean_interval([1.0, 0.0] * 20), 40) is None
    assert math.isclose(sum(first) / 100, 0.58)
