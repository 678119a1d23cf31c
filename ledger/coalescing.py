"""Many callers, one round trip: the same mechanism for posting and for reading."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from ledger.errors import DeadlineExceeded, Overloaded, Unavailable

Seconds = float

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiter(NamedTuple, Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[Result]"
    answer_by: float


class Coalescer(Generic[Item, Result]):
    """Hands what is waiting to ``run`` in batches, and each caller its own result.

    ``run`` gets between one and ``batch_size_max`` items and returns one result for each, in
    their order. At most ``batches_in_flight_max`` batches run at once; what arrives meanwhile
    gathers for the next. There is no timer before a batch: a lone item waits for nobody.

    Where ``run`` is quicker than callers arrive, batches would hold one item each. With
    ``quiet_turns`` a batch leaves when nobody has come for so many turns of the loop, each of
    which takes microseconds, or when it is full; it never waits for more than ten times as many.

    A caller that gives up takes only its own wait back, never the batch. One that has waited
    ``wait_seconds_max`` gets ``DeadlineExceeded``, although its item may still be carried out.
    When ``run`` raises anything but ``Unavailable``, the batch is halved and each half run again,
    so that one bad item fails alone; ``run`` must therefore be safe to repeat.

    It belongs to the event loop in which ``submit`` is first called.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        batch_size_max: int,
        wait_seconds_max: Seconds,
        batches_in_flight_max: int = 1,
        quiet_turns: int = 0,
        waiting_max: int = 10_000,
    ) -> None:
        self._run = run
        self._batch_size_max = batch_size_max
        self._batches_in_flight_max = batches_in_flight_max
        self._quiet_turns = quiet_turns
        self._waiting_max = waiting_max
        self._wait_seconds_max = wait_seconds_max
        self._waiting: deque[_Waiter[Item, Result]] = deque()
        self._unanswered: deque[_Waiter[Item, Result]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_start_scheduled = False
        self._watch: asyncio.TimerHandle | None = None

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """A future of the item's result; raises ``Overloaded`` when too many wait already."""
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        waiter = _Waiter(item, future, loop.time() + self._wait_seconds_max)
        self._waiting.append(waiter)
        self._unanswered.append(waiter)
        if self._watch is None:
            self._watch = loop.call_at(waiter.answer_by, self._expire)
        if not self._is_start_scheduled and len(self._in_flight) < self._batches_in_flight_max:
            # Not at once: whoever else submits in this turn of the loop travels along for free.
            self._is_start_scheduled = True
            loop.call_soon(self._gather, 0, self._quiet_turns, 10 * self._quiet_turns)
        return future

    async def drain(self) -> None:
        """Returns when nothing that was submitted before is waiting or in flight."""
        while self._waiting or self._in_flight:
            if self._in_flight:
                await asyncio.wait(self._in_flight)
            else:
                await asyncio.sleep(0)

    def _gather(self, seen: int, quiet_turns_left: int, turns_left: int) -> None:
        """Start the batch when nobody has come for some turns, it is full, or it waited enough."""
        count = len(self._waiting)
        if count > seen:
            quiet_turns_left = self._quiet_turns
        if quiet_turns_left and turns_left and count < self._batch_size_max:
            asyncio.get_running_loop().call_soon(
                self._gather, count, quiet_turns_left - 1, turns_left - 1
            )
        else:
            self._start()

    def _start(self) -> None:
        self._is_start_scheduled = False
        while self._waiting and len(self._in_flight) < self._batches_in_flight_max:
            size = min(len(self._waiting), self._batch_size_max)
            batch = [self._waiting.popleft() for _ in range(size)]
            # Whoever gave up before the batch left does not have to travel.
            batch = [waiter for waiter in batch if not waiter.future.done()]
            if batch:
                task = asyncio.create_task(self._answer(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._forget_answered()
        if self._waiting and not self._is_start_scheduled:
            self._is_start_scheduled = True
            self._gather(0, self._quiet_turns, 10 * self._quiet_turns)

    async def _answer(self, batch: list[_Waiter[Item, Result]]) -> None:
        try:
            results = await self._run([waiter.item for waiter in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                middle = len(batch) // 2
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            for waiter in batch:
                if not waiter.future.done():
                    # One object for each caller: raising a shared one would grow its traceback.
                    own = error if len(batch) == 1 else type(error)(*error.args)
                    waiter.future.set_exception(own)
            return
        for waiter, result in zip(batch, results, strict=True):
            if not waiter.future.done():
                waiter.future.set_result(result)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter in self._unanswered:
            if waiter.answer_by > now:
                break
            if not waiter.future.done():
                waiter.future.set_exception(DeadlineExceeded())
        self._forget_answered()
        self._watch = None
        if self._unanswered:
            self._watch = loop.call_at(self._unanswered[0].answer_by, self._expire)

    def _forget_answered(self) -> None:
        # As soon as they are answered: waiting for their time would keep seconds of items alive.
        while self._unanswered and self._unanswered[0].future.done():
            self._unanswered.popleft()
