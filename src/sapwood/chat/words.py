"""Text → ids by remembering words, for tokenizers that read each word by itself: several times faster than reading it anew.

A byte-level BPE cuts a text at its added tokens, then into words by one regular expression, and encodes each word without
looking at the others. So words that were met before need no second look. In: the tokenizer and its `tokenizer.json`. Out: the
very ids that the tokenizer gives, or None where only the tokenizer can say: other kinds of tokenizer, expressions that are
not known to translate, letters that are not in Unicode since long (what counts as a letter may then depend on the library's
age). An expression is tried on nasty texts at the start, against the tokenizer itself, and not used if it differs anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from random import Random
from typing import Any

from tokenizers import Tokenizer

MOST_WORDS = 200_000
"""Words remembered; then all are forgotten, which costs a moment and bounds the memory."""
MOST_LETTERS = 1_000_000
"""Of texts between added tokens that are remembered whole; then all of them are forgotten."""
_TRIALS = 400
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS_APART = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""GPT-2's expression behind a cut around every digit."""
_CLASS = re.compile(r"\\p\{(L|N|Lu|Ll|Lt|Lm|Lo|M)\}")
_UNKNOWN = re.compile(r"\\[pP]|\\[wWdDbBhHRX]|&&|\(\?<|\(\?>|[+*?}]\+")
"""What is not translated: other classes, look-behind, atomic groups, possessive repeats."""
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PICTURES = "\U0001f300-\U0001faff"
"""Emoji: neither letters nor numbers nor space, whatever a library knows of them."""
_NASTY = (
    *(
        "'s",
        "'LL",
        "'re",
        "'Ve",
        "'m",
        "'d",
        "'t",
        "'x",
        "ab",
        "Cd",
        "12",
        "3",
        "4567",
        "\r\n",
        "\n\n",
        "\t",
        "\x1c",
        ".",
        "..",
        "__",
        "()",
    ),
    *("é", "Ñ", "ß", "ж", "木材", "ー", "３", "²", "½", "“", "”", "—", "…", "\u0301", "\u200b", "🌱", "👩\u200d🌾", " ", "  ", "   "),
)


@cache
def _letters(kind: str) -> str:
    """The characters of a category, as a class of `re` holds them: those that have been in it since Unicode 3.2."""
    return _ranges(lambda letter: unicodedata.category(letter).startswith(kind))


@cache
def _stranger() -> re.Pattern[str]:
    """Finds a character whose category is not certain."""
    return re.compile(f"[^{_ranges(lambda _: True)}{_PICTURES}]")


def _ranges(wanted: Callable[[str], bool]) -> str:
    old = unicodedata.ucd_3_2_0.category
    found: list[str] = []
    first = -1
    for code in range(0x10001):
        letter = chr(code)
        # U+180E was a space and is none any more
        known = code < 0x10000 and code != 0x180E and old(letter) == unicodedata.category(letter) not in ("Cn", "Cs", "Co")
        if known and wanted(letter):
            first = code if first < 0 else first
        elif first >= 0:
            found.append(f"\\u{first:04x}-\\u{code - 1:04x}")
            first = -1
    return "".join(found)


