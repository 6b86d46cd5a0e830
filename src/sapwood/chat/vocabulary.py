"""The control tokens of a template that is given to a model: those the tokenizer lacks are added to it.

In: a model folder's values and the template's source. Out: the same values with a tokenizer that knows every control string
of the template as one special token, and what was added. The same folder and template always give the same ids.
A new token takes, in this order: a row of the embedding behind the tokenizer's last id (many models are padded to a round
number), a reserved token of the tokenizer (`<|reserved_special_token_7|>`, `<unused7>`: it is renamed), a new row.
Left out on purpose: words. A template's `[INST]` or `User:` is text, as it was in pretraining.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from tokenizers import AddedToken, Tokenizer

from sapwood.chat.files import Folder
from sapwood.chat.tokens import Tokens
from sapwood.errors import TemplateError

_CONTROL = re.compile(r"<\|[^\s|<>{}'\"]{1,40}\|>|<｜[^\s｜<>{}'\"]{1,40}｜>|<(?:start|end)_of_turn>")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_RESERVED = re.compile(
    r"<\|(?:reserved(?:_special_token|_token_id)?|dummy|unused|extra)_?\d+\|>|<\|?(?:reserved_token_?|unused_?|SPECIAL_)\d+\|?>|\[unused\d+\]"
)


@dataclass(frozen=True)
class Extended:
    """A folder whose tokenizer knows the template's control strings."""

    folder: Folder
    new: Mapping[str, int]
    """Each string that became a token, and its id."""
    known: Mapping[str, int]
    """Control strings of the template that the tokenizer had before, and their ids."""
    renamed: Mapping[str, str]
    """New string → the reserved token whose id it took."""

    def notes(self, tokens: Tokens, turn_end: int | None) -> tuple[str, ...]:
        """What a person should know of what was added, and of where generation stops."""
        said = []
        if self.new:
            took = {token: f", was {old}" for token, old in self.renamed.items()}
            listed = ", ".join(f"{token} (id {number}{took.get(token, '')})" for token, number in self.new.items())
            several = len(self.new) > 1
            said.append(
                f"The tokenizer lacked {len(self.new)} control token{'s' * several} of the template: {listed}. "
                f"{'They are' if several else 'It is'} added, trained and saved with the result."
            )
        if turn_end is not None:
            said.append(
                f"Every turn ends in {tokens.token_of(turn_end)} (id {turn_end}); the files saved with the result name it to servers."
            )
        return tuple(said)


def control_strings(source: str) -> list[str]:
    """Strings of a template that look like control tokens (`<|im_end|>`, `<end_of_turn>`), in order of their first place."""
    return list(dict.fromkeys(_CONTROL.findall(_COMMENT.sub("", source))))


def extended(folder: Folder, source: str) -> Extended:
    """Add what the tokenizer lacks of the template `source`."""
    content = orjson.loads(orjson.dumps(folder.tokenizer))  # a copy: a Folder does not change
    added = {entry["content"]: entry for entry in content.setdefault("added_tokens", [])}
    wanted = control_strings(source)
    known = {token: int(added[token]["id"]) for token in wanted if token in added}
    missing = [token for token in wanted if token not in added]
    if not missing:
        return Extended(folder, {}, known, {})
    tokenizer = Tokenizer.from_str(orjson.dumps(content).decode())
    whole = [token for token in missing if tokenizer.token_to_id(token) is not None]  # in the vocabulary, but never matched whole
    lacking = [token for token in missing if token not in whole]
    used = 1 + max((int(number) for number in tokenizer.get_vocab(with_added_tokens=True).values()), default=-1)
    room = max(0, folder.rows - used) if folder.rows is not None else len(lacking)
    renamed = _rename(content, lacking[room:])
    _append(content, tokenizer, [*whole, *(token for token in lacking if token not in renamed)])
    ids = {entry["content"]: int(entry["id"]) for entry in content["added_tokens"]}
    known |= {token: ids[token] for token in whole}
    new = {token: ids[token] for token in lacking}
    return Extended(replace(folder, tokenizer=content), new, known, renamed)


def _rename(content: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    """Give reserved tokens, lowest id first, the names of `tokens`, as far as they go."""
    reserved = sorted(
        (entry for entry in content["added_tokens"] if _RESERVED.fullmatch(entry["content"])), key=lambda entry: int(entry["id"])
    )
    vocabulary = content.get("model", {}).get("vocab")
    renamed = {}
    for token, entry in zip(tokens, reserved, strict=False):
        old = entry["content"]
        renamed[token] = old
        entry |= {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        if isinstance(vocabulary, dict) and old in vocabulary:
            vocabulary[token] = vocabulary.pop(old)
        elif isinstance(vocabulary, list):  # Unigram: pairs of token and score
            content["model"]["vocab"] = vocabulary = [[token, score] if name == old else [name, score] for name, score in vocabulary]
    return renamed


def _append(content: dict[str, Any], tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Write `tokens` behind the added tokens of `tokenizer.json`, with the ids that the library gives them."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    taken = {int(entry["id"]) for entry in content["added_tokens"]}
    clashing = [token for token in tokens if tokenizer.token_to_id(token) in taken]
    if clashing:
        raise TemplateError(
            f"The tokenizer's ids have gaps, so {clashing[0]!r} of the template would get an id that another token has. Add the token to "
            "the tokenizer yourself, or choose a template without new tokens (`--template plain`)."
        )
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token in tokens:
        content["added_tokens"].append({"id": tokenizer.token_to_id(token), "content": token, **plain})
    content["added_tokens"].sort(key=lambda entry: int(entry["id"]))
