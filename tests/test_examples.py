"""`examples/`: what they show holds, on a tiny model here and on the default model in the slow tests."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from sapwood.chat import Chat
from tiny.folder import write_model, write_rows

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def course() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "course_templates.py"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("course") / "model")


def test_one_conversation_in_several_templates(course: dict[str, Any], model: Path) -> None:
    written = course["several_templates"](model)
    assert set(written) == {"its own", "chatml", "plain"}
    assert len(set(written.values())) >= 2
    for text in written.values():
        assert all(message.content in text for message in course["TALK"])


def test_a_base_model_chats_and_stops(course: dict[str, Any], tmp_path: Path) -> None:
    chat = course["base_to_instruct"](write_model(tmp_path / "base", template=None))
    assert chat.turn_end in chat.stop_ids
    answers = course["many_turns"](chat)
    assert [text.removesuffix(chat.tokens.token_of(chat.turn_end)) for text in answers] == [
        "A chat template structures conversations between users and AI models...",
        "Hand it your messages; it writes them as the model was taught.",
    ]


def test_a_function_is_called_and_answered(course: dict[str, Any], model: Path) -> None:
    chat = Chat.load(model).with_tools_in_system()
    assert course["tools"](chat, {"weather": course["weather"]})[-1].content == "12 degrees celsius in Paris"


def test_a_picture_stands_in_a_message(course: dict[str, Any]) -> None:
    parts = course["image"](Path("tree.png")).for_template()["content"]
    assert [part["type"] for part in parts] == ["text", "image"]


def test_a_data_set_is_brought_into_form(course: dict[str, Any], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 2?", "answer": ""}\n')
    rows, refused = course["converted"](Chat.load(model), file)
    assert rows == 1
    assert len(refused) == 1
    assert f"{file}:2" in refused[0]


@pytest.mark.slow
def test_all_of_it_on_the_default_model(course: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    course["main"]()
    assert "celsius in Paris" in capsys.readouterr().out


def test_intents_become_rows_with_their_list_in_the_prompt(tmp_path: Path) -> None:
    main = runpy.run_path(str(EXAMPLES / "clinc150.py"))["main"]
    sides = {
        "train": [["hello there", "greet"], ["what time", "time"], ["hi", "greet"]],
        "val": [["hey", "greet"]],
        "oos_train": [["x", "oos"]],
    }
    (tmp_path / "source.json").write_text(json.dumps(sides))
    assert main(tmp_path / "source.json", tmp_path / "all.jsonl", 2) == 3
    assert main(tmp_path / "source.json", tmp_path / "one.jsonl", 9, ("greet",)) == 3
    rows = [[message["content"] for message in json.loads(line)["messages"]] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert rows[0] == ["Name the intent of the request. Answer with one of: greet, time.", "hello there", "greet"]
    assert [row[1:] for row in rows[1:]] == [["hi", "greet"], ["what time", "time"]]


def test_rewards_of_the_course_read_what_a_model_writes(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "course_grpo.py"))
    said = "<think>\na lot\n</think>\n<answer>It is 1,000</answer>"
    for completion in (said, [{"role": "assistant", "content": said}]):
        assert example["answer_reward"]([completion], ["1000"]) == example["format_reward"]([completion]) == [1.0]
        assert example["length_reward"]([completion]) == [pytest.approx(7 / 12)]
    quick = {"max_steps": 1, "disable_tqdm": True}
    trainer = example["main"](example["questions"](2), str(model), str(tmp_path / "out"), **quick, preflight=0)
    assert "step 1: reward" in capsys.readouterr().out
    assert {"rewards/length_reward/mean", "rewards/answer_reward/mean"} <= trainer.state.log_history[0].keys()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_pairs_of_the_course(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "course_dpo.py"))
    example["main"](example["pairs"](10), str(model), str(tmp_path / "out"), disable_tqdm=True)
    assert "step 0: held-out loss 0.693" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_study_runs_whole_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "study_bfcl.py"))
    monkeypatch.chdir(tmp_path)
    model, rows = write_model(tmp_path / "model", context=512), write_rows(tmp_path / "my.jsonl", 60)
    skill = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(12)]
    (tmp_path / "skill.jsonl").write_text("".join(json.dumps(row) + "\n" for row in skill))
    options = [{"question": f"{n}?", "choices": ["one", "two"], "answer": n % 2} for n in range(10)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in options))
    needs = {"name": "colours", "general": [{"name": "skill.jsonl", "scorer": "exact", "items": 10, "margin": 0.5}]}
    (tmp_path / "needs.yaml").write_text(json.dumps(needs))
    small = {
        "data": (str(rows), "--model", str(model), "--held-out", "0.4", "--dtype", "fp32"),
        "tuning": ("--scorer", "none", "--batch", "16", "--budget", "512"),
        "asking": ("--scorer", "exact", "--max-new-tokens", "3", "--shots", "1", "--retrieved", "1"),
        "requirements": tmp_path / "needs.yaml",
        "benchmarks": ("--benchmarks", "choice=c.jsonl", "--shots", "0"),
        "short": 1,
    }
    summary = example["main"](tmp_path / "out", **small)
    arms = {arm["name"] for arm in summary["arms"]}
    assert arms == {"most common answer", "nearest training row", "plain prompt", "few-shot 1", "retrieved 1", "short", "longer"}
    assert set(summary["general"]) == {"skill.jsonl"}
    assert [row["arm"] for row in summary["benchmarks"]] == [str(model), "tuned"]
    assert summary["plan"]["before_any_answer"]
    kept = {path.name for path in (tmp_path / "out" / "kept").iterdir()}
    assert kept == {"report.md", "plan.json", "summary.json"}
    capsys.readouterr()
    assert example["main"](tmp_path / "out", **small) == summary, "asked again, nothing is asked anew"
    assert "$ sapwood sft" not in capsys.readouterr().out
    lines = example["judge"](tmp_path / "out", str(model), 4)
    assert "of 4 pairs" in lines[0], "a random model says nothing, or guesses; either is told"
    assert "no tokens" not in lines[0]
