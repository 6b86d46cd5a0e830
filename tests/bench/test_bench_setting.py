"""The peers' environment: used as it is while its pins hold, made again when they change, and pip's refusal in one paragraph."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest
from bench.setting import machine, peer_python

from sapwood.errors import AssetError
from sapwood.recipes.screen import Screen

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose `python -m pip install` writes its words into a file, and fails where they hold `no-such-peer`."""

    def create(place: Path, **_: object) -> None:
        python = place / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *bad.txt*) '
            "echo 'WARNING: noise'; echo 'ERROR: No matching distribution found for no-such-peer'; exit 1;; esac\n"
        )
        python.chmod(0o755)

    monkeypatch.setattr(venv, "create", create)
    return tmp_path / "peers"


def test_torch_comes_first_and_alone_and_only_changed_pins_come_again(folder: Path, tmp_path: Path) -> None:
    pins = tmp_path / "good.txt"
    pins.write_text("trl==1.16.0\n")
    screen = Screen(quiet=True)
    for _ in range(2):
        assert peer_python(screen, folder, pins) == folder / "bin" / "python"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert asked[0].endswith("install --quiet --disable-pip-version-check torch==2.13.0")
    assert asked[1].endswith(f"torch==2.13.0 --requirement {pins}")
    pins.write_text("trl==1.17.0\n")
    peer_python(screen, folder, pins)
    assert len((tmp_path / "asked").read_text().splitlines()) == 4


def test_a_peer_that_cannot_be_installed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pins = tmp_path / "bad.txt"
    pins.write_text("# a note\nno-such-peer==1\n")
    for _ in range(2):  # nothing half installed looks whole the second time
        with pytest.raises(AssetError, match=r"(?s)pip could not install .*bad.txt \(exit code 1\).*No matching distribution") as caught:
            peer_python(Screen(), folder, pins)
        assert "noise" not in str(caught.value)
    assert "no-such-peer==1" in capsys.readouterr().err, "what will be installed is said first"


def test_the_machine_is_described() -> None:
    found = machine()
    assert found["python"] == sys.version.split()[0]
    assert found["usable_cores"] >= 1
    assert found["processor"]
