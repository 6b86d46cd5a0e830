"""Prompts with images and sounds: offsets under the shield, placeholders that people write, tokenizers that add BOS, bounds."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chat.chat_folders import SPECIALS, metaspace
from sapwood.chat import Chat
from sapwood.chat.media import medium_bytes, picture, waveform
from sapwood.chat.shield import Shield
from sapwood.errors import DataError, ModelError, TemplateError
from sapwood.model.processor import load_processor
from sapwood.records import Conversation, Media, Message
from tiny.media_models import image_bytes, sound_bytes, write_media_model
from tiny.media_rows import conversations, media_chat, write_media

SHIELD = Shield(["<image>", "<|im_end|>"])


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, chat, transformers' processor, path of an image)."""
    folder = write_media_model(tmp_path_factory.mktemp("llava"), "llava")
    (folder / "a.png").write_bytes(image_bytes(1))
    return folder, *media_chat(folder), str(folder / "a.png")


pieces = st.lists(st.sampled_from(["a", "<image>", "<|im_end|>", "<|im_", "end|>", "\ue000", "é\n"]), max_size=4).map("".join)


@given(texts=st.lists(pieces, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_covering_moves_media_with_the_text_around_them(texts: list[str]) -> None:
    ends = np.cumsum([len(text) for text in texts[:-1]]).tolist()
    message = Message("user", "".join(texts), media=tuple(Media("image", end, "x") for end in ends))
    covered = SHIELD.cover_message(message)
    shown = [SHIELD.reveal(part.get("text", "")) for part in covered.parts()]
    assert shown == [part.get("text", "") for part in message.parts()]
    assert "<image>" not in covered.content.replace(SHIELD.cover("<image>"), "")


def by_template(inner: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of `apply_chat_template` of transformers' processor, with the images named in the parts."""
    written = []
    for message in messages:
        media = iter(message.media)
        parts = [part if part["type"] == "text" else {**part, "path": next(media).uri} for part in message.parts()]
        written.append({"role": message.role, "content": parts})
    made = inner.apply_chat_template(written, tokenize=True, return_dict=True, add_generation_prompt=True)
    ids: list[int] = list(made["input_ids"][0])
    return ids


def ask(text: str, uri: str, at: int = 0) -> list[Message]:
    return [Message("user", text, media=(Media("image", at, uri),))]


def test_a_placeholder_that_a_person_writes_is_text(llava: Any) -> None:
    _, chat, _, uri = llava
    prompt = chat.prompt(ask("what does <image> mean?", uri))
    [span] = prompt.media
    assert span.length == 16
    assert prompt.ids.count(chat.tokens.id_of("<image>")) == 16
    conversation = Conversation((*ask("once more", uri), Message("assistant", "write <image> there")))
    [turn] = chat.turns(conversation)
    assert chat.tokens.id_of("<image>") not in turn.ids
    assert chat.decode(turn.ids).startswith("write <image> there")


def test_a_template_that_leaves_media_out_is_refused(llava: Any) -> None:
    folder, _, _, uri = llava
    silent = "{% for m in messages %}{{ m.role }}: {{ m.content if m.content is string else m.content[-1].text }}<|im_end|>{% endfor %}"
    chat = Chat.load(folder, template=silent + "{% if add_generation_prompt %}assistant: {% endif %}").with_media(load_processor(folder))
    with pytest.raises(TemplateError, match="there is 1 image, but the chat template wrote 0 '<image>'"):
        chat.prompt(ask("what?", uri))


def test_kinds_and_files_are_refused_by_name(llava: Any, tmp_path: Path) -> None:
    folder, chat, _, uri = llava
    (tmp_path / "a.wav").write_bytes(sound_bytes(1))
    with pytest.raises(DataError, match=r"rows:7: holds a sound, but this model takes image\."):
        chat.prompt([Message("user", "x", media=(Media("audio", 0, str(tmp_path / "a.wav")),))], where="rows:7")
    with pytest.raises(DataError, match=r"rows:7: the image .* does not exist"):
        chat.prompt(ask("what?", "nowhere.png"), where="rows:7")
    with pytest.raises(DataError, match=r"holds an image\. No processor for images and sounds is loaded"):
        Chat.load(folder).prompt(ask("what?", uri))


def test_a_sound_longer_than_the_model_hears_is_refused_not_cut(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path / "model", "qwen2_audio")
    chat, _ = media_chat(folder)
    (tmp_path / "long.wav").write_bytes(sound_bytes(1, seconds=1.2))
    with pytest.raises(DataError, match=r"the sound lasts 1\.2 s, and this model hears 1 s; the rest would be cut off"):
        chat.prompt([Message("user", "x", media=(Media("audio", 0, str(tmp_path / "long.wav")),))])


def test_sounds_of_other_rates_and_stereo_are_heard_alike() -> None:
    seconds = np.arange(24_000) / 48_000
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, np.stack([tone, tone], axis=1), 48_000, format="WAV", subtype="FLOAT")
    found = waveform(out.getvalue(), 16_000, "a test")
    assert found.shape == (8_000,)
    np.testing.assert_allclose(found[100:-100], tone[::3][100:-100], atol=2e-3)


def test_pictures_are_turned_as_they_were_taken() -> None:
    image = Image.open(io.BytesIO(image_bytes(1, 20, 10)))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken on its side
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    assert picture(out.getvalue(), "a test").size == (10, 20)


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_prompt_ids_are_those_of_apply_chat_template(family: str, tmp_path: Path) -> None:
    chat, inner = media_chat(write_media_model(tmp_path, family))
    for conversation in conversations("image", write_media(tmp_path, "image")):
        for turn in chat.turns(conversation):
            before = conversation.messages[: turn.index]
            assert by_template(inner, before) == list(turn.prompt.ids)


@pytest.mark.parametrize("template_writes_bos", [False, True])
def test_a_tokenizer_with_a_dummy_space_that_adds_bos(template_writes_bos: bool, tmp_path: Path) -> None:
    """LLaVA 1.5's: transformers' processor puts BOS in front, unless the template has written it."""
    folder = write_media_model(tmp_path / "model", "llava")
    tokenizer = metaspace()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<image>", special=True, normalized=False)])
    bos = tokenizer.token_to_id(SPECIALS[0])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|bos|>", "pad_token": "<|eos|>"}))
    config = json.loads((folder / "config.json").read_text())
    config |= {"image_token_index": tokenizer.token_to_id("<image>"), "image_token_id": tokenizer.token_to_id("<image>")}
    (folder / "config.json").write_text(json.dumps(config))
    if template_writes_bos:
        file = folder / "chat_template.jinja"
        file.write_text("{{ bos_token }}" + file.read_text())
    (tmp_path / "a.png").write_bytes(image_bytes(1))
    chat, inner = media_chat(folder)
    conversation = Conversation((*ask("the sap", str(tmp_path / "a.png")), Message("assistant", "the sap")))
    [turn] = chat.turns(conversation)
    assert by_template(inner, conversation.messages[:1]) == list(turn.prompt.ids)
    assert list(turn.prompt.ids).count(bos) == 1
    text_alone = [Message("user", "the sap")]
    assert by_template(inner, text_alone) == list(chat.prompt(text_alone).ids), "and so for prompts of text alone"
    assert chat.decode(turn.ids) == "the sap<|im_end|>"


def test_a_processor_s_template_in_its_own_file_goes_before_the_tokenizer_s(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path, "llava")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages[0].content }}"}))
    chat, inner = media_chat(folder)
    assert chat.template == inner.chat_template == template


