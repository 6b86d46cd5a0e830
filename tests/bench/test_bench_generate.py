"""The generation workloads: what is asked, what is refused, what the ratios mean."""

from __future__ import annotations

import pytest
from bench.generate import OURS, GenerateBench, _ratios, work_of

from sapwood.errors import ConfigError


def test_all_contestants_are_asked_the_same_tokens() -> None:
    work = work_of(GenerateBench(requests=8, questions=2, prompt=20, system=30, question=5, new=7))
    assert [len(ids) for ids in work["distinct"]["prompts"]] == [20] * 8
    assert work["shared"]["samples"] == 4
    first, second = work["shared"]["prompts"]
    assert first[:30] == second[:30]
    assert first[30:] != second[30:]
    assert work == work_of(GenerateBench(requests=8, questions=2, prompt=20, system=30, question=5, new=7))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"against": "vllm"}, "Choose from"),
        ({"requests": 30}, "multiple of questions"),
        ({"new": 1}, "new is 1"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        GenerateBench(**wrong)  # type: ignore[arg-type]


def test_ratios_say_how_many_times_as_fast_we_are() -> None:
    def reply(soonest: float, first: float, seconds: float) -> dict[str, float]:
        return {"soonest": soonest, "first": first, "seconds": seconds, "cpu_seconds": 2 * seconds}

    ours, theirs = [reply(1, 2, 4)], [reply(2, 3, 11)]
    found = _ratios(
        {name: {OURS: ours, "transformers": theirs} for name in ("distinct", "shared")} | {"llamacpp": {OURS: ours, "llamacpp": theirs}}
    )
    assert found["ratio_transformers_distinct"] == found["ratio_transformers_shared"] == found["ratio_llamacpp"] == 11 / 4
    assert found["ratio_transformers_decode"] == 8 / 2
    assert found["first_token_llamacpp"] == 1 / 2, "of llama.cpp it is our time over its"
