"""Blind pairs and votes: nothing tells the arms apart, nothing is changed, everything is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orjson
import pytest

from sapwood.errors import DataError
from sapwood.evaluate import ArmScore
from sapwood.records import Conversation, Item, Message
from sapwood.review import Pair, Verdict, Vote, agreement, blind_pairs, correct, pairs_from, standing, votes_from, win_rate
from sapwood.run import open_run

ITEMS = [Item(Conversation((Message("user", f"question {n}"),)), "reference") for n in range(200)]
ARMS = ("plain-prompt", "tuned-adapter")


def scores(ended: str = "stop") -> list[ArmScore]:
    return [
        ArmScore(arm, item.id, None, 1.0, None, "", f"text {side} of {n}", ended, 1, 1, 0.1)
        for n, item in enumerate(ITEMS)
        for side, arm in enumerate(ARMS)
    ]


def pairs(rater: str = "ann", salt: str = "secret") -> list[Pair]:
    return blind_pairs(scores(), ITEMS, ARMS, rater=rater, salt=salt)


def test_what_a_rater_gets_tells_nothing() -> None:
    by_id = {item.id: item for item in ITEMS}
    for pair in pairs():
        shown = dataclasses.asdict(pair.blind(by_id[pair.item]))
        assert shown.keys() == {"id", "asked", "left", "right"}
        text = orjson.dumps(shown).decode()
        assert not any(arm in text for arm in ARMS)
        assert pair.item not in text
    swapped = blind_pairs(scores()[::-1], ITEMS, (ARMS[1], ARMS[0]), rater="ann", salt="secret")
    assert {pair.id for pair in swapped} == {pair.id for pair in pairs()}, "the id does not depend on the arms' order"


def test_sides_and_order_are_random_by_item_and_rater_and_stay() -> None:
    ann, bob, again = pairs(), pairs("bob"), pairs()
    assert ann == again
    left = {name: {pair.item: pair.left_arm for pair in made} for name, made in (("ann", ann), ("bob", bob), ("salt", pairs(salt="other")))}
    assert 75 <= sum(arm == ARMS[0] for arm in left["ann"].values()) <= 125
    for other in ("bob", "salt"):
        assert 75 <= sum(left["ann"][item] == left[other][item] for item in left["ann"]) <= 125
    assert [pair.item for pair in ann] != [pair.item for pair in bob]
    for pair in ann:
        assert {pair.left_arm, pair.right_arm} == set(ARMS)
        assert pair.left.startswith(f"text {ARMS.index(pair.left_arm)} ")
        assert pair.right.startswith(f"text {ARMS.index(pair.right_arm)} ")
    assert len({pair.id for pair in [*ann, *bob]}) == 400


def test_failed_answers_are_not_shown_and_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="share no answered item"):
        blind_pairs(scores("error"), ITEMS, ARMS, rater="ann", salt="s")
    for arms, salt in ((ARMS, ""), (("a", "a"), "s")):
        with pytest.raises(DataError, match="salt"):
            blind_pairs(scores(), ITEMS, arms, rater="ann", salt=salt)


def test_votes_and_keys_come_back_from_files(tmp_path: Path) -> None:
    made, run = pairs()[:3], open_run(tmp_path / "run")
    votes: list[Vote] = []
    for pair, verdict in ((made[0], Verdict.A), (made[1], Verdict.TIE), (made[0], Verdict.B)):
        votes.append(correct(votes, pair.id, verdict, "why"))
    run.append("pairs", *(pair.record() for pair in made))
    run.append("votes", *(vote.record() for vote in votes))
    assert pairs_from(run.read("pairs")) == made
    assert votes_from(run.read("votes")) == votes
    assert votes[2].supersedes == votes[0].id
    assert standing(votes) == [votes[1], votes[2]]
    run.append("votes", {"id": "x", "pair": "y", "verdict": "left"})
    with pytest.raises(DataError, match=r"record 4.*slightly_a"):
        votes_from(run.read("votes"))
    run.close()


def test_damaged_histories_are_refused() -> None:
    first = Vote("1", "p", Verdict.A)
    for other, message in (
        (Vote("1", "p", Verdict.B), "twice"),
        (Vote("2", "p", Verdict.B), "two votes"),
        (Vote("2", "q", Verdict.B, supersedes="1"), "no earlier vote"),
        (Vote("2", "p", Verdict.B, supersedes="9"), "no earlier vote"),
    ):
        with pytest.raises(DataError, match=message):
            standing([first, other])


def for_arm(pair: Pair, arm: str, verdict: str) -> Verdict:
    """The verdict that speaks for (`win`) or against the arm, wherever it stands."""
    if verdict == "win":
        return Verdict.A if pair.left_arm == arm else Verdict.SLIGHTLY_B
    if verdict == "loss":
        return Verdict.SLIGHTLY_A if pair.left_arm != arm else Verdict.B
    return Verdict(verdict)


def test_win_rate_counts_by_arm_with_ties_as_halves() -> None:
    made = pairs()[:60]
    said = ["win"] * 30 + ["loss"] * 10 + ["tie"] * 8 + ["both_good"] * 4 + ["both_bad"] * 4 + ["cannot_judge"] * 4
    votes = [Vote(f"v{n}", pair.id, for_arm(pair, ARMS[1], verdict)) for n, (pair, verdict) in enumerate(zip(made, said, strict=True))]
    tuned, plain = win_rate(votes, made, ARMS[1]), win_rate(votes, made, ARMS[0])
    assert (tuned.wins, tuned.losses, tuned.ties, tuned.not_judged, tuned.items) == (30, 10, 16, 4, 56)
    assert tuned.rate == pytest.approx((30 + 8) / 56)
    assert plain.rate == pytest.approx(1 - tuned.rate)
    assert tuned.interval is not None
    assert tuned.interval.low > 0.5
    assert win_rate(votes[-4:], made, ARMS[1]).rate is None
    with pytest.raises(DataError, match="unknown here"):
        win_rate(votes, made[:5], ARMS[1])
    with pytest.raises(DataError, match="No pair holds"):
        win_rate(votes, made, "nobody")


def test_more_raters_of_the_same_items_are_no_more_items() -> None:
    def votes(made: list[Pair]) -> list[Vote]:
        items = sorted({pair.item for pair in made})
        return [Vote(pair.id, pair.id, for_arm(pair, ARMS[1], "win" if items.index(pair.item) % 3 else "loss")) for pair in made]

    few = sorted(pairs(), key=lambda pair: pair.item)[:30]
    names = {pair.item for pair in few}
    team = [pair for rater in "abcd" for pair in pairs(rater) if pair.item in names]
    one, four = win_rate(votes(few), few, ARMS[1]), win_rate(votes(team), team, ARMS[1])
    assert one.interval is not None
    assert four.interval is not None
    assert four.interval.high - four.interval.low == pytest.approx(one.interval.high - one.interval.low, rel=0.05)
    assert agreement(votes(team), team) == 1.0
    assert agreement(votes(few), few) is None


def test_agreement_is_about_arms_not_sides() -> None:
    team = [pair for rater in "ab" for pair in pairs(rater)]
    always_left = [Vote(pair.id, pair.id, Verdict.A) for pair in team]
    alpha = agreement(always_left, team)
    assert alpha is not None
    assert abs(alpha) < 0.2, "two raters who always press left agree on nothing"
