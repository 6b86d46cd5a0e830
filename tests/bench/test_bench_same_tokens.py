"""A speed-up that does other work is no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.same_tokens import TAIL, Files, compare

from sapwood.errors import SapwoodError

ROWS = [[1, 2, 3], [4], [5, 6, 7, 8]] * 100


def written(folder: Path, name: str, rows: list[list[int]]) -> Files:
    files = folder / f"{name}.ids.npy", folder / f"{name}.lengths.npy"
    np.save(files[0], np.array([token for row in rows for token in row], dtype=np.int32))
    np.save(files[1], np.array([len(row) for row in rows], dtype=np.int64))
    return files


def test_what_a_template_writes_behind_the_stop_token_is_no_difference(tmp_path: Path) -> None:
    found = compare(written(tmp_path, "ours", ROWS), written(tmp_path, "peer", [[*row, 9] for row in ROWS]))
    assert found == {"rows": 300, "alike": 300, "tokens_ours": 800, "tokens_peer": 1100, "tail_tokens": [1]}


def test_a_few_conversations_may_differ_and_are_counted(tmp_path: Path) -> None:
    changed = [[*ROWS[0][:-1], 99], *ROWS[1:]]
    assert compare(written(tmp_path, "ours", changed), written(tmp_path, "peer", ROWS))["alike"] == 299


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[:-1], "299 conversations came out of ours, 300"),
        ([[*row, 0] for row in ROWS], "only 0 of 300"),
        ([[*row[:-1], 99] for row in ROWS], "only 0 of 300"),
        ([row[:1] for row in ROWS], "only 200 of 300"),
    ],
)
def test_other_work_is_refused(rows: list[list[int]], said: str, tmp_path: Path) -> None:
    peer = [row if len(row) < TAIL else [*row, *range(50, 50 + TAIL)] for row in ROWS]
    with pytest.raises(SapwoodError, match=said):
        compare(written(tmp_path, "ours", rows), written(tmp_path, "peer", peer))
