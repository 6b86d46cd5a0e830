"""Rows of token ids with a weight for each: trained as they are, or refused with file:line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.chat import Chat
from sapwood.data import read
from sapwood.data.stored import read_back, written
from sapwood.recipes.prepare import DataConfig, prepare, scan_files
from sapwood.records import Document
from tiny.folder import write_model
from train.tiny_training import tiny_lm

ROWS: list[tuple[dict[str, Any], list[int], list[float]]] = [
    ({"input_ids": [5, 6, 7, 8]}, [5], [1, 1, 1]),
    ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, [5, 6], [1, 1]),
    ({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, -100]}, [5], [1, 0, 1]),
    ({"input_ids": [5, 6, 7, 8], "weights": [9, 0, 0.25, 2]}, [5, 6], [0.25, 2]),
    ({"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 0, 1], "attention_mask": [1, 1, 1, 1]}, [5, 6, 7], [1]),
]


def write(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_model(tmp_path_factory.mktemp("model")))


def test_what_is_trained_is_what_the_row_says(chat: Chat, tmp_path: Path) -> None:
    settings = DataConfig(held_out=0)
    file = write(tmp_path, *({**row, "page": number} for number, (row, _, _) in enumerate(ROWS)))
    for _ in range(2):  # made, and read from the cache
        prepared = prepare(scan_files([file], settings, lambda done, total, what: None), chat, settings)
        assert "read as tokens" in prepared.notes[0]
        for number, (example, (row, prompt, weights)) in enumerate(zip(prepared.examples, ROWS, strict=True)):
            [one] = example.rows
            assert one.prompt_T.tolist() == prompt
            assert one.completion_T.tolist() == row["input_ids"][len(prompt) : len(prompt) + len(weights)]
            assert one.weights_T.tolist() == weights
            assert example.meta["page"] == number
            assert example.where.endswith(f"rows.jsonl:{number + 1}")
    assert prepared.cached
    assert prepared.ledger.trained_tokens == sum(sum(weight > 0 for weight in weights) for _, _, weights in ROWS)


def test_the_loss_is_the_weighted_sum(chat: Chat, tmp_path: Path) -> None:
    """Against the model's log-probabilities of all tokens, one by one."""
    settings = DataConfig(held_out=0, cache=False)
    prepared = prepare(
        scan_files([write(tmp_path, *(row for row, _, _ in ROWS))], settings, lambda done, total, what: None), chat, settings
    )
    model = tiny_lm()
    from sapwood.train.step import evaluate

    expected = 0.0
    for (row, prompt, weights), example in zip(ROWS, prepared.examples, strict=True):
        [logprob_N] = model.logprobs(list(example.rows))
        expected -= float(np.dot(logprob_N, weights))
        assert len(logprob_N) == len(weights)
        assert len(row["input_ids"]) >= len(prompt) + len(weights)
    assert evaluate(model, list(prepared.examples), 1000).loss == pytest.approx(expected, rel=1e-5)


def test_a_stored_row_comes_back() -> None:
    document = Document("5 6 7", {"a": 1}, None, (5, 6, 7), (0.0, 0.5, 1.0))
    assert read_back(written(document), None) == document


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": "5 6"}, "broken tokens"),
        ({"input_ids": [5, -1]}, "broken tokens"),
        ({"input_ids": [5, True]}, "broken tokens"),
        ({"input_ids": [5]}, "nothing trained"),
        ({"input_ids": []}, "nothing trained"),
        ({"input_ids": [5, 6], "labels": [5, -100]}, "nothing trained"),
        ({"input_ids": [5, 6], "labels": [6, -100]}, "labels of other tokens: place 0 has the label 6 and the token 5"),
        ({"input_ids": [5, 6], "labels": [-100]}, "broken mask: `labels` has 1 entries for 2 tokens"),
        ({"input_ids": [5, 6], "weights": [0, -1]}, "broken mask: place 1"),
        ({"input_ids": [5, 6], "weights": [0, None]}, "broken mask: place 1"),
        ({"input_ids": [5, 6], "weights": [0, 1], "labels": [-100, 6]}, "two masks"),
        ({"input_ids": [5, 6], "attention_mask": [0, 1]}, "padding"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    [refusal] = read([write(tmp_path, row)], format="tokens").refused
    assert refusal.reason.startswith(reason)
    assert str(refusal.source).endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("ids", "why"), [([5, 99999], "the token id 99999 is none of the model's"), ([5] * 600, "600 tokens; at most 512")]
)
def test_what_the_model_cannot_take_is_refused(chat: Chat, tmp_path: Path, ids: list[int], why: str) -> None:
    settings = DataConfig(held_out=0, max_refused=0.9, cache=False)
    file = write(tmp_path, {"input_ids": ids}, {"input_ids": [5, 6]})
    prepared = prepare(scan_files([file], settings, lambda done, total, what: None), chat, settings)
    assert why in prepared.ledger.refused[0].reason


def test_rows_with_one_beginning_stay_on_one_side(chat: Chat, tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6 + number // 4, 40 + number], "labels": [-100, -100, 40 + number]} for number in range(24)]
    settings = DataConfig(held_out=8, cache=False)
    prepared = prepare(scan_files([write(tmp_path, *rows)], settings, lambda done, total, what: None), chat, settings)
    sides = [{example.rows[0].prompt_T[1] for example in side} for side in (prepared.examples, prepared.held_out_examples)]
    assert len(prepared.held_out_examples) == 8
    assert not sides[0] & sides[1]
