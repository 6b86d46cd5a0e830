"""Messages → HTML that is safe to show: Markdown, code, tables, tool calls, images, long documents.

In: a stored message, which may hold anything. Out: `Markup` from which every tag and attribute that is not on a list is gone. Two locks
stand one behind the other: markdown-it takes no HTML, and nh3 lets nothing else through. Nothing is loaded from elsewhere: an image in the
web is its address in words; one that stands in the text or lies on this machine is shown. Left out on purpose: LaTeX, colours of code.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nh3
import orjson
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from sapwood.chat.colour import UNPRINTABLE
from sapwood.review.masking import Mask

LONG = 6000
"""Letters from which a text is folded."""
LONGEST = 400_000
"""Letters that are rendered; what lies behind is counted."""
MOST_IMAGE = 4 * 2**20
"""Letters of an image that stands in the text."""

_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES: dict[str, set[str]] = {"a": {"href"}, "span": {"class"}, "ol": {"start"}, "th": {"class"}, "td": {"class"}}
_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+\Z")
_ALIGNED = {"text-align:left": "left", "text-align:center": "center", "text-align:right": "right"}

MediaLink = Callable[[int], str | None]
"""The number of a medium in its message → an address of ours that gives it, None where it is not to be had."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, ready for a page."""

    role: str
    body: Markup
    plain: str
    """The text as it was written, names covered: for comparing."""
    calls: tuple[Call, ...] = ()
    reasoning: Markup | None = None
    long: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: tuple[tuple[str, str], ...]
    """Each argument with its value as JSON or text."""


def no_media(number: int) -> str | None:
    """No medium is to be had."""
    return None


def turns_of(messages: Sequence[Mapping[str, Any]], mask: Mask, link: Callable[[int, int], str | None]) -> list[Turn]:
    """Every message; `link` gives an address for medium n of message m."""
    return [turn_of(message, mask, functools.partial(link, m)) for m, message in enumerate(messages)]


def turn_of(message: Mapping[str, Any], mask: Mask, link: MediaLink = no_media) -> Turn:
    """One message. Texts of tools are shown as they are, everything else as Markdown."""
    role = str(message.get("role", "assistant"))
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    pieces, number = [], 0
    for part in parts:
        if part.get("type") == "text":
            text = _clean(mask(str(part.get("text", ""))))
            pieces.append(_data(text) if role == "tool" else markdown(text))
        else:
            pieces.append(_medium(part, number, link, mask))
            number += 1
    plain = _clean(mask("".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")))
    reasoning = message.get("reasoning_content")
    return Turn(
        role=role,
        body=Markup("").join(pieces),
        plain=plain,
        calls=tuple(_call(call, mask) for call in message.get("tool_calls") or ()),
        reasoning=markdown(_clean(mask(str(reasoning)))) if reasoning else None,
        long=len(plain) > LONG,
    )


def markdown(text: str) -> Markup:
    """Markdown (CommonMark, tables, strike-through) as HTML; HTML in it is text."""
    shown = text[:LONGEST]
    html = nh3.clean(
        _MARKDOWN.render(shown),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_leads_out,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}},
    )
    more = f'<p><span class="cut">{len(text) - LONGEST:,} more letters are not shown.</span></p>' if len(text) > LONGEST else ""
    return Markup(html + more)


def _leads_out(tag: str, attribute: str, value: str) -> str | None:
    """A link's address where it is whole: one that is relative would lead into the application."""
    return value if attribute != "href" or value.lower().startswith(("http://", "https://", "mailto:")) else None


def _make_markdown() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": 40}).enable(["table", "strikethrough"])

    def image(self: Any, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
        token = tokens[place]
        words = escape(token.content or "image")
        return f'<span class="image">{words} <code>{escape(str(token.attrs.get("src", "")))}</code> (not loaded)</span>'

    def cell(self: Any, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
        token = tokens[place]
        side = _ALIGNED.get(str(token.attrs.pop("style", "")))
        return f'<{token.tag} class="{side}">' if side else f"<{token.tag}>"

    reader.add_render_rule("image", image)
    reader.add_render_rule("th_open", cell)
    reader.add_render_rule("td_open", cell)
    return reader


_MARKDOWN = _make_markdown()


def _clean(text: str) -> str:
    """Without letters that would turn its direction or hide in it."""
    return text.translate(UNPRINTABLE)


def _data(text: str) -> Markup:
    """What a tool gave back: JSON is set out, anything else is as it is."""
    with contextlib.suppress(orjson.JSONDecodeError):
        text = orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    return Markup('<pre tabindex="0"><code>{}</code></pre>').format(text[:LONGEST])


def _call(call: Mapping[str, Any], mask: Mask) -> Call:
    function = call.get("function", call)
    arguments = function.get("arguments")
    called = _clean(mask(str(function.get("name", ""))))
    if not isinstance(arguments, Mapping):
        return Call(called, (("", _clean(mask(str(arguments)))),) if arguments else ())
    shown = [
        (str(name), value if isinstance(value, str) else orjson.dumps(value, default=str).decode()) for name, value in arguments.items()
    ]
    return Call(called, tuple((_clean(mask(name)), _clean(mask(value))) for name, value in shown))


def _medium(part: Mapping[str, Any], number: int, link: MediaLink, mask: Mask) -> Markup:
    """An image, where it is here; else a word on what there is."""
    uri, kind = str(part.get("uri") or ""), str(part.get("type", "medium"))
    if len(uri) <= MOST_IMAGE and _IMAGE.match(uri):
        return Markup('<figure><img src="{}" alt="image {} of this message"></figure>').format(uri, number + 1)
    address = link(number) if kind == "image" else None
    if address is not None:
        return Markup('<figure><img src="{}" alt="image {} of this message" loading="lazy"></figure>').format(address, number + 1)
    return Markup('<p><span class="image">{} <code>{}</code> (not shown)</span></p>').format(kind, _clean(mask(uri[:200])))
