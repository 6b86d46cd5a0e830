"""The quick start itself, on the real model and the real data: the one slow end-to-end run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.assets import pull
from sapwood.cli.main import main
from sapwood.errors import AssetError
from sapwood.run import read_records


@pytest.mark.slow
def test_the_quick_start_proves_its_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        pull("smollm2-135m-instruct")
        pull("bfcl")
    except AssetError as error:
        pytest.skip(f"the model or the data cannot be fetched here: {error}")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--json", "result.json"]) == 0
    result = json.loads(Path("result.json").read_text())
    expected = {
        "arms",
        "tuned",
        "best_other",
        "difference",
        "interval",
        "held_out",
        "row_tokens_per_second",
        "unique_tokens_per_second",
        "seconds",
    }
    assert expected <= result.keys()
    assert result["held_out"] >= 100
    assert set(result["arms"]) >= {"most common answer", "nearest training row", "plain prompt", "tuned"}
    assert result["interval"][0] > 15, f"points over the best other arm: {result['line']}"
    assert result["arms"]["nearest training row"] < 0.05, "a lookup does not solve the task"
    run = Path(result["run"])
    ledger = read_records(run / "ledger.jsonl")[-1]
    assert ledger["rows_in"] == ledger["trained"] + ledger["held_out"] + ledger["refused"]
    assert {record["when"] for record in read_records(run / "samples.jsonl")} >= {"before"}
    assert (run / "report.html").stat().st_size > 100_000
    shown = capsys.readouterr().err
    for words in ("rows in", "most common answer", "before", "Verdict", "general text", "sapwood sft my.jsonl", "sapwood chat"):
        assert words in shown, words
