"""Many callers, one round trip: who travels with whom, and who hears what."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from ledger.coalescing import Coalescer
from ledger.errors import (
    BrokenRule,
    DatabaseUnavailable,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
)
from tests.conftest import Run


class Station:
    """A ``run`` that tells what it was given, and answers when it is let."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()

    async def run(self, items: list[int]) -> list[str]:
        """``str`` of each item; refuses a batch with a negative one."""
        self.batches.append(items)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        await self.gate.wait()
        self.in_flight -= 1
        if min(items) < 0:
            raise BrokenRule("item_is_not_negative")
        return [str(item) for item in items]

    def coalescer(self, **told: Any) -> Coalescer[int, str]:
        """A coalescer that runs here."""
        return coalescer(self.run, **told)


def coalescer(
    run: Callable[[list[int]], Awaitable[Sequence[str]]], **told: Any
) -> Coalescer[int, str]:
    return Coalescer(run, **({"batch_size_max": 10, "wait_seconds_max": 60.0} | told))


async def turns(count: int = 10) -> None:
    """Some turns of the loop, in which everything that can start has started."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_lone_item_waits_for_nobody(run: Run) -> None:
    async def main() -> None:
        station = Station()
        future = station.coalescer().submit(1)
        await turns(3)
        assert future.done()
        assert future.result() == "1"
        assert station.batches == [[1]]

    run(main())


def test_those_who_come_in_one_turn_of_the_loop_travel_together(run: Run) -> None:
    async def main() -> None:
        station = Station()
        together = station.coalescer()
        futures = [together.submit(item) for item in range(4)]
        assert await asyncio.gather(*futures) == ["0", "1", "2", "3"]
        assert station.batches == [[0, 1, 2, 3]]

    run(main())


def test_what_arrives_while_a_batch_runs_gathers_for_the_next(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer()
        futures = [together.submit(1)]
        await turns()
        for item in (2, 3, 4):
            futures.append(together.submit(item))
            await turns()
        assert station.batches == [[1]]
        station.gate.set()
        assert await asyncio.gather(*futures) == ["1", "2", "3", "4"]
        assert station.batches == [[1], [2, 3, 4]]

    run(main())


@pytest.mark.parametrize(("submitted", "sizes"), [(3, [3]), (4, [3, 1]), (9, [3, 3, 3])])
def test_no_batch_is_larger_than_its_bound(run: Run, submitted: int, sizes: list[int]) -> None:
    async def main() -> None:
        station = Station()
        together = station.coalescer(batch_size_max=3)
        futures = [together.submit(item) for item in range(submitted)]
        assert await asyncio.gather(*futures) == [str(item) for item in range(submitted)]
        assert [len(batch) for batch in station.batches] == sizes
        assert list(itertools.chain(*station.batches)) == list(range(submitted))

    run(main())


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_no_more_batches_run_at_once_than_may(run: Run, bound: int) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer(batch_size_max=1, batches_in_flight_max=bound)
        futures = [together.submit(item) for item in range(5)]
        await turns()
        assert station.in_flight == bound
        station.gate.set()
        assert await asyncio.gather(*futures) == ["0", "1", "2", "3", "4"]
        assert station.in_flight_max == bound

    run(main())


def test_one_too_many_is_turned_away_and_the_others_are_not(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer(batch_size_max=2, waiting_max=3)
        futures = [together.submit(0)]
        await turns()
        futures += [together.submit(item) for item in (1, 2, 3)]
        with pytest.raises(Overloaded):
            together.submit(4)
        station.gate.set()
        assert await asyncio.gather(*futures) == ["0", "1", "2", "3"]
        assert await together.submit(5) == "5"

    run(main())


def test_a_caller_that_gives_up_takes_only_its_own_wait_back(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer()
        leaving, staying = (asyncio.ensure_future(together.submit(item)) for item in (1, 2))
        await turns()
        leaving.cancel()
        await turns()
        assert station.in_flight == 1
        station.gate.set()
        assert await staying == "2"
        assert leaving.cancelled()
        assert station.batches == [[1, 2]]

    run(main())


def test_a_caller_that_gives_up_is_not_hurt_by_a_refusal(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer()
        leaving, staying = together.submit(-1), together.submit(2)
        await turns()
        leaving.cancel()
        station.gate.set()
        assert await staying == "2"
        await together.drain()

    run(main())


def test_whoever_gave_up_before_the_batch_left_does_not_travel(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer()
        futures = [together.submit(0)]
        await turns()
        futures += [together.submit(item) for item in (1, 2, 3)]
        futures[2].cancel()
        station.gate.set()
        await asyncio.gather(*futures, return_exceptions=True)
        assert station.batches == [[0], [1, 3]]

    run(main())


def test_a_batch_of_which_all_gave_up_is_not_run(run: Run) -> None:
    async def main() -> None:
        station = Station()
        together = station.coalescer()
        together.submit(1).cancel()
        await turns()
        assert station.batches == []
        assert await together.submit(2) == "2"

    run(main())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("place", [0, -1])
def test_one_bad_item_fails_alone(run: Run, size: int, place: int) -> None:
    async def main() -> None:
        station = Station()
        together = station.coalescer()
        items = list(range(size))
        items[place] = -1
        outcomes = await asyncio.gather(
            *(together.submit(item) for item in items), return_exceptions=True
        )
        bad = outcomes[place]
        assert isinstance(bad, BrokenRule)
        assert bad.rule == "item_is_not_negative"
        outcomes[place] = "-1"
        assert outcomes == [str(item) for item in items]

    run(main())


def test_an_error_of_a_kind_that_nobody_foresaw_fails_alone_too(run: Run) -> None:
    async def fail(items: list[int]) -> list[str]:
        if 2 in items:
            raise ZeroDivisionError
        return [str(item) for item in items]

    async def main() -> None:
        together = coalescer(fail)
        outcomes = await asyncio.gather(
            *(together.submit(item) for item in (1, 2, 3)), return_exceptions=True
        )
        assert outcomes[::2] == ["1", "3"]
        assert isinstance(outcomes[1], ZeroDivisionError)

    run(main())


def test_when_nothing_is_available_nobody_is_tried_alone(run: Run) -> None:
    tried = []

    async def fail(items: list[int]) -> list[str]:
        tried.append(items)
        raise DatabaseUnavailable

    async def main() -> None:
        together = coalescer(fail)
        outcomes = await asyncio.gather(
            *(together.submit(item) for item in (1, 2, 3)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3

    run(main())
    assert tried == [[1, 2, 3]]


def test_the_next_batch_starts_although_the_one_before_failed(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer(batch_size_max=1)
        bad, good = together.submit(-1), together.submit(1)
        station.gate.set()
        assert await good == "1"
        with pytest.raises(BrokenRule):
            await bad

    run(main())


def test_whoever_waited_too_long_hears_so_and_the_answer_may_come_later(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer(wait_seconds_max=0.05)
        travelling = together.submit(1)
        await turns()
        waiting = together.submit(2)
        outcomes = await asyncio.gather(travelling, waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 2
        station.gate.set()
        assert await together.submit(3) == "3"
        # The first was carried out, the second never left.
        assert station.batches == [[1], [3]]

    run(main())


def test_each_caller_has_its_own_time(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer(wait_seconds_max=0.2)
        early = together.submit(1)
        await asyncio.sleep(0.1)
        late = together.submit(2)
        with pytest.raises(DeadlineExceeded):
            await early
        assert not late.done()
        with pytest.raises(DeadlineExceeded):
            await late

    run(main())


def test_one_that_was_answered_behind_one_that_was_not_stops_no_clock(run: Run) -> None:
    async def answer_positive(items: list[int]) -> list[str]:
        if min(items) < 0:
            await asyncio.Event().wait()
        return [str(item) for item in items]

    async def main() -> None:
        together = coalescer(
            answer_positive, batch_size_max=1, batches_in_flight_max=3, wait_seconds_max=0.05
        )
        for _ in range(2):
            hanging, answered = together.submit(-1), together.submit(1)
            assert await answered == "1"
            async with asyncio.timeout(10):
                with pytest.raises(DeadlineExceeded):
                    await hanging

    run(main())


def test_an_answered_item_is_not_kept(run: Run) -> None:
    async def main() -> None:
        together = Station().coalescer()
        await asyncio.gather(*(together.submit(item) for item in range(100)))
        await turns()
        assert not together._unanswered

    run(main())


def test_drained_means_that_all_that_was_submitted_is_answered(run: Run) -> None:
    async def main() -> None:
        station = Station()
        together = station.coalescer(batch_size_max=2)
        futures = [together.submit(item) for item in (1, 2, 3, -4, 5)]
        await together.drain()
        assert all(future.done() for future in futures)
        assert isinstance(futures[3].exception(), BrokenRule)
        await together.drain()

    run(main())


def test_draining_waits_for_a_batch_that_nobody_waits_for_any_more(run: Run) -> None:
    async def main() -> None:
        station = Station(is_open=False)
        together = station.coalescer()
        future = together.submit(1)
        await turns()
        future.cancel()
        draining = asyncio.ensure_future(together.drain())
        await turns()
        assert not draining.done()
        station.gate.set()
        await draining
        assert station.in_flight == 0

    run(main())


def test_errors_that_may_pass_are_of_one_branch() -> None:
    assert issubclass(DeadlineExceeded, Unavailable)
    assert issubclass(Overloaded, Unavailable)
