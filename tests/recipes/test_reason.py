"""`sapwood reason`: the stages of DeepSeek-R1, small and end to end; and what is told before the first is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sapwood.cli.main import main
from sapwood.errors import CheckpointError, ConfigError
from sapwood.evaluate.stages_page import write_stages
from sapwood.evaluate.study_text import interval
from sapwood.recipes.reason import MeasureConfig, ReasonConfig, _settings, figures, plan_stages, read_recipe, reason, takes_back
from sapwood.recipes.reinforce import TaskConfig
from sapwood.records import Score
from tiny.folder import write_model

COMMON: dict[str, Any] = {"r": 2, "budget": 512, "lr": 1e-3}
GYM: dict[str, Any] = {"task": "chain_sum", "settings": ["min_terms=2", "max_terms=2", "max_digits=1"], "instances": 12, "unseen": 4}
GRPO = {"kind": "grpo", **GYM, **COMMON, "steps": 1, "prompts": 2, "group": 3, "max_new_tokens": 6, "preflight": 0}


def recipe(folder: Path, model: Path) -> Path:
    traces = folder / "traces.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1 ="}, {"role": "assistant", "content": str(n + 1)}]} for n in range(9)]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {"kind": "sft", "data": [str(traces)], **COMMON, "max_steps": 2, "held_out": 0, "cache": False, "samples": 0}
    stages = [
        sft,
        {**GRPO, "rewards": ["tokens:1-9", "gym"]},
        {"kind": "distill", **GYM, "rewards": ["tokens:9-99", "gym"], "samples": 2, "max_new_tokens": 40, "unseen": 0},
        {**sft, "max_refused": 0.9},
        {**GRPO, "rewards": ["gym", "tokens:1-9*0.1"]},
    ]
    content = {
        "model": str(model),
        "out": str(folder / "run"),
        "measure": {"gym": {**GYM, "instances": 1}, "samples": 2, "max_new_tokens": 6},
        "stages": stages,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_all_stages_end_to_end_then_nothing_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, write_model(tmp_path / "model"))
    assert main(["reason", str(path), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert list(done) == ["base", "1-sft", "2-grpo", "3-distill", "4-sft", "5-grpo"]
    for name, stage in done.items():
        if name != "3-distill":
            assert {"greedy", "pass@1", "pass@2", "maj@2"} <= stage["measured"].keys()
            assert stage["measured"]["greedy"]["low"] <= stage["measured"]["greedy"]["mean"] <= stage["measured"]["greedy"]["high"]
    assert (tmp_path / "run" / "5-grpo" / "adapter").is_dir()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "5 of 5 stages are finished" in page
    assert all(f'href="{name}/report.html"' in page for name in ("1-sft", "2-grpo", "4-sft", "5-grpo"))
    before = (tmp_path / "run" / "2-grpo" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["reason", str(path)]) == 0
    assert (tmp_path / "run" / "2-grpo" / "metrics.jsonl").stat().st_mtime_ns == before


def test_stages_are_checked_before_the_first_is_run(tmp_path: Path) -> None:
    def wrong(*stages: dict[str, Any]) -> str:
        with pytest.raises(ConfigError) as error:
            plan_stages(ReasonConfig(stages=stages, out=tmp_path))
        return str(error.value)

    assert "no stages" in wrong()
    assert "stage 1 (grop): give a kind. Did you mean 'grpo'?" in wrong({"kind": "grop"})
    assert "stage 2 (grpo): " in wrong({"kind": "sft"}, {"kind": "grpo", "stpes": 3})
    assert "`distilled` names the rows of a distill stage before it" in wrong({"kind": "sft", "data": ["distilled"]})


def test_stages_follow_each_other(tmp_path: Path) -> None:
    kinds = [{"kind": "sft"}, {"kind": "grpo"}, {"kind": "distill"}, {"kind": "sft", "data": ["distilled"]}, {"kind": "grpo"}]
    first, second, third, fourth, fifth = (stage.config for stage in plan_stages(ReasonConfig(stages=tuple(kinds), out=tmp_path)))
    assert second.start_from.start == first.out
    assert third.start_from.start == second.out
    assert fourth.data == (str(third.out / "rows.jsonl"),)
    assert fifth.start_from.start == fourth.out


def test_the_page_shows_what_was_measured_and_leads_to_the_pages_that_are_there(tmp_path: Path) -> None:
    right, wrong = Score(1.0, "2", ""), Score(0.0, "3", "")
    found = {**figures([right, wrong, wrong], [[right, wrong]] * 3), "tokens": 12.4, "self_corrections": 0.25}
    stages = {
        "base": {"kind": "base", "measured": found},
        "1-sft": {"kind": "sft", "line": "3 < 4 & all is well", "measured": found},
        "2-distill": {"kind": "distill", "line": "7 rows", "measured": None},
    }
    (tmp_path / "1-sft").mkdir()
    (tmp_path / "1-sft" / "report.html").write_text("")
    write_stages(tmp_path / "report.html", stages, 4)
    page = (tmp_path / "report.html").read_text()
    assert "2 of 4 stages are finished" in page
    assert page.count("33.3 %") == 2
    assert page.count(interval(found["greedy"])) == 2
    assert "3 &lt; 4 &amp; all is well" in page
    assert 'href="1-sft/report.html"' in page
    assert "2-distill/report.html" not in page
    write_stages(tmp_path / "report.html", {"1-sft": {"kind": "sft", "line": "done", "measured": None}}, 1)
    assert "1 of 1 stages is finished" in (tmp_path / "report.html").read_text()
    assert "Nothing was measured" in (tmp_path / "report.html").read_text()


def test_a_recipe_that_changed_after_a_stage_was_finished_is_refused(tmp_path: Path) -> None:
    given = ReasonConfig(stages=({"kind": "sft", "data": ["a.jsonl"], "epochs": 1},), out=tmp_path / "run")
    known = _settings(given)
    assert _settings(replace(given, out=tmp_path / "moved")) == known
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "stages.json"
    file.write_text(json.dumps({"1-sft": {"kind": "sft", "line": "done", "settings": known["1-sft"]}}))
    assert list(reason(given)) == ["1-sft"]
    for changed in (
        replace(given, stages=({**given.stages[0], "epochs": 2},)),
        replace(given, model="another"),
        replace(given, measure=MeasureConfig(samples=9)),
        replace(given, stages=({"kind": "dpo"},)),
    ):
        with pytest.raises(CheckpointError, match="1-sft, finished with other settings"):
            reason(changed)


def test_what_could_not_be_judged_is_counted_beside_what_is_wrong() -> None:
    right, wrong, failed = Score(1.0, "2", ""), Score(0.0, "3", ""), Score(None, None, "the verifier failed")
    found = figures([right, failed], [[right, wrong], [failed, failed]])
    assert found["greedy"]["mean"] == 0.5
    assert (found["pass@1"]["mean"], found["pass@2"]["mean"]) == (0.25, 0.5)
    assert (found["unjudged"], found["reason"]) == (3, "the verifier failed")
    assert figures([right], [[right]])["unjudged"] == 0


@pytest.mark.parametrize("knobs", [{"samples": 0}, {"max_new_tokens": 0}, {"gym": TaskConfig(unseen=0)}], ids=str)
def test_what_measures_nothing_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="measure"):
        MeasureConfig(**knobs)


@pytest.mark.parametrize("text", ["- a", "stages: 3", "stages: [1]", "{"])
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        read_recipe(tmp_path / "r.yaml")
    assert main(["reason", str(tmp_path / "missing.yaml")]) == 2


def test_self_corrections_are_seen() -> None:
    assert takes_back("12 + 3 = 14. Wait, that is 15.")
    assert not takes_back("12 + 3 = 15")
