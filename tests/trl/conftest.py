"""One tiny model folder for all tests of the drop-in face; progress bars of transformers stay out of the output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from tiny.folder import write_model
from tiny.trainers import Rows, some_rows


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return write_model(tmp_path_factory.mktemp("trl") / "model")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Thirty conversations."""
    return some_rows(tmp_path_factory.mktemp("trl-rows"))


@pytest.fixture(autouse=True)
def no_bars() -> Iterator[None]:
    """transformers' own bars."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
