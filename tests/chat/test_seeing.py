"""The doctor's findings and the coloured row: everything true is said, everything trained is seen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from chat_folders import CHATML, EMPTY_THOUGHT, ENDLESS, NO_SYSTEM, PREFILLED, TOOLFUL, load, metaspace, write_folder
from rich.console import Console

from sapwood.chat import Chat, coloured, examine
from sapwood.chat.colour import TRAINED
from sapwood.chat.doctor.diagnosis import survey_findings
from sapwood.chat.doctor.survey import Surveyor
from sapwood.records import Conversation, Example, Message, Row

ROW = Conversation((Message("user", "a\x1b[31m tree"), Message("assistant", "  世🌱\nsap <|im_end|>")))


def sentences(chat: Chat, severity: str, conversations: tuple[Conversation, ...] = (), context: int | None = None) -> str:
    found = examine(chat)
    if conversations:
        surveyor = Surveyor(chat, context=context)
        for conversation in conversations:
            surveyor.add(conversation)
        found += survey_findings(surveyor.survey())
    return "\n".join(finding.sentence for finding in found if finding.severity == severity)


@pytest.mark.parametrize(
    ("template", "eos", "severity", "words"),
    [
        (CHATML, "<|im_end|>", "note", "no place for tools"),
        (TOOLFUL, "<|im_end|>", "ok", "Tools reach the prompt"),
        (CHATML, "<|im_end|>", "ok", "History is kept"),
        (NO_SYSTEM, "<|im_end|>", "problem", "leaves the system message out"),
        (PREFILLED, "<|eos|>", "note", "opens a thought"),
        (EMPTY_THOUGHT, "<|im_end|>", "note", "{'enable_thinking': False}"),
        (EMPTY_THOUGHT, "<|im_end|>", "note", "rewrites history"),
        (ENDLESS, "<|im_end|>", "problem", "ends in no stop token"),
        (CHATML, "<|eos|>", "note", "add 326 to"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "<|im_end|>", "problem", "'<|bos|>' twice"),
        (
            CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", ""),
            "<|im_end|>",
            "note",
            "no generation prompt",
        ),
        ("You are a very old tree. " + CHATML, "<|im_end|>", "note", "text of its own"),
        ("{{ strftime_now('%d %B %Y') }}" + CHATML, "<|im_end|>", "note", "writes a date into every prompt"),
        ("{{ raise_exception('never') }}", "<|im_end|>", "problem", "never"),
    ],
)
def test_the_doctor_sees_what_a_template_does(tmp_path: Path, template: str, eos: str, severity: str, words: str) -> None:
    assert words in sentences(Chat.load(write_folder(tmp_path, template, eos=eos)), severity)


def test_a_healthy_template_has_no_problem(tmp_path: Path) -> None:
    assert sentences(load(tmp_path, "toolful"), "problem", (ROW,)) == ""


def test_the_doctor_counts_rows_refusals_and_protected_texts(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    silent = Conversation((Message("user", "a"),))
    assert "1 of 2 conversations can be trained: 1 row of" in sentences(chat, "ok", (ROW, silent))
    assert "no assistant turn to train" in sentences(chat, "problem", (ROW, silent))
    assert "1 row holds control tokens as text" in sentences(chat, "note", (ROW, silent))
    assert "at most 5" in sentences(chat, "problem", (ROW,), context=5)


def test_the_doctor_names_texts_that_a_tokenizer_changes(tmp_path: Path) -> None:
    tokenizer = metaspace()
    from tokenizers import normalizers

    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Replace(" ", "▁")])
    chat = load(tmp_path, "chatml", tokenizer=tokenizer)
    assert "accents" in sentences(chat, "note")
    assert "1 row holds an answer that the tokenizer" in sentences(
        chat, "note", (Conversation((Message("user", "a"), Message("assistant", "é"))),)
    )


def printed(text: object, **more: object) -> str:
    file = io.StringIO()
    Console(file=file, width=80, **more).print(text)  # type: ignore[arg-type]
    return file.getvalue()


def test_without_colour_brackets_hold_exactly_the_trained_text(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    example = chat.example(ROW)
    heading, _, rest = coloured(example, chat, colour=False).plain.partition("\n")
    assert heading.endswith(f"{len(example.rows[0].prompt_T)} tokens read, {len(example.rows[0].completion_T)} trained")
    read, _, trained = rest.rstrip("\n").partition("assistant⏎\n")
    assert "[" not in read.replace("␛[31m", "")
    assert trained.replace("][", "") == "[  世🌱⏎\nsap <|im_end|><|im_end|>]"


def test_data_cannot_steer_the_terminal_and_lines_fit(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    shown = printed(coloured(chat.example(ROW), chat), no_color=True, force_terminal=False)
    assert "\x1b" not in shown
    assert "␛[31m tree" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_green_stands_on_trained_text_only(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    text = coloured(chat.example(ROW), chat)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if str(span.style).startswith(TRAINED))
    assert green == "  世🌱⏎\nsap <|im_end|><|im_end|>"


def test_a_letter_cut_between_prompt_and_completion_is_never_shown_as_trained(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    ids = np.array(chat.tokens.encode("世<|im_end|>"), dtype=np.int64)
    assert len(ids) == 4
    row = Row(ids[:1], ids[1:], np.ones(3, np.float32))
    shown = coloured(Example((row,)), chat, colour=False).plain.partition("\n")[2]
    assert "世" not in shown
    assert shown.startswith("\ufffd[")


def test_what_rows_share_is_shown_once(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml")
    example = chat.example(Conversation((*ROW.messages, Message("user", "and?"), Message("assistant", "so"))))
    shared = len(example.rows[0].prompt_T) + len(example.rows[0].completion_T)
    first, second = coloured(example, chat, colour=False).plain.split("row 2 of 2")
    assert f"… {shared} tokens as in row 1 …" in second
    assert "tree" in first
    assert "tree" not in second, "row 1 has shown it"
    assert second.rstrip().replace("][", "").endswith("[so<|im_end|>]")
