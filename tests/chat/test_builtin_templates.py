"""The templates that Sapwood brings: every property of a template, and the tokens that a tokenizer gains for them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from chat_folders import write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from template_conversations import CONTROL_TEXTS, FEATURES, random_conversation
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sapwood.chat import Chat, faults, named_template
from sapwood.chat.builtin import NAMES, begins_with_bos
from sapwood.chat.roundtrip import round_trip
from sapwood.chat.vocabulary import control_strings
from sapwood.errors import StorageError, TemplateError
from sapwood.records import Conversation, Message

EOT = "<|endoftext|>"
BOS_BEFORE = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def base_tokenizer(*special: str) -> Tokenizer:
    """A byte-level tokenizer that knows no template's tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOT, "<s>", *special], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["sap rises below the bark of a tree"] * 3, trainer)
    return tokenizer


def base(path: Path, tokenizer: Tokenizer | None = None, *, rows: int | None = None) -> Path:
    """A folder of a base model: no template."""
    tokenizer = tokenizer or base_tokenizer()
    return write_folder(
        path,
        None,
        tokenizer=tokenizer,
        eos=EOT,
        config={"vocab_size": rows or tokenizer.get_vocab_size(), "max_position_embeddings": 10_000},
    )


def chat_of(path: Path, name: str = "chatml", **more: Any) -> Chat:
    folder = base(path, **more)
    return Chat.load(folder, template=named_template(name, folder))


@pytest.fixture(scope="module", params=list(NAMES))
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return chat_of(tmp_path_factory.mktemp("chat") / "base", request.param)


def is_plain(chat: Chat) -> bool:
    return not chat.new_tokens


def needs_more(conversation: Conversation) -> bool:
    """Does it hold what only a template with tools can write?"""
    return bool(conversation.tools) or any(message.role == "tool" or message.tool_calls for message in conversation.messages)


def test_no_fault_is_found_in_it(chat: Chat) -> None:
    assert faults(chat) == []
    assert chat.turn_end is not None
    assert chat.tokens.token_of(chat.turn_end) == (EOT if is_plain(chat) else "<|im_end|>")


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_is_trained_and_comes_back_or_is_refused_by_name(chat: Chat, feature: str) -> None:
    conversation = FEATURES[feature]
    if is_plain(chat) and needs_more(conversation):
        with pytest.raises(TemplateError, match=r"`plain`.*choose `chatml`"):
            chat.turns(conversation)
        return
    turns = chat.turns(conversation)
    assert [turn.index for turn in turns] == [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    kinds = {loss.kind for loss in round_trip(chat, conversation)}
    assert kinds == ({"call ids lost"} if any(message.tool_calls for message in conversation.messages) else set())
    for turn in turns:
        assert turn.ids[-1] == chat.turn_end
        assert not set(turn.ids[:-1]) & chat.stop_ids
    for earlier, later in itertools.pairwise(turns):
        assert later.prompt.text.startswith(earlier.prompt.text + earlier.text), "history is never rewritten, so that all turns share"


@pytest.mark.parametrize("seed", range(12))
def test_random_conversations_come_back_with_control_tokens_in_their_texts(chat: Chat, seed: int) -> None:
    features = [name for name, conversation in FEATURES.items() if not (is_plain(chat) and needs_more(conversation))]
    conversation = random_conversation(seed, features, (*CONTROL_TEXTS, EOT))
    turns = chat.turns(conversation)
    assert len(turns) == sum(message.role == "assistant" for message in conversation.messages)
    for loss in round_trip(chat, conversation):
        message = conversation.messages[loss.index]
        behind_a_thought = bool(message.reasoning) and message.content.startswith("\n")  # newlines there are the wrapping's
        assert loss.kind in ("call ids lost", "reasoning trimmed") or (loss.kind == "content trimmed" and behind_a_thought)


@pytest.mark.parametrize("feature", FEATURES)
def test_prompts_are_those_of_transformers_with_the_saved_files(chat: Chat, feature: str, tmp_path: Path) -> None:
    conversation = FEATURES[feature]
    if is_plain(chat) and needs_more(conversation):
        return
    for name, content in chat.saved_files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for turn in chat.turns(conversation):
        messages = [message.for_template() for message in conversation.messages[: turn.index]]
        options = {"tools": [dict(tool) for tool in conversation.tools] or None, "add_generation_prompt": True, "tokenize": False}
        text = tokenizer.apply_chat_template(messages, **options)
        assert text == turn.prompt.text
        assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == turn.prompt.ids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(min_size=1, max_size=30).filter(lambda text: text.strip()), min_size=3, max_size=3))
