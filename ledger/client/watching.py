"""Watching without an end: a watch that was cut goes on by itself, from its own token.

::

    with ledger.watch_rewards(token=stored) as rewards:
        for reward in rewards:
            ...
            stored = rewards.token

``token`` is behind what is in hand only when the next one is asked for: whenever it is stored,
nothing is lost, and who begins with it is told again at most what came together with that.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from ledger.client.errors import ClientError, Refused, Told, Unavailable, Unreachable, error_of
from ledger.client.questions import Question, go_on
from ledger.client.values import Line, Reward, Watched

SILENCE_SECONDS_MAX = 32.0
"""How long nothing may come: the service says something every ten seconds."""
PAUSE_SECONDS = 0.1
"""How long to wait before asking again, at first; then twice as long each time."""
PAUSE_SECONDS_MAX = 10.0

log = logging.getLogger("ledger.client")

Over = TypeVar("Over", bound=threading.Event | asyncio.Event)
What = TypeVar("What", bound=Line)


class Course(Generic[What, Over]):
    """Where a watch stands, whether it is over, and when it asks again."""

    def __init__(
        self,
        question: Question[Watched[What]],
        ask: Callable[[Question[Watched[What]]], Any],
        over: Over,
    ) -> None:
        self._question = question
        self._ask = ask
        self.over = over
        """Set when nothing more is wanted."""
        self.token: str | None = None
        if question.request.WhichOneof("start") == "token":
            self.token = question.request.token
        self._call: Any = None
        self._messages = 0
        """How many came on this call."""
        self._failures = 0
        """How many calls in a row brought nothing."""

    def begin(self) -> Any:
        """A call that goes on behind the token."""
        self._messages = 0
        self._call = self._ask(go_on(self._question, self.token))
        if self.over.is_set():
            self._call.cancel()
        return self._call

    def end(self) -> None:
        """Nothing more is wanted; whoever waits for something is let go."""
        self.over.set()
        if self._call is not None:
            self._call.cancel()

    def read(self, message: Any) -> Watched[What]:
        """What ``message`` tells. It is the caller who moves the token, afterwards."""
        self._messages += 1
        # The first comes at once, and says nothing about the next.
        if self._messages > 1:
            self._failures = 0
        return self._question.read(message)

    def pause_seconds(self, error: ClientError) -> float:
        """How long to wait after ``error``, which is raised if asking again will not help."""
        if isinstance(error, Refused):
            raise error
        # A power without a bound is one day too large for a number.
        seconds = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        if self._failures > 1:
            log.warning("what is watched does not come, it is asked for again: %s", error)
        if isinstance(error, Unavailable) and error.retry_seconds is not None:
            seconds = max(seconds, error.retry_seconds)
        # Else all who were cut at once would come back at once.
        return seconds * random.uniform(1, 2)  # noqa: S311 - nothing secret


def _cut(text: str) -> ClientError:
    return Unreachable(Told(grpc.StatusCode.UNAVAILABLE, text))


class _Watch(Generic[What, Over]):
    """What all watches are made of."""

    def __init__(self, course: Course[What, Over]) -> None:
        self._course = course

    @property
    def token(self) -> str | None:
        """Where to go on behind everything that was taken; ``None`` before anything is known."""
        return self._course.token


class Watch(_Watch[What, threading.Event]):
    """What is committed, one by one; whoever iterates over it waits for the next.

    It is asked for again as long as that may help, and raises what is ``Refused``. Another thread
    may read its ``token`` and ``close`` it.
    """

    def __init__(self, course: Course[What, threading.Event]) -> None:
        super().__init__(course)
        # It does not know this object, so it is ended with it.
        self._lines = _lines(course)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> What:
        return next(self._lines)

    def close(self) -> None:
        """End it: there is no next one."""
        self._course.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncWatch(_Watch[What, asyncio.Event]):
    """What is committed, one by one; whoever iterates over it awaits the next.

    It is asked for again as long as that may help, and raises what is ``Refused``. Another task
    may read its ``token`` and ``close`` it.
    """

    def __init__(self, course: Course[What, asyncio.Event]) -> None:
        super().__init__(course)
        # It does not know this object, so it is ended with it.
        self._lines = _lines_awaited(course)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> What:
        return await anext(self._lines)

    async def close(self) -> None:
        """End it: there is no next one."""
        self._course.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class RewardWatch(Watch[Reward]):
    """Rewards as they are committed."""


class HistoryWatch(Watch[Line]):
    """Rewards and corrections as they are committed."""


class AsyncRewardWatch(AsyncWatch[Reward]):
    """Rewards as they are committed."""


class AsyncHistoryWatch(AsyncWatch[Line]):
    """Rewards and corrections as they are committed."""


def _lines(course: Course[What, threading.Event]) -> Generator[What, None, None]:
    while not course.over.is_set():
        call = course.begin()
        silence = _Silence(call.cancel)
        error = _cut("the stream has ended")
        try:
            while (message := silence.broken_by(call)) is not None:
                told = course.read(message)
                yield from told.lines
                course.token = told.token
        except grpc.RpcError as caught:
            error = error_of(caught)
        finally:
            silence.end()
            call.cancel()
        if not course.over.is_set():
            course.over.wait(course.pause_seconds(error))


class _Silence:
    """Cuts a call on which nothing comes for too long while somebody waits for it."""

    def __init__(self, cut: Callable[[], object]) -> None:
        self._cut = cut
        self._since: float | None = None
        self._over = threading.Event()
        threading.Thread(target=self._guard, name="ledger-watch", daemon=True).start()

    def broken_by(self, call: Any) -> Any:
        """The next message of ``call``; ``None`` at its end."""
        self._since = time.monotonic()
        try:
            return next(call, None)
        finally:
            self._since = None

    def end(self) -> None:
        """Cut nothing any more."""
        self._over.set()

    def _guard(self) -> None:
        seconds = SILENCE_SECONDS_MAX
        while not self._over.wait(seconds):
            since, now = self._since, time.monotonic()
            seconds = SILENCE_SECONDS_MAX - (0 if since is None else now - since)
            if seconds <= 0:
                self._cut()
                return


async def _lines_awaited(course: Course[What, asyncio.Event]) -> AsyncGenerator[What, None]:
    while not course.over.is_set():
        call = course.begin()
        error = _cut("the stream has ended")
        try:
            while (message := await _next(call)) is not grpc.aio.EOF:
                told = course.read(message)
                for line in told.lines:
                    yield line
                course.token = told.token
        except grpc.RpcError as caught:
            error = error_of(caught)
        except TimeoutError:
            error = _cut("nothing came for too long")
        finally:
            call.cancel()
        if not course.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(course.pause_seconds(error)):
                    await course.over.wait()


async def _next(call: Any) -> Any:
    """The next message of ``call``; raises ``TimeoutError`` when nothing comes for too long."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS_MAX):
            return await call.read()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # It was the call that was cancelled, here or there, and not who waits for it.
        return grpc.aio.EOF
