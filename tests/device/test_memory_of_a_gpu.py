"""Memory by torch's own record of a GPU, with a record made up: what is free, what a run may take, the most that was held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sapwood.train import memory, rehearsal
from sapwood.train.memory import Watch, free_memory, give_back, peak_memory, resident_memory, room, synchronize

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
TOTAL = 1000


class Record:
    """80 of the GPU are another's; torch holds `reserved`, and `allocated` of it are tensors."""

    def __init__(self) -> None:
        self.allocated, self.reserved, self.most, self.asked = 0, 0, 0, []  # type: ignore[var-annotated]

    def hold(self, size: int) -> None:
        self.allocated = size
        self.reserved, self.most = max(self.reserved, size), max(self.most, size)

    def reset(self, _: Any) -> None:
        self.most = self.allocated

    def device(self) -> SimpleNamespace:
        return SimpleNamespace(
            is_available=lambda: True,
            memory_allocated=lambda _=None: self.allocated,
            memory_reserved=lambda _=None: self.reserved,
            max_memory_allocated=lambda _=None: self.most,
            reset_peak_memory_stats=self.reset,
            mem_get_info=lambda _: (TOTAL - 80 - self.reserved, TOTAL),
            synchronize=lambda _: self.asked.append("synchronize"),
            empty_cache=lambda: self.asked.append("empty_cache"),
        )


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    made = Record()
    monkeypatch.setattr(torch, "cuda", made.device())
    monkeypatch.setattr(memory, "_most_on_a_gpu", 0)
    return made


def test_what_torch_holds_and_does_not_use_is_free(record: Record) -> None:
    record.hold(500)
    record.hold(100)
    assert (resident_memory(GPU), free_memory(GPU)) == (100, 820)
    assert room(GPU) == 100 + int(0.95 * 820)


def test_a_watch_sees_its_own_block_and_the_record_of_the_process_outlives_it(record: Record) -> None:
    record.hold(700)
    record.hold(100)
    with Watch(GPU) as watch:
        record.hold(300)
        assert watch.seen() == 300
        record.hold(150)
    assert (watch.before, watch.peak, watch.growth) == (100, 300, 200)
    assert peak_memory() == 700
    with Watch(GPU) as later:
        pass
    assert (later.peak, later.growth) == (150, 0)
    record.hold(900)
    assert peak_memory() == 900


def test_a_process_that_put_nothing_on_its_gpu_is_measured_by_the_system(record: Record) -> None:
    assert peak_memory() > 1 << 20


def test_waits_and_returns_are_for_a_gpu_alone(record: Record) -> None:
    for device in (CPU, GPU):
        synchronize(device)
        give_back(device)
    assert record.asked == ["synchronize", "empty_cache"]
    assert rehearsal.budgets_for(CPU) == rehearsal.BUDGETS
    assert min(rehearsal.budgets_for(GPU)) >= max(rehearsal.BUDGETS)
