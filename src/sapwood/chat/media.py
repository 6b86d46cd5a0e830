"""Images and sounds in prompts: from a rendered text with placeholders to the ids that a model's processor would make.

In: a rendered prompt in which the template wrote one placeholder (`<image>`) for each medium, the media themselves, and a
`MediaProcessor`, which knows a model's own arithmetic. Out: the text with each placeholder grown to what the processor
puts there, and for each medium the places of its features among the ids. Also here: the bytes of a medium by its address,
decoded within bounds. Left out on purpose: video, and fetching anything over a network (a reader does that, if asked to).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from sapwood.errors import DataError, TemplateError
from sapwood.records import Content, Media, MediaKind, MediaSpan, Message

MAX_PIXELS = 1 << 26
"""A larger image (67 million pixels) is refused before it is decoded: a small file can unpack to many gigabytes."""
MAX_SECONDS = 3600
"""A longer sound is refused."""
MAX_BYTES = 1 << 28
"""A larger file is refused unread."""
_DATA_URI = re.compile(r"data:[^,;]*((?:;[^,;]*)*),", re.IGNORECASE)


class MediaProcessor(Protocol):
    """What the chat room needs of a model's processor."""

    @property
    def placeholders(self) -> Mapping[MediaKind, tuple[str, int]]:
        """For each kind the model takes: the token that a template writes for one medium, and its id."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all settings that its results depend on."""
        ...

    def prepare(self, medium: Media, where: str, *, among: int = 1) -> tuple[str, Content]:
        """What stands in the text instead of the medium's placeholder, and its content. Raises `DataError` naming `where`.

        `among` is how many of its kind the prompt holds: some models look at one image more closely than at several.
        """
        ...

    def lead(self, text: str) -> tuple[int, ...]:
        """Ids that it puts in front of a text by itself (BOS, where the template wrote none)."""
        ...


def refuse_kinds(messages: Sequence[Message], processor: MediaProcessor | str, where: str) -> None:
    """Raise `DataError` for media of a kind that the model does not take. A text instead of a processor says why it takes none."""
    for kind in dict.fromkeys(medium.kind for message in messages for medium in message.media):
        if isinstance(processor, str):
            raise DataError(f"{where}: holds {_a(kind)}. {processor}")
        if kind not in processor.placeholders:
            known = ", ".join(processor.placeholders)
            raise DataError(
                f"{where}: holds {_a(kind)}, but this model takes {known}. Choose a model that takes {kind}, or remove the row."
            )


def expand(covered: str, messages: Sequence[Message], processor: MediaProcessor, where: str) -> tuple[str, list[Content]]:
    """Grow each placeholder of a rendered text; contents in order. Control tokens in texts must still be covered.

    Raises `TemplateError` where the template wrote more or fewer placeholders than there are media.
    """
    media = [medium for message in messages for medium in message.media]
    wanted = {kind: [medium for medium in media if medium.kind == kind] for kind in {medium.kind for medium in media}}
    kind_of = {token: kind for kind, (token, _) in processor.placeholders.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(kind_of, key=len, reverse=True))))
    for kind, (token, _) in processor.placeholders.items():
        found, there = sum(match[0] == token for match in pattern.finditer(covered)), len(wanted.get(kind, ()))
        if found != there:
            raise TemplateError(
                f"{where}: there {'is' if there == 1 else 'are'} {there} {kind}{'s' * (there != 1)}, but the chat template wrote {found} "
                f"{token!r}. Choose the template that belongs to the model, with `--template FILE`."
            )
    waiting = {kind: iter(of_kind) for kind, of_kind in wanted.items()}
    contents: list[Content] = []

    def grow(match: re.Match[str]) -> str:
        medium = next(waiting[kind_of[match[0]]])
        text, content = processor.prepare(medium, where, among=len(wanted[medium.kind]))
        contents.append(content)
        return text

    return pattern.sub(grow, covered), contents


def grown_text(
    covered: str, messages: Sequence[Message], processor: MediaProcessor | None, where: str
) -> tuple[str, tuple[int, ...], list[Content]]:
    """A covered prompt with the placeholders of its media grown, the ids that go in front, and the media's contents."""
    if processor is None:
        return covered, (), []
    grown, contents = expand(covered, messages, processor, where)
    return grown, processor.lead(grown), contents


def spans(ids: Sequence[int], contents: Sequence[Content], processor: MediaProcessor, where: str) -> tuple[MediaSpan, ...]:
    """Where each content stands among the ids. Raises `TemplateError` if the places do not add up."""
    ids_T = np.asarray(ids, dtype=np.int64)
    left = {kind: np.flatnonzero(ids_T == token_id) for kind, (_, token_id) in processor.placeholders.items()}
    found = []
    for content in contents:
        places_F, left[content.kind] = left[content.kind][: content.length], left[content.kind][content.length :]
        found.append(MediaSpan(places_F, content))
    if any(span.length != span.content.length for span in found) or any(len(places) for places in left.values()):
        raise TemplateError(
            f"{where}: the tokens of the prompt have other places for media than the model's processor says. The tokenizer and the "
            "processor do not belong together; fetch the model's folder again."
        )
    return tuple(found)


