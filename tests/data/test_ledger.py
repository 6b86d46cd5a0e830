"""The ledger adds up, says what happened, and stops a run that would train on a part without saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.data import Ledger, Refusal
from sapwood.errors import ConfigError, DataError
from sapwood.records import Source
from sapwood.run import open_run


def place(line: int) -> Source:
    return Source("rows.jsonl", line)


def filled(trained: int = 95, held_out: int = 3, refused: int = 2) -> Ledger:
    ledger = Ledger(trained + held_out + refused)
    for line in range(trained):
        ledger.train(place(line), trained_tokens=10, prompt_tokens=30)
    for line in range(trained, trained + held_out):
        ledger.hold_out(place(line))
    for line in range(trained + held_out, ledger.rows_in):
        ledger.refuse(Refusal(place(line), f"unknown role: turn {line} has 'usr'", "Did you mean 'user'?"))
    return ledger


def test_a_ledger_that_does_not_add_up_is_a_bug() -> None:
    for missing in (Ledger(3), Ledger(1)):
        missing.train(place(1))
        missing.hold_out(place(2))
        for reader in (missing.lines_for_people, missing.records, missing.assert_whole):
            with pytest.raises(AssertionError, match=r"does not add up: \d rows in, but 1 trained \+ 1 held out \+ 0 refused = 2"):
                reader()
    ledger = Ledger(2)
    ledger.train(place(1))
    for enter in (lambda: ledger.train(place(1)), lambda: ledger.hold_out(place(1)), lambda: ledger.refuse(Refusal(place(1), "x"))):
        with pytest.raises(AssertionError, match=r"rows\.jsonl:1 was entered into the ledger twice"):
            enter()
    ledger.train(None)
    ledger.assert_whole()


def test_the_table_for_people() -> None:
    ledger = filled(94, 1, 5)
    ledger.refused[-1] = Refusal(place(99), "empty completion: turn 2", "write the answer")
    assert ledger.lines_for_people() == [
        "rows in          100",
        "  trained         94   94.0%",
        "  held out         1    1.0%",
        "  refused          5    5.0%",
        "tokens         3,760  940 trained (25.0%), 2,820 prompt",
        "refused, by reason:",
        "  4 × unknown role",
        "      rows.jsonl:95  turn 95 has 'usr'",
        "      rows.jsonl:96  turn 96 has 'usr'",
        "      rows.jsonl:97  turn 97 has 'usr'",
        "      … and 1 more",
        "      fix: Did you mean 'user'?",
        "  1 × empty completion",
        "      rows.jsonl:99  turn 2",
        "      fix: write the answer",
    ]
    assert Ledger(0).lines_for_people()[0] == "rows in            0"


def test_records_name_every_row(tmp_path: Path) -> None:
    ledger = filled()
    run = open_run(tmp_path / "run")
    run.append("ledger", *ledger.records())
    rows = run.read("ledger")
    run.close()
    assert [row["status"] for row in rows[:-1]] == ["trained"] * 95 + ["held_out"] * 3 + ["refused"] * 2
    assert [row["line"] for row in rows[:-1]] == list(range(100))
    assert rows[-2]["reason"] == "unknown role: turn 99 has 'usr'"
    assert rows[-2]["fix"] == "Did you mean 'user'?"
    summary = rows[-1]
    assert summary["rows_in"] == 100 == summary["trained"] + summary["held_out"] + summary["refused"]
    assert (summary["trained_tokens"], summary["prompt_tokens"]) == (950, 2850)


def test_too_many_refusals_stop_with_reasons_and_the_way_on() -> None:
    filled(98, 0, 2).check()
    with pytest.raises(DataError) as caught:
        filled(97, 0, 3).check()
    said = str(caught.value)
    assert said.startswith("3 of 100 rows were refused (3.0%; at most 2.0% may be):\n  3 × unknown role\n      rows.jsonl:97")
    assert said.endswith("pass --max-refused 0.03 to train without them.")
    filled(97, 0, 3).check(0.03)
    with pytest.raises(DataError):
        filled(99, 0, 1).check(0.0)
    filled(1, 0, 3).check(1.0)
    for share in (0.02, 1.0):
        with pytest.raises(DataError, match="No row is left"):
            filled(0, 0, 3).check(share)
    unfit = Ledger(1)
    unfit.refuse(Refusal(None, "the model would never stop", fix="Choose another template."))
    with pytest.raises(DataError, match=r"fix: Choose another template\.\nNo row is left, so there is nothing to go on with: see the fix"):
        unfit.check()
    Ledger(0).check()


@pytest.mark.parametrize(("refused", "total"), [(1, 3), (2, 3), (7, 11), (1, 49), (333, 1000)])
def test_the_share_that_is_advised_is_enough(refused: int, total: int) -> None:
    ledger = filled(total - refused, 0, refused)
    with pytest.raises(DataError) as caught:
        ledger.check()
    ledger.check(float(str(caught.value).split("--max-refused ")[1].split()[0]))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(ConfigError, match="max_refused"):
        filled().check(share)
