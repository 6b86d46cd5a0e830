"""What people hand over as data becomes the rows that files would give, each accounted for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sapwood.chat import Chat
from sapwood.cli.bench_verb import checkout
from sapwood.errors import ConfigError, DataError
from sapwood.records import Source
from sapwood.trl.rows import tokenised_example
from tiny.trainers import Rows, notes_of, trainer_of

PEERS = checkout() / ".venv-bench" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def ids_of(trainer: Any) -> list[list[int]]:
    """Prompt and completion of every row."""
    return [[*row.prompt_T, *row.completion_T] for example in trainer._examples(trainer._prepared) for row in example.rows]


def trained_text(trainer: Any) -> list[str]:
    """What is trained of each row."""
    return [
        trainer.chat.decode([int(token) for token, weight in zip(row.completion_T, row.weights_T, strict=True) if weight > 0])
        for example in trainer._examples(trainer._prepared)
        for row in example.rows
    ]


def test_rows_in_code_are_the_rows_of_a_file(folder: Path, rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [trainer_of(folder, tmp_path / name, data) for name, data in (("a", rows), ("b", str(file)), ("c", file))]
    made.append(trainer_of(folder, tmp_path / "d", iter(rows), max_steps=-1))
    expected = [[*row.prompt_T, *row.completion_T] for row in _examples_of(folder, rows)]
    for trainer in made:
        assert sorted(ids_of(trainer)) == sorted(expected)
        assert trainer._prepared.ledger.counts()["trained"] == len(rows)


def _examples_of(folder: Path, rows: Rows) -> Iterator[Any]:
    from sapwood.records import Conversation, Message

    chat = Chat.load(folder)
    for row in rows:
        yield from chat.example(Conversation(tuple(Message(**message) for message in row["messages"]))).rows


def test_one_of_several_data_sets_is_taken_and_named(folder: Path, rows: Rows, tmp_path: Path) -> None:
    data = {"train": rows[:20], "test": rows[20:]}
    trainer = trainer_of(folder, tmp_path, data, eval_dataset=data)
    assert len(trainer._prepared.examples) == 20
    assert len(trainer._held_out.examples) == 10
    assert "'train' is taken" in notes_of(trainer)
    assert "'test' is taken" in notes_of(trainer)
    with pytest.raises(ConfigError, match=r"several data sets: a, b. Give one of them, such as train_dataset=dataset\['a'\]"):
        trainer_of(folder, tmp_path, {"a": rows, "b": rows})


def test_answers_are_trained_unless_everything_is_asked_for(folder: Path, rows: Rows, tmp_path: Path) -> None:
    answers = trainer_of(folder, tmp_path / "a", rows)
    assert trained_text(answers)[0] == "blue<|im_end|>"
    whole = trainer_of(folder, tmp_path / "b", rows, assistant_only_loss=False)
    assert (
        trained_text(whole)[0]
        == "system\nanswer<|im_end|>\n<|im_start|>user\n0: the colour of sky<|im_end|>\n<|im_start|>assistant\nblue<|im_end|>"
    )
    assert ids_of(whole) == ids_of(answers)
    turns = [*rows[0]["messages"], {"role": "user", "content": "and grass"}, {"role": "assistant", "content": "green"}]
    several = [{"messages": turns}] * 2
    assert trained_text(trainer_of(folder, tmp_path / "e", several))[:2] == ["blue<|im_end|>", "green<|im_end|>"]
    (first, _) = trained_text(trainer_of(folder, tmp_path / "f", several, assistant_only_loss=False))
    assert first.count("blue<|im_end|>") == first.count("green<|im_end|>") == first.count("and grass<|im_end|>") == 1
    pairs = [{"prompt": "the sky", "completion": "blue"}] * 3
    assert trained_text(trainer_of(folder, tmp_path / "c", pairs)) == ["blue<|im_end|>"] * 3
    assert "the sky" in trained_text(trainer_of(folder, tmp_path / "d", pairs, completion_only_loss=False))[0]


def test_texts_are_trained_whole_from_the_column_that_is_named(folder: Path, tmp_path: Path) -> None:
    texts = [{"text": f"the colour number {number}", "label": 1} for number in range(5)]
    assert trained_text(trainer_of(folder, tmp_path / "a", texts))[0].endswith("number 0<|endoftext|>")
    named = [{"body": row["text"]} for row in texts]
    assert trained_text(trainer_of(folder, tmp_path / "b", named, dataset_text_field="body"))[1].endswith("number 1<|endoftext|>")
    with pytest.raises(ConfigError, match="dataset_text_field is 'bdy', but the rows of train_dataset have no such column: body"):
        trainer_of(folder, tmp_path / "c", named, dataset_text_field="bdy")


@pytest.mark.parametrize("batched", [False, True])
def test_a_formatting_function_gives_texts(folder: Path, tmp_path: Path, batched: bool) -> None:
    data = [{"question": f"what is {number}?", "answer": "blue"} for number in range(4)]

    def one(example: dict[str, Any]) -> str:
        return f"Q: {example['question']} A: {example['answer']}"

    def several(examples: dict[str, Any]) -> list[str]:
        return [one({"question": q, "answer": a}) for q, a in zip(examples["question"], examples["answer"], strict=True)]

    trainer = trainer_of(folder, tmp_path, data, formatting_func=several if batched else one)
    assert trained_text(trainer)[2].endswith(": what is 2? A: blue<|endoftext|>")


def test_a_formatting_function_may_give_messages_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    data = [{"q": "the sky", "a": "blue"}] * 3

    def messages(row: dict[str, str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]

    assert trained_text(trainer_of(folder, tmp_path / "a", data, formatting_func=messages)) == ["blue<|im_end|>"] * 3
    with pytest.raises(ConfigError, match="row 1: formatting_func returned a dict"):
        trainer_of(folder, tmp_path / "b", data, formatting_func=lambda row: {"text": row["q"]})
    with pytest.raises(ConfigError, match="row 1: formatting_func failed with KeyError: 'p'"):
        trainer_of(folder, tmp_path / "d", data, formatting_func=lambda row: row["p"])
    with pytest.raises(ConfigError, match="formatting_func is for rows held in code"):
        trainer_of(folder, tmp_path / "c", "rows.jsonl", formatting_func=messages)


def test_rows_that_are_too_long_are_refused_by_name_and_never_cut(folder: Path, rows: Rows, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "colour " * 60}, {"role": "assistant", "content": "blue"}]}
    with pytest.raises(
        DataError, match=r"(?s)1 of 31 rows were refused.*train_dataset.jsonl:31.*at most 64 are allowed.*SFTConfig\(max_refused=0.033\)"
    ):
        trainer_of(folder, tmp_path / "a", [*rows, long], max_length=64)
    trainer = trainer_of(folder, tmp_path / "b", [*rows, long], max_length=64, max_refused=0.05)
    assert trainer._prepared.ledger.counts() | {"trained": 30, "refused": 1} == trainer._prepared.ledger.counts()
    assert len(trainer_of(folder, tmp_path / "c", [*rows, long])._prepared.examples) == 31, "the model's own context holds it"


def test_a_stream_is_taken_as_far_as_it_is_trained(folder: Path, rows: Rows, tmp_path: Path) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield from rows

    trainer = trainer_of(folder, tmp_path, endless(), max_steps=3, per_device_train_batch_size=2)
    assert len(trainer._prepared.examples) == 6
    assert "the first 6 rows are taken" in notes_of(trainer)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], DataError, "holds no rows"),
        (7, ConfigError, "train_dataset is a int"),
        ([[1]], ConfigError, "each row must be a dictionary"),
        ([{"messages": object()}], DataError, "train_dataset, row 1"),
        ([{"thing": 1}] * 3, DataError, "known format"),
        ([{"input_ids": [1, 2], "labels": [1]}], DataError, "train_dataset:1: 2 `input_ids` and 1 `labels`"),
        ([{"input_ids": [1, 2], "labels": [-100, 5]}], DataError, "A label is the token at its own place"),
        ([{"input_ids": [1, 2], "labels": [-100, -100]}], DataError, "no token is trained"),
    ],
)
def test_what_cannot_be_read_is_named(data: Any, error: type[Exception], said: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        trainer_of(folder, tmp_path, data)
    assert said in str(caught.value)


def test_prepared_rows_must_be_rows_of_tokens(folder: Path, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip_prepare_dataset, but the rows of train_dataset have no `input_ids`"):
        trainer_of(folder, tmp_path, rows, dataset_kwargs={"skip_prepare_dataset": True})
    tokens = [{"input_ids": [5, 6, 7, 2], "completion_mask": [0, 0, 1, 1]}] * 3
    trainer = trainer_of(folder, tmp_path, tokens, dataset_kwargs={"skip_prepare_dataset": True})
    assert ids_of(trainer) == [[5, 6, 7, 2]] * 3
    assert trainer._prepared.ledger.counts()["trained_tokens"] == 6


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=2, max_size=30))
def test_a_mask_weighs_each_token_but_the_first(pairs: list[tuple[int, bool]]) -> None:
    ids, mask = [token for token, _ in pairs], [int(trained) for _, trained in pairs]
    forms = [
        {"labels": [token if trained else -100 for token, trained in pairs]},
        {"assistant_masks": mask},
        {"completion_mask": mask},
        {"weights": [0.5 * trained for trained in mask]},
    ]
    if not any(mask[1:]):
        with pytest.raises(DataError, match="no token is trained"):
            tokenised_example({"input_ids": ids, **forms[0]}, Source("rows", 1))
        return
    for form in forms:
        (row,) = tokenised_example({"input_ids": ids, **form}, Source("rows", 1)).rows
        weight = 0.5 if "weights" in form else 1.0
        padded = np.zeros(len(ids))
        padded[len(row.prompt_T) : row.length] = row.weights_T
        assert padded[1:].tolist() == [weight * trained for trained in mask[1:]]
        assert [*row.prompt_T, *row.completion_T] == ids[: row.length]


def test_values_that_json_has_no_word_for(folder: Path, rows: Rows, tmp_path: Path) -> None:
    more = [{**row, "image_shown": Image.new("RGB", (2, 2)), "number": np.int64(3)} for row in rows[:2]]
    trainer_of(folder, tmp_path, more)
    (first, _) = map(json.loads, (tmp_path / "rows" / "train_dataset.jsonl").read_text().splitlines())
    assert first["image_shown"].startswith("data:image/png;base64,")
    assert first["number"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_dir(), reason="`sapwood bench` makes the environment that holds datasets")
def test_data_sets_of_the_hub_s_library(folder: Path, rows: Rows, tmp_path: Path) -> None:
    """In a process of its own: that library comes from another environment."""
    import os
    import subprocess

    code = f"""
