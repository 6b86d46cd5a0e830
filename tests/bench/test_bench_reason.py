"""`sapwood bench reason`: the whole way through on a tiny model, going on from what is there, and the worked solutions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.reason import ReasonBench, Work, as_long, worked
from bench.reason_picture import draw

from sapwood.cli.main import main
from sapwood.evaluate.gym import gym_items, verified
from sapwood.records import Completion, Ended, Prompt
from tiny.folder import write_model

SMALL = {"unseen": 6, "sampled": 3, "samples": 2, "traces": 4, "epochs": 1, "steps": 2, "prompts": 2, "group": 2, "watched": 3}


def test_the_whole_way_and_on_from_what_is_there(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    words = [
        "bench",
        "reason",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "out"),
        *(f"--{name}={value}" for name, value in SMALL.items()),
    ]

    def found() -> dict[str, Any]:
        assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
        return dict(json.loads((tmp_path / "found.json").read_bytes()))

    first = found()
    assert list(first["arms"]) == ["base", "sft", "grpo", "more sft"]
    assert all({"greedy", "low", "high", "tokens"} <= set(arm) for arm in first["arms"].values())
    assert all("pass_at_2" in arm for arm in first["arms"].values())
    assert [point["step"] for point in first["curve"]] == [1, 2]
    assert first["training_seconds"]["more sft"] > 0
    for name, line in first["watched"].items():
        assert [seen["seconds"] for seen in line] == sorted(seen["seconds"] for seen in line)
        assert line[-1]["seconds"] == pytest.approx(first["training_seconds"][name])
    metrics = (tmp_path / "out" / "grpo" / "metrics.jsonl").read_bytes()
    again = found()
    assert (tmp_path / "out" / "grpo" / "metrics.jsonl").read_bytes() == metrics, "a stage that is finished is not done again"
    assert again["arms"] == first["arms"]


def test_a_worked_solution_ends_in_the_result() -> None:
    settings = {**ReasonBench().settings, "max_terms": 4}
    score = verified("chain_sum", settings)
    for item in gym_items("chain_sum", 40, seed=3, settings=settings):
        text = worked(item)
        *steps, result = text.splitlines()
        assert result == item.reference
        for line in steps:
            left, _, right = line.partition("=")
            assert sum(int(number) for number in re.findall(r"(?:^|[+-])\d+|^-\d+", left)) == int(right)
        done = Completion(Prompt((), (1,), ""), (1,), text, Ended.STOP)
        assert score(item, done).value == 1


def test_more_imitation_takes_at_least_the_time_of_the_rewards(tmp_path: Path) -> None:
    config = ReasonBench(out=tmp_path, traces=20, batch=8)
    (tmp_path / "sft").mkdir()
    steps = [{"kind": "train", "step": step, "seconds": seconds} for step, seconds in enumerate((9.0, 2.0, 2.0), 1)]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    work = Work(config, tmp_path, *[None] * 5)  # type: ignore[arg-type]
    assert 2.0 * 3 * as_long(work, 60.0) >= 60.0, "three steps of 2 s an epoch"
    assert as_long(work, 60.0) == 11


def test_the_curve_keeps_its_scale(tmp_path: Path) -> None:
    arms = {"base": {"greedy": 0.1}, "sft": {"greedy": 0.11}, "grpo": {"greedy": 0.9}}
    watched = {"grpo": [{"seconds": 0.0, "greedy": 0.0}, {"seconds": 3.0, "greedy": 0.5}], "more sft": [{"seconds": 0.0, "greedy": 0.0}]}
    curve = [{"solved": share, "seconds": 1.0} for share in (0.0, 0.5, 1.0)]
    root = ElementTree.parse(draw({"curve": curve, "watched": watched, "arms": arms}, tmp_path / "a.svg")).getroot()
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    dots = [float(dot.get("cy", "nan")) for dot in circles]
    assert math.isclose(dots[0] - dots[1], dots[1] - dots[2], abs_tol=0.2)
    assert dots[0] > dots[2]
    line = next(path.get("d", "") for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("fill") == "none")
    ends = [tuple(map(float, point.split())) for point in line.removeprefix("M").split("L")]
    assert ends[1] == pytest.approx((float(circles[2].get("cx", "nan")), dots[1])), "one scale for lines and dots"
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [word for word in words if word and word.split()[0] in arms] == ["base 10.0%", "sft 11.0%", "grpo 90.0%"]
    heights = [float(text.get("y", "nan")) for text in root.iter("{http://www.w3.org/2000/svg}text")][-3:]
    assert heights[0] - heights[1] == pytest.approx(14), "labels do not lie on each other"
