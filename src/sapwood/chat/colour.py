"""Rows as a person sees them: what is only read is dim, what is trained stands on green.

In: an example's rows and the chat that made them. Out: a `rich` text that wraps in any width. Neighbouring tokens differ a
little in shade, so that their borders show; a line end is an arrow and a new line; control letters appear as pictures, so
that data cannot steer a terminal. Without colours trained tokens stand in brackets, one pair each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from sapwood.chat.chat import Chat
from sapwood.chat.tokens import StreamDecoder
from sapwood.records import Example, Row

READ = ("dim", "dim italic")
TRAINED = ("black on green3", "black on green4")
CONTROL = " bold"
"""Added to the style of control tokens."""


def coloured(example: Example, chat: Chat, *, colour: bool = True) -> Text:
    """All rows of an example, each below a line that counts its tokens. A completion token of weight 0 counts as read.

    What a row begins with like the row before it is not shown again: it is computed once, too.
    """
    text = Text()
    before: list[int] = []
    for number, row in enumerate(example.rows, 1):
        trained = int((row.weights_T > 0).sum())
        ids = [*row.prompt_T.tolist(), *row.completion_T.tolist()]
        pairs = zip(before, ids[: len(row.prompt_T)], strict=False)
        shared = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(before), len(row.prompt_T)))
        heading = f"{example.where}, row {number} of {len(example.rows)}: {row.length - trained} tokens read, {trained} trained"
        text.append(heading + "\n", style="bold" if colour else "")
        if shared:
            text.append(f"… {shared} tokens as in row {number - 1} …\n", style="dim" if colour else "")
        text.append_text(_row(row, chat, colour, shared))
        text.append("\n")
        before = ids
    return text


def _row(row: Row, chat: Chat, colour: bool, begin: int) -> Text:
    """The tokens of a row from place `begin` on."""
    text = Text()
    weights = ([0.0] * len(row.prompt_T) + row.weights_T.tolist())[begin:]
    ids = [*row.prompt_T.tolist(), *row.completion_T.tolist()][begin:]
    for place, (shown, group) in enumerate(letters(chat, ids, [weight > 0 for weight in weights])):
        trained = weights[group[-1]] > 0
        piece = visible(shown)
        if not colour:
            text.append(f"[{piece}]" if trained else piece)
            continue
        control = ids[group[-1]] in chat.tokens.special_ids
        text.append(piece, style=(TRAINED if trained else READ)[place % 2] + (CONTROL if control else ""))
    return text


def letters(chat: Chat, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[tuple[str, list[int]]]:
    """(text, places) of the smallest groups of tokens that make whole letters; no group is both read and trained."""
    decoder = StreamDecoder(chat.tokens)
    group: list[int] = []
    for place, token in enumerate(ids):
        group.append(place)
        shown = decoder.push(token)
        last = place + 1 == len(ids) or trained[place + 1] != trained[place]
        if last:
            shown += decoder.finish()
            decoder = StreamDecoder(chat.tokens)
        if shown or last:
            yield shown, group
            group = []


UNPRINTABLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
UNPRINTABLE |= dict.fromkeys([*range(128, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
"""For `str.translate`: text out of data must not move a terminal's cursor, colour it, or turn its reading direction."""


def visible(text: str) -> str:
    """Control letters as pictures, and an arrow before each line end."""
    return text.translate(UNPRINTABLE | {ord("\t"): "\u2409"}).replace("\n", "⏎\n")
