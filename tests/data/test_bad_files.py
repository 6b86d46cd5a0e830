"""Files that cannot be read as rows: one clear paragraph, at once, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sapwood.data import read
from sapwood.errors import DataError, StorageError

ROW = b'{"prompt": "q", "completion": "a"}\n'


def said(path: Path, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        read([path])
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROW)
    assert "no such file. Did you mean 'train.jsonl'?" in said(tmp_path / "trian.jsonl")
    assert "Files of rows there: train.jsonl." in said(tmp_path / "x")
    assert f"no folder {tmp_path / 'no'}" in said(tmp_path / "no" / "train.jsonl")
    (tmp_path / "empty").mkdir()
    assert "a folder without files of rows in it. Known: .jsonl" in said(tmp_path / "empty")
    assert "could not be read" in said(tmp_path / "train.jsonl" / "x", StorageError)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to("gone.jsonl")
    (tmp_path / "here").symlink_to("there")
    (tmp_path / "there").symlink_to("here")
    assert "a link to gone.jsonl, which does not exist" in said(tmp_path / "train")
    assert "symbolic links" in said(tmp_path / "here", StorageError)


def test_a_link_without_an_ending_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sarcasm").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"a link to gone\.jsonl"):
        read("sarcasm")


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    try:
        assert "a pipe or a device" in said(pipe)
    finally:
        pipe.unlink()  # whoever looks through what tests leave would wait for it
    assert "a pipe or a device" in said(Path("/dev/zero"))


def test_nothing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")
    assert "the file is empty" in said(path)
    path.write_bytes(b"\n  \n\r\n")
    assert "no rows, only blank lines" in said(path)
    path.write_bytes(b"hello\nworld\n")
    text = said(path)
    assert f"none of its 2 rows could be read; the first: {path}:1: broken JSON: {path}:1:1: " in text
    path.write_bytes(b"[\n" + ROW.strip() + b"\n]\n")
    assert read([path]).refused, "an array over several lines in a .jsonl file: its brackets are refused"
    path.write_bytes(b'[{"prompt":\n"q"}]')
    assert "let its name end in .json" in said(path)


def test_arrays_in_json_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf [" + ROW + b"," + ROW + b", 3]")
    reading = read([path])
    assert [c.source.line for c in reading.conversations if c.source] == [1, 2]
    assert str(reading.refused[0]).startswith(f"{path}:3: not an object")
    path.write_bytes(b"[" + ROW + b",\n {]")
    assert f"{path}:3:3: the file begins as a JSON array but is broken here" in said(path)
    path.write_bytes(b"[]")
    assert "no rows" in said(path)
    path.write_bytes(b"[1, 2]\n" + ROW)  # lines after all
    assert (len(read([path]).conversations), len(read([path]).refused)) == (1, 1)
    path.write_bytes(ROW + ROW)
    assert read([path]).total == 2


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for content, word in [
        (ROW.decode().encode("utf-16"), "text in UTF-16"),
        (b"SQLite format 3\x00", "SQLite"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"a.jsonl".ljust(257, b"\x00") + b"ustar", "a tar archive"),
        (b"\x7fELF\x00\x00", "a binary file (a zero byte at 4)"),
        (ROW + b"\x00", "a binary file"),
    ]:
        path.write_bytes(content)
        assert word in said(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", ROW)
    assert "a zip archive" in said(path)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW)
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from sapwood.data import read\n"
        "from sapwood.errors import StorageError\n"
        "from sapwood.recipes.prepare import DataConfig, scan_files\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "for way in (lambda: read([Path(sys.argv[1])]), lambda: scan_files([sys.argv[1]], DataConfig(), lambda *_: None)):\n"
        "    try: way()\n"
        "    except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.count(f"{path}: this user may not read it. Change its permissions") == 2


def test_a_gigabyte_without_a_line_end_costs_little_memory_and_time(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:  # sparse: takes no room on the disk
        file.write(b'{"prompt": "q", "completion": "' + b"a" * 9000 + b'"}\n{"prompt": "')
        file.seek(2**30, os.SEEK_CUR)
        file.write(b"\n" + ROW)
    code = (
        "import json, resource, sys\n"
        "from sapwood.data import read\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "reading = read([sys.argv[1]])\n"
        "after = resource.getrusage(resource.RUSAGE_SELF)\n"
        "grown, seconds = after.ru_maxrss - before, after.ru_utime + after.ru_stime\n"
        "print(json.dumps([reading.total, [str(r) for r in reading.refused], grown, seconds]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    total, refused, grown_kib, seconds = json.loads(done.stdout)
    assert total == 3
    assert len(refused) == 1
    assert refused[0].startswith(f"{path}:2: line too long: {2**30 + 12:,} bytes, at most 67,108,864 are read")
    assert grown_kib < 200 * 1024, f"memory grew by {grown_kib // 1024} MiB"
    assert seconds < 10, f"{seconds:.1f} s of processor time, start included"


def test_the_limit_of_a_line_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for end in (b"\n", b""):
        path.write_bytes(ROW + ROW.rstrip(b"\n") + end)
        assert read([path], max_line_bytes=len(ROW) - 1).refused == []
        if end:
            with pytest.raises(DataError, match=r"none of its 2 rows could be read; the first: .*line too long: 34 bytes, at most 33"):
                read([path], max_line_bytes=len(ROW) - 2)


def test_a_table_from_windows_is_told_by_its_bytes_and_not_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes("Frage;Antwort\nWie groß?;Größer\nUnd Öl?;Äpfel\nplain;text\n".encode("latin-1"))
    text = said(path)
    assert f"2 of 3 rows could not be read; the first: {path}:2: invalid UTF-8: the cell `Frage`" in text
    assert "iconv -f CP1252 -t UTF-8" in text
    path.write_bytes("Frage;Antwort\nWie groß?;Größer\nplain;text\nmore;text\n".encode("latin-1"))
    assert "--prompt Frage --completion Antwort" in said(path), "with most rows readable, their columns are the question"


def test_the_columns_with_the_longest_texts_are_proposed(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("Nr.;Die Frage;Antwort;Datum\n1;Wie viele Öfen gibt es in Köln?;Es gibt sieben davon.;01.03.2024\n")
    assert said(path).endswith("Name the file's own columns, such as --prompt 'Die Frage' --completion Antwort.")


@pytest.mark.parametrize(("rest", "words"), [({"response": None}, "questions stand in the job's input"), ({"body": {}}, "job's output")])
def test_the_files_of_a_batch_job_are_known(tmp_path: Path, rest: dict[str, object], words: str) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text(json.dumps({"id": "b", "custom_id": "r", **rest}) + "\n")
    text = said(path)
    assert words in text
    assert "--prompt" not in text


def test_rows_inside_of_one_object_are_found(tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"version": 2, "data": [{"prompt": "q", "completion": "a"}]}, indent=indent))
        assert said(path).endswith(f"write that list alone: `jq '.[\"data\"]' {path} > rows.json`.")


def test_one_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    one = json.dumps({"prompt": "q", "completion": "ä"}, indent=2)
    path.write_text("\ufeff" + one, encoding="utf-8")
    reading = read([path])
    assert [turn.content for turn in reading.conversations[0].messages] == ["q", "ä"]
    assert str(reading.conversations[0].source) == f"{path}:1"
    path.write_text(one + "\n" + one, encoding="utf-8")
    assert "jq -c . FILE" in said(path)
    path.write_text(one, encoding="utf-8")
    with pytest.raises(DataError, match="jq -c"):
        read([path], max_line_bytes=9)