import sys, json
import torch, transformers
sys.path.append({str(PEERS)!r})
import datasets
from pathlib import Path
sys.path.insert(0, {str(checkout() / "tests")!r})
from tiny.trainers import notes_of, trainer_of
rows = json.loads(Path({str(tmp_path / "rows.json")!r}).read_text())
call = {{"role": "assistant", "tool_calls": [{{"type": "function", "function": {{"name": "f", "arguments": {{"a": 1}}}}}}]}}
data = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:5]))
trainer = trainer_of({str(folder)!r}, Path({str(tmp_path)!r}) / "o", data, eval_dataset=data["test"], peft_config=None)
assert len(trainer._prepared.examples) == len(rows)
assert trainer.train().global_step == 4
stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
assert len(trainer_of({str(folder)!r}, Path({str(tmp_path)!r}) / "s", stream)._prepared.examples) == 16
uneven = [{{"messages": rows[0]["messages"]}}, {{"messages": [{{**m, "weight": 1.0}} for m in rows[1]["messages"]]}}]
uneven = datasets.Dataset.from_list(uneven)
assert uneven[0]["messages"][0]["weight"] is None
assert "nulls inside nested columns are left out" in notes_of(trainer_of({str(folder)!r}, Path({str(tmp_path)!r}) / "n", uneven))
"""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    environment = {**os.environ, "PYTHONPATH": str(checkout() / "src"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
