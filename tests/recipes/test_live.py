"""What is seen of a training: the panel in any terminal, the lines of a log, and what stays."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sapwood.errors import ConfigError
from sapwood.recipes import Screen
from sapwood.recipes.blocks import BLOCKS, chart, sparkline
from sapwood.recipes.course import Course, clock
from sapwood.recipes.feed import Feed
from sapwood.recipes.learning_live import both_ends
from sapwood.recipes.live import PANEL, Watch, WatchConfig, answer_lines, one_line, show_course, watching
from sapwood.recipes.samples import Answer, evenly, what_differs
from sapwood.run import open_run
from sapwood.train import StepReport

HOSTILE = "a\x1b[31mred\x1b[0m \u202egnirts " + "long " * 80
ANSWERS = [Answer(4, f"i{n}", f"policy\n{HOSTILE}{n}", HOSTILE, value) for n, value in enumerate((1.0, 0.0, None))]


@pytest.mark.parametrize(
    ("questions", "shown"),
    [
        (["Policy: be kind\n\nWho is A?", "Policy: be kind\nWho is B?"], ["Who is A?", "Who is B?"]),
        (["Cats sleep.\nSum it up.", "Dogs bark.\nLoudly.\nSum it up."], ["Cats sleep.", "Dogs bark. Loudly."]),
        (["the same\nfor all"] * 2, ["the same for all"] * 2),
        (["alone\nwhole"], ["alone whole"]),
        (["a\nb", "a"], ["a b", "a"]),
        (["", "x"], ["(nothing was asked)", "x"]),
    ],
)
def test_of_questions_stands_what_tells_them_apart(questions: list[str], shown: list[str]) -> None:
    """Shown was the last line alone: of a document with an instruction below it, the same words for every question."""
    lines = answer_lines([Answer(1, f"i{n}", question, "yes", None) for n, question in enumerate(questions)], 80).plain.splitlines()
    assert [line.strip(" ·") for line in lines[::2]] == shown


def test_a_long_question_shows_its_beginning_and_its_last_line() -> None:
    document = "Once upon a time " * 40
    (line, _) = answer_lines([Answer(1, "i", f"{document}\nWho was it?", "a cat", None)], 80).plain.splitlines()
    assert line.strip(" ·").startswith("Once upon a time")
    assert line.endswith("… Who was it?")
    assert cell_len(line) <= 80


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4).map("\n".join), min_size=2, max_size=4))
def test_nothing_that_tells_questions_apart_is_left_out(questions: list[str]) -> None:
    told = what_differs(questions)
    assert len({tuple(each) for each in told}) == len(set(questions))


def record(step: int, loss: float | None = 1.0) -> dict[str, Any]:
    numbers = {"lr": 1e-3, "grad_norm": 0.5, "row_tokens": 200, "unique_tokens": 100, "seconds": 0.1, "epoch": step / 10}
    return {"kind": "train", "step": step, "loss": loss, "peak_bytes": 2**31, **numbers}


def report(step: int, steps: int) -> StepReport:
    return StepReport(step, steps, 1.0, 1e-3, 0.5, 200, 100, 0.1, step / 10, 2**31)


def screen_of(**how: Any) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    screen = Screen(file=file)
    screen.console = Console(file=file, highlight=False, **how)
    return screen, file


def trained(folder: Path, screen: Screen, steps: int = 20, end: int = 20, answers: list[Answer] = ANSWERS) -> None:
    run = open_run(folder)
    try:
        with watching(screen, run) as watch:
            for step in range(end):
                if step % 4 == 0:
                    run.append("metrics", {"kind": "eval", "step": step, "loss": 3.0 - step / 20})
                    watch.evaluated(step)
                    watch.answered(step, answers)
                run.append("metrics", record(step + 1, 2.0 - step / 20))
                watch.report(report(step + 1, steps))
        show_course(watch, answers, screen)
    finally:
        run.close()


def without_speeds(log: str) -> str:
    return re.sub(r"[\d,.]+ (tokens/s|GiB)|\d+:\d\d", "·", log)


def test_a_log_has_the_same_lines_each_time(tmp_path: Path) -> None:
    logs = []
    for name in ("one", "two"):
        screen, file = screen_of(width=100)
        trained(tmp_path / name, screen)
        logs.append(file.getvalue())
    assert without_speeds(logs[0]) == without_speeds(logs[1])
    assert "\x1b" not in logs[0]
    assert [int(step) for step in re.findall(r"step (\d+) of 20", logs[0])] == list(range(2, 21, 2)), "every tenth of the run"
    assert "held-out loss 2.800" in logs[0]
    assert "✓" in logs[0]
    assert "✗" in logs[0]


def test_a_long_run_has_lines_by_its_tokens_too(tmp_path: Path) -> None:
    screen, file = screen_of(width=100)
    run = open_run(tmp_path / "run")
    with watching(screen, run) as watch:
        for step in range(1, 101):
            run.append("metrics", {**record(step), "unique_tokens": 20_000})
            watch.report(report(step, 4000))
    run.close()
    assert [int(step) for step in re.findall(r"step (\d+) of", file.getvalue())] == [*range(8, 101, 8)], "one in 500 steps at most"


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (44, 24), (30, 12), (200, 60)])
def test_the_panel_fits_any_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    screen, _ = screen_of(width=size[0], height=size[1], force_terminal=True, _environ={"TERM": "xterm"})
    run = open_run(tmp_path / "run")
    with watching(screen, run) as watch:
        for step in range(1, 6):
            run.append("metrics", {"kind": "eval", "step": step - 1, "loss": 3.0}, record(step, None if step == 3 else 1.0))
            watch.report(report(step, 9))
        watch.answered(4, ANSWERS)
        lines = screen.console.render_lines(watch, screen.console.options)
    run.close()
    text = ["".join(segment.text for segment in line) for line in lines]
    assert all(cell_len(line.rstrip()) <= size[0] - 2 for line in text), "^C is written behind the panel, and must not break its line"
    assert len(text) < size[1]
    assert not set("".join(text)) & set("\x1b\u202e")
    shown = "\n".join(text)
    assert "loss 1.000" in shown
    if size[0] >= 80:
        framed = next(place for place, line in enumerate(text) if line.startswith("╰"))
        assert framed + 1 <= PANEL <= 12
        for words in (
            "step 5 of 9  56%",
            "● held out 3.000 → 3.000",
            "learning rate 1.00e-03",
            "gradient 0.500",
            "50% saved by sharing",
            "GiB at most",
        ):
            assert words in shown
        assert "Answers at step 4" in shown


def test_nothing_is_left_of_the_panel_whatever_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, file = screen_of(width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})

    def stopped(watch: Watch, done: StepReport) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "report", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", screen)
    shown = file.getvalue()
    assert " Training" in shown
    assert shown.endswith("\x1b[1A\x1b[2K"), "its lines are taken back one by one, up to the first"
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"


@pytest.mark.parametrize("how", [{"force_terminal": True, "_environ": {"TERM": "dumb"}}, {"force_jupyter": False}, {"quiet": True}])
def test_where_nothing_can_be_drawn_over_there_are_lines(tmp_path: Path, how: dict[str, Any]) -> None:
    screen, file = screen_of(width=80, **how)
    trained(tmp_path / "run", screen)
    assert "╭" not in file.getvalue()
    assert ("step 20 of 20" in file.getvalue()) == ("quiet" not in how)


def test_colours_are_left_out_where_nobody_wants_them(tmp_path: Path) -> None:
    screen, file = screen_of(width=80, height=24, force_terminal=True, _environ={"TERM": "xterm", "NO_COLOR": "1"})
    trained(tmp_path / "run", screen)
    assert not re.search(r"\x1b\[[\d;]*3[1-7]m", file.getvalue())


def test_a_resumed_run_shows_its_whole_curve_and_nothing_of_a_lost_future(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    run.append("metrics", *(record(step, 9.0 if step > 6 else 5.0) for step in range(1, 9)))
    screen, _ = screen_of(width=80)
    with watching(screen, run) as watch:
        watch.evaluated(6)
        assert sorted(watch.course.losses) == [1, 2, 3, 4, 5, 6]
        run.append("metrics", record(7, 4.0))
        watch.report(report(7, 12))
        assert watch.course.losses[7] == 4.0
    run.close()


def test_a_long_curve_is_thinned_and_keeps_its_shape() -> None:
    for steps in (1, 2, 3, 399, 401, 12_345):
        course = Course()
        course.take([{**record(step), "loss": None if step == 2 else 5.0 - step / steps} for step in range(1, steps + 1)])
        curve = course.curve()
        assert len(curve) <= 400
        places = [place for place, _ in curve]
        assert places == sorted(set(places))
        assert 0 <= places[0] <= places[-1] < steps
        assert all(abs(loss - (5.0 - (place + 1) / steps)) < max(0.05, 1.5 / steps) for place, loss in curve)
        assert course.smoothed() == pytest.approx(curve[-1][1], abs=max(0.1, 1.5 / steps))
    assert Course().curve() == []


def test_a_feed_gives_each_record_once_and_begins_anew_with_its_file(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    feed = Feed(run.path)
    assert feed.new() == []
    run.append("metrics", record(1), {"kind": "other", "step": 1})
    assert [one["step"] for one in feed.new()] == [1]
    assert feed.new() == []
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    assert feed.new() == []
    run.append("metrics", record(2))
    assert [one["step"] for one in feed.new()] == [2]
    run.clear("metrics")
    run.append("metrics", record(1, 2.5), record(2), record(3))
    assert [one["step"] for one in feed.new()] == [1, 2, 3]
    run.close()


@given(st.lists(st.floats(-1e9, 1e9), max_size=60), st.integers(1, 40))
def test_a_sparkline_is_as_high_as_its_values(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BLOCKS[1:])
    if len(values) <= width and len(set(values)) > 1 and max(values) - min(values) > 1e-3:
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.lists(st.floats(0, 10), max_size=5), st.integers(1, 90), st.integers(1, 6))
def test_a_chart_keeps_its_frame_and_draws_every_point(curve: list[float], points: list[float], width: int, height: int) -> None:
    end = 2.0 * len(curve)
    placed = [(place * end / 5, y) for place, y in enumerate(points)]
    made = chart(list(enumerate(curve)), placed, end=end, width=width, height=height)
    assert len(made.lines) == height
    assert {len(line) for line in made.lines} == {width}
    assert len(made.points) == sum(line.count("●") for line in made.lines)
    assert {column for _, column in made.points} == {min(width - 1, int(x / end * width)) for x, _ in placed}
    if not points:
        last = min(width - 1, int((len(curve) - 1) / end * width))
        assert all(line[last + 1 :].strip() == "" for line in made.lines), "the future is empty"
        assert made.lines[-1][: last + 1].strip() != ""


def test_times_and_questions() -> None:
    assert [clock(seconds) for seconds in (7, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
    items: Any = list(range(10))
    assert [list(evenly(items, count)) for count in (0, 1, 3, 10, 99)] == [[], [0], [0, 3, 6], items, items]
    with pytest.raises(ConfigError, match="samples is -1"):
        WatchConfig(samples=-1)


@pytest.mark.parametrize("text", ["🐶" * 60, "木の年輪" * 20, "a🐶" * 40, "word " * 30, "e\u0301" * 50, "🐶"])
@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_a_line_is_cut_by_what_it_takes_on_the_screen(text: str, length: int) -> None:
    for cut in (one_line(text, length), both_ends(text, length)):
        assert cell_len(cut) <= max(1, length)
    assert one_line(text, 400) == both_ends(text, 400) == text.strip()
