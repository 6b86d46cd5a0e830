"""Documents and preferences as rows: what is the prompt, what is trained, where it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat_folders import CHATML, SPECIALS, byte_level, load, metaspace, write_folder
from tokenizers import AddedToken, Tokenizer, processors

from sapwood.chat import Chat
from sapwood.chat.other_rows import document_end, document_example, example_of, preference_example
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Document, Message, Preference, Source, ToolCall

PLACE = Source("rows.jsonl", 3)


def with_tokens(tokenizer: Tokenizer, *tokens: str, bos: str | None = None) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    if bos is not None:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, number)])
    return tokenizer


def chat_of(path: Path, tokenizer: Tokenizer, **more: str) -> Chat:
    return Chat.load(write_folder(path, CHATML, tokenizer=tokenizer, **more))


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_document_behind_the_token_that_the_tokenizer_puts_before_texts(tmp_path: Path, make: type) -> None:
    chat = chat_of(tmp_path, with_tokens(make(), "<|endoftext|>", bos="<|bos|>"))
    text = "Where does sapwood grow?\n\nIn 12 rings. é <|im_end|> <|bos|>"
    (row,) = document_example(chat, Document(text, {"page": 1}, PLACE)).rows
    assert row.prompt_T.tolist() == [chat.tokens.id_of("<|bos|>")]
    assert row.completion_T[-1] == chat.tokens.id_of("<|endoftext|>")
    control = set(chat.tokens.special_ids)
    assert control.isdisjoint(row.completion_T[:-1].tolist()), "control tokens in a text stay text"
    assert chat.decode(row.completion_T[:-1]) == text
    assert (row.weights_T == 1).all()


def test_a_document_without_such_a_token_begins_with_its_own_first(tmp_path: Path) -> None:
    chat = chat_of(tmp_path, byte_level())  # its bos_token begins no text by itself
    example = document_example(chat, Document("two words <|im_end|>", {"page": 1}, PLACE))
    (row,) = example.rows
    assert chat.decode([*row.prompt_T, *row.completion_T[:-1]]) == "two words <|im_end|>"
    assert len(row.prompt_T) == 1
    assert (example.source, example.meta) == (PLACE, {"page": 1, "protected_specials": 1})
    assert row.completion_T[-1] == document_end(chat) == chat.tokens.id_of("<|im_end|>"), "its eos_token, as it has no other"


def test_what_ends_a_document(tmp_path: Path) -> None:
    for number, (tokens, end) in enumerate(
        [(("<|endoftext|>", "</s>"), "<|endoftext|>"), (("</s>",), "</s>"), (("<|end_of_text|>",), "<|end_of_text|>")]
    ):
        chat = chat_of(tmp_path / str(number), with_tokens(byte_level(), *tokens))
        assert document_end(chat) == chat.tokens.id_of(end), "before eos_token, which ends a turn here"
    chat = chat_of(tmp_path / "none", byte_level(), eos="no such token")
    with pytest.raises(TemplateError, match=r"rows\.jsonl:3: the tokenizer has no token that ends a text"):
        document_example(chat, Document("a b", source=PLACE))


def test_documents_are_never_cut(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    document = Document("one two three four five six", source=PLACE)
    length = document_example(chat, document).length
    assert document_example(chat, document, context=length).length == length
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: the text has {length} tokens; at most {length - 1} are allowed\. Split it"):
        document_example(chat, document, context=length - 1)
    with pytest.raises(DataError, match="empty"):
        document_example(chat, Document("", source=PLACE))


def test_the_rows_of_a_record_are_those_of_its_kind(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    talk = Conversation((Message("user", "q"), Message("assistant", "a")), source=PLACE)
    assert np.array_equal(example_of(chat, talk).rows[0].completion_T, chat.example(talk).rows[0].completion_T)
    assert example_of(chat, Document("a b", source=PLACE)).rows[0].length == document_example(chat, Document("a b")).rows[0].length


CALL = Message("assistant", tool_calls=(ToolCall("grow", {"rings": 12}),))


@pytest.mark.parametrize("name", ["chatml", "toolful", "headers", "brackets", "two-roles"])
def test_a_preference_is_the_rows_of_its_two_conversations(tmp_path: Path, name: str) -> None:
    chat = load(tmp_path, name)
    prompt = (Message("user", "1?"), Message("assistant", "one"), Message("user", "2?"))
    answers = (Message("assistant", "two"),), (CALL if name == "toolful" else Message("assistant", "the sap"),)
    tools = ({"type": "function", "function": {"name": "grow", "parameters": {}}},) if name == "toolful" else ()
    found = preference_example(chat, Preference(prompt, *answers, tools, meta={"rater": 7}, source=PLACE))
    assert (found.source, found.meta, len(found.rows)) == (PLACE, {"rater": 7}, 2)
    for row, answer in zip(found.rows, answers, strict=True):
        expected = chat.example(Conversation((*prompt, *answer), tools), last_turn_only=True).rows[0]
        assert row.prompt_T.tolist() == expected.prompt_T.tolist()
        assert row.completion_T.tolist() == expected.completion_T.tolist()
    assert found.rows[0].prompt_T.tolist() == found.rows[1].prompt_T.tolist()


def test_preferences_that_cannot_be_compared(tmp_path: Path) -> None:
    chat = load(tmp_path, "empty-thought")
    ask, plain = (Message("user", "q"),), (Message("assistant", "a"),)
    thought = (Message("assistant", "b", reasoning="hm"),)
    with pytest.raises(TemplateError, match=r"rows\.jsonl:3: the template gives the two answers different prompts"):
        preference_example(chat, Preference(ask, plain, thought, source=PLACE))
    two = (Message("assistant", "a"), Message("user", "and?"), Message("assistant", "b"))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the rejected answer is 3 turns; a preference compares one turn"):
        preference_example(chat, Preference(ask, plain, two, source=PLACE))
    with pytest.raises(DataError, match=r"rows\.jsonl:3, message 2: .* tokens .*This is the chosen answer"):
        preference_example(chat, Preference(ask, plain, plain, source=PLACE), context=3)


def test_no_control_token_of_the_folders_ends_documents_by_chance() -> None:
    """The tests above would prove nothing if the tiny tokenizers had a token that ends a text."""
    assert not {"<|endoftext|>", "</s>", "<eos>"} & {*SPECIALS, *json.loads(byte_level().to_str())["model"]["vocab"]}
