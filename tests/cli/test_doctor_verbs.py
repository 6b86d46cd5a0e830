"""`sapwood doctor` and `sapwood template` from end to end: exit codes, mended copies that pass, results for machines, pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chat.chat_folders import CHATML, ENDLESS, NO_SYSTEM, TOOLFUL, write_folder
from sapwood.chat.doctor.row_checks import ROW_KINDS
from sapwood.chat.doctor.spans import KINDS
from sapwood.cli.main import main


def row(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)], **more}


SICK = [
    json.dumps(row("Where?", "Below the bark.")),
    json.dumps({"messages": [{"role": "usr", "content": "And?"}, {"role": "assistant", "content": "Within."}]}),
    json.dumps(row("Where?", "Below the bark.")),
    json.dumps(row("a", "b", "nobody answers")),
    json.dumps(row("a", "")),
    json.dumps(row("write <|im_end|> <script>", "never")),
    "{broken",
    "",
    json.dumps(row("x" * 5000, "too long")),
    json.dumps(row("naÃ¯ve?", "no", line=9)),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "model", TOOLFUL)
    (tmp_path / "sick.jsonl").write_text("\n".join(SICK) + "\n")
    (tmp_path / "well.jsonl").write_text("".join(json.dumps(row(f"q{n}", f"a{n}")) + "\n" for n in range(20)))
    return tmp_path


def result(*words: str) -> tuple[int, Any]:
    code = main([*words, "--json", "result.json"])
    return code, json.loads(Path("result.json").read_text())


def test_a_healthy_file_and_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = result("doctor", "well.jsonl", "--model", "model")
    shown = capsys.readouterr().err
    assert code == 0
    assert found["verdict"] in ("healthy", "usable")
    assert found["rows"]["in"] == found["rows"]["taken"] == 20
    assert "sapwood sft well.jsonl --model model" in shown
    assert found["schema"] == 1
    assert result("doctor", "--model", "model", "--data", "well.jsonl")[1]["rows"] == found["rows"], "files may be an option, too"


def test_sick_rows_are_named_and_the_mended_copy_passes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "sick.jsonl").read_bytes()
    code, found = result("doctor", "sick.jsonl", "--model", "model")
    assert code == 1
    assert found["verdict"] == "not trainable"
    places = {kind: [note["where"] for note in count["first"]] for kind, count in found["rows"]["kinds"].items()}
    assert places["refused"] == [f"sick.jsonl:{line}" for line in (2, 5, 7, 9)]
    assert places["duplicate"] == ["sick.jsonl:3"]
    assert places["control-text"] == ["sick.jsonl:6"]
    assert places["mojibake"] == ["sick.jsonl:10"]
    shown = capsys.readouterr().err
    assert "sick.jsonl:7" in shown
    assert "--fix mended.jsonl" in shown

    code, found = result("doctor", "sick.jsonl", "--model", "model", "--fix", "mended.jsonl")
    assert code == 0
    counts = found["fix"]
    assert counts["rows_in"] == 9 == counts["written"] + counts["removed"] + counts["refused"]
    assert (counts["removed"], counts["refused"], counts["changed"]) == (1, 3, 2)
    assert (place / "sick.jsonl").read_bytes() == before
    changes = [json.loads(line) for line in (place / "mended.changes.jsonl").read_text().splitlines()]
    assert {(change["line"], change["action"]) for change in changes} == {
        (2, "mended"),
        (3, "removed"),
        (4, "mended"),
        (6, "left alone"),
        (10, "left alone"),
    }
    refused = [json.loads(line) for line in (place / "mended.refused.jsonl").read_text().splitlines()]
    assert [record["line"] for record in refused] == [5, 7, 9]
    assert all(record["reason"] for record in refused)
    mended = [json.loads(line) for line in (place / "mended.jsonl").read_text().splitlines()]
    assert mended[-1]["line"] == 9, "other columns stay"

    code, found = result("doctor", "mended.jsonl", "--model", "model")
    assert code == 0
    assert found["rows"]["refused"] == 0
    assert "duplicate" not in found["rows"]["kinds"]


@pytest.mark.parametrize("taken", ["mended.jsonl", "mended.changes.jsonl", "mended.refused.jsonl"])
def test_nothing_is_written_over(place: Path, taken: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / taken).write_text("mine")
    assert main(["doctor", "sick.jsonl", "--model", "model", "--fix", "mended.jsonl"]) == 2
    assert taken in capsys.readouterr().err
    assert sorted(path.name for path in place.glob("mended*")) == [taken]
    assert (place / taken).read_text() == "mine"


def test_the_original_is_no_target(place: Path) -> None:
    before = (place / "sick.jsonl").read_bytes()
    assert main(["doctor", "sick.jsonl", "--model", "model", "--fix", "sick.jsonl"]) == 2
    assert (place / "sick.jsonl").read_bytes() == before


def test_a_file_without_a_row_to_save_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lost.jsonl").write_text(json.dumps(row("a", "")) + "\n")
    assert main(["doctor", "lost.jsonl", "--model", "model", "--fix", "mended.jsonl"]) == 1
    assert "none of the 1 rows" in capsys.readouterr().err
    assert not list(place.glob("mended*"))


@pytest.mark.parametrize(("template", "code"), [(CHATML, 0), (NO_SYSTEM, 1), (ENDLESS, 1)])
def test_the_template_alone(place: Path, template: str, code: int) -> None:
    write_folder(place / "other", template)
    found = result("doctor", "--model", "other")
    assert found[0] == found[1]["exit_code"] == code
    assert found[1]["rows"] is None


def test_no_mending_of_rows_is_proposed_for_what_the_template_does(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "endless.jinja").write_text(ENDLESS)
    assert main(["doctor", "well.jsonl", "--model", "model", "--template", "endless.jinja"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sapwood doctor: Not trainable as it is: 1 problem with the template and 20 of 20 rows")
    assert last.endswith("The findings above say what to do.")


def test_rows_are_shown_by_place(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "well.jsonl", "--model", "model", "--row", "well.jsonl:17"]) == 0
    shown = capsys.readouterr().err
    assert "well.jsonl:17, row 1 of 1" in shown
    assert "q16" in shown
    assert "well.jsonl:1, row" not in shown
    assert main(["doctor", "well.jsonl", "--model", "model", "--row", "well.jsonl:170"]) == 1
    assert "there is no such row" in capsys.readouterr().err
    assert main(["doctor", "--model", "model", "--row", "well.jsonl:1"]) == 2


def test_the_page_is_written_when_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "sick.jsonl", "--model", "model", "--page", "doctor.html"])
    page = (place / "doctor.html").read_text()
    assert "Not trainable" in page
    assert "sick.jsonl:7" in page
    assert "<script>&lt;" not in page
    assert main(["doctor", "well.jsonl", "--model", "model"]) == 0
    assert "--page doctor.html" in capsys.readouterr().err, "the hint says how to get one"


def test_data_flags_are_handed_on_to_the_next_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "t.csv").write_text("text,category\nwhere,here\nwhen,now\n")
    assert main(["doctor", "t.csv", "--model", "model", "--prompt", "text", "--completion", "category"]) == 0
    assert "sapwood sft t.csv --model model --prompt text --completion category" in capsys.readouterr().err


def test_two_templates_side_by_side(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(place / "other", CHATML)
    code, found = result("template", "model", "other", "--page", "both.html")
    assert code == 0
    assert [side["name"] for side in found["templates"]] == ["model", "other"]
    assert "without tools" in found["templates"][1]["problem"], "what a template does not serve is said"
    for place_, side in enumerate(("left", "right")):
        assert "".join(pair[side]["text"] for pair in found["side_by_side"] if pair[side]) == found["templates"][place_]["text"]
    differing = [entry["kind"] for entry in found["findings"] if not entry["same"]]
    assert "tools" in differing
    assert "stops" not in differing
    assert (place / "both.html").stat().st_size > 2000
    assert "Highlighted" in capsys.readouterr().err


def test_one_template_and_a_row_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.jinja").write_text(CHATML)
    code, found = result("template", "mine.jinja", "--model", "model", "--conversation", "well.jsonl:3", "--data", "well.jsonl")
    assert code == 0
    assert found["conversation"] == "well.jsonl:3"
    assert "q2" in found["templates"][0]["text"]
    assert found["templates"][0]["data"]["taken"] == 20
    assert "letters in" in capsys.readouterr().err
    (place / "tools.json").write_text(
        json.dumps([{"type": "function", "function": {"name": "fell", "description": "Fells.", "parameters": {}}}])
    )
    assert "fell" in result("template", "model", "--conversation", "well.jsonl", "--tools", "tools.json")[1]["templates"][0]["text"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["template"], "0 names are given"),
        (["template", "model", "model", "model"], "3 names are given"),
        (["template", "none.jinja", "--model", "model"], "none.jinja: no such file"),
        (["template", "model", "--conversation", "well.jsonl:99"], "there is no such row"),
        (["template", "model", "--tools", "none.json"], "none.json: no such file"),
        (["template", "model", "--tools", "model/chat_template.jinja"], "not valid JSON"),
        (["doctor", "well.jsonl", "--data", "sick.jsonl"], "named twice"),
        (["doctor", "well.jsonl", "--model", "model", "--fix", "mended.csv"], "let its name end in .jsonl"),
    ],
)
def test_refusals(place: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) != 0
    assert expected in capsys.readouterr().err


def words_of(section: str) -> set[str]:
    return set(re.findall(r"`([a-z][a-z_-]*)`", section))


def test_the_reference_names_every_key_and_every_kind(place: Path) -> None:
    reference = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    parts = dict(part.split("\n", 1) for part in reference.split("\n## "))
    _, found = result("doctor", "sick.jsonl", "--model", "model", "--fix", "mended.jsonl")
    keys = words_of(parts["`--json FILE`"])
    rows = found["rows"]
    for produced in (found, rows, rows["tokens"], rows["lengths"], rows["sharing"], found["fix"], found["findings"][0]):
        assert produced.keys() <= keys, "a key that nobody was told of"
    assert set(ROW_KINDS) == words_of(parts["What is looked at in rows"].partition("\n|---|---|\n")[2]) - {"enable_thinking"}
    assert set(KINDS) == words_of(parts["Tokens, by who wrote them"])
    _, both = result("template", "model", "model")
    for produced in (both, both["templates"][0], both["side_by_side"][0], both["side_by_side"][0]["left"], both["findings"][0]):
        assert produced.keys() <= keys
