"""What a process held at its most, where nobody looked at the right moment."""

from __future__ import annotations

import sys

import pytest

from sapwood.train import memory

MIB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep no such record")
def test_a_short_peak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_EVERY_SECONDS", 600.0)
    beyond = memory.peak_memory() - memory.resident_memory() + 64 * MIB
    with memory.Watch() as watch:
        del_me = b"\x01" * beyond
        assert watch.seen() >= watch.before + beyond - MIB
        del del_me
    assert beyond - MIB <= watch.growth <= beyond + 8 * MIB
    with memory.Watch() as after:
        pass
    assert after.growth < 8 * MIB, "the peak before is not its own"
