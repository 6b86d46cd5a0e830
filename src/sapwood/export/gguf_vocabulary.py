"""A tokenizer and its template as a GGUF file's metadata: tokens, merges, splitter, special ids, chat template.

In: a `Chat`, and the files that lie beside a merged model (`Chat.saved_files`). Out: a `Vocabulary`, and sentences about what
llama.cpp does otherwise. Which splitter llama.cpp has for a tokenizer is found from the steps of its pre-tokenizer, whose patterns
are compared letter for letter with those that llama.cpp says it implements (src/llama-vocab.cpp).
Left out on purpose: splitters that llama.cpp does not have, and vocabularies of single words or of unigrams: refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from sapwood.chat import Chat
from sapwood.errors import DataError, ExportError, TemplateError
from sapwood.records import Message

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_TEKKEN = _CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)

SPLITTERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("byte level, split",), False): "gpt-2",
    (("digits", "byte level, split"), False): "smollm",
    ((_QWEN2, "byte level"), False): "qwen2",
    ((_LLAMA3, "byte level"), True): "llama-bpe",
    ((_LLAMA3, "byte level"), False): "smaug-bpe",
    ((_TEKKEN, "byte level"), True): "tekken",
    ((_GPT4O, "byte level"), False): "gpt-4o",
    ((*_DEEPSEEK3, "byte level"), False): "deepseek-v3",
}
"""(steps of the pre-tokenizer, whether whole words of the vocabulary go before merges) → llama.cpp's name."""

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about text."""

    kind: str
    """`gpt2` for byte-level merges, `llama` for SentencePiece's."""
    splitter: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: Mapping[str, int]
    """bos, eos, eot, eom, unk, pad: ids."""
    add_bos: bool
    """Whether llama.cpp puts a BOS before a prompt; it takes the template's own away first."""
    add_space: bool | None
    templates: Mapping[str, str]
    unnamed_stops: tuple[int, ...]
    """Stop ids for which a GGUF file has no name left."""
    notes: tuple[str, ...]

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add all of it to a file's metadata."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.splitter)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        if self.add_space is not None:
            writer.add_add_space_prefix(self.add_space)
        writer.add_chat_template([{"name": name, "template": source} for name, source in self.templates.items()])


def vocabulary_of(chat: Chat, files: Mapping[str, bytes], rows: int) -> Vocabulary:
    """The vocabulary for a model of `rows` embedding rows. Raises `ExportError` for a tokenizer that llama.cpp does not have."""
    content, settings = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    model = content["model"]
    if model.get("type") != "BPE":
        raise _cannot(chat, f"its vocabulary is of the kind {model.get('type')!r}")
    as_sentences = _is_sentencepiece(content)
    splitter = "default" if as_sentences else _splitter(chat, content)
    tokens, types = _tokens(chat, content, rows, sentencepiece=as_sentences)
    special, unnamed = _special(chat, settings)
    notes = []
    bos = special.get("bos")
    writes_bos = bos is not None and _writes(chat, bos)
    if content.get("normalizer") and not as_sentences:
        notes.append(
            "llama.cpp does not bring text into Unicode's form NFC, as this tokenizer does: text in another form gets other tokens."
        )
    if chat.tokens.beginning and not writes_bos:
        notes.append("The template writes no BOS, so the file says that none is added, though the tokenizer adds one to bare text.")
    stripping = [entry["content"] for entry in content.get("added_tokens", ()) if entry.get("lstrip") or entry.get("rstrip")]
    if stripping:
        notes.append(f"White space beside {', '.join(map(repr, stripping[:5]))} is part of those tokens here, and may not be in llama.cpp.")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary(
        kind="llama" if as_sentences else "gpt2",
        splitter=splitter,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, merges) if as_sentences else None,
        merges=None if as_sentences else merges,
        special=special,
        add_bos=writes_bos and bool(chat.tokens.beginning),
        add_space=_adds_space(content) if as_sentences else None,
        templates={name: plain_jinja(source) for name, source in _templates(chat, files).items()},
        unnamed_stops=unnamed,
        notes=tuple(notes),
    )


def _cannot(chat: Chat, what: str) -> ExportError:
    return ExportError(
        f"{chat.folder}: {what}, which llama.cpp has no exact form of, or none that Sapwood knows. Export with `--as merged`, and try "
        "llama.cpp's own convert_hf_to_gguf.py on the folder."
    )


