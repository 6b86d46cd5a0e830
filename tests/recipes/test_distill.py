"""`sapwood distill`: only right answers become rows, each reason for the others is counted, and a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sapwood.errors import ConfigError, TrainingError
from sapwood.recipes.beginning import StartConfig
from sapwood.recipes.distill import DistillConfig, distill
from sapwood.recipes.prepare import DataConfig
from sapwood.records import Completion, Ended, Message, Prompt, SamplingParams, ToolCall
from sapwood.run import read_records
from tiny.folder import write_model


class Teacher:
    """Answers what a script says, sample by sample; may go away after some prompts."""

    def __init__(self, answers: Sequence[tuple[str, Ended]], gone_after: int | None = None) -> None:
        self.answers, self.gone_after, self.asked = answers, gone_after, 0

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        if self.gone_after is not None and self.asked >= self.gone_after:
            raise KeyboardInterrupt
        self.asked += len(prompts)
        found = []
        for place, prompt in enumerate(prompts):
            text, ended = self.answers[place % len(self.answers)]
            thought, _, said = text.partition("|")
            message = Message("assistant", said, reasoning=thought or None)
            found.append(Completion(prompt, (1, 2), f"<think>{thought}</think>{said}", ended, message=message, error="gone"))
        return found


ANSWERS = [
    ("one and one|2", Ended.STOP),
    ("a guess|3", Ended.STOP),
    ("one and one|2", Ended.STOP),
    ("long|2", Ended.LENGTH),
    ("|", Ended.ERROR),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def config(folder: Path, model: Path, count: int = 3, **knobs: Any) -> DistillConfig:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} times: one and one?", "right": "2"}) + "\n" for n in range(count)))
    rows = DataConfig(reference="right", cache=False, held_out=0)
    settings = {"samples": len(ANSWERS), "rewards": ("number",), "out": folder / "run", **knobs}
    return DistillConfig(data=(str(file),), rows=rows, start_from=StartConfig(model=str(model)), **settings)


def test_only_right_answers_become_rows(model: Path, tmp_path: Path) -> None:
    result = distill(config(tmp_path, model), teacher=Teacher(ANSWERS))
    assert (result.prompts, result.answered, result.kept) == (3, 3, 3)
    assert result.left_out == {"wrong": 3, "the same as another": 3, "cut at the limit": 3, "failed": 3}
    rows = read_records(result.rows)
    assert rows[0]["messages"][-1] == {"role": "assistant", "content": "2", "reasoning_content": "one and one"}
    assert rows[0]["messages"][0]["content"] == "0 times: one and one?"
    assert "3 rows of 3 of 3 prompts" in result.line


def test_no_more_are_kept_than_asked_for(model: Path, tmp_path: Path) -> None:
    answers = [("a|2", Ended.STOP), ("b|2", Ended.STOP), ("c|2", Ended.STOP)]
    result = distill(config(tmp_path, model, samples=3, keep=2), teacher=Teacher(answers))
    assert result.kept == 6
    assert result.left_out == {"more than are kept": 3}


def test_a_stopped_run_asks_nothing_twice(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(config(tmp_path, model, count=20), teacher=Teacher(ANSWERS, gone_after=80))
    teacher = Teacher(ANSWERS)
    result = distill(config(tmp_path, model, count=20), teacher=teacher)
    assert teacher.asked == 4 * len(ANSWERS)
    assert (result.answered, result.kept) == (20, 20)


def test_the_model_itself_is_a_teacher(model: Path, tmp_path: Path) -> None:
    result = distill(config(tmp_path, model, count=2, samples=2, max_new_tokens=4))
    assert result.kept + sum(result.left_out.values()) == 4


@pytest.mark.parametrize("knobs", [{"samples": 0}, {"keep": 0}, {"temperature": 0.0}, {"max_new_tokens": 0}], ids=str)
def test_bad_knobs(model: Path, tmp_path: Path, knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        config(tmp_path, model, **knobs)


class Caller:
    """Calls a tool."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **_: Any) -> list[Completion]:
        message = Message("assistant", "2", tool_calls=(ToolCall("add", {"a": 1, "b": 1}),))
        return [Completion(prompt, (1,), "2", Ended.STOP, message=message) for prompt in prompts]


def test_a_call_stays_in_its_row(model: Path, tmp_path: Path) -> None:
    result = distill(config(tmp_path, model, count=1, samples=1), teacher=Caller())
    turn = read_records(result.rows)[0]["messages"][-1]
    assert turn["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1, "b": 1}}


def test_a_teacher_that_went_away_ends_the_run_and_its_prompts_are_asked_again(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="None of 15 answers could be sampled: gone"):
        distill(config(tmp_path, model), teacher=Teacher([("|", Ended.ERROR)]))
    assert distill(config(tmp_path, model), teacher=Teacher(ANSWERS)).kept == 3
