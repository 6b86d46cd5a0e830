"""The general questions: rendered by the model's own template, the end of the turn not counted."""

from __future__ import annotations

from pathlib import Path

from sapwood.chat import Chat
from sapwood.recipes.general import general_examples
from tiny.folder import write_model


def test_the_set_is_whole_and_does_not_count_the_end_of_a_turn(tmp_path: Path) -> None:
    chat = Chat.load(write_model(tmp_path / "model"))
    examples = general_examples(chat)
    assert len(examples) == 40
    for example in examples:
        (row,) = example.rows
        assert row.completion_T[-1] in chat.stop_ids
        assert row.weights_T[-1] == 0
        assert (row.weights_T[:-1] == 1).all()
    texts = {chat.decode(example.rows[0].completion_T.tolist()) for example in examples}
    assert len(texts) == 40
