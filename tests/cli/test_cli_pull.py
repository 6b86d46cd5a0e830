"""What can be pulled is listed with names that can be typed."""

from __future__ import annotations

import json

import pytest

from sapwood.assets import CATALOGUE
from sapwood.cli.main import main


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_every_name_is_listed_whole(columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["pull"]) == 0
    shown = capsys.readouterr().err
    for name in CATALOGUE:
        assert name in shown


def test_the_list_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == CATALOGUE.keys()
