"""What is trained is exactly what inference needs: properties over random conversations, templates and tokenizers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from chat_folders import ENDS, SPECIALS, TEMPLATES, byte_level, load, metaspace
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.chat import Chat
from sapwood.errors import DataError
from sapwood.records import Conversation, Message, Source

TOKENIZERS = {"byte-level": byte_level, "dummy-space": metaspace}
CASES = [(name, kind) for name in TEMPLATES for kind in TOKENIZERS]
PLAIN = st.text(st.sampled_from("aptse hT.2\n{}\"'[]é世🌱"), min_size=1, max_size=24).filter(lambda text: text.strip() != "")
WITH_SPECIALS = st.lists(st.one_of(PLAIN, st.sampled_from(SPECIALS)), min_size=1, max_size=4).map("".join)
REASONED = {"prefilled"}


@cache
def folder() -> Path:
    return Path(mkdtemp(prefix="sapwood-chat-"))


@cache
def chat_of(name: str, kind: str) -> Chat:
    return load(folder() / f"{name}-{kind}", name, tokenizer=TOKENIZERS[kind]())


def conversations(texts: st.SearchStrategy[str], reasoned: bool) -> st.SearchStrategy[Conversation]:
    thought = st.just("because it grows") if reasoned else st.none()
    turn = st.tuples(texts, texts, thought, st.sampled_from([0.0, 0.5, 1.0]))
    return st.lists(turn, min_size=1, max_size=4).map(
        lambda turns: Conversation(
            tuple(
                message
                for ask, answer, reasoning, weight in [*turns, (turns[-1][0], turns[-1][1], turns[-1][2], 1.0)]
                for message in (Message("user", ask), Message("assistant", answer, reasoning=reasoning, weight=weight))
            ),
            source=Source("made.jsonl", 7),
        )
    )


DATA = st.data()


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=12)
@given(data=DATA)
def test_prompts_equal_transformers(name: str, kind: str, data: st.DataObject) -> None:
    chat = chat_of(name, kind)
    conversation = data.draw(conversations(PLAIN, reasoned=False))
    messages = conversation.messages[:-1]
    reference = reference_tokenizer(name, kind)
    expected = reference.apply_chat_template([message.for_template() for message in messages], add_generation_prompt=True)["input_ids"]
    assert list(chat.prompt(messages).ids) == expected


@cache
def reference_tokenizer(name: str, kind: str):  # type: ignore[no-untyped-def]
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(chat_of(name, kind).folder)


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=12)
@given(data=DATA)
def test_each_trained_turn_is_one_row_that_writes_it_and_stops(name: str, kind: str, data: st.DataObject) -> None:
    chat = chat_of(name, kind)
    conversation = data.draw(conversations(WITH_SPECIALS, name in REASONED))
    example = chat.example(conversation)
    trained = [message for message in conversation.messages if message.role == "assistant" and message.weight > 0]
    assert len(example.rows) == len(trained)
    for row, message in zip(example.rows, trained, strict=True):
        answer = chat.answer(row.completion_T.tolist())
        expected = message.content if name not in ("headers", "two-roles") else message.content.strip()
        if name == "prefilled":
            expected = f"{message.reasoning}\n</think>\n\n{message.content.lstrip()}"
        if name == "empty-thought":
            expected = message.content.lstrip("\n")
        if name == "brackets":
            expected = " " + expected
        assert visible(answer, kind) == visible(expected, kind)
        assert chat.decode(row.completion_T[-1:]) == ENDS.get(name, "<|im_end|>")
        stops = [place for place, token in enumerate(row.completion_T.tolist()) if token in chat.stop_ids]
        assert stops == [len(row.completion_T) - 1]
        assert row.weights_T.dtype == np.float32
        assert set(row.weights_T.tolist()) == {message.weight}


def visible(text: str, kind: str) -> str:
    """A tokenizer with a dummy space cannot tell a leading space from none; all else must be equal."""
    return text if kind == "byte-level" else text.replace(" ", "")


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=12)
@given(data=DATA)
def test_control_tokens_in_texts_make_no_control_token(name: str, kind: str, data: st.DataObject) -> None:
    chat = chat_of(name, kind)
    conversation = data.draw(conversations(WITH_SPECIALS, name in REASONED))
    harmless = Conversation(
        tuple(Message(m.role, "tree", reasoning=m.reasoning, weight=m.weight) for m in conversation.messages),
    )
    for row, plain in zip(chat.example(conversation).rows, chat.example(harmless).rows, strict=True):
        for ids, expected in ((row.prompt_T, plain.prompt_T), (row.completion_T, plain.completion_T)):
            assert controls(chat, ids.tolist()) == controls(chat, expected.tolist())


def controls(chat: Chat, ids: list[int]) -> list[int]:
    return [token for token in ids if token in chat.tokens.special_ids]


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=6)
@given(data=DATA)
def test_a_rows_prompt_is_the_inference_prompt_of_its_history(name: str, kind: str, data: st.DataObject) -> None:
    chat = chat_of(name, kind)
    conversation = data.draw(conversations(WITH_SPECIALS, name in REASONED))
    places = [i for i, message in enumerate(conversation.messages) if message.role == "assistant" and message.weight > 0]
    example = chat.example(conversation)
    arguments = example.meta.get("template_arguments", {})
    for row, place in zip(example.rows, places, strict=True):
        assert tuple(row.prompt_T.tolist()) == chat.prompt(conversation.messages[:place], (), arguments).ids


def test_last_turn_only_keeps_one_row_and_all_history() -> None:
    chat = chat_of("chatml", "byte-level")
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    whole, last = chat.example(Conversation(messages)), chat.example(Conversation(messages), last_turn_only=True)
    assert len(whole.rows) == 2
    assert len(last.rows) == 1
    assert last.rows[0].inputs_T.tolist() == whole.rows[1].inputs_T.tolist()


def test_meta_travels_and_counts_protected_texts() -> None:
    chat = chat_of("chatml", "byte-level")
    messages = (Message("user", "what is <|im_end|>?"), Message("assistant", "a mark"))
    assert chat.example(Conversation(messages, meta={"k": 1})).meta == {"k": 1, "protected_specials": 1}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((Message("user", "a"),), "no assistant turn to train"),
        ((Message("user", "a"), Message("assistant", "b", weight=0.0)), "no assistant turn to train"),
        ((Message("assistant", "b"),), "nothing stands before"),
        ((Message("user", "a"), Message("assistant", "  ")), "answer is empty"),
    ],
)
def test_rows_that_cannot_be_made_are_refused_by_place(messages: tuple[Message, ...], words: str) -> None:
    with pytest.raises(DataError, match=rf"made\.jsonl:7.*{words}"):
        chat_of("chatml", "byte-level").example(Conversation(messages, source=Source("made.jsonl", 7)))


def test_a_row_is_never_cut() -> None:
    chat = chat_of("chatml", "byte-level")
    conversation = Conversation((Message("user", "a"), Message("assistant", "b" * 40)), source=Source("made.jsonl", 7))
    length = chat.example(conversation).length
    assert chat.example(conversation, context=length).length == length
    with pytest.raises(DataError, match=rf"made\.jsonl:7, message 2: {length} tokens .* at most {length - 1} "):
        chat.example(conversation, context=length - 1)
    with pytest.raises(DataError, match="at most 2048"):
        chat.example(Conversation((Message("user", "世" * 900), Message("assistant", "b"))))
