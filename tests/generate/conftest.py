"""Tests of what an engine promises run twice: with the prefill and the decode step of a CPU, and with those of a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sapwood.generate import engine, prefill

BOTH = {
    "test_adapters_in_batch",
    "test_constraints",
    "test_ending",
    "test_engine_exact",
    "test_media_generate",
    "test_packed_engine",
    "test_penalties",
    "test_session",
    "test_tree",
}
FREE = 64 * 2**20
"""Bytes that a static engine of a tiny model finds free: it takes a quarter at once."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.split(".")[-1] in BOTH:
        metafunc.parametrize("step", ["padded", "static"], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def step(request: pytest.FixtureRequest) -> Iterator[str]:
    """The decode step of every engine of the module's tests."""
    kind = getattr(request, "param", "padded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "step_for", lambda device: kind)
        if kind == "static":
            patch.setattr(engine, "_free_memory", lambda device: FREE)
            patch.setattr(prefill, "in_one_call", lambda device: True)
        yield kind
