"""Text ⇄ tokens: shields, streams, and tokenizers that put a space in front."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from chat_folders import SPECIALS, byte_level, load, metaspace
from hypothesis import given
from hypothesis import strategies as st

from sapwood.chat import Chat, StreamDecoder
from sapwood.chat.shield import Shield
from sapwood.chat.tokens import Tokens
from sapwood.records import Message

LETTERS = st.text(st.sampled_from("aptse hT\n\ue000\U000f0000\U000f0001é世🌱"), max_size=20)
TEXTS = st.lists(st.one_of(LETTERS, st.sampled_from(SPECIALS)), max_size=6).map("".join)


@cache
def tokens_of(kind: str) -> Tokens:
    import json

    return Tokens(json.loads({"byte-level": byte_level, "dummy-space": metaspace}[kind]().to_str()))


@given(TEXTS)
def test_covering_loses_nothing_and_hides_every_control_token(text: str) -> None:
    shield = Shield(SPECIALS)
    covered = shield.cover(text)
    assert shield.reveal(covered) == text
    assert "".join(piece for piece, _ in shield.pieces(covered)) == text
    assert not any(special in covered for special in SPECIALS)
    assert shield.count(covered) == 0


def test_thought_tags_stay_visible_in_an_assistants_own_turn_only() -> None:
    shield = Shield(["<think>", "<|im_end|>"])
    assert shield.cover_message(Message("assistant", "<think>"), ["<think>"]).content == "<think>"
    assert shield.cover_message(Message("user", "<think>"), ["<think>"]).content != "<think>"


@given(TEXTS)
def test_covered_text_survives_a_byte_level_tokenizer(text: str) -> None:
    tokens = tokens_of("byte-level")
    ids = tokens.encode(tokens.shield.cover(text))
    assert tokens.decode(ids) == text
    assert tokens.special_ids.isdisjoint(ids)


@given(TEXTS)
def test_covered_text_gains_no_space_in_the_middle(text: str) -> None:
    tokens = tokens_of("dummy-space")
    ids = tokens.encode(tokens.shield.cover("Tree" + text))
    assert tokens.decode(ids) == "Tree" + text
    assert tokens.special_ids.isdisjoint(ids)


@pytest.mark.parametrize("kind", ["byte-level", "dummy-space"])
@given(data=st.data())
def test_a_stream_joins_to_the_whole_and_shows_no_half_letter(kind: str, data: st.DataObject) -> None:
    tokens = tokens_of(kind)
    ids = tokens.encode(data.draw(TEXTS))
    decoder = StreamDecoder(tokens)
    pieces = [decoder.push(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + decoder.finish() == tokens.decode(ids)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_a_stream_of_broken_bytes_joins_to_the_whole(ids: list[int]) -> None:
    tokens = tokens_of("byte-level")
    decoder = StreamDecoder(tokens)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokens.decode(ids)


def test_a_dummy_space_is_found() -> None:
    assert tokens_of("dummy-space").dummy_space
    assert not tokens_of("byte-level").dummy_space


def test_a_completion_continues_a_dummy_space_prompt_as_the_whole_does(tmp_path: Path) -> None:
    chat: Chat = load(tmp_path, "brackets", tokenizer=metaspace())
    prompt = chat.prompt([Message("user", "the sap")])
    whole = chat.tokens.encode(prompt.text + " the sap<|eos|>")
    assert [*prompt.ids, *chat.tokens.continuation(prompt.text, prompt.ids, " the sap<|eos|>")] == whole
    assert len(whole) - len(prompt.ids) == 3  # "▁the", "▁sap", the end: no lone space in front


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    import json

    tokenizer = byte_level()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=16)
    assert len(Tokens(json.loads(tokenizer.to_str())).encode("x" * 9)) == 9


def test_stop_ids_give_no_text_in_a_stream(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    stream = chat.stream()
    ids = chat.tokens.encode("sap<|im_end|>")
    assert "".join(map(stream.push, ids)) + stream.finish() == "sap" == chat.answer(ids)
