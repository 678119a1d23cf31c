"""Rewards as they are committed: one reader feeds all who watch.

Every database transaction that brings rewards takes its position just before its commit, and
positions become visible in their order (``migrations/0004_watching.sql``). So there is one commit
order, the same for everybody and for ever; along an account its versions ascend; and a place in
it is all that a watcher needs to go on, in this process or in another.

While somebody watches, a process looks for new rewards ten times a second. It is not notified:
that would save at most a tenth of a second, and cost a connection that does nothing but listen
and a message for every commit, where one look takes all that came.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from ledger.database import Connection
from ledger.errors import FellBehind, InvalidArgument, Unavailable
from ledger.place import BEGINNING, Place
from ledger.reading import RecordedReward, recorded_reward

INTERVAL_SECONDS = 0.1
"""How long after a look at what is new the next one follows."""
PATIENCE_SECONDS = 3.0
"""How long Postgres may be away before those who have caught up are told."""
HEARTBEAT_SECONDS = 10.0
"""After so long without a reward, watchers are told where they stand."""
STRETCH_SIZE_MAX = 256
STRETCH_LENGTH_MAX = 128 * 1024
"""How many characters of text a stretch holds, unless a single reward is longer."""
BACKLOG_MAX = 64
"""How many stretches are kept, once for all, for those who have not taken them yet."""

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


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


class Committed(NamedTuple):
    """A reward and its place."""

    place: Place
    reward: RecordedReward


class Stretch:
    """Rewards that follow each other in commit order without a gap; perhaps none."""

    def __init__(
        self, after: Place, rewards: Sequence[Committed] = (), *, was_cut: bool = False
    ) -> None:
        self.after = after
        self.rewards = rewards
        self.was_cut = was_cut
        """Whether more was there already."""
        self.through = rewards[-1].place if rewards else after
        """Where those stand who have taken it."""
        self.made: dict[object, Any] = {}
        """What watchers made of it, so that one makes it for all."""

    def beyond(self, place: Place) -> "Stretch":
        """What of it lies beyond ``place``."""
        if place <= self.after:
            return self
        start = bisect_right(self.rewards, place, key=lambda committed: committed.place)
        return Stretch(place, self.rewards[start:])


class Feed:
    """Feeds every watcher of this process; a watcher costs no thread and no connection.

    Those who are behind read stretches of their own, one at a time, as fast as they take them.
    Those who have caught up share one reader, which goes at the pace of the quickest. What others
    have not taken yet is kept, up to a bound; then the slowest are ended, and hold up nobody.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()
        self._watchers: set[_Watcher] = set()
        """Those who have caught up."""
        self._reading: asyncio.Task[None] | None = None
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
        """Every reward beyond ``start``, or from now on, once, in commit order, without end.

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
            self._leave(watcher)

    async def _begin(self, start: Place | None) -> Place:
        if start is None:
            return await self._ask_in_turn(get_end)
        await self._ask_in_turn(check_place, start)
        return start

    async def _next(self, watcher: "_Watcher", place: Place) -> Stretch:
        """What follows ``place``, as soon as there is something."""
        while not (watcher in self._watchers or self._join(watcher, place)):
            head = self._head
            stretch = await self._ask_in_turn(list_committed, place)
            if stretch.rewards:
                return stretch
            if self._reading is None:
                self._start(place)
            # If the reader was further already, then past nothing that is not here.
            place = max(place, head)
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
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """One at a time: however many want to catch up, connections are left for all others."""
        async with self._turn:
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

    def _leave(self, watcher: "_Watcher") -> None:
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers and self._reading is not None:
                self._reading.cancel()
                self._forget()

    def _start(self, place: Place) -> None:
        self._head = place
        self._reading = asyncio.create_task(self._read())

    def _forget(self) -> None:
        self._reading = None
        self._head = BEGINNING
        self._dropped += len(self._backlog)
        self._backlog.clear()

    async def _read(self) -> None:
        try:
            await self._read_on()
        except Exception as error:  # noqa: BLE001 - whatever it is, the watchers are told
            ended = self._watchers
            self._watchers = set()
            self._forget()
            for watcher in ended:
                watcher.end(error)

    async def _read_on(self) -> None:
        loop = asyncio.get_running_loop()
        beats_at = loop.time() + HEARTBEAT_SECONDS
        while True:
            await self._is_wanted.wait()
            stretch = await self._look()
            if stretch.rewards or loop.time() >= beats_at:
                self._add(stretch)
                beats_at = loop.time() + HEARTBEAT_SECONDS
            if not stretch.was_cut:
                # Whatever comes meanwhile travels together: under load that is most of it.
                await asyncio.sleep(INTERVAL_SECONDS)

    async def _look(self) -> Stretch:
        """What is new. Trouble that passes is waited for: else all would come back at once."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + PATIENCE_SECONDS
        while True:
            try:
                return await self._ask(list_committed, self._head)
            except Unavailable:
                if loop.time() > gives_up_at:
                    raise
            await asyncio.sleep(INTERVAL_SECONDS)

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


_GET_END = """
SELECT position, last_number, committed_at FROM commits ORDER BY position DESC LIMIT 1
"""


async def get_end(connection: Connection) -> Place:
    """Behind everything that is committed now."""
    row = await (await connection.execute(_GET_END)).fetchone()
    return BEGINNING if row is None else Place._make(row)


_HAS_PLACE = """
SELECT FROM commits WHERE position = %(position)s AND committed_at = %(committed_at)s
"""


async def check_place(connection: Connection, place: Place) -> None:
    """Raises ``InvalidArgument`` for a place that the books do not have.

    A standby that took over, or a backup, may lack what was committed last. It gives the same
    positions to other rewards, and whoever went on from such a place would never hear of them.
    """
    if place != BEGINNING:
        parameters = {"position": place.position, "committed_at": place.committed_at}
        cursor = await connection.execute(_HAS_PLACE, parameters)
        if not cursor.rowcount:
            raise InvalidArgument("token", "is of other books, or of what a restore undid")


_LIST_COMMITTED = """
SELECT
    commits.position, rewards.number, commits.committed_at,
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM commits
JOIN rewards
    ON rewards.written_by = commits.written_by
    AND rewards.number BETWEEN commits.first_number AND commits.last_number
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE commits.position >= %(position)s
  AND (commits.position, rewards.number) > (%(position)s, %(number)s)
ORDER BY commits.position, rewards.number
LIMIT %(limit)s
"""


async def list_committed(connection: Connection, after: Place) -> Stretch:
    """What was committed beyond ``after``, as much of it as a stretch may hold.

    Raises ``InvalidArgument`` for a place that the books do not have, or not any more.
    """
    await check_place(connection, after)
    limit = STRETCH_SIZE_MAX
    parameters = {"position": after.position, "number": after.number, "limit": limit}
    cursor = await connection.execute(_LIST_COMMITTED, parameters)
    rewards: list[Committed] = []
    length = 0
    for row in await cursor.fetchall():
        reward = recorded_reward(row[3:])
        length += sum(len(told) for told in reward if isinstance(told, str))
        if rewards and length > STRETCH_LENGTH_MAX:
            return Stretch(after, rewards, was_cut=True)
        rewards.append(Committed(Place._make(row[:3]), reward))
    return Stretch(after, rewards, was_cut=len(rewards) == limit)
