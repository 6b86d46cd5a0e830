"""Images and sounds in rows: every spelling in use gives the same media, and what is wrong is refused with file and line."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sapwood.chat.media import MAX_PIXELS, medium_bytes
from sapwood.data import read, split
from sapwood.data.media import HOLDS_MEDIA
from sapwood.errors import DataError
from sapwood.records import Conversation, Item, Media, Message
from tiny.media_models import image_bytes, sound_bytes

PICTURE, OTHER, SOUND = image_bytes(1), image_bytes(2), sound_bytes(1)
ENCODED = base64.b64encode(PICTURE).decode()
DATA_URI = f"data:image/png;base64,{ENCODED}"
ANSWER = {"role": "assistant", "content": "a red square"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PICTURE)
    (tmp_path / "b.png").write_bytes(OTHER)
    (tmp_path / "a.wav").write_bytes(SOUND)
    return tmp_path


def reading(folder: Path, *rows: Any, **more: Any) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read([folder / "rows.jsonl"], **more)


def one(folder: Path, row: Any, **more: Any) -> Conversation:
    found = reading(folder, row, **more)
    assert not found.refused, found.refused
    return found.conversations[0]


def why(folder: Path, row: Any, **more: Any) -> str:
    [refusal] = reading(folder, row, **more).refused
    assert str(refusal).startswith(f"{folder}/rows.jsonl:1: ")
    return str(refusal)


PARTS = [
    {"type": "image", "image_url": "pictures/a.png"},
    {"type": "image_url", "image_url": {"url": "pictures/a.png"}},
    {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "low"}},
    {"type": "image_url", "image_url": DATA_URI},
    {"type": "image", "url": "pictures/a.png"},
    {"type": "image", "image": "pictures/a.png"},
    {"type": "image", "path": "pictures/a.png"},
    {"type": "image", "base64": ENCODED},
    {"type": "image", "data": ENCODED},
    {"type": "image", "data": DATA_URI},
    {"type": "image", "image": ENCODED},
    {"type": "input_image", "image_url": DATA_URI},
    {"type": "image", "image": {"bytes": ENCODED, "path": "elsewhere.png"}},
    {"type": "image", "image": {"bytes": None, "path": "pictures/a.png"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ENCODED}},
    {"type": "image", "url": "file://{folder}/pictures/a.png"},
    {"type": "image", "text": None, "image": None, "url": "pictures/a.png"},
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: "-".join(part))
def test_every_spelling_of_a_part_is_the_same_image(part: Any, folder: Path) -> None:
    part = json.loads(json.dumps(part).replace("{folder}", str(folder)))
    content = [{"type": "text", "text": "look: "}, part, {"type": "text", "text": "what is it?"}]
    message = one(folder, {"messages": [{"role": "user", "content": content}, ANSWER]}).messages[0]
    [medium] = message.media
    assert (message.content, medium.kind, medium.at) == ("look: what is it?", "image", 6)
    assert medium.digest == hashlib.sha256(PICTURE).hexdigest()
    assert medium_bytes(medium, "a test") == PICTURE
    assert message.for_template()["content"] == [
        {"type": "text", "text": "look: "},
        {"type": "image"},
        {"type": "text", "text": "what is it?"},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "wav"}},
        {"type": "audio", "audio_url": "a.wav"},
        {"type": "audio_url", "audio_url": {"url": "a.wav"}},
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio", "path": "a.wav"},
    ],
    ids=lambda part: "-".join(part),
)
def test_every_spelling_of_a_sound(part: Any, folder: Path) -> None:
    [medium] = one(folder, {"messages": [{"role": "user", "content": [part]}, ANSWER]}).messages[0].media
    assert (medium.kind, medium.digest) == ("audio", hashlib.sha256(SOUND).hexdigest())


def test_places_without_an_address_are_filled_from_the_columns_in_order(folder: Path) -> None:
    marks = [{"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    row = {"messages": [{"role": "user", "content": marks}, ANSWER], "images": ["pictures/a.png", {"bytes": None, "path": "b.png"}]}
    conversation = one(folder, row)
    assert [(medium.at, Path(medium.uri).name) for medium in conversation.messages[0].media] == [(0, "a.png"), (5, "b.png")]
    assert conversation.meta == {}


@pytest.mark.parametrize(
    ("text", "content", "places"),
    [
        ("<image>\nWhat is it?", "What is it?", [0]),
        ("What is it?\n<image>", "What is it?", [11]),
        ("<image><image>\nCompare.", "Compare.", [0, 0]),
        ("A <image>\nB <image> C", "A \nB  C", [2, 5]),
        ("<image>", "", [0]),
    ],
)
def test_markers_in_texts_stand_for_the_columns_media(text: str, content: str, places: list[int], folder: Path) -> None:
    column = ["pictures/a.png", "b.png"][: len(places)]
    row = {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}], "images": column}
    message = one(folder, row).messages[0]
    assert (message.content, [medium.at for medium in message.media]) == (content, places)
    assert [Path(medium.uri).name for medium in message.media] == [Path(name).name for name in column]


def test_a_marker_without_a_column_is_text_and_a_column_without_a_marker_is_noted(folder: Path) -> None:
    plain = one(folder, {"prompt": "What does <image> mean in HTML?", "completion": "Nothing."})
    assert (plain.messages[0].content, plain.messages[0].media) == ("What does <image> mean in HTML?", ())
    found = reading(folder, {"question": "What is it?", "answer": "a square", "image": "b.png"})
    [medium] = found.conversations[0].messages[0].media
    assert medium.at == 0
    assert found.notes == {HOLDS_MEDIA: 1, "the row's image has no place in the text: it is put before the first user turn's text": 1}


def test_columns_of_parquet_hold_bytes(folder: Path) -> None:
    table = {"prompt": ["<image>What?"] * 2, "completion": ["x"] * 2, "image": [{"bytes": PICTURE, "path": "a.png"}] * 2}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.table({**table, "image": [PICTURE, OTHER]}), folder / "bare.parquet")
    digests = [
        [conversation.messages[0].media[0].digest for conversation in read([folder / name]).conversations]
        for name in ("rows.parquet", "bare.parquet")
    ]
    first, second = (hashlib.sha256(content).hexdigest() for content in (PICTURE, OTHER))
    assert digests == [[first, first], [first, second]]


def user(*parts: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **columns}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (user({"type": "image", "url": "missing.png"}), "broken media: turn 1: the image {folder}/missing.png does not exist"),
        (user({"type": "image", "url": "pictures"}), "cannot be read"),
        (user({"type": "image", "url": "a.wav"}), "the image cannot be decoded"),
        (user({"type": "image", "url": "cut.png"}), "its bytes are a PNG image"),
        (user({"type": "image", "url": "rows.jsonl"}), "its bytes are of no kind known here"),
        (user({"type": "image", "url": "large.png"}), f"10000 x 8000 pixels; at most {MAX_PIXELS:,} are read"),
        (user({"type": "image", "url": "bomb.png"}), "the image cannot be decoded (Image size (2000000000 pixels) exceeds limit"),
        (user({"type": "audio", "path": "b.png"}), "the sound cannot be decoded"),
        (user({"type": "image", "base64": "no base64!"}), "the base64 in"),
        (user({"type": "image", "url": "data:nothing"}), "is no data URI"),
        (user({"type": "image", "url": "https://example.com/a.png"}), "media in the web: turn 1 names 'https://example.com/a.png'"),
        (user({"type": "image", "url": "ftp://example.com/a.png"}), "is a web address"),
        (user({"type": "image", "url": "b.png", "path": "b.png"}), "gives `url` and `path`"),
        (user({"type": "image", "image": {"array": [0.1]}}), "holds samples, not a file"),
        (user({"type": "image", "image": 7}), "holds a number without an address"),
        (user({"type": "video", "url": "a.mp4"}), "video is not supported yet"),
        (user({"type": "text", "text": "x"}, videos=["a.mp4"]), "video is not supported yet"),
        (user({"type": "image"}), "the messages have 1 place for image, the row's columns hold 0"),
        (user({"type": "image"}, images=["b.png"] * 2), "the messages have 1 place for image, the row's columns hold 2"),
        (user("<image><image>", images=["b.png"]), "the messages have 2 places for image, the row's columns hold 1"),
        (user({"type": "image"}, image="b.png", images=["b.png"]), "both `image` and `images`"),
        (
            {"messages": [{"role": "user", "content": "q"}, {**ANSWER, "content": [{"type": "image", "url": "b.png"}]}]},
            "media in an answer",
        ),
        ({"chosen": "x", "rejected": "y", "prompt": "q", "images": ["b.png"]}, "a preference with media"),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_line(row: Any, said: str, folder: Path) -> None:
    (folder / "cut.png").write_bytes(PICTURE[: len(PICTURE) // 2])
    (folder / "large.png").write_bytes(head_of_png(10_000, 8_000))
    (folder / "bomb.png").write_bytes(head_of_png(50_000, 40_000))
    assert said.replace("{folder}", str(folder)) in why(folder, row)


def head_of_png(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, in a few bytes."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 99) + b"IDAT"


@pytest.fixture
def server() -> Iterator[str]:
    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(PICTURE if self.path == "/a.png" else b"")

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_the_web_is_asked_only_when_allowed_and_once(folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(folder / "cache"))
    row = user({"type": "image_url", "image_url": {"url": f"{server}/a.png"}})
    assert "--allow-urls" in why(folder, row)
    [medium] = one(folder, row, allow_urls=True).messages[0].media
    assert Path(medium.uri).read_bytes() == PICTURE
    assert "cannot be fetched (HTTP Error 404" in why(folder, user({"type": "image", "url": f"{server}/b.png"}), allow_urls=True)


def test_without_the_library_one_paragraph_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r'needs pillow, which is not installed. Run: pip install "sapwood\[media\]"'):
        reading(folder, user({"type": "image", "url": "b.png"}))


def test_a_file_that_changed_is_not_taken_for_what_it_was(folder: Path) -> None:
    [medium] = one(folder, user({"type": "image", "url": "b.png"})).messages[0].media
    (folder / "b.png").write_bytes(PICTURE)
    with pytest.raises(DataError, match="has changed since it was first read"):
        medium_bytes(medium, "a test")


def test_questions_that_differ_in_the_image_alone_are_different_questions(folder: Path) -> None:
    rows = [user({"type": "image", "url": name}, {"type": "text", "text": "What is it?"}) for name in ("b.png", "pictures/a.png") * 2]
    conversations = reading(folder, *rows).conversations
    assert len({Item(conversation, "x").id for conversation in conversations}) == 2
    kept, held = split(conversations, held_out=2, seed=0)
    assert {index % 2 for index in kept} != {index % 2 for index in held}


def test_parts_are_the_content_cut_at_the_media() -> None:
    media = (Media("image", 0, "a"), Media("image", 2, "b"), Media("audio", 2, "c"), Media("image", 4, "d"))
    kinds = [part.get("text", part["type"]) for part in Message("user", "abcd", media=media).parts()]
    assert kinds == ["image", "ab", "image", "audio", "cd", "image"]
    assert Message("user", "").parts() == [{"type": "text", "text": ""}]
