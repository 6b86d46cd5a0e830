"""Images and sounds in rows, in all the spellings in use → `Media` with an address that can be read.

In: a part of a message (`{"type": "image_url", …}`), or a row's columns with the markers that stand for them in the text.
Out: `Media` at their places, their files found, decoded once and known by their bytes' hash; a `Refused` for what is
missing, broken, of another kind, or too many or too few. Left out on purpose: video; addresses in the web, unless asked for.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sapwood.assets.cache import cache_root
from sapwood.chat.media import CHECKS, MAX_BYTES, medium_bytes, require_library
from sapwood.data.refusal import Refused, kind_of, shown
from sapwood.errors import DataError, storage
from sapwood.records import Media, MediaKind, Message, Source

KIND_OF_PART: Mapping[str, MediaKind] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
"""Types of parts that hold media."""
COLUMNS: Mapping[MediaKind, tuple[str, ...]] = {"image": ("image", "images"), "audio": ("audio", "audios"), "video": ("video", "videos")}
"""Columns that hold media for the markers of a row."""
ANY_COLUMN = tuple(name for names in COLUMNS.values() for name in names)
MARKERS: Mapping[MediaKind, str] = {"image": "<image>", "audio": "<audio>", "video": "<video>"}
"""What LLaVA's kind of data writes into a text where a medium of the row's column belongs."""
HOLDS_MEDIA = "the row holds images or sounds: their files were found and decoded, or the row is refused"
"""The note of rows with media."""
_ENCODED = ("base64", "data", "bytes", "b64_json")
_ADDRESSED = ("url", "path", "uri", "file_path", "file_name")
_SECONDS = 30
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256,}={0,2}")
"""A text that is no path: bytes out of a table's column, as its reader writes them."""
_OTHER_SCHEME = re.compile(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.-]+://", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)


def part_media(part: Mapping[str, Any], at: int, turn: int) -> Media:
    """The medium of a part; its `uri` is empty where the part only marks a place. Raises `Refused`."""
    kind = KIND_OF_PART[part["type"]]
    where = f"turn {turn} ({part['type']})"
    if kind == "video":
        raise Refused(f"unsupported part: {where} is a video", "video is not supported yet; remove the row")
    keys = (part["type"], kind, f"{kind}_url", f"{kind}_path", f"{kind}_base64", "source", *_ADDRESSED, *_ENCODED)
    given = [key for key in dict.fromkeys(keys) if part.get(key) is not None]
    if len(given) > 1:
        raise Refused(f"broken media: {where} gives {' and '.join(f'`{key}`' for key in given)}", "keep one of them")
    return Media(kind, at, address(part[given[0]], kind, where, given[0]) if given else "")


def address(value: Any, kind: MediaKind, where: str, key: str = "") -> str:
    """One address out of a text, bytes, or an object with one of them. `key` is the name it stood under. Raises `Refused`."""
    fix = f'write a path, or {{"type": "{kind}", "url": …}} with data:…;base64,… or an address'
    if isinstance(value, bytes | bytearray):
        return f"data:{kind};base64,{base64.b64encode(value).decode()}"
    if isinstance(value, str) and value.strip():
        encoded = key in _ENCODED or key.endswith("_base64") or _BASE64.fullmatch(value.strip()) is not None
        return f"data:{kind};base64,{value.strip()}" if encoded and value[:5].lower() != "data:" else value.strip()
    if isinstance(value, Mapping):
        if value.get("array") is not None:
            raise Refused(f"broken media: {where} holds samples, not a file", "write the sound as a file (WAV or FLAC) and give its path")
        for name in (*_ENCODED, *_ADDRESSED):
            if value.get(name) is not None:
                return address(value[name], kind, where, name)
    raise Refused(f"broken media: {where} holds {kind_of(value)} without an address", fix)


def with_media(
    messages: Sequence[Message], row: Mapping[str, Any], source: Source, notes: Counter[str], *, allow_urls: bool = False
) -> list[Message]:
    """The messages with every medium of the row at its place, its file found and readable. Raises `Refused`.

    Places that parts only mark are filled from the row's columns in order, and so are markers in texts; media without any
    mark are put before the first user turn's text, which is noted. Numbers that do not match are refused.
    Raises `DataError` where a library for reading media is not installed.
    """
    columns = {kind: found for kind, names in COLUMNS.items() if (found := _column(row, names, kind))}
    if not columns and not any(message.media for message in messages):
        return list(messages)
    notes[HOLDS_MEDIA] += 1
    for name in (name for name in COLUMNS["video"] if row.get(name)):
        raise Refused(f"unsupported part: the row has `{name}`", "video is not supported yet; remove the row")
    placed = list(messages)
    for kind in MARKERS:
        placed = _filled(placed, columns.get(kind, []), kind, notes)
    folder = Path(source.file).parent
    return [
        dataclasses.replace(message, media=tuple(_found(medium, folder, f"turn {turn}", allow_urls) for medium in message.media))
        if message.media
        else message
        for turn, message in enumerate(placed, 1)
    ]


