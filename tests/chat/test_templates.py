"""Templates of every structure: found completions, learned stop tokens, and refusals that name the trouble."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from chat_folders import (
    CHATML,
    EMPTY_THOUGHT,
    ENDLESS,
    NO_SYSTEM,
    PREFILLED,
    STUBBORN_THOUGHT,
    TOOLFUL,
    TWO_MODES,
    load,
    write_folder,
)

from sapwood.chat import Chat
from sapwood.errors import AssetError, DataError, TemplateError
from sapwood.records import Conversation, Message, Source, ToolCall

ASK = Message("user", "Where does sapwood grow?")
TOOL = {"type": "function", "function": {"name": "find_tree", "parameters": {"type": "object", "properties": {"kind": {"type": "string"}}}}}


def chat(path: Path, template: str, eos: str = "<|im_end|>") -> Chat:
    return Chat.load(write_folder(path, template, eos=eos))


def trained(chat: Chat, *messages: Message, **more: object) -> list[tuple[str, str]]:
    conversation = Conversation(messages, source=Source("made.jsonl", 3), **more)  # type: ignore[arg-type]
    return [(turn.prompt.text, turn.text) for turn in chat.turns(conversation)]


def test_an_inserted_empty_thought_moves_into_the_prompt(tmp_path: Path) -> None:
    model = chat(tmp_path, EMPTY_THOUGHT)
    ((prompt, text),) = trained(model, ASK, Message("assistant", "below the bark"))
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    assert text == "below the bark<|im_end|>"
    example = model.example(Conversation((ASK, Message("assistant", "below the bark"))))
    assert example.meta["template_arguments"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    "turn",
    [Message("assistant", "below", reasoning="it is young"), Message("assistant", "<think>\nit is young\n</think>\n\nbelow")],
    ids=["field", "inline"],
)
def test_reasoning_is_trained_where_the_template_renders_it(tmp_path: Path, turn: Message) -> None:
    ((prompt, text),) = trained(chat(tmp_path, EMPTY_THOUGHT), ASK, turn)
    assert prompt.endswith("assistant\n")
    assert text == "<think>\nit is young\n</think>\n\nbelow<|im_end|>"


@pytest.mark.parametrize(
    "turn",
    [Message("assistant", "<b>below</b>", reasoning="it is young"), Message("assistant", "<think>\nit is young\n</think>\n\n<b>below</b>")],
    ids=["field", "inline"],
)
def test_an_opened_thought_is_continued_although_the_template_drops_it(tmp_path: Path, turn: Message) -> None:
    ((prompt, text),) = trained(chat(tmp_path, PREFILLED, "<|eos|>"), ASK, turn)
    assert prompt.endswith("<|assistant|><think>\n")
    assert text == "it is young\n</think>\n\n<b>below</b><|eos|>"


def test_an_opened_thought_without_reasoning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"made\.jsonl:3, message 2 \(assistant\): The prompt opens a thought .*Add `reasoning`"):
        trained(chat(tmp_path, PREFILLED, "<|eos|>"), ASK, Message("assistant", "below"))


def test_thinking_is_switched_to_what_the_turn_has(tmp_path: Path) -> None:
    model = chat(tmp_path, TWO_MODES, "<|eos|>")
    assert trained(model, ASK, Message("assistant", "below")) == [(f"<|user|>{ASK.content}<|assistant|></think>", "below<|eos|>")]
    ((prompt, text),) = trained(model, ASK, Message("assistant", "below", reasoning="it is young"))
    assert prompt.endswith("<|assistant|><think>")
    assert text == "it is young</think>below<|eos|>"
    with pytest.raises(TemplateError, match="The prompt closes the thought"):
        trained(model, ASK, Message("assistant", "below", reasoning="it is young"), template_arguments={"thinking": False})


def test_an_empty_thought_that_no_argument_moves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="inserts an empty thought"):
        trained(chat(tmp_path, STUBBORN_THOUGHT), ASK, Message("assistant", "below"))


def test_an_empty_thought_of_the_message_itself_is_trained(tmp_path: Path) -> None:
    ((_, text),) = trained(chat(tmp_path, CHATML), ASK, Message("assistant", "<think></think>below"))
    assert text == "<think></think>below<|im_end|>"


def test_reasoning_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="does not render this turn's `reasoning`"):
        trained(chat(tmp_path, CHATML), ASK, Message("assistant", "it is young wood", reasoning="young"))


def test_a_template_that_never_ends_a_turn_is_refused_for_training_only(tmp_path: Path) -> None:
    model = chat(tmp_path, ENDLESS)
    assert model.turn_end is None
    assert model.prompt([ASK]).text.endswith("assistant: ")
    with pytest.raises(TemplateError, match=r"made\.jsonl:3: .*ends an assistant turn in '\\n'.*would never stop"):
        trained(model, ASK, Message("assistant", "below"))


def test_a_stop_token_that_no_file_names_is_learned_and_told(tmp_path: Path) -> None:
    model = Chat.load(write_folder(tmp_path, CHATML, eos="<|eos|>", generation={"eos_token_id": 5}))
    end = model.tokens.id_of("<|im_end|>")
    assert model.turn_end == end
    assert model.stop_ids == {5, end, model.tokens.id_of("<|eos|>")}
    assert len(model.notes) == 1
    assert f"add {end} to `eos_token_id`" in model.notes[0]


def test_a_stop_token_that_files_name_wins_over_an_earlier_control_token(tmp_path: Path) -> None:
    model = chat(tmp_path, CHATML.replace("<|im_end|>\n", "<|im_end|><|eos|>\n"), "<|eos|>")
    assert model.stop_ids == {model.tokens.id_of("<|eos|>")}
    assert trained(model, ASK, Message("assistant", "below"))[0][1] == "below<|im_end|><|eos|>"


def test_a_next_turns_header_behind_the_end_is_no_stop_token(tmp_path: Path) -> None:
    always = "{% for m in messages %}<|head|>{{ m.role }}<|/head|>{{ m.content }}<|eot|>{% endfor %}<|head|>assistant<|/head|>"
    model = chat(tmp_path, always, "<|eos|>")
    assert model.turn_end == model.tokens.id_of("<|eot|>")
    assert trained(model, ASK, Message("assistant", "below"))[0][1] == "below<|eot|>"


@pytest.mark.parametrize("config", [{"eos_token_id": [3, 4]}, {"text_config": {"eos_token_id": [3, 4]}}], ids=["flat", "nested"])
def test_stop_tokens_of_config_json_count(tmp_path: Path, config: dict[str, object]) -> None:
    model = Chat.load(write_folder(tmp_path, CHATML, config=config))
    assert model.stop_ids == {3, 4, model.turn_end}


@pytest.mark.parametrize(
    ("config", "limit", "expected"),
    [({}, 10**30, 2048), ({"max_position_embeddings": None}, 10**30, None), ({"max_position_embeddings": None}, 512, 512)],
)
def test_a_context_length_that_nobody_set_is_unknown(tmp_path: Path, config: dict[str, object], limit: int, expected: int | None) -> None:
    write_folder(tmp_path, CHATML, config=config)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": limit}))
    assert Chat.load(tmp_path).context_length == expected


def test_reasoning_is_given_under_both_names_that_templates_read(tmp_path: Path) -> None:
    template = CHATML.replace("{{ m.content }}", "{% if m.thinking %}[{{ m.thinking }}] {% endif %}{{ m.content }}")
    ((_, text),) = trained(chat(tmp_path, template), ASK, Message("assistant", "below", reasoning="it is young"))
    assert text == "[it is young] below<|im_end|>"


def test_what_stands_behind_the_stop_token_is_the_next_prompts(tmp_path: Path) -> None:
    first, second = trained(chat(tmp_path, CHATML), ASK, Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))
    assert second[0] == first[0] + first[1] + "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"


def test_tools_and_calls_reach_the_row(tmp_path: Path) -> None:
    turn = Message("assistant", tool_calls=(ToolCall("find_tree", {"kind": "<|im_end|> é"}),))
    ((prompt, text),) = trained(chat(tmp_path, TOOLFUL), ASK, turn, tools=(TOOL,))
    assert json.dumps(TOOL) in prompt
    assert text == '<call>{"name": "find_tree", "arguments": {"kind": "<|im_end|> é"}}</call><|im_end|>'


@pytest.mark.parametrize("escape", ["", "(ensure_ascii=true)"])
def test_a_control_token_in_tool_arguments_stays_text(tmp_path: Path, escape: str) -> None:
    model = chat(tmp_path, TOOLFUL.replace("arguments | tojson", f"arguments | tojson{escape}"))
    turn = Message("assistant", tool_calls=(ToolCall("find_tree", {"kind": "<|im_end|>"}),))
    (row,) = model.example(Conversation((ASK, turn))).rows
    assert [token for token in row.completion_T.tolist() if token in model.stop_ids] == [model.turn_end]
    assert '"kind": "<|im_end|>"' in model.answer(row.completion_T.tolist())


def test_ignored_tools_and_calls_are_refused(tmp_path: Path) -> None:
    model = chat(tmp_path, CHATML)
    call = Message("assistant", tool_calls=(ToolCall("find_tree", {}),))
    with pytest.raises(TemplateError, match=r"ignores `tools`.*--tools-in-system"):
        model.prompt([ASK], [TOOL])
    with pytest.raises(TemplateError, match="ignores `tool_calls`: the call of 'find_tree'"):
        trained(model, ASK, call)
    with pytest.raises(TemplateError, match="ignores `tool_calls`: the call of 'find_tree' in message 2"):
        model.prompt([ASK, call, Message("tool", "an oak"), ASK])


def test_a_dropped_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"drops message 1 \(system\)"):
        chat(tmp_path, NO_SYSTEM).prompt([Message("system", "Speak of trees."), ASK])


def test_content_dropped_beside_calls_is_refused(tmp_path: Path) -> None:
    template = TOOLFUL.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
    turn = Message("assistant", "I look it up.", tool_calls=(ToolCall("find_tree", {}),))
    with pytest.raises(TemplateError, match=r"content beside its tool calls: 'I look it up\.'"):
        trained(chat(tmp_path, template), ASK, turn)


def test_a_system_message_equal_to_the_templates_default_is_no_dropped_message(tmp_path: Path) -> None:
    template = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    assert "Be kind." in chat(tmp_path, template).prompt([Message("system", "Be kind."), ASK]).text


def test_the_templates_own_refusal_is_quoted_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(
        TemplateError, match=r"made\.jsonl:3.*only user and assistant may speak here, not system.*Roles so far: system, user"
    ):
        trained(load(tmp_path, "brackets"), Message("system", "s"), ASK, Message("assistant", "a"))


def test_a_folder_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    write_folder(tmp_path, None)
    with pytest.raises(TemplateError, match=r"no chat template.*`--template FILE`"):
        Chat.load(tmp_path)
    assert Chat.load(tmp_path, template=CHATML).prompt([ASK]).text.endswith("assistant\n")
    with pytest.raises(AssetError, match=r"there is no tokenizer\.json"):
        Chat.load(tmp_path / "nowhere")


def test_a_broken_template_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"chat_template\.jinja:2: .*not valid Jinja"):
        chat(tmp_path, "fine\n{% for %}")


def test_named_templates_and_the_one_for_tools(tmp_path: Path) -> None:
    write_folder(tmp_path, None)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOLFUL}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = Chat.load(tmp_path)
    assert "find_tree" in model.prompt([ASK], [TOOL]).text
    assert model.template == CHATML
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(TemplateError, match="ignores `tools`"):  # as in transformers, the file replaces all of the setting
        Chat.load(tmp_path).prompt([ASK], [TOOL])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ range(10**9) | list }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, attack: str) -> None:
    with pytest.raises(TemplateError, match=r"refused the conversation: .*[^.]\. Roles"):
        chat(tmp_path, attack).prompt([ASK])


def test_the_date_is_fixed_when_the_template_is_loaded(tmp_path: Path) -> None:
    write_folder(tmp_path, "{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert Chat.load(tmp_path, today=datetime(2024, 2, 29)).prompt([ASK]).text.startswith("29 Feb 2024<|im_start|>")


def test_loop_controls_generation_marks_and_json_work_as_in_transformers(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m | tojson(indent=1) }}"
        "{% endgeneration %}{% endfor %}"
    )
    assert chat(tmp_path, template).prompt([Message("user", "<é>"), ASK, ASK][:1]).text == '{\n "role": "user",\n "content": "<é>"\n}'


def test_template_arguments_reach_the_template_and_reserved_names_do_not(tmp_path: Path) -> None:
    model = chat(tmp_path, "{{ mood }}" + CHATML)
    assert model.prompt([ASK], (), {"mood": "calm"}).text.startswith("calm<|im_start|>")
    with pytest.raises(TemplateError, match="template argument `messages`"):
        model.prompt([ASK], (), {"messages": []})
    with pytest.raises(DataError, match="no message to answer"):
        model.prompt([])


def test_the_fingerprint_changes_with_template_and_stop_tokens(tmp_path: Path) -> None:
    prints = {
        chat(tmp_path / "a", CHATML).fingerprint,
        chat(tmp_path / "b", CHATML + " ").fingerprint,
        chat(tmp_path / "c", CHATML, "<|eos|>").fingerprint,
    }
    assert len(prints) == 3
    assert chat(tmp_path / "d", CHATML).fingerprint in prints
