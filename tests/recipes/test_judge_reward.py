"""An LLM judge on a server as a reward: asked over loopback, heard, and told of where it has gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sapwood
from remote.scripted_server import response, said, serving
from sapwood.errors import ConfigError, SapwoodError, TrainingError
from sapwood.recipes.judge_reward import JudgeRewardConfig
from sapwood.run import read_records
from tiny.folder import write_model

CRITERIA = ("Is it polite?", "Is it short?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def verdict(body: dict[str, Any], before: int) -> bytes:
    """Every second answer is polite, none is short."""
    return said(json.dumps({"reason": "so it is", "c1": before % 2 == 0, "c2": False}))


def gone(body: dict[str, Any], before: int) -> bytes:
    return response({"error": {"message": "the key was revoked"}}, 401)


def learned(model: Path, folder: Path, url: str, **knobs: Any) -> Any:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(6)))
    settings = {"steps": 4, "prompts": 2, "group": 2, "max_new_tokens": 4, "preflight": 0, "held_out": 0, "r": 2, "budget": 512}
    settings |= {"resample": 0, "judge_url": url, "judge_model": "strict", "judge_criteria": CRITERIA, "save_every": 4, **knobs}
    return sapwood.grpo(str(file), model=str(model), out=folder / "run", cache=False, quiet=True, **settings)


def test_the_share_of_the_rubric_is_the_reward(model: Path, tmp_path: Path) -> None:
    with serving(verdict, response({"data": [{"id": "strict"}]})) as server:
        result = learned(model, tmp_path, server.url, steps=2, judge_weight=2.0)
        shown = server.bodies[0]["messages"]
    assert all(text in shown[0]["content"] for text in CRITERIA)
    steps = [record for record in read_records(result.path / "metrics.jsonl") if record["kind"] == "train"]
    assert {round(step["rewards"]["judge"], 6) for step in steps} == {0.25}, "half are polite, none is short"
    assert {round(step["reward"], 6) for step in steps} == {0.5}


def test_a_judge_that_has_gone_ends_the_run_with_its_words_and_nothing_is_lost(model: Path, tmp_path: Path) -> None:
    def leaves(body: dict[str, Any], before: int) -> bytes:
        return verdict(body, before) if before < 4 else gone(body, before)

    with serving(leaves, response({"data": [{"id": "strict"}]})) as server, pytest.raises(TrainingError) as error:
        learned(model, tmp_path, server.url, steps=9)
    assert "No answer of 3 steps could be judged: judge: " in str(error.value)
    assert "401" in str(error.value)
    steps = [record for record in read_records(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    assert [step["unjudged"] for step in steps] == [0.0, 1.0, 1.0]
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()
    notes = [record["note"] for record in read_records(tmp_path / "run" / "rollouts.jsonl") if record["which"] == "failed"]
    assert notes
    assert all("the judge gave no verdict" in note for note in notes)


def test_a_judge_that_was_never_there_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SapwoodError, match=r"127\.0\.0\.1:9"):
        learned(tmp_path / "no-model", tmp_path, "http://127.0.0.1:9/v1")


def test_options_that_nothing_reads() -> None:
    for knobs in ({"judge_model": "m"}, {"judge_criteria": ("Is it?",)}, {"judge_weight": 2.0}, {"judge_structured": False}):
        with pytest.raises(ConfigError, match="no judge that would read it"):
            JudgeRewardConfig(**knobs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--judge-criteria"):
        JudgeRewardConfig(judge_url="http://127.0.0.1:9/v1", judge_model="m")
