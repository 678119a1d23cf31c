"""Whoever waits for a signal hears it at whatever step of the waiting it comes."""

import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from ledger.operations import processes


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back what signals did before; a test that never ends is ended by an alarm."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    }
    signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_at_every_step_of_waiting(handlers: None, number: int) -> None:
    for step in range(1, 30):
        asked = processes.asked_to_end()
        signal.alarm(10)
        sys.settrace(after_steps(step, number))
        try:
            wait_for(asked)
        finally:
            sys.settrace(None)
        assert asked == [number]


def wait_for(asked: list[int]) -> None:
    while not asked:
        time.sleep(0)


def after_steps(step: int, number: int) -> Any:
    """A trace function that raises the signal when so many steps were taken in calls."""
    taken = 0

    def trace(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal taken
        taken += 1
        if taken == step:
            signal.raise_signal(number)
        return trace

    return trace