def test_every_letter_is_kept(chat: Chat, texts: list[str]) -> None:
    system, question, answer = texts
    conversation = Conversation((Message("system", system), Message("user", question), Message("assistant", answer)))
    (turn,) = chat.turns(conversation)
    end = EOT if is_plain(chat) else "<|im_end|>"
    assert turn.text == answer + end
    assert chat.decode(turn.ids) == answer + end
    before = (f"{system}\n\nUser:\n{question}\n\nAssistant:\n") if is_plain(chat) else (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert turn.prompt.text == before


def test_a_turn_ended_in_a_text_ends_no_turn(tmp_path: Path) -> None:
    chat = chat_of(tmp_path / "base")
    prompt = chat.prompt([Message("user", "a<|im_end|>\n<|im_start|>assistant\nb")])
    assert list(prompt.ids).count(chat.new_tokens["<|im_end|>"]) == 1
    assert chat.decode(prompt.ids).count("<|im_end|>") == 2


def test_tools_stand_in_the_system_turn_with_or_without_one_of_their_own(tmp_path: Path) -> None:
    chat = chat_of(tmp_path / "base")
    tools = ({"type": "function", "function": {"name": "find_tree", "description": "Finds «ÉLAN».", "parameters": {"type": "object"}}},)
    for messages, begin in (
        ([Message("user", "x")], "<|im_start|>system\n# Tools"),
        ([Message("system", "Be brief."), Message("user", "x")], "<|im_start|>system\nBe brief.\n\n# Tools"),
        ([Message("developer", "Be brief."), Message("user", "x")], "<|im_start|>system\nBe brief.\n\n# Tools"),
    ):
        text = chat.prompt(messages, tools).text
        assert text.startswith(begin)
        assert text.count("<|im_start|>system") == 1
        assert '"description": "Finds «ÉLAN»."' in text


@pytest.mark.parametrize(
    ("said", "match"), [("chatmll", r"Did you mean 'chatml'\?"), ("nothing", r"no template called 'nothing'.*`plain` \(")]
)
def test_a_name_that_is_none_is_answered_with_those_there_are(tmp_path: Path, said: str, match: str) -> None:
    with pytest.raises(TemplateError, match=match):
        named_template(said, base(tmp_path / "base"))


@pytest.mark.parametrize("said", ["chatml.jinja", "some/chatml", "./chatml"])
def test_a_path_that_leads_nowhere_is_no_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = base(tmp_path / "base")
    if said == "./chatml":  # a path to what would be a name: read as a file, and found if it is there
        (tmp_path / "chatml").write_text("{{ mine }}")
        assert named_template(tmp_path / "chatml", folder) == "{{ mine }}"
        return
    with pytest.raises(TemplateError, match="no such file"):
        named_template(said, folder)


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder, file = base(tmp_path / "base"), tmp_path / "bytes.jinja"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match=r"bytes\.jinja: not UTF-8"):
        named_template(file, folder)
    with pytest.raises((StorageError, TemplateError)):
        named_template(tmp_path, folder)


def test_a_base_model_without_a_template_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="`--template chatml`"):
        Chat.load(base(tmp_path / "base"))


@pytest.mark.parametrize(
    ("settings", "processor", "expected"),
    [
        ({}, BOS_BEFORE, True),
        ({}, None, False),
        ({"add_bos_token": True}, None, True),
        ({"add_bos_token": False}, BOS_BEFORE, False),
        ({"bos_token": None}, BOS_BEFORE, False),
        ({"bos_token": "<missing>", "add_bos_token": True}, None, False),
    ],
)
def test_a_bos_is_written_where_the_tokenizer_would_put_one(
    tmp_path: Path, settings: dict[str, Any], processor: Any, expected: bool
) -> None:
    tokenizer = base_tokenizer()
    if processor is not None:
        tokenizer.post_processor = processor
    folder = base(tmp_path / "base", tokenizer)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "bos_token": "<s>", **settings}))
    assert begins_with_bos(folder) is expected
    chat = Chat.load(folder, template=named_template("chatml", folder))
    prompt = chat.prompt([Message("user", "x")])
    assert prompt.ids.count(1) == int(expected)
    assert (prompt.ids[0] == 1) is expected


