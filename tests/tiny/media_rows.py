"""Rows with media for the tiny models that see or hear, and what transformers alone makes of the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sapwood.chat import Chat
from sapwood.chat.media import picture, waveform
from sapwood.model.processor import load_processor
from sapwood.records import Conversation, Media, Message, Row
from tiny.media_models import image_bytes, sound_bytes


def media_chat(folder: Path) -> tuple[Chat, Any]:
    """The chat of a folder with its processor, and transformers' own processor."""
    processor = load_processor(folder)
    return Chat.load(folder).with_media(processor), processor._inner


def write_media(folder: Path, kind: str) -> list[Path]:
    """Three files: two of one shape, one of another."""
    files = []
    for number in range(3):
        file = folder / f"{number}.{kind}"
        if kind == "image":
            file.write_bytes(image_bytes(number, *((48, 32) if number < 2 else (32, 64))))
        else:
            file.write_bytes(sound_bytes(number, 0.3 if number < 2 else 0.5))
        files.append(file)
    return files


def conversations(kind: Any, files: list[Path]) -> list[Conversation]:
    """Rows that share an image, that differ in nothing but the image, with two images, of two turns, and of text alone."""
    first, second, third = map(str, files)

    def ask(text: str, *media: tuple[int, str]) -> Message:
        return Message("user", text, media=tuple(Media(kind, at, uri) for at, uri in media))

    system, answer = Message("system", "one two three"), Message("assistant", "a red square")
    return [
        Conversation((system, ask("what is this?", (0, first)), answer)),
        Conversation((system, ask("what is this?", (0, second)), answer)),
        Conversation((system, ask("what is it?", (0, first)), Message("assistant", "noise"))),
        Conversation((system, ask("this and that", (5, first), (10, third)), answer, ask("and now"), Message("assistant", "a low tone"))),
        Conversation((system, ask("what is this?"), answer)),
        Conversation((system, ask("once", (0, first), (0, first)), answer)),
    ]


def own_call(inner: Any, chat: Chat, conversation: Conversation, turn: int) -> dict[str, Any]:
    """transformers' own call of its processor on the prompt before message `turn`."""
    before = conversation.messages[:turn]
    media = [medium for message in before for medium in message.media]
    call: dict[str, Any] = {"text": chat.prompt(before).text, "return_tensors": "pt"}
    if media and media[0].kind == "image":
        call["images"] = [[picture(Path(medium.uri).read_bytes(), "a test") for medium in media]]
    elif media:
        rate = inner.feature_extractor.sampling_rate
        call |= {"audio": [waveform(Path(medium.uri).read_bytes(), rate, "a test") for medium in media], "sampling_rate": rate}
    return dict(inner(**call))


def own_logprobs(module: Any, inputs: dict[str, Any], row: Row) -> torch.Tensor:
    """Log-probabilities of the completion by the model's own forward on the processor's inputs and the completion."""
    completion = torch.from_numpy(row.completion_T)[None]
    ids = torch.cat([inputs["input_ids"], completion[:, :-1]], 1)
    more = {
        name: value.to(module.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
        if name not in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    if "mm_token_type_ids" in inputs:
        more["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completion[:, :-1])], 1)
    logits = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits[0, len(row.prompt_T) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(row.completion_T)), completion[0]]
