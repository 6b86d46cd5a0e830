"""Remembered words give the very ids of the tokenizer, for every text and kind of tokenizer, or say that they cannot."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_conversations import FEATURES, random_conversation
from template_families import folder, templates
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from sapwood.chat import Chat
from sapwood.chat import words as words_module
from sapwood.chat.words import Words
from sapwood.errors import SapwoodError
from sapwood.records import Conversation

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


KINDS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama3": split_by(LLAMA_3),
    "qwen": split_by(QWEN),
    "o200k": split_by(O200K),
}
TEXTS = [
    "Where does sapwood grow? Right below the bark, in 12 rings.",
    "it's the sap'S rise\n\n in 2026 …",
    "木材は naïve “Größe” ３²",
    "  a\r\n b\t",
]


@cache
def tokenizer(kind: str, *, normalizer: bool = False) -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = KINDS[kind]
    if normalizer:
        found.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    found.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", "<|im_end|>", "<|im_end|>x")])
    found.add_tokens([AddedToken("<think>", normalized=False)])
    return found


@cache
def remembered(kind: str, *, normalizer: bool = False) -> Words:
    found = tokenizer(kind, normalizer=normalizer)
    return Words(found, json.loads(found.to_str()))


PIECES = st.one_of(
    st.sampled_from(
        [*TEXTS, "<|im_start|>", "<|im_end|>", "<|im_end|>x", "<think>", "<|im_", "e\u0301", "\u1680", "\u180e", "👩‍🌾", "\U00010400"]
    ),
    st.text(max_size=12),
    st.text(st.characters(max_codepoint=127), max_size=12),
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from(sorted(KINDS)), st.booleans())
def test_words_are_read_as_the_tokenizer_reads_them(text: str, kind: str, normalizer: bool) -> None:
    found = remembered(kind, normalizer=normalizer).ids(text)
    assert found is None or found == tokenizer(kind, normalizer=normalizer).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_usual_texts_are_served(kind: str) -> None:
    whole = "<|im_start|>user\n".join([*TEXTS, "🌱 <think>"])
    for _ in range(2):  # read, then remembered
        assert remembered(kind).ids(whole) == tokenizer(kind).encode(whole, add_special_tokens=False).ids


def test_every_letter_of_the_basic_plane_is_read_alike_or_left_alone() -> None:
    letters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    random.Random(0).shuffle(letters)
    for kind in ("gpt2", "llama3"):
        read = [(text, remembered(kind).ids(text)) for letter in letters for text in [f"a{letter} {letter}1"]]
        served = [(text, ids) for text, ids in read if ids is not None]
        assert len(served) > 40_000
        expected = tokenizer(kind).encode_batch([text for text, _ in served], add_special_tokens=False)
        assert [ids for _, ids in served] == [one.ids for one in expected]


def test_what_is_not_known_is_left_to_the_tokenizer() -> None:
    content = json.loads(tokenizer("gpt2").to_str())
    for change in (
        {"model": {**content["model"], "dropout": 0.1}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"added_tokens": [{**content["added_tokens"][0], "lstrip": True}, *content["added_tokens"][1:]]},
        {"added_tokens": [{**content["added_tokens"][0], "normalized": True}, *content["added_tokens"][1:]]},
    ):
        assert Words(Tokenizer.from_str(json.dumps({**content, **change})), {**content, **change}).ids("a word") is None, change
    lying = {**content, "pre_tokenizer": json.loads(tokenizer("llama3").to_str())["pre_tokenizer"]}
    assert Words(tokenizer("gpt2"), lying).ids("a word") is None, "the trials find out"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "MOST_WORDS", 50)
    monkeypatch.setattr(words_module, "MOST_LETTERS", 200)
    words = Words(tokenizer("gpt2"), json.loads(tokenizer("gpt2").to_str()))
    for number in range(300):
        text = f"word{number} and number {number}"
        assert words.ids(text) == tokenizer("gpt2").encode(text, add_special_tokens=False).ids
        assert len(words._ids) <= 50
        assert sum(map(len, words._parts)) <= 200


@pytest.mark.parametrize("name", sorted(templates()))
def test_rows_are_the_same_with_and_without(name: str) -> None:
    """Every template at hand, with its own control tokens: the ids of prompts and completions, and what is refused."""
    chat = Chat.load(folder(name))
    controls = sorted(chat.tokens.control_ids)[:3]
    made = [random_conversation(seed, sorted(FEATURES) if seed % 2 else ["plain", "system"], controls) for seed in range(4)]
    fast = [rows(chat, conversation) for conversation in made]
    chat.tokens.__dict__["_words"] = Nothing()
    chat._steps.open = False
    assert fast == [rows(chat, conversation) for conversation in made]


class Nothing:
    """Remembers nothing, so the tokenizer is asked each time."""

    def ids(self, text: str) -> None:
        return None

    def ids_of_each(self, texts: Sequence[str]) -> list[None]:
        return [None] * len(texts)


def rows(chat: Chat, conversation: Conversation) -> object:
    try:
        return [(row.prompt_T.tolist(), row.completion_T.tolist()) for row in chat.example(conversation).rows]
    except SapwoodError as error:
        return str(error)