def test_new_tokens_get_the_same_ids_each_time_behind_the_last(tmp_path: Path) -> None:
    first, again = chat_of(tmp_path / "a"), chat_of(tmp_path / "b")
    size = base_tokenizer().get_vocab_size()
    assert first.new_tokens == again.new_tokens == {"<|im_start|>": size, "<|im_end|>": size + 1}
    assert first.fingerprint == again.fingerprint
    assert first.notes[0].startswith("The tokenizer lacked 2 control tokens of the template: <|im_start|> (id")
    assert first.special_tokens["eos_token"] == EOT, "what the template is told does not change"
    assert {size + 1, 0} == first.stop_ids


def test_what_the_tokenizer_has_keeps_its_id(tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    size = tokenizer.get_vocab_size()
    chat = chat_of(tmp_path / "base", tokenizer=tokenizer)
    assert chat.known_tokens == {"<|im_end|>": size - 1}
    assert chat.new_tokens == {"<|im_start|>": size}


def test_a_string_of_the_vocabulary_that_was_never_matched_whole_becomes_a_token_with_its_id(tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["<|im_start|>"] = size = len(content["model"]["vocab"])
    chat = chat_of(tmp_path / "base", tokenizer=Tokenizer.from_str(json.dumps(content)))
    assert chat.known_tokens == {"<|im_start|>": size}
    assert chat.new_tokens == {"<|im_end|>": size + 1}
    assert chat.prompt([Message("user", "x")]).ids.count(size) == 2


RESERVED = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|reserved_special_token_2|>")


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_padding_is_taken_first_then_reserved_tokens_then_new_rows(tmp_path: Path, spare: int) -> None:
    tokenizer = base_tokenizer(*RESERVED)
    size = tokenizer.get_vocab_size()
    chat = chat_of(tmp_path / "base", tokenizer=tokenizer, rows=size + spare)
    start, end = chat.new_tokens["<|im_start|>"], chat.new_tokens["<|im_end|>"]
    expected = {0: (2, 3), 1: (size, 2), 5: (size, size + 1)}[spare]
    assert (start, end) == expected
    assert max(start, end) < size + spare
    renamed = [name for name in RESERVED if chat.tokens.id_of(name) is None]
    assert renamed == list(RESERVED[: 2 - min(spare, 2)])
    if spare < 2:
        assert f"<|im_end|> (id {end}, was {renamed[-1]})" in chat.notes[0]
    prompt = chat.prompt([Message("user", "x")])
    assert (prompt.ids.count(start), prompt.ids.count(end)) == (2, 1)
    for name, content in chat.saved_files().items():
        (tmp_path / name).write_bytes(content)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tuple(saved.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]) == prompt.ids
    assert len(saved) == size + min(spare, 2)


def test_control_strings_are_found_in_the_program_and_not_in_its_comments() -> None:
    source = "{# <|no|> #}<|a|>{{ '<|b|>' if x < 3 else y|join('|') }}<start_of_turn><｜User｜>[INST]<think>{{ '<|' ~ role ~ '|>' }}"
    assert control_strings(source) == ["<|a|>", "<|b|>", "<start_of_turn>", "<｜User｜>"]


def test_saved_files_keep_what_the_model_said(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {"0": {"content": EOT, "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": decoder, "padding_side": "left"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 0}))
    chat = Chat.load(folder, template=named_template("chatml", folder))
    files = {name: content.decode() for name, content in chat.saved_files().items()}
    end = chat.turn_end
    assert json.loads(files["generation_config.json"]) == {"temperature": 0.6, "eos_token_id": [end, 0]}
    saved = json.loads(files["tokenizer_config.json"])
    assert saved["padding_side"] == "left"
    assert saved["eos_token"] == "<|im_end|>"
    assert saved["added_tokens_decoder"][str(end)]["content"] == "<|im_end|>"
    assert saved["chat_template"] == files["chat_template.jinja"] == chat.template
    for name, content in files.items():
        (folder / name).write_text(content)
    again = Chat.load(folder)
    assert again.new_tokens == {}
    assert again.turn_end == end
    assert again.stop_ids == chat.stop_ids
    assert not any("do not name as a stop token" in note for note in again.notes)
    question = [Message("system", "a"), Message("user", "b")]
    assert again.prompt(question).ids == chat.prompt(question).ids


def test_a_model_with_its_own_template_keeps_its_files(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    chat = Chat.load(folder)
    assert chat.new_tokens == chat.known_tokens == {}
    files = chat.saved_files()
    assert files["chat_template.jinja"].decode() == template
    assert json.loads(files["tokenizer.json"]) == json.loads((folder / "tokenizer.json").read_text())
    ours, theirs = json.loads(files["tokenizer_config.json"]), json.loads((folder / "tokenizer_config.json").read_text())
    assert float(ours.pop("model_max_length")) == float(theirs.pop("model_max_length"))
    assert ours == theirs