def test_what_is_saved_beside_a_model_makes_the_same_prompts_of_media(llava: Any, tmp_path: Path) -> None:
    folder, chat, _, uri = llava
    for name, content in chat.saved_files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    again, _ = media_chat(tmp_path)
    assert again.prompt(ask("what?", uri)).ids == chat.prompt(ask("what?", uri)).ids
    assert again._media.fingerprint == chat._media.fingerprint


def test_a_tokenizer_that_adds_more_than_bos_is_refused(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path, "llava")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"its tokenizer puts the tokens \[2\] around every text"):
        load_processor(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_media_model(tmp_path, "llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 7, "image_token_id": 7}))
    with pytest.raises(ModelError, match=r"its image token '<image>' has id 3 in the tokenizer and 7 in config\.json"):
        load_processor(folder)


def test_features_are_made_again_and_alike(llava: Any) -> None:
    folder, _, _, uri = llava
    processor = load_processor(folder)
    medium = Media("image", 0, uri)
    _, content = processor.prepare(medium, "a test")
    first = content.load()["pixel_values"]
    processor._kept.clear()
    np.testing.assert_array_equal(content.load()["pixel_values"], first)
    renamed = dataclasses.replace(medium, uri=f"data:image/png;base64,{base64.b64encode(medium_bytes(medium, '')).decode()}")
    assert processor.prepare(renamed, "a test")[1].hash == content.hash, "it is known by its bytes, not by its name"
