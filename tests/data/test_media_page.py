"""docs/media.md: its files are read, its code runs and prints what the page says, and its table names the families that are covered."""

from __future__ import annotations

from pathlib import Path

import pytest

import pages
from sapwood.model.media import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "media.md"
NAMES = {
    "llava": "LLaVA,",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "internvl": "InternVL",
    "qwen2_audio": "Qwen2-Audio",
}


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pages.played(PAGE, tmp_path) == PAGE.read_text(encoding="utf-8")


def test_the_table_names_every_family() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert NAMES.keys() == FAMILIES.keys()
    for family, name in NAMES.items():
        [row] = [row for row in rows if name in f"{row} ,"]
        assert ("images" if "image" in FAMILIES[family].kinds else "sounds") in row
