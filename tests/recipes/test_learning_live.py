"""What is seen of a model that learns from rewards or preferences: the panel at any width, the lines of a log, the page that is left."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from learning_runs import dpo_step, greedy, grpo_run, grpo_step, pairs_judged, rollout
from report_browser import Browser, Opened, launched
from report_runs import HOSTILE
from sapwood.config import with_knobs
from sapwood.errors import CheckpointError
from sapwood.evaluate.report_files import read_run
from sapwood.evaluate.rewards import Reward
from sapwood.recipes import Screen
from sapwood.recipes.course import Course, up_to
from sapwood.recipes.learning_course import PREFERENCES, REWARDS, LearningCourse, Subject, first_and_last
from sapwood.recipes.learning_live import Told, answer_lines, both_ends, phase_lines, watching_learning
from sapwood.recipes.prefer import PreferConfig, prefer
from sapwood.recipes.reinforce import ReinforceConfig, ReinforceResult, reinforce
from sapwood.recipes.review import run_lines
from sapwood.recipes.run_detail import detail_of
from sapwood.recipes.runs import runs
from sapwood.run import open_run, read_json, read_records
from tiny.folder import write_model

browser = launched
STEPS = 12


def screen_of(**how: Any) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    screen = Screen(file=file)
    screen.console = Console(file=file, highlight=False, **how)
    return screen, file


def terminal(width: int = 80, height: int = 30) -> tuple[Screen, io.StringIO]:
    return screen_of(width=width, height=height, force_terminal=True, _environ={"TERM": "xterm"})


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)


def plain(file: io.StringIO) -> str:
    return without_codes(file.getvalue())


def drawn(folder: Path, screen: Screen, subject: Subject = REWARDS, text: str = "words", **changes: Any) -> list[str]:
    """A training of twelve steps with an evaluation in the middle; the lines of the panel at its end."""
    run = open_run(folder)
    step_of = grpo_step if subject is REWARDS else dpo_step
    with watching_learning(screen, run, subject) as watch:
        watch.evaluated(0)
        run.append("metrics", greedy(0, 10) if subject is REWARDS else pairs_judged(0, 0.5, 0.69))
        for step in range(1, STEPS + 1):
            with watch.busy("sampling 64 answers", "updating"):
                pass
            run.append("metrics", step_of(step, STEPS, **changes))
            answers = [rollout(step, which, text) for which in ("best", "worst")] if subject is REWARDS else []
            watch.stepped(step, STEPS, 7.0, Told(f"step {step} line", answers))
        watch.evaluated(STEPS)
        run.append("metrics", greedy(STEPS, 20) if subject is REWARDS else pairs_judged(STEPS, 0.8, 0.4))
        watch.follow()
        lines = screen.console.render_lines(watch, screen.console.options)
    run.close()
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_the_panel_at_eighty_columns(tmp_path: Path) -> None:
    screen, file = terminal()
    lines = drawn(tmp_path / "run", screen)
    shown = "\n".join(lines)
    assert max(map(cell_len, lines)) == 78, "^C is written behind it, and must not break the line"
    assert len(lines) < 24
    assert lines[0].startswith("╭─ Training, updating")
    for words in (
        "step 12 of 12  100%",
        "reward      0.600 ▁",
        "solved        55% ▁",
        "held out 25% → 50% at step 12",
        "█ sampling 70%   ▓ rewards 1%   ▒ log-probs 0%   ░ update 28%",
        "loss +0.0020 says little: advantages sum to 0; its gradient 0.300 teaches",
        "best  1.1   question 12 words",
        "thought   thought 12 words",
        "answer    answer 12 words",
        "worst 0     question 12 words",
        "(cut at the limit)",
    ):
        assert words in shown, words
    assert "kl" not in shown, "what is not weighed is not shown"
    assert "step 3 line" not in file.getvalue(), "a panel needs no lines"


@pytest.mark.parametrize("size", [(120, 40), (60, 24), (44, 20), (30, 12)])
def test_it_fits_any_terminal_whatever_the_texts_are(tmp_path: Path, size: tuple[int, int]) -> None:
    screen, _ = terminal(*size)
    lines = drawn(tmp_path / "run", screen, text=f"\x1b[31mred \u202egnirts {HOSTILE}", kl=0.1, clipped=0.02, unjudged=0.5)
    assert all(cell_len(line) <= size[0] for line in lines)
    assert not set("".join(lines)) & set("\x1b\u202e")
    assert ("best" in "".join(lines)) == (size[1] >= 30), "answers are left out where they would push the panel off the screen"


def test_a_summary_stays_when_the_panel_goes(tmp_path: Path) -> None:
    screen, file = terminal()
    drawn(tmp_path / "run", screen)
    stays = without_codes(file.getvalue().rpartition("\x1b[2K")[2])
    for words in ("12 steps, the first and the last of them in the mean:", "reward", " → ", "sampling 70%", "answer 12 words"):
        assert words in stays, words
    assert "╭" not in stays
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1, "the cursor is back"


def test_a_log_has_a_line_for_each_step_and_no_panel(tmp_path: Path) -> None:
    screen, file = screen_of(width=100)
    drawn(tmp_path / "run", screen)
    log = file.getvalue()
    assert [int(step) for step in re.findall(r"step (\d+) line", log)] == list(range(1, STEPS + 1))
    assert "The other 11 steps will take about 1 minutes." in log
    assert log.count("best  1.1") == 3, "at the first and the last step, and once a minute"
    assert "\x1b" not in log
    assert "╭" not in log
    assert "0.375 → 0.550" in log.split("in the mean:")[1]


def test_an_alarm_is_said_once_and_stays_above_the_panel(tmp_path: Path) -> None:
    screen, file = terminal()
    lines = drawn(tmp_path / "run", screen, cut=0.5, kl=2.0)
    assert "alarms: divergence, cut (see above)" in "\n".join(lines)
    assert file.getvalue().count("Alarm, cut: 50% of the latest answers were cut") == 1
    assert file.getvalue().count("Raise --kl, or lower --lr") == 1


def test_preferences_have_the_same_panel(tmp_path: Path) -> None:
    screen, _ = terminal()
    shown = "\n".join(drawn(tmp_path / "run", screen, PREFERENCES))
    for words in ("margin      2.000", "right         90%", "rejected   -1.800", "held out 50% → 80% at step 12"):
        assert words in shown, words
    assert "sampling 7" not in shown


def test_a_resumed_run_shows_its_whole_curve_and_nothing_of_a_lost_future(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    run.append("metrics", *(grpo_step(step, STEPS, reward=9.0 if step > 6 else 1.0) for step in range(1, 9)), greedy(8, 1))
    screen, _ = screen_of(width=80)
    with watching_learning(screen, run, REWARDS) as watch:
        run.append("metrics", grpo_step(7, STEPS, reward=2.0))
        watch.stepped(7, STEPS, 1.0, Told("line"))
        assert watch.course.values(REWARDS.figures[0]) == [1.0] * 6 + [2.0]
        assert watch.course.held_out() == ""
    run.close()


def test_first_and_last_are_means_of_a_few_steps() -> None:
    assert first_and_last([1.0, float("nan"), 3.0]) == (1.0, 3.0)
    assert first_and_last([float(n) for n in range(20)]) == (2.0, 17.0)
    assert LearningCourse(REWARDS).alarms() == []
    assert phase_lines({}, 40, ascii_only=False) == []
    bar, words = phase_lines({"sampling": 3.0, "rewards": 0.0, "log-probs": 0.0, "update": 1.0}, 40, ascii_only=True)
    assert bar.plain == "#" * 30 + "." * 10
    assert words.plain.startswith("# sampling 75%")


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 30])
def test_a_long_question_shows_both_of_its_ends(length: int) -> None:
    shown = both_ends("What is the sum of\n13 + 94?", length)
    assert len(shown) <= max(length, 1)
    if length >= 9:
        assert shown.startswith("What")
        assert shown.endswith("94?")
    assert ("…" in shown) == (length < 27)


def test_an_answer_that_is_nothing_but_a_thought_says_so() -> None:
    lines = answer_lines([rollout(1, "worst", "x", thought="a b", said="")], 80).plain.splitlines()
    assert lines[1].split() == ["thought", "a", "b"]
    assert "(nothing) (cut at the limit)" in lines[2]


# ---- real runs of a tiny model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


FAST: dict[str, Any] = {"lr": 1e-3, "r": 2, "budget": 512, "cache": False}


def learn(model: Path, folder: Path, reward: Any, screen: Screen | None = None, question: str = "{}?") -> ReinforceResult:
    rows = write(folder / "questions.jsonl", [{"prompt": question.format(number), "right": str(number)} for number in range(8)])
    knobs = {"model": str(model), "steps": 3, "prompts": 2, "group": 3, "max_new_tokens": 5, "held_out": 2, "preflight": 2, "eval_every": 1}
    config = with_knobs(ReinforceConfig(data=(rows,), out=folder / "runs" / "grpo"), {**knobs, **FAST})
    return reinforce(config, screen=screen, rewards=[Reward("longer", function=reward)])


def longer(completions: list[Any], **columns: Any) -> list[float]:
    return [len(one[0]["content"]) / 20 for one in completions]


def test_a_stopped_and_a_resumed_run_have_a_page_that_is_listed(model: Path, tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "runs").mkdir()
    asked: list[int] = []

    def stopped(completions: list[Any], **columns: Any) -> list[float]:
        asked.append(len(completions))
        if len(asked) > 5:  # preflight, before, step 1 (once or twice), …
            raise KeyboardInterrupt
        return longer(completions)

    screen, file = terminal()
    with pytest.raises(KeyboardInterrupt):
        learn(model, tmp_path, stopped, screen)
    folder = tmp_path / "runs" / "grpo"
    page = folder / "report.html"
    assert "Not finished" in page.read_text()
    assert "What it reached:" in file.getvalue()
    assert "╭─ Training" in plain(file)
    assert detail_of(folder).report == page

    screen, file = terminal()
    result = learn(model, tmp_path, longer, screen)
    assert result.report == page
    assert result.summary()["report"] == str(page)
    text = page.read_text()
    assert "Not finished" not in text
    assert "near 0 by construction" in text
    assert read_run(folder).learns_by == "grpo"
    verdict = read_json(folder / "verdict.json")
    assert verdict["line"] == result.line
    assert [line.report for line in run_lines(tmp_path / "runs")] == [page]
    (facts,) = runs(tmp_path / "runs").runs
    assert facts.verdict.startswith(verdict["decision"])
    detail = detail_of(folder)
    assert set(detail.figures) >= {"reward", "length"}
    assert not detail.training_losses, "a loss that is near 0 by construction is no curve to read"
    kept = read_records(folder / "rollouts.jsonl")
    assert {record["which"] for record in kept} >= {"best"}

    opened = Opened(browser, folder, 390)
    assert opened.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert opened.tab.locator(".charts figure").count() >= 6
    assert opened.tab.locator(".step").count() == len({record["step"] for record in kept})
    opened.close()


def test_the_time_of_a_run_is_told_by_phase(tmp_path: Path) -> None:
    seconds = detail_of(grpo_run(tmp_path / "run")).seconds
    assert seconds == pytest.approx({"training, sampling": 100, "training, rewards": 2, "training, update": 40})


def test_a_page_of_another_run_is_not_written_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    result = learn(model, tmp_path, longer)
    before = result.report.read_bytes()
    with pytest.raises(CheckpointError):
        learn(model, tmp_path, longer, question="{}, edited?")
    assert result.report.read_bytes() == before


def test_preferences_leave_a_page_too(model: Path, tmp_path: Path) -> None:
    rows = write(
        tmp_path / "pairs.jsonl", [{"prompt": f"{n}: the colour of sky", "chosen": "blue", "rejected": "five four"} for n in range(12)]
    )
    config = with_knobs(
        PreferConfig(data=(rows,), out=tmp_path / "dpo"), {"model": str(model), "epochs": 2, "batch": 4, "held_out": 4, **FAST}
    )
    screen, file = terminal()
    result = prefer(config, screen=screen)
    page = result.report.read_text()
    assert "Does it prefer what people preferred?" in page
    assert "Log-probability of both answers" in page
    assert result.summary()["report"] == str(result.report)
    assert "╭─ Training" in plain(file)
    assert set(detail_of(tmp_path / "dpo").figures) == {"right", "margin"}


@pytest.mark.parametrize("course", [Course(), LearningCourse(REWARDS)], ids=["of a fine-tuning", "of rewards"])
def test_every_course_is_where_its_last_step_or_evaluation_was(course: Course | LearningCourse) -> None:
    course.evaluated(4)
    assert (course.pace.step, course.pace.planned) == (4, 0)
    course.stepped(5, 9, 1.0)
    assert (course.pace.step, course.pace.planned) == (5, 9)
    course.evaluated(5)
    assert course.pace.step == 5
    course.evaluated(3)  # of the state that was chosen in the end
    assert course.pace.step == 3


def test_what_a_lost_sitting_knew_of_later_steps_is_gone_in_a_dictionary_of_its_own() -> None:
    known = {1: "a", 2: "b", 3: "c"}
    assert up_to(2, known) == {1: "a", 2: "b"}
    assert known == {1: "a", 2: "b", 3: "c"}, "the old one may be drawn meanwhile"
