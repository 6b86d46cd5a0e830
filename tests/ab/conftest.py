"""Records of tests lie in memory where there is such a folder: what a power cut does is not what is tested here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory(prefix="sapwood-ab-", dir=MEMORY if MEMORY.is_dir() else None) as made:
        yield Path(made)
