"""Folders, patterns and names → files, with a word on what was taken and what was left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.data import read
from sapwood.data.locations import locate
from sapwood.errors import AssetError, DataError

ROW = '{"prompt": "q", "completion": "a"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.csv", "deep/c.json", "deep/.hidden.jsonl", ".git/x.jsonl", "README.md", "dataset_info.json", "d.jsonl.gz"):
        path = tmp_path / "rows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("prompt,completion\nq,a\n" if name == "a.csv" else ROW)
    return tmp_path / "rows"


def names(folder: Path, *given: str | Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in locate(list(given)).files]


def test_a_folder_is_all_files_of_rows_in_it(folder: Path) -> None:
    assert names(folder, folder) == ["a.csv", "b.jsonl", "d.jsonl.gz", "deep/c.json"]
    reading = read([folder])
    assert len(reading.conversations) == 4
    first, *sentences = reading.guess.split("\n")
    assert first == f"{folder}: 4 files of rows; left out: 2 hidden, 2 of other kinds (README.md, dataset_info.json)"
    assert len(sentences) == 4, "and each file says what it is"


def test_patterns_as_a_quoted_shell_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(folder, f"{folder}/*.jsonl") == ["b.jsonl"]
    assert names(folder, f"{folder}/**/*.js*") == ["b.jsonl", "d.jsonl.gz", "dataset_info.json", "deep/c.json"]
    assert names(folder, f"{folder}/[ab].*") == ["a.csv", "b.jsonl"]
    assert locate(f"{folder}/[ab].*").said == [f"{folder}/[ab].*: 2 files, from a.csv to b.jsonl"]
    odd = folder / "[1].jsonl"
    odd.write_text(ROW)
    assert names(folder, odd) == ["[1].jsonl"], "a file that exists wins over the pattern that its name would be"
    monkeypatch.setenv("HOME", str(folder))
    assert names(folder, "~/b.jsonl") == ["b.jsonl"]
    assert names(folder, "~/b.js*") == ["b.jsonl"]
    for pattern, why in [("x*", "finds nothing"), ("dee*", "finds only folders")]:
        with pytest.raises(DataError, match=why):
            locate(f"{folder}/{pattern}")


def test_no_file_counts_twice(folder: Path) -> None:
    for given in ([folder, folder / "b.jsonl"], [f"{folder}/b*", f"{folder}/*l"], [folder / "b.jsonl", folder / "deep" / ".." / "b.jsonl"]):
        with pytest.raises(DataError, match=r"b\.jsonl: given twice"):
            locate(given)
    with pytest.raises(DataError, match="No files to read"):
        locate([])


def test_what_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert locate("deep/missing.jsonl").files == [Path("deep/missing.jsonl")], "reading says it better"
    with pytest.raises(DataError, match=r"deep/c\.jsonl: no such file\. Did you mean 'c\.json' or"):
        read(["deep/c.jsonl"])
    with pytest.raises(AssetError, match="Did you mean 'sarcasm'"):
        locate("sarcasms")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: a folder without files of rows in it\. Known: \.jsonl"):
        locate("empty")