class Words:
    """What is known of words so far."""

    def __init__(self, tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[int]] = {}
        self._letters = 0
        self._added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens", ())}
        self._form = (content.get("normalizer") or {}).get("type")
        self._cut = _cutting(content)
        self._word = None if self._cut is None else _word_expression(tokenizer, content)

    def ids(self, text: str) -> list[int] | None:
        """The ids of a text, added tokens in it included; None where only the tokenizer itself can say."""
        return self.ids_of_each([text])[0]

    @property
    def serves(self) -> bool:
        """Whether the tokenizer is one whose words can be remembered."""
        return self._cut is not None and self._word is not None

    def begins_in_added(self, text: str) -> bool:
        """Whether a text begins in an added token."""
        return self._cut is not None and self._cut.match(text) is not None

    def ids_of_each(self, texts: Sequence[str]) -> list[list[int] | None]:
        """`ids` of several texts, with one look at the words that are new in any of them."""
        if self._cut is None or self._word is None:
            return [None] * len(texts)
        split = [self._cut.split(text) if self._certain(text) else None for text in texts]
        known = self._read({part for parts in split if parts for part in parts[::2] if part}, self._word)
        return [None if parts is None else self._joined(parts, known) for parts in split]

    def _joined(self, parts: list[str], known: Mapping[str, list[int]]) -> list[int]:
        found: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                found.append(self._added[part])
            elif part:
                found += known[part]
        return found

    def _read(self, parts: set[str], word: re.Pattern[str]) -> dict[str, list[int]]:
        """The ids of texts between added tokens; remembered, because histories and system prompts come again."""
        known = {part: self._parts[part] for part in parts if part in self._parts}
        words = {part: word.findall(part) for part in parts if part not in known}
        try:
            new = {part: list(chain.from_iterable(map(self._ids.__getitem__, words[part]))) for part in words}
        except KeyError:
            self._learn([each for several in words.values() for each in several])
            new = {part: list(chain.from_iterable(map(self._ids.__getitem__, words[part]))) for part in words}
        self._letters += sum(map(len, new))
        if self._letters > MOST_LETTERS:
            self._parts.clear()
            self._letters = sum(map(len, new))
        self._parts |= new
        return known | new

    def _certain(self, text: str) -> bool:
        if text.isascii():
            return True
        return _stranger().search(text) is None and (self._form is None or unicodedata.is_normalized(self._form, text))

    def _learn(self, words: list[str]) -> None:
        """Remember the words that are new, and forget the others where there are too many."""
        new = [word for word in dict.fromkeys(words) if word not in self._ids]
        if len(self._ids) + len(new) > MOST_WORDS:
            self._ids.clear()
            new = list(dict.fromkeys(words))
        for word, encoding in zip(new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._ids[word] = tuple(encoding.ids)


def _cutting(content: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Where added tokens are cut out, the longest first; None where they take the space around them along, or match otherwise."""
    added = content.get("added_tokens", ())
    for token in added:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word") or not token["content"]:
            return None
        if token.get("normalized") and content.get("normalizer") is not None:
            return None
    if len({bool(token.get("normalized")) for token in added}) > 1:
        return None  # they are looked for in two rounds, of which this is one
    longest_first = sorted((str(token["content"]) for token in added), key=lambda text: (-len(text), text))
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _word_expression(tokenizer: Tokenizer, content: Mapping[str, Any]) -> re.Pattern[str] | None:
    """The expression that finds words in ASCII text, if the tokenizer has a known one and agrees with it on every trial."""
    model, normalizer = content.get("model", {}), content.get("normalizer")
    if model.get("type") != "BPE" or model.get("dropout") or (normalizer is not None and normalizer.get("type") not in ("NFC", "NFKC")):
        return None
    source = _source(content.get("pre_tokenizer") or {})
    if source is None:
        return None
    expression = re.compile(source)
    random = Random(0)
    pieces = [*map(chr, range(128)), *_NASTY, *_SPACES.replace("-", "")]
    for _ in range(_TRIALS):
        text = "".join(random.choices(pieces, k=random.randint(1, 12)))
        expected = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        if expression.findall(text) != expected:
            return None
    return expression


def _source(pre: Mapping[str, Any]) -> str | None:
    """The expression of a pre-tokenizer, as `re` reads it; None for one of another kind."""
    steps = list(pre["pretokenizers"]) if pre.get("type") == "Sequence" else [pre]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    if last.get("use_regex", True):
        if not before:
            return _translated(_GPT2)
        digits = len(before) == 1 and before[0].get("type") == "Digits" and before[0].get("individual_digits")
        return _translated(_DIGITS_APART) if digits else None
    if len(before) != 1 or before[0].get("type") != "Split" or before[0].get("behavior") != "Isolated" or before[0].get("invert"):
        return None
    pattern = before[0].get("pattern", {}).get("Regex")
    return None if pattern is None else _translated(pattern)


def _translated(pattern: str) -> str | None:
    """A pattern with Unicode classes as one for `re`, over the characters that are certain; None where that is not known."""
    if _UNKNOWN.search(_CLASS.sub("L", pattern)):
        return None
    found, inside, place = [], False, 0
    while place < len(pattern):
        match = _CLASS.match(pattern, place)
        pair = pattern[place : place + 2]
        if match:
            found.append(_letters(match[1]) if inside else f"[{_letters(match[1])}]")
            place = match.end()
        elif pair in (r"\s", r"\S"):
            if pair == r"\S" and inside:
                return None
            found.append(_SPACES if inside else f"[{_SPACES}]" if pair == r"\s" else f"[^{_SPACES}]")
            place += 2
        elif pair[0] == "\\":
            found.append(pair)
            place += 2
        else:
            inside = pair[0] == "[" if not inside else pair[0] != "]"
            found.append(pair[0])
            place += 1
    return "".join(found)
