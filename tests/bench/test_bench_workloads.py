"""The workloads: the same from the same seed, of the kind they are said to be, and the same work for a peer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.workloads import DROPPING, SHAPES, Work, peer_rows, read_steps, unique_of, work_of, write_work
from hypothesis import given
from hypothesis import strategies as st

from sapwood.chat import Chat
from sapwood.errors import ConfigError, DataError
from sapwood.recipes.screen import Screen
from sapwood.records import Example, Row
from tiny.folder import write_model, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", context=40_000)


def made(workload: str, model: Path, **changed: Any) -> Work:
    asked: dict[str, Any] = {"steps": 2, "rows": 3, "shared": 500, "seed": 0, "data": [], "screen": Screen(quiet=True), **changed}
    return work_of(workload, model, **asked)


def row(prompt: list[int], completion: list[int]) -> Row:
    return Row(np.array(prompt), np.array(completion), np.ones(len(completion), np.float32))


PARTS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=3)), max_size=5
)


@given(PARTS, st.booleans())
def test_a_peer_trains_each_token_that_we_train(parts: list[tuple[list[int], list[int]]], history: bool) -> None:
    rows, before = [], [1]
    for prompt, completion in parts:
        rows.append(row(before + prompt, completion))
        before = before + prompt + (completion if history else completion[:-1])
    ours = Counter((tuple(one.prompt_T), place, int(token)) for one in rows for place, token in enumerate(one.completion_T))
    peers = peer_rows(Example(tuple(rows))) if rows else []
    assert sum(ours.values()) == sum(label != -100 for one in peers for label in one["labels"])
    for one in peers:
        assert all(label in (-100, token) for token, label in zip(one["input_ids"], one["labels"], strict=True))
    if history and rows:
        assert len(peers) == 1, "a template that keeps history is trained in one pass"


def test_a_conversation_whose_history_is_rewritten_is_one_row_a_turn() -> None:
    rows = (row([1, 2], [7, 8, 9]), row([1, 2, 8, 9, 3], [5]))
    assert [one["input_ids"] for one in peer_rows(Example(rows))] == [[1, 2, 8, 9, 3, 5], [1, 2, 7, 8, 9]]


def test_what_is_trained_twice_is_trained_twice_by_a_peer() -> None:
    rows = (row([1, 2], [7, 8]), row([1, 2], [7, 8]), row([1, 2], [7]))
    assert [one["labels"] for one in peer_rows(Example(rows))] == [[-100, -100, 7, 8], [-100, -100, 7, 8], [-100, -100, 7]]


@pytest.mark.parametrize("workload", ["chat", "multiturn", "multiturn-reasoning", "long", "pairs", "group-short"])
def test_same_seed_same_rows(workload: str, model: Path, tmp_path: Path) -> None:
    first, second, other = (made(workload, model, seed=seed) for seed in (3, 3, 4))
    write_work(tmp_path / "a", first)
    write_work(tmp_path / "b", second)
    write_work(tmp_path / "c", other)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    again = Work(tuple(tuple(step) for step in read_steps(tmp_path / "a")), first.told)
    assert again.counts() == first.counts(), "contestants read what was made"


def test_chats_share_nothing_but_the_templates_first_words(model: Path) -> None:
    work = made("chat", model, rows=8)
    start = len(Chat.load(model).tokens.encode("<|im_start|>system\n"))
    for step in work.steps:
        whole = sum(example.rows[0].length - 1 for example in step)
        assert whole - 8 * (start + 2) <= unique_of(step) <= whole


def test_turns_are_as_many_in_each_step_and_lie_on_one_path_or_branch(model: Path) -> None:
    kept, dropped = (made(workload, model, rows=5, steps=3) for workload in ("multiturn", "multiturn-reasoning"))
    for work in (kept, dropped):
        turns = [[len(example.rows) for example in step] for step in work.steps]
        assert {sum(step) for step in turns} == {30}
        assert all(4 <= count <= 8 for step in turns for count in step)
    assert kept.peer_rows_a_step() == 5
    assert dropped.peer_rows_a_step() == 30
    first = dropped.steps[0][0].rows
    chat = Chat.load(model, template=DROPPING)
    assert "<think>" in chat.decode(first[0].completion_T)
    assert "<think>" not in chat.decode(first[-1].prompt_T)


def test_long_rows_are_long(model: Path) -> None:
    lengths = [example.rows[0].length for step in made("long", model).steps for example in step]
    assert all(3200 <= length <= 4800 for length in lengths)


@pytest.mark.parametrize("workload", list(SHAPES))
def test_answers_and_prompts_are_of_exact_lengths_and_only_a_prompts_own_answers_share(workload: str, model: Path) -> None:
    shape, work = SHAPES[workload], made(workload, model)
    for length, example in ((shape.prompt if number else shape.prompt // 8, one) for number, step in enumerate(work.steps) for one in step):
        assert [(len(row.prompt_T), len(row.completion_T)) for row in example.rows] == [(length, shape.answer)] * shape.answers
        assert len({row.completion_T.tobytes() for row in example.rows}) == shape.answers
        assert len({row.prompt_T.tobytes() for row in example.rows}) == 1
    places = shape.prompt + shape.answers * (shape.answer - 1)
    for step in work.steps[1:]:  # the last token of each answer is only predicted; answers, and prompts, may begin alike by chance
        assert 3 * (places - 2 * shape.answers) <= unique_of(step) <= 3 * places
    assert work.peer_rows_a_step() == (3 if workload == "pairs" else 3 * shape.answers)


def test_files_are_taken_as_they_are(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 12)
    work = made("natural", model, data=[str(file)])
    assert work.counts()["conversations"] == 3
    assert len({example.where for step in work.steps for example in step}) == 6
    with pytest.raises(DataError, match="12 conversations, and 15 are needed"):
        made("natural", model, data=[str(file)], steps=5)


def test_what_a_peer_cannot_be_given_is_refused(model: Path) -> None:
    one, two = Example((row([1, 2], [3]),)), Example((row([1, 2], [3]), row([1, 4], [3])))
    with pytest.raises(DataError, match="1 to 2 rows a step"):
        Work(((one,), (two,)), "").peer_rows_a_step()


@pytest.mark.slow
def test_requests_of_the_real_set_stand_under_one_tool_list() -> None:
    from sapwood.assets import resolve_model

    folder = resolve_model("smollm2-135m-instruct")
    work = made("tools", folder, rows=8)
    counts = work.counts()
    assert counts["saved_share"] > 0.7
    prompts = [example.rows[0].prompt_T for step in work.steps for example in step]
    assert all(np.array_equal(prompt[:400], prompts[0][:400]) for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
    with pytest.raises(ConfigError, match="fewer --rows"):
        made("tools", folder, rows=200)
