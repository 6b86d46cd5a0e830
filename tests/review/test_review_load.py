"""Many at once, and the server killed in the middle: nothing that was confirmed is lost, nothing is counted twice. The short version of
`python -m bench.review_load`, whose five minutes are in docs/review.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from commands import checkout
from postgres_server import postgres_url

sys.path.insert(0, str(checkout()))

from bench.review_load import measure, until_votes


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_killed_server_loses_no_vote(database: str, tmp_path: Path) -> None:
    place = str(tmp_path / "review.db") if database == "sqlite" else postgres_url()
    found = measure(place, until_votes(60), raters=12, think=0.1, cases=300)
    assert found["lost"] == found["doubled"] == found["beyond the overlap"] == 0
    assert found["refused"] == {}
    assert found["broken connections"], "the server was not killed"
    assert 100 < found["acknowledged"] <= found["votes in the database"]
