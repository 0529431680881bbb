"""Ctrl-C and SIGTERM as a request: heard once, insisted on the second time, and given back to whoever had them before."""

from __future__ import annotations

import signal
import threading

import pytest

from pycap.signals import SIGNALS, Stopping


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_stops_at_once(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyboardInterrupt), Stopping() as stopping:
        assert stopping.number is None
        signal.raise_signal(number)
        assert stopping.number == number
        signal.raise_signal(signal.SIGINT)
    assert stopping.number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_than_the_first_leaves_signals_alone() -> None:
    found = []

    def work() -> None:
        with Stopping() as stopping:
            found.extend([stopping.number, signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, before]
