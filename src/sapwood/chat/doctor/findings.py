"""What a person should know about a tokenizer and about where generation stops.

In: a `Chat`. Out: `Finding`s. Probes are short texts of our own, encoded and decoded; files are only read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sapwood.chat.builtin import begins_with_bos
from sapwood.chat.chat import Chat
from sapwood.chat.doctor.row_checks import Severity
from sapwood.chat.files import misnamed_class, read_json
from sapwood.chat.probes import ASK
from sapwood.errors import TemplateError

SAMPLES = {
    "letters": "The quick brown fox jumps over the lazy dog; THE QUICK BROWN FOX.",
    "digits": "1234567890 3.14159 12:05",
    "emoji": "🌱🌲👩‍🌾 ok",
    "Chinese, Japanese, Korean": "树木 木材 나무",
    "leading spaces": "    indented\n\tcode",
    "double spaces and line ends": "one  two\n\n\nthree \n",
    "accents": "Ça va, naïve Übergröße?",
    "code": "def f(x): return {'a': [1, 2], \"b\": x**2}  # !?",
}
_DATE = re.compile(r"\b(?:\d{1,2} [A-Z][a-z]{2,8} 20\d\d|20\d\d-\d\d-\d\d|[A-Z][a-z]{2,8} \d{1,2}, 20\d\d)\b")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `problem` stands in the way of training; a `note` is worth knowing; `ok` was checked.

    `kind` is a stable word for what was looked at, the same for every template.
    """

    severity: Severity
    sentence: str
    next_step: str = ""
    kind: str = ""


def stop_findings(chat: Chat) -> Iterator[Finding]:
    """The token that ends a turn, and who else would stop at it. A template without one is a fault, told elsewhere."""
    names = ", ".join(sorted(repr(chat.tokens.token_of(stop)) for stop in chat.stop_ids))
    if chat.turn_end is not None:
        end = chat.tokens.token_of(chat.turn_end)
        yield Finding("ok", f"Assistant turns end in {end!r} (id {chat.turn_end}); generation stops at {names}.", kind="stops")
    for note in chat.notes:
        yield Finding("note", note, kind="stops-elsewhere")
    pad, eos = chat.special_tokens.get("pad_token"), chat.special_tokens.get("eos_token")
    if pad is not None and pad == eos:
        sentence = f"The padding token is the end token ({pad!r}); that is harmless here, since nothing is masked by token."
        yield Finding("ok", sentence, kind="pad")


def tokenizer_findings(chat: Chat) -> Iterator[Finding]:
    """BOS, round trip, what other libraries would make of the files, context length."""
    yield from _bos(chat)
    lost = [name for name, text in SAMPLES.items() if chat.decode(chat.tokens.encode(text)) != text]
    if lost:
        shown = SAMPLES[lost[0]]
        sentence = (
            f"The tokenizer does not give these texts back unchanged: {', '.join(lost)}. {shown!r} becomes "
            f"{chat.decode(chat.tokens.encode(shown))!r}."
        )
        yield Finding("note", sentence, "Expect the model to blur them.", kind="round-trip")
    else:
        yield Finding("ok", f"The tokenizer gives texts back unchanged ({', '.join(SAMPLES)}).", kind="round-trip")
    yield from _elsewhere(chat)
    yield from _sampling(chat)
    if chat.context_length is None:
        yield Finding("note", "The model's files do not say how long a context may be.", "Set the longest row yourself.", kind="context")
    else:
        yield Finding("ok", f"The context holds {chat.context_length:,} tokens.", kind="context")


def date_findings(prompt: str) -> Iterator[Finding]:
    """`prompt` is the rendering of a question that holds no date."""
    date = _DATE.search(prompt)
    if date:
        yield Finding(
            "note",
            f"The template writes a date into every prompt: {date[0]!r}.",
            "A run keeps the day on which it began; servers write their own. Train on texts that do not depend on it.",
            kind="date",
        )


def _bos(chat: Chat) -> Iterator[Finding]:
    bos = chat.special_tokens.get("bos_token")
    try:
        prompt = chat.prompt([ASK], where="a probe").text
    except TemplateError:
        return
    written = bos is not None and prompt.startswith(bos)
    if bos is not None and written and begins_with_bos(chat.folder):
        yield Finding(
            "note",
            f"The template writes {bos!r}, and the tokenizer puts it before every text by itself: code that renders first and tokenises "
            "with default settings gets it twice. Sapwood adds none.",
            "Elsewhere, pass add_special_tokens=False, or use apply_chat_template(tokenize=True).",
            kind="bos",
        )
    elif bos is not None and not written and begins_with_bos(chat.folder):
        yield Finding(
            "note",
            f"The tokenizer puts {bos!r} before every text by itself, but the template does not write it: prompts have none, here as with "
            "apply_chat_template(tokenize=True). Code that renders first and tokenises then would add it.",
            kind="bos",
        )
    else:
        first = f"begins with {bos!r}, once" if written else "begins as the template writes it"
        yield Finding("ok", f"The prompt {first}; no token is added in front, so none is doubled.", kind="bos")


def _sampling(chat: Chat) -> Iterator[Finding]:
    """What the model's makers sample with, where they say so: greedy answers of thinking models tend to go round in circles."""
    generation = read_json(chat.folder / "generation_config.json")
    options = {"temperature": "temperature", "top_p": "top-p"}
    given = {option: generation[name] for name, option in options.items() if isinstance(generation.get(name), int | float)}
    if generation.get("do_sample") and given:
        listed = " and ".join(f"{option.replace('-', '_')} {value}" for option, value in given.items())
        flags = " ".join(f"--{option} {value}" for option, value in given.items())
        sentence = (
            f"Its makers sample at {listed}. Here answers are greedy, so that they can be repeated; to talk to it: sapwood chat {flags}."
        )
        yield Finding("ok", sentence, kind="sampling")


def _elsewhere(chat: Chat) -> Iterator[Finding]:
    named = misnamed_class(read_json(chat.folder / "tokenizer_config.json"), read_json(chat.folder / "tokenizer.json"))
    if named is not None:
        yield Finding(
            "note",
            f"tokenizer_config.json names {named}, but tokenizer.json is a byte-level tokenizer. Some versions of transformers 5 trust the "
            "name and lose every space ('hello world' becomes 'helloworld'). Sapwood reads tokenizer.json itself, so rows here are right.",
            "For servers built on transformers, set `tokenizer_class` to `PreTrainedTokenizerFast` there; files saved with a result do.",
            kind="tokenizer-class",
        )
