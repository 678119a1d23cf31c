"""Rewards and corrections as they are committed: one reader feeds all who watch.

While somebody watches, one connection of the process's own listens: each commit that brings
some tells it so (``migrations/0007_notifying.sql``), and then it looks at what is new. It
listens before its first look, so what is committed after that look is heard of. What comes while
it pauses after a look travels together. Should a word be lost, it looks after some seconds anyway;
on a standby, where nobody can listen, it looks ten times a second.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from ledger.commits import Stretch, check_place, get_end, hear, list_committed, listen
from ledger.database import Connection
from ledger.errors import FellBehind, Unavailable
from ledger.place import BEGINNING, Place

PAUSE_SECONDS = 0.03
"""How long after a look at what is new the next one follows at the earliest."""
UNTOLD_SECONDS = 5.0
"""After so long without a word of a commit it is looked anyway."""
POLL_SECONDS = 0.1
"""How long after a look the next one follows where nobody can listen, or after trouble."""
PATIENCE_SECONDS = 3.0
"""How long Postgres may be away before those who have caught up are told."""
HEARTBEAT_SECONDS = 10.0
"""After so long without anything, watchers are told where they stand."""
LEAVING_SECONDS_MAX = 0.3
"""How long the last watcher waits until the connection that listened is closed."""
BACKLOG_MAX = 64
"""How many stretches are kept, once for all, for those who have not taken them yet."""

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
"""Opens a connection for one block; raises ``Unavailable``, there too."""


class Ask(Protocol):
    """What asks the database."""

    def __call__(
        self,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Awaitable[Answer]:
        """What ``question`` answers to a connection and ``arguments``; raises ``Unavailable``."""
        ...


async def follow(connect: Connect, place: Place) -> AsyncGenerator[Stretch, None]:
    """What is committed beyond ``place``, as it comes, without end.

    A stretch is empty when nothing came for a while. Trouble that passes is waited for: else all
    would come back at once. Raises ``Unavailable`` for what does not pass, and ``InvalidArgument``
    for a place that the books do not have any more.
    """
    loop = asyncio.get_running_loop()
    beats_at = loop.time() + HEARTBEAT_SECONDS
    gives_up_at: float | None = None
    while True:
        try:
            async with connect() as connection:
                is_told = await listen(connection)
                while True:
                    stretch = await list_committed(connection, place)
                    gives_up_at = None
                    if stretch.lines or loop.time() >= beats_at:
                        place = stretch.through
                        yield stretch
                        beats_at = loop.time() + HEARTBEAT_SECONDS
                    if not stretch.was_cut:
                        await _rest(connection if is_told else None, beats_at - loop.time())
        except Unavailable:
            gives_up_at = gives_up_at or loop.time() + PATIENCE_SECONDS
            if loop.time() > gives_up_at:
                raise
        await asyncio.sleep(POLL_SECONDS)


async def _rest(told: Connection | None, seconds_max: float) -> None:
    """Returns when it is time for a look: when there is a word of a commit, if anybody is told."""
    if told is None:
        await asyncio.sleep(POLL_SECONDS)
        return
    # Whatever comes meanwhile travels together: under load that is most of it.
    await asyncio.sleep(PAUSE_SECONDS)
    await hear(told, min(UNTOLD_SECONDS, max(0.0, seconds_max)))


class Feed:
    """Feeds every watcher of this process; a watcher costs no thread and no connection.

    Those who are behind read stretches of their own, one at a time, as fast as they take them.
    Those who have caught up share one reader, which goes at the pace of the quickest. What others
    have not taken yet is kept, up to a bound; then the slowest are ended, and hold up nobody.

    ``ask`` asks over connections that are shared with others; ``connect`` opens the reader's own.
    """

    def __init__(self, ask: Ask, connect: Connect) -> None:
        self._ask = ask
        self._connect = connect
        self._beginning = asyncio.Lock()
        self._catching_up = asyncio.Lock()
        self._watchers: set[_Watcher] = set()
        """Those who have caught up."""
        self._reading: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        """The reader before, which may still have its connection."""
        self._head = BEGINNING
        """Where the reader stands."""
        self._backlog: deque[Stretch] = deque()
        self._dropped = 0
        """How many stretches have left the backlog."""
        self._is_wanted = asyncio.Event()
        """Set when somebody has taken everything."""
        self._has_grown = asyncio.Event()
        """Set when a stretch comes; another takes its place then."""

    async def watch(
        self, start: Place | None, end: Callable[[Exception], None]
    ) -> AsyncGenerator[Stretch, None]:
        """Everything beyond ``start``, or from now on, once, in commit order, without end.

        The first stretch is empty, and so is one that comes when nothing else did for a while.
        ``end`` is called when the watcher is to be ended although it is not asking: with
        ``FellBehind``, or with what the reader met. Raises ``Unavailable``, and
        ``InvalidArgument`` for a place that these books do not have.
        """
        place = await self._begin(start)
        yield Stretch(place)
        watcher = _Watcher(end)
        try:
            while True:
                stretch = await self._next(watcher, place)
                place = stretch.through
                yield stretch
        finally:
            await self._leave(watcher)

    async def _begin(self, start: Place | None) -> Place:
        if start is None:
            return await self._ask_in_turn(self._beginning, get_end)
        await self._ask_in_turn(self._beginning, check_place, start)
        return start

    async def _next(self, watcher: "_Watcher", place: Place) -> Stretch:
        """What follows ``place``, as soon as there is something."""
        while not (watcher in self._watchers or self._join(watcher, place)):
            head = self._head
            stretch = await self._ask_in_turn(self._catching_up, list_committed, place)
            if stretch.lines:
                return stretch
            if self._reading is None:
                self._start(place)
            elif head.position == place.position:
                # It only began behind numbers that nothing got, such as those of replays.
                place = max(place, head)
            elif place < head:
                # It has found something there already: a standby answered us, which lags behind.
                await asyncio.sleep(POLL_SECONDS)
        while watcher.taken == self._dropped + len(self._backlog):
            self._is_wanted.set()
            await self._has_grown.wait()
        if watcher.taken < self._dropped:
            raise FellBehind
        stretch = self._backlog[watcher.taken - self._dropped]
        watcher.taken += 1
        return stretch.beyond(place)

    async def _ask_in_turn(
        self,
        turn: asyncio.Lock,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """One at a time: however many begin or catch up, connections are left for all others."""
        async with turn:
            return await self._ask(question, *arguments, **options)

    def _join(self, watcher: "_Watcher", place: Place) -> bool:
        """Let ``watcher`` go on with the others, if what follows ``place`` is in the backlog."""
        if self._reading is None:
            return False
        if place < self._head and (not self._backlog or place < self._backlog[0].after):
            return False
        watcher.taken = self._dropped + sum(each.through <= place for each in self._backlog)
        self._watchers.add(watcher)
        return True

    async def _leave(self, watcher: "_Watcher") -> None:
        if watcher not in self._watchers:
            return
        self._watchers.remove(watcher)
        if not self._watchers and (reading := self._reading) is not None:
            reading.cancel()
            self._forget()
            # The process may end with its last watcher, and Postgres is to hear of it before.
            await asyncio.wait({reading}, timeout=LEAVING_SECONDS_MAX)

    def _start(self, place: Place) -> None:
        self._head = place
        self._reading = asyncio.create_task(self._read(self._ending))

    def _forget(self) -> None:
        self._ending, self._reading = self._reading, None
        self._head = BEGINNING
        self._dropped += len(self._backlog)
        self._backlog.clear()

    async def _read(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            # Two readers would be two connections.
            await asyncio.wait({before})
        try:
            async with aclosing(follow(self._connect, self._head)) as stretches:
                await self._is_wanted.wait()
                async for stretch in stretches:
                    self._add(stretch)
                    await self._is_wanted.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, the watchers are told
            ended = self._watchers
            self._watchers = set()
            self._forget()
            for watcher in ended:
                watcher.end(error)

    def _add(self, stretch: Stretch) -> None:
        self._head = stretch.through
        self._backlog.append(stretch)
        if len(self._backlog) > BACKLOG_MAX:
            self._backlog.popleft()
            self._dropped += 1
            for watcher in [each for each in self._watchers if each.taken < self._dropped]:
                self._watchers.remove(watcher)
                watcher.end(FellBehind())
        self._is_wanted.clear()
        self._has_grown.set()
        self._has_grown = asyncio.Event()


class _Watcher:
    """One who has caught up."""

    def __init__(self, end: Callable[[Exception], None]) -> None:
        self.end = end
        self.taken = 0
        """How many of all stretches that there ever were it has taken or passed over."""
