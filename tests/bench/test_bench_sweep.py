"""What tuned means: the fastest of everything that was tried, and the table says what that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from bench.sweep import FINALISTS, TrlSetting, candidates, default_setting, earlier, search, words_of
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError, SapwoodError
from sapwood.recipes.screen import Screen

QUIET = Screen(quiet=True)


@given(st.integers(1, 60), st.integers(0, 2), st.booleans(), st.randoms(use_true_random=False))
def test_the_best_of_the_table_is_taken_and_only_the_fastest_are_tried_again(
    rows: int, threads: int, only_fp32: bool, random: object
) -> None:
    tried: list[TrlSetting] = []

    def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        tried.append(setting)
        return float(random.uniform(1, 9)), True  # type: ignore[attr-defined]

    found = search(candidates(rows, threads, only_fp32=only_fp32), seconds_of, QUIET)
    fastest = min(found["table"], key=lambda line: line["seconds"])
    assert found["best"].items() <= fastest.items()
    assert all(line["seconds"] == min(line["tries"]) for line in found["table"])
    again = sorted(line["tries"][0] for line in found["table"] if len(line["tries"]) == 2)
    assert again == sorted(line["tries"][0] for line in found["table"])[: len(again)], "the fastest are tried once more"
    assert len(set(tried)) == len(tried) - len(again) == len(found["table"])
    assert len(again) == min(FINALISTS, len(found["table"]))
    assert all(setting.rows * setting.accumulation == rows for setting in tried), "the same rows a step, whatever a pass holds"
    assert {setting.precision for setting in tried} == ({"fp32"} if only_fp32 else {"bf16", "autocast", "fp32"})
    assert {setting.checkpointing for setting in tried} == {setting.keeping for setting in tried} == {True, False}
    if rows % 2 == 0:
        assert any(setting.flat for setting in tried)


def test_a_small_sweep_leaves_out_what_the_other_trainers_have_not() -> None:
    tried: list[TrlSetting] = []

    def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        tried.append(setting)
        return 1.0, True

    search(candidates(8, 0, few=True), seconds_of, QUIET)
    assert {setting.precision for setting in tried} == {"bf16", "autocast"}
    assert not any(setting.flat or setting.threads or setting.checkpointing for setting in tried)
    assert {setting.rows for setting in tried} == {1, 2, 4}


def test_what_fails_is_a_line_of_the_table_and_never_the_best() -> None:
    def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        if setting.precision == "autocast":
            raise SapwoodError("TRL failed at `train`")
        return 2.0, True

    table = search(candidates(8, 0), seconds_of, QUIET)["table"]
    assert [line["error"] for line in table if line["precision"] == "autocast"] == ["TRL failed at `train`"]


@given(st.lists(st.floats(1, 9), min_size=40, max_size=40))
def test_giving_up_early_finds_what_whole_tries_find(all_seconds: list[float]) -> None:
    def peer(*, may_give_up: bool) -> Callable[[TrlSetting, float | None], tuple[float, bool]]:
        seconds: dict[TrlSetting, float] = {}

        def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
            whole = seconds.setdefault(setting, all_seconds[len(seconds)])
            return (give_up * 1.01, False) if may_give_up and give_up is not None and whole > give_up * 1.01 else (whole, True)

        return seconds_of

    patient = search(candidates(8, 0), peer(may_give_up=False), QUIET)
    found = search(candidates(8, 0), peer(may_give_up=True), QUIET)
    assert found["best"] == patient["best"]
    assert not any(line["given_up"] for line in patient["table"])
    assert not any(line["given_up"] and len(line["tries"]) > 1 for line in found["table"]), "what cannot win is not tried again"


def test_a_precision_that_takes_other_steps_does_not_end_the_sweep() -> None:
    def seconds_of(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        if setting.precision == "bf16":
            raise SapwoodError("The losses differ")
        return 2.0 if setting.precision == "autocast" else 3.0, True

    found = search(candidates(8, 0), seconds_of, QUIET)
    assert found["best"]["precision"] == "autocast"
    assert {line["error"] for line in found["table"] if line["precision"] == "bf16"} == {"The losses differ"}


def test_a_peer_that_never_works_is_no_peer() -> None:
    def fails(setting: TrlSetting, give_up: float | None) -> tuple[float, bool]:
        raise SapwoodError("no memory")

    with pytest.raises(SapwoodError, match=r"nothing to compare with\. no memory"):
        search(candidates(8, 0), fails, QUIET)


@pytest.mark.parametrize(("rows", "a_pass"), [(8, 8), (48, 8), (2, 2), (30, 6), (13, 1)])
def test_the_default_is_trls_own_batch_where_it_divides(rows: int, a_pass: int) -> None:
    setting = default_setting(rows, 0)
    assert (setting.rows, setting.rows * setting.accumulation) == (a_pass, rows)
    assert setting.checkpointing
    assert setting.precision == "autocast"
    assert set(setting.environment().values()) == {None}, "the allocator is as it is, whatever this process was given"
    assert "checkpointing" in words_of(setting)


def test_threads_and_allocator_are_the_processs_environment() -> None:
    start, _ = candidates(8, 2)
    assert start.environment()["OMP_NUM_THREADS"] == "2"
    assert "MALLOC_TRIM_THRESHOLD_" in start.environment()


def test_an_earlier_sweep_is_taken_only_for_its_own_workload(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    sweep = {"best": asdict(default_setting(8, 0)), "table": []}
    file.write_text(json.dumps({"workload": "chat", "sweep": sweep}))
    assert earlier(file, "chat", 8) == {**sweep, "of": "chat"}
    fewer = earlier(file, "chat", 16)["best"]
    assert (fewer["rows"], fewer["accumulation"]) == (8, 2), "as many rows a pass"
    with pytest.raises(ConfigError, match="passes of 8 rows do not make up a step of 4"):
        earlier(file, "chat", 4)
    with pytest.raises(ConfigError, match="of workload chat, not tools"):
        earlier(file, "tools", 8)
    file.write_text(json.dumps({"workload": "group-short", "sweep": sweep}))
    assert earlier(file, "group", 8)["of"] == "group-short"
    file.write_text(json.dumps({"workload": "chat", "sweep": {}}))
    with pytest.raises(ConfigError, match="no earlier result"):
        earlier(file, "chat", 8)