def _column(row: Mapping[str, Any], names: Sequence[str], kind: MediaKind) -> list[str]:
    given = [name for name in names if row.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise Refused(f"broken media: the row has both `{given[0]}` and `{given[1]}`", "keep one of the two")
    if not given:
        return []
    value = row[given[0]]
    entries = value if isinstance(value, list) else [value]
    return [address(entry, kind, f"`{given[0]}`", given[0]) for entry in entries]


def _filled(messages: list[Message], given: list[str], kind: MediaKind, notes: Counter[str]) -> list[Message]:
    """Messages with the addresses of one kind at their places."""
    _refuse_answers(messages)
    marked = sum(not medium.uri for message in messages for medium in message.media if medium.kind == kind)
    if given and not marked:
        messages = [_with_markers(message, kind) for message in messages]
        marked = sum(not medium.uri for message in messages for medium in message.media if medium.kind == kind)
        if not marked:
            first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
            if first is None:
                raise Refused(f"no place for media: the row has {len(given)} of kind {kind}, but no user turn", "add a user turn")
            notes[f"the row's {kind} has no place in the text: it is put before the first user turn's text"] += 1
            unplaced = tuple(Media(kind, 0, uri) for uri in given)
            messages[first] = dataclasses.replace(messages[first], media=unplaced + messages[first].media)
            return messages
    if marked != len(given):
        raise Refused(
            f"media do not match: the messages have {marked} place{'s' * (marked != 1)} for {kind}, the row's columns hold {len(given)}",
            f"give as many in `{COLUMNS[kind][1]}` as there are places, in their order",
        )
    _refuse_answers(messages)
    waiting = iter(given)
    return [
        dataclasses.replace(
            message,
            media=tuple(
                medium if medium.uri or medium.kind != kind else dataclasses.replace(medium, uri=next(waiting)) for medium in message.media
            ),
        )
        for message in messages
    ]


def _refuse_answers(messages: Sequence[Message]) -> None:
    for turn, message in enumerate(messages, 1):
        if message.role == "assistant" and message.media:
            raise Refused(f"media in an answer: turn {turn} (assistant) holds {message.media[0].kind}", "a model answers in text; move it")


def _with_markers(message: Message, kind: MediaKind) -> Message:
    """Markers in the text become places. A line break that only sets a marker apart at either end of the text goes with it."""
    if MARKERS[kind] not in message.content:
        return message
    pieces = message.content.split(MARKERS[kind])
    if not pieces[0]:
        first = next((place for place, piece in enumerate(pieces) if piece), len(pieces) - 1)
        pieces[first] = pieces[first].removeprefix("\n")
    if not pieces[-1]:
        last = next((place for place in range(len(pieces) - 1, -1, -1) if pieces[place]), 0)
        pieces[last] = pieces[last].removesuffix("\n")
    if message.media:
        raise Refused("broken media: a turn marks places both by parts and by markers in its text", "write all of them as parts")
    content, media = "", []
    for piece in pieces[:-1]:
        content += piece
        media.append(Media(kind, len(content), ""))
    content += pieces[-1]
    return dataclasses.replace(message, content=content, media=tuple(media))


def _found(medium: Media, folder: Path, where: str, allow_urls: bool) -> Media:
    """The medium with an address that can be read, and its hash. Raises `Refused`."""
    require_library(medium.kind)
    uri = medium.uri
    try:
        if _WEB.match(uri):
            if not allow_urls:
                raise Refused(
                    f"media in the web: {where} names {shown(uri)}", "pass --allow-urls to have such files fetched, or fetch them first"
                )
            uri = str(_fetched(uri))
        elif uri[:5].lower() != "data:" and not _OTHER_SCHEME.match(uri):
            path = Path(unquote(uri[7:]) if uri[:7].lower() == "file://" else uri).expanduser()
            uri = str(path if path.is_absolute() else folder / path)
        return dataclasses.replace(medium, uri=uri, digest=_digest(medium.kind, uri, where))
    except DataError as error:
        reason, _, fix = str(error).partition(". ")
        raise Refused(f"broken media: {reason}", fix.rstrip(".")) from None


def _digest(kind: MediaKind, uri: str, where: str) -> str:
    if uri[:5].lower() != "data:" and (path := Path(uri)).is_file():
        state = path.stat()
        return _checked(kind, uri, (state.st_mtime_ns, state.st_size), where)
    return _checked.__wrapped__(kind, uri, None, where)


@lru_cache(maxsize=1 << 14)
def _checked(kind: MediaKind, uri: str, state: tuple[int, int] | None, where: str) -> str:
    """sha256 of the bytes, once they have been decoded; kept by the file's time and size."""
    content = medium_bytes(Media(kind, 0, uri), where)
    CHECKS[kind](content, where)
    return hashlib.sha256(content).hexdigest()


def _fetched(url: str) -> Path:
    """The file of an address in the web, fetched once into the cache. Raises `DataError`."""
    path = cache_root() / "media" / hashlib.sha256(url.encode()).hexdigest()
    if path.is_file():
        return path
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "sapwood"})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content = answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(
            f"{shown(url)} cannot be fetched ({' '.join(str(error).split())[:120]}). Check the address, or remove the row."
        ) from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{shown(url)} is larger than {MAX_BYTES >> 20} MiB. Scale it down.")
    with storage(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    return path
