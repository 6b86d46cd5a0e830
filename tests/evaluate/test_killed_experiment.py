"""Samples of an item, what an arm may cost, and an arm that is killed again and again: each answer is recorded once, and is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import killed_arm
import pytest
from killed_arm import ARMS, ITEMS, SAMPLES, Slow, asked

from sapwood.errors import ConfigError
from sapwood.evaluate import exact, over_samples, run_arm, scores_from
from sapwood.records import Item, Prompt, SamplingParams, Score
from sapwood.run import read_records


def test_killed_ten_times_at_random_each_answer_is_there_once(tmp_path: Path) -> None:
    draw, killed = random.Random(3), 0
    command = [sys.executable, killed_arm.__file__, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    torn = 0
    while killed < 10:
        process = subprocess.Popen(command, env=environment)
        before = lines(tmp_path)
        while process.poll() is None and lines(tmp_path) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.06))
        if process.poll() is not None:
            pytest.fail("the arm ended before it was killed ten times: make it slower")
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        with (tmp_path / "run" / "scores.jsonl").open("rb+") as file:  # and once in a while in the middle of a line
            if draw.random() < 0.5:
                file.seek(-draw.randrange(2, 40), os.SEEK_END)
                file.truncate()
                torn += 1
    assert torn
    subprocess.run(command, env=environment, check=True)
    records = read_records(tmp_path / "run" / "scores.jsonl")
    counts = Counter((record["arm"], record["item"], record["sample"]) for record in records)
    assert set(counts) == {(arm, item.id, sample) for arm in ARMS for item in asked() for sample in range(SAMPLES)}
    assert set(counts.values()) == {1}
    assert len(scores_from(records)) == len(ARMS) * ITEMS * SAMPLES


def lines(tmp_path: Path) -> int:
    file = tmp_path / "run" / "scores.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def run(**more: object) -> list[object]:
    given = {"params": SamplingParams(temperature=1.0), "at_once": 5, "samples": 2, **more}
    return run_arm("a", asked()[:10], Slow(), lambda one: Prompt(one.messages, (1,), ""), exact(), **given)  # type: ignore[arg-type, return-value]


def test_a_run_that_goes_on_draws_what_it_would_have_drawn() -> None:
    whole = run()
    half: list[dict[str, object]] = []

    def stop(batch: Sequence[object]) -> None:
        half.extend(score.record() for score in batch)  # type: ignore[attr-defined]
        if len(half) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(save=stop)
    again = run(done=half)
    assert [score.text for score in again] == [score.text for score in whole]  # type: ignore[attr-defined]
    assert len({score.text for score in whole}) > 1  # type: ignore[attr-defined]


def test_an_arm_stops_where_it_may_not_be_paid() -> None:
    asked_for: list[int] = []

    def affords(batch: Sequence[Item]) -> bool:
        asked_for.append(len(batch))
        return len(asked_for) <= 2

    assert len(run(affords=affords)) == 10
    assert asked_for == [5, 5, 5]


def test_samples_are_one_score_an_item() -> None:
    scores = run(others={"long": lambda item, completion: Score(float(len(completion.text) > 0))})
    means = over_samples(scores)  # type: ignore[arg-type]
    assert len(means) == 10
    for mean in means:
        values = [score.value for score in scores if score.item == mean.item]  # type: ignore[attr-defined]
        assert mean.value == sum(values) / 2
        assert mean.others == {"long": 1.0}
        assert "mean of 2 samples" in mean.explanation


def test_samples_that_could_not_be_judged_are_no_zeros() -> None:
    def picky(item: Item, completion: object) -> Score:
        return Score(None) if completion.text == "0" else Score(1.0)  # type: ignore[attr-defined]

    scores = run_arm("a", asked(), Slow(), lambda one: Prompt(one.messages, (1,), ""), picky, SamplingParams(temperature=1), samples=2)  # type: ignore[arg-type]
    means = over_samples(scores)
    assert {mean.value for mean in means} == {1.0, None}


def test_greedy_answers_are_asked_once() -> None:
    with pytest.raises(ConfigError, match="samples is 2 at temperature 0"):
        run(params=SamplingParams())
