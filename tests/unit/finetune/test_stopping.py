"""Signals are kept while a run trains, and do what they did before and after it."""

from __future__ import annotations

import signal

import pytest

from edgempi.finetune.stopping import SIGNALS, asked_to_stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_kept_once(number: signal.Signals) -> None:
    reached: list[int] = []
    outer = signal.signal(number, lambda came, frame: reached.append(came))
    try:
        with asked_to_stop() as asked:
            assert not asked()
            signal.raise_signal(number)
            assert asked()
            assert reached == []
            signal.raise_signal(number)
            assert reached == [number]
        signal.raise_signal(number)
        assert reached == [number, number]
    finally:
        signal.signal(number, outer)