def refuse_placeholders(ids: Sequence[int], processor: MediaProcessor | None, where: str) -> None:
    """Raise `TemplateError` if a trained turn holds the token at whose place features stand: the model must never write it."""
    for token, token_id in processor.placeholders.values() if processor else ():
        if token_id in ids:
            raise TemplateError(f"{where}: this turn's text becomes {token!r}, which stands for media. Change that text.")


def medium_bytes(medium: Media, where: str) -> bytes:
    """The bytes of a medium. Raises `DataError` where they cannot be had, naming `where`; nothing is fetched over a network."""
    uri = medium.uri
    if uri[:5].lower() == "data:":
        content = _decoded(uri, where)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", uri):
        raise DataError(f"{where}: the {medium.kind} {_short(uri)} is a web address. Read the data with URLs allowed, or fetch it first.")
    else:
        content = _read(Path(uri), medium.kind, where)
    if medium.digest and hashlib.sha256(content).hexdigest() != medium.digest:
        raise DataError(f"{where}: the {medium.kind} {_short(uri)} has changed since it was first read. Start again with it as it is now.")
    return content


def picture(content: bytes, where: str) -> Any:
    """A Pillow image in RGB, as transformers opens it. Raises `DataError` if it is none, or larger than `MAX_PIXELS`."""
    image_of = _library("PIL.Image")
    turned = _library("PIL.ImageOps").exif_transpose
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warnings of large images; ours is an error
            image = image_of.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{where}: the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read. Scale it down."
                )
            return turned(image).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 (a broken file makes Pillow's decoders raise anything)
        kind = _told(content)
        raise DataError(f"{where}: the image cannot be decoded ({_cause(error)}); its bytes are {kind}. Mend or remove it.") from None


def waveform(content: bytes, rate: int, where: str) -> NDArray[np.float32]:
    """Mono samples at `rate` a second. Raises `DataError` if it is no sound that libsndfile reads, or too long."""
    soundfile = _library("soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise DataError(f"{where}: the sound lasts {file.frames / file.samplerate:.0f} s; at most {MAX_SECONDS} are read. Cut it.")
            own_rate = int(file.samplerate)
            samples_SC = file.read(dtype="float32", always_2d=True)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        raise DataError(
            f"{where}: the sound cannot be decoded ({_cause(error)}); its bytes are {_told(content)}. Mend or remove it."
        ) from None
    if not len(samples_SC):
        raise DataError(f"{where}: the sound is empty. Remove the row, or give the file that was meant.")
    mono: NDArray[np.float32] = samples_SC.mean(axis=1)
    if own_rate == rate:
        return mono
    from scipy.signal import resample_poly  # late: half a second that text does not need

    common = int(np.gcd(own_rate, rate))
    return np.asarray(resample_poly(mono, rate // common, own_rate // common), dtype=np.float32)


CHECKS: Mapping[MediaKind, Callable[[bytes, str], object]] = {
    "image": picture,
    "audio": lambda content, where: waveform(content, 16_000, where),
}
"""Decode a medium to see whether it can be."""


def _decoded(uri: str, where: str) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise DataError(f"{where}: {_short(uri)} is no data URI. Write data:image/png;base64,… with the bytes in base64.")
    body = uri[match.end() :]
    try:
        return base64.b64decode(body, validate=True) if match[1].lower().endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: the base64 in {_short(uri)} is broken ({error}). Encode the bytes again.") from None


def _read(path: Path, kind: str, where: str) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{where}: the {kind} {path} is larger than {MAX_BYTES >> 20} MiB. Scale it down.")
        return path.read_bytes()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{where}: the {kind} {path} does not exist. Paths are taken from the folder of the data file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the {kind} {path} cannot be read ({_cause(error)}). Give the path of a file.") from None


def require_library(kind: MediaKind) -> None:
    """Raise `DataError` where what reads this kind is not installed."""
    _library("soundfile" if kind == "audio" else "PIL.Image")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        what, package = ("sounds", "soundfile") if name == "soundfile" else ("images", "pillow")
        raise DataError(
            f'The data hold {what}, and reading them needs {package}, which is not installed. Run: pip install "sapwood[media]"'
        ) from None


_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WAV or WebP)",
    b"fLaC": "a FLAC sound",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 sound",
    b"%PDF": "a PDF",
    b"<html": "a web page",
    b"<!DO": "a web page",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a zip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


def _told(content: bytes) -> str:
    """What bytes look like, for a message."""
    return next((kind for magic, kind in _MAGIC.items() if content.startswith(magic)), "of no kind known here" if content else "none")


def _cause(error: Exception) -> str:
    text = re.sub(r" <_io\.BytesIO[^>]*>", "", " ".join(str(error).split()))
    return text[:120].rstrip(".") or type(error).__name__


def _short(uri: str) -> str:
    return repr(uri if len(uri) <= 60 else uri[:59] + "…")


def _a(kind: str) -> str:
    return {"image": "an image", "audio": "a sound", "video": "a video"}[kind]