def _is_sentencepiece(content: Mapping[str, Any]) -> bool:
    """Llama 2's kind: spaces are ▁, and bytes stand in for letters that the vocabulary lacks."""
    normalizer = json.dumps(content.get("normalizer")) + json.dumps(content.get("pre_tokenizer"))
    return bool(content["model"].get("byte_fallback")) and json.dumps(_SPACE).strip('"') in normalizer


def _splitter(chat: Chat, content: Mapping[str, Any]) -> str:
    normalizer = content.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise _cannot(chat, f"its tokenizer normalises text by {normalizer.get('type')}")
    steps = _steps(content.get("pre_tokenizer"))
    found = SPLITTERS.get((steps, bool(content["model"].get("ignore_merges"))))
    if found is None:
        shown = "; ".join(step if len(step) <= 60 else step[:57] + "…" for step in steps)
        raise _cannot(chat, f"its tokenizer splits text by [{shown}]")
    return found


def _steps(pre: Any) -> tuple[str, ...]:
    """Each step of a pre-tokenizer by a name, or by its pattern."""
    if not isinstance(pre, dict):
        return ()
    kind = pre.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre["pretokenizers"] for step in _steps(part))
    if kind == "ByteLevel" and not pre.get("add_prefix_space"):
        return ("byte level, split" if pre.get("use_regex", True) else "byte level",)
    if kind == "Digits" and pre.get("individual_digits"):
        return ("digits",)
    if kind == "Split" and pre.get("behavior") == "Isolated" and not pre.get("invert") and "Regex" in pre.get("pattern", {}):
        return (str(pre["pattern"]["Regex"]),)
    return (json.dumps(pre, sort_keys=True),)


def _tokens(chat: Chat, content: Mapping[str, Any], rows: int, *, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """A string and a type for each row of the embedding; rows without a token are fillers that no text becomes."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    added = {int(entry["id"]): entry for entry in content.get("added_tokens", ())}
    named = {**{int(number): str(token) for token, number in content["model"]["vocab"].items()}}
    if max([*named, *added]) >= rows:
        raise ExportError(f"{chat.folder}: the tokenizer has ids up to {max([*named, *added])}, but the model has {rows} embedding rows.")
    unknown = content["model"].get("unk_token")
    for number, token in named.items():
        tokens[number], types[number] = token, int(gguf.TokenType.NORMAL)
        if sentencepiece and _BYTE.fullmatch(token):
            types[number] = int(gguf.TokenType.BYTE)
        elif sentencepiece and token == unknown:
            types[number] = int(gguf.TokenType.UNKNOWN)
    for number, entry in added.items():
        control = entry.get("special") or number in chat.stop_ids
        tokens[number] = entry["content"] if control else entry["content"].replace(_SPACE, " ") if sentencepiece else entry["content"]
        if not (sentencepiece and entry["content"] == unknown):
            types[number] = int(gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED)
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece joins the pair with the best score first; here, by the order of the merges. What no merge makes comes last."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        rank.setdefault(left + right, number)
    return [-float(rank[token]) if token in rank else -1e6 for token in tokens]


def _adds_space(content: Mapping[str, Any]) -> bool:
    """Does the tokenizer put a space before a text?"""
    written = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return '"Prepend"' in written or '"prepend_scheme": "always"' in written or '"prepend_scheme": "first"' in written


def _special(chat: Chat, settings: Mapping[str, Any]) -> tuple[dict[str, int], tuple[int, ...]]:
    """Special ids by their names in a GGUF file, and stop ids that no name is left for.

    `eos` is what templates call `eos_token`, `eot` what ends a turn, `eom` one more.
    """
    found: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = chat.tokens.id_of(token) if isinstance(token, str) else None
        if number is not None:
            found[name] = number
    if chat.turn_end is not None:
        found.setdefault("eos", chat.turn_end)
        found["eot"] = chat.turn_end
    left = sorted(set(chat.stop_ids) - set(found.values()))
    if left:
        found["eom"] = left.pop(0)
    return found, tuple(left)


def _writes(chat: Chat, bos: int) -> bool:
    """Does the template begin a prompt with this token?"""
    try:
        return chat.prompt([Message("user", "a")]).ids[:1] == (bos,)
    except (TemplateError, DataError):
        return False


def _templates(chat: Chat, files: Mapping[str, bytes]) -> dict[str, str]:
    sources = {"default": files["chat_template.jinja"].decode() if "chat_template.jinja" in files else chat.template}
    others = [source for source in chat.template_sources if source != chat.template]
    return sources | ({"tool_use": others[0]} if others else {})


def plain_jinja(source: str) -> str:
    """The template without `{% generation %}` marks, which not every engine knows; what it renders stays the same."""
    return _GENERATION.sub(lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", source)
