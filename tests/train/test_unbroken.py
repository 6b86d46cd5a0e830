"""A stop never lands inside an update."""

from __future__ import annotations

import signal
import threading

import pytest

from sapwood.train.unbroken import unbroken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_block_has_ended(number: signal.Signals) -> None:
    done: list[str] = []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with unbroken():
            done.append("begun")
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("ended")

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == ["begun", "ended"]
        assert signal.getsignal(number) is stop, "the handler of before is back"
        with unbroken():
            pass
    finally:
        signal.signal(number, before)


def test_an_error_inside_passes_through_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), unbroken():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_left_alone() -> None:
    ran: list[int] = []

    def work() -> None:
        with unbroken():
            ran.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [1]
