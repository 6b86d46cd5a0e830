"""What experts write is what is kept: covered names come back as they stood, over each other's corrections, and images are found again."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from PIL import Image
from review_runs import served

from sapwood.data import read
from sapwood.review.batch import Batch, Candidate, batch_by_id
from sapwood.review.exporting import export
from sapwood.review.sources import read_source
from sapwood.review.tables import corrections


def one(text: str) -> Candidate:
    return Candidate(key="x", asked=[{"role": "user", "content": "Who?"}], answers={"answer": {"role": "assistant", "content": text}})


def form_of(client: httpx2.Client) -> dict[str, str]:
    """The form of a case's page, as the browser would send it."""
    page = client.get("/case/1").text
    fields = dict(re.findall(r'name="(form|side|shown)" value="([^"]*)"', page))
    return {**fields, "text": html.unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)[1]), "reason": "so"}  # type: ignore[index]


def test_a_correction_of_a_correction_puts_back_its_own_names(tmp_path: Path) -> None:
    """The first name of the answer is gone in the first correction; the second one counts the names that are left."""
    with served(tmp_path / "r.db", [one("OpenAI says that Qwen is good.")]) as place, place.client("eve") as eve:
        first = form_of(eve)
        assert first["text"] == "⟦name 1⟧ says that ⟦name 2⟧ is good."
        eve.post("/case/1/correct", data={**first, "text": "⟦name 2⟧ is good."})
        second = form_of(eve)
        assert second["text"] == "⟦name 1⟧ is good."
        eve.post("/case/1/correct", data={**second, "text": second["text"] + " Indeed."})
        assert [row.after for row in place.rows(corrections)] == ["Qwen is good.", "Qwen is good. Indeed."]


def test_one_who_overtakes_another_is_told(tmp_path: Path) -> None:
    """Two have the page open: both corrections are kept, names as each saw them, and the later one hears of the earlier."""
    with (
        served(tmp_path / "r.db", [one("OpenAI says that Qwen is good.")], people=("eve:expert", "max:expert")) as place,
        place.client("eve") as eve,
        place.client("max") as other,
    ):
        early, late = form_of(eve), form_of(other)
        said = eve.post("/case/1/correct", data={**early, "text": "⟦name 2⟧ is good."}).text
        assert "The correction is kept." in said
        assert "in place of one" not in said
        said = other.post("/case/1/correct", data={**late, "text": "⟦name 2⟧ is fine, says ⟦name 1⟧."}).text
        assert "It stands in place of one that eve made after you had opened this page" in said
        rows = place.rows(corrections)
        assert [row.after for row in rows] == ["Qwen is good.", "Qwen is fine, says OpenAI."]
        assert rows[1].supersedes == rows[0].id
        for shown in ("99", "-1", "x", "9" * 40):
            assert other.post("/case/1/correct", data={**late, "shown": shown, "text": f"{shown}: ⟦name 1⟧"}).status_code == 200
        assert [row.after for row in place.rows(corrections)][2:] == [f"{shown}: OpenAI" for shown in ("99", "-1", "x", "9" * 40)]


@pytest.mark.parametrize("kind", ["data", "answers"])
def test_images_beside_a_file_in_a_folder_are_shown_and_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The file is named from where one stands, the image from where the file lies, and the export lies somewhere else."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Image.new("RGB", (2, 2)).save("mine/dot.png")
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image", "path": "dot.png"}]}
    ]
    answer = {"role": "assistant", "content": "A dog."}
    row = {"messages": [*asked, answer]} if kind == "data" else {"messages": asked, "answers": {"x": "A dog.", "y": "A cat."}}
    Path("mine/rows.jsonl").write_bytes(orjson.dumps(row))
    found = read_source(Path("mine/rows.jsonl")).candidates
    with served(tmp_path / "r.db", found, media=Path("mine")) as place:
        with place.client("ann") as ann:
            assert 'src="/media/1/asked/0/0"' in ann.get("/desk/1").text
            assert ann.get("/media/1/asked/0/0").content == Path("mine/dot.png").read_bytes()
        with place.client("eve") as eve:
            eve.post("/case/1/correct", data={**form_of(eve), "text": "A dot."})
        with place.store.reading() as connection:
            batch = batch_by_id(connection, 1)
            assert isinstance(batch, Batch)
            export(connection, [batch], tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    reading = read(["sft.jsonl"])
    assert reading.refused == []
    assert [medium.uri for medium in reading.conversations[0].messages[0].media] == [str(tmp_path / "mine" / "dot.png")]
