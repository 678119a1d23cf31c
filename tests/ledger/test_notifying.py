"""One connection of the feed's own is told of commits, while somebody watches and no longer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from ledger import watching
from ledger.commits import Stretch, get_end
from ledger.database import Connection, Pool, Role
from ledger.errors import DatabaseUnavailable, InvalidArgument
from ledger.place import BEGINNING
from ledger.reading import Reader
from ledger.watching import Feed
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward
from tests.standby import standby_of
from tests.watches import SECONDS_MAX, posted


class Watcher:
    """One who always asks for what comes next."""

    def __init__(self, stream: AsyncGenerator[Stretch, None]) -> None:
        self._stream = stream
        self._next = asyncio.create_task(self._take())

    async def _take(self) -> Stretch:
        while not (stretch := await anext(self._stream)).lines:
            pass
        return stretch

    async def told(self, count: int) -> list[str]:
        """The names of the next so many rewards."""
        found: list[str] = []
        async with asyncio.timeout(SECONDS_MAX):
            while len(found) < count:
                stretch = await self._next
                found += [each.line.reward_id for each in stretch.lines]
                self._next = asyncio.create_task(self._take())
        return found

    async def leave(self) -> None:
        self._next.cancel()
        await asyncio.wait({self._next})
        await self._stream.aclose()


class Feeding(NamedTuple):
    """A feed, and what it costs."""

    feed: Feed
    database: Database
    pooled: int
    """The backend of its pool's one connection."""

    def listening(self) -> dict[int, datetime]:
        """The backends of all other connections, and when each was asked last."""
        return dict(
            self.database.rows(
                "SELECT pid, query_start FROM pg_stat_activity"
                f" WHERE datname = '{self.database.name}' AND pid <> {self.pooled}"
                f" AND application_name = '{Role.READER}'",
                SUPERUSER,
            )
        )

    async def until_listening(self, count: int) -> None:
        await until(lambda: len(self.listening()) == count)

    async def watchers(self, count: int) -> list[Watcher]:
        """So many, who have caught up."""
        watchers = [Watcher(self.feed.watch(None, print)) for _ in range(count)]
        await self.until_listening(1)
        name = f"first-{time.monotonic_ns()}"
        await posted(self.database, reward(name))
        for watcher in watchers:
            assert await watcher.told(1) == [name]
        return watchers


async def told(stream: AsyncGenerator[Stretch, None]) -> Stretch:
    """The first that comes on ``stream``, which is left then."""
    async with aclosing(stream):
        return await anext(stream)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def backend(connection: Connection) -> int:
    return connection.info.backend_pid


@asynccontextmanager
async def feeding(database: Database) -> AsyncIterator[Feeding]:
    async with Pool(database.url("ledger_reader"), Role.READER, size_max=1) as pool:
        reader = Reader(pool)
        feed = Feed(reader.ask, reader.connection_besides)
        yield Feeding(feed, database, await reader.ask(backend))


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks without being told."""
    monkeypatch.setattr(watching, "UNTOLD_SECONDS", 600)
    monkeypatch.setattr(watching, "HEARTBEAT_SECONDS", 600)


@pytest.mark.usefixtures("untold")
def test_a_commit_tells_of_itself(database: Database, run: Run) -> None:
    async def main() -> None:
        async with feeding(database) as feeding_:
            (watcher,) = await feeding_.watchers(1)
            for number, pause in enumerate((0, 0, 0.3, 0.3)):
                await asyncio.sleep(pause)
                await posted(database, reward(f"r-{number}"))
                committed_at = time.monotonic()
                assert await watcher.told(1) == [f"r-{number}"]
                assert time.monotonic() - committed_at < 2
            await watcher.leave()

    run(main())


@pytest.mark.usefixtures("untold")
def test_what_is_committed_while_nobody_listens_is_found_by_who_listens_again(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with feeding(database) as feeding_:
            (watcher,) = await feeding_.watchers(1)
            for number in range(3):
                (listener,) = feeding_.listening()
                database.rows(f"SELECT pg_terminate_backend({listener}, 5000)", SUPERUSER)
                names = [f"r-{number}-{place}" for place in range(3)]
                for name in names:
                    await posted(database, reward(name))
                assert await watcher.told(3) == names
            await watcher.leave()

    run(main())


@pytest.mark.usefixtures("untold")
def test_while_nothing_is_committed_nothing_is_asked(database: Database, run: Run) -> None:
    async def main() -> None:
        async with feeding(database) as feeding_:
            (watcher,) = await feeding_.watchers(1)
            # The look after the last word, if there is one.
            await asyncio.sleep(0.3)
            before = feeding_.listening()
            await asyncio.sleep(0.7)
            assert feeding_.listening() == before
            await posted(database, reward("r"))
            assert await watcher.told(1) == ["r"]
            assert feeding_.listening() != before
            await watcher.leave()

    run(main())


def test_without_a_word_it_is_looked_all_the_same(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "UNTOLD_SECONDS", 0.2)

    async def main() -> None:
        async with feeding(database) as feeding_:
            (watcher,) = await feeding_.watchers(1)
            ((definition,),) = database.rows("SELECT pg_get_functiondef('place_commit'::regproc)")
            assert "unused := pg_notify" in definition
            database.rows(definition.replace("unused := pg_notify", "-- "))
            await posted(database, reward("r"))
            assert await watcher.told(1) == ["r"]
            await watcher.leave()

    run(main())


def test_all_who_watch_share_one_connection_which_goes_with_the_last(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with feeding(database) as feeding_:
            for _ in range(2):
                assert not feeding_.listening()
                for watcher in await feeding_.watchers(5):
                    assert len(feeding_.listening()) == 1
                    await watcher.leave()
                await feeding_.until_listening(0)

    run(main())


def test_who_comes_as_the_last_one_goes_does_not_open_a_second_connection(
    database: Database, run: Run
) -> None:
    opened = most = 0

    async def main() -> None:
        async with feeding(database) as feeding_:

            @asynccontextmanager
            async def connect() -> AsyncIterator[Connection]:
                nonlocal opened, most
                opened += 1
                most = max(most, opened)
                try:
                    async with database.connected(Role.READER) as connection:
                        yield connection
                finally:
                    # To cancel a question of Postgres takes a while.
                    await asyncio.sleep(0.2)
                    opened -= 1

            feeding_ = feeding_._replace(feed=Feed(feeding_.feed._ask, connect))
            (watcher,) = await feeding_.watchers(1)
            for name in ("a", "b"):
                await watcher.leave()
                watcher = Watcher(feeding_.feed.watch(None, print))
                await until(lambda: feeding_.feed._reading is not None)
                await posted(database, reward(name))
                assert await watcher.told(1) == [name]
            await watcher.leave()
            await until(lambda: opened == 0)

    run(main())
    assert most == 1


# Books that lag


def test_an_answer_that_is_older_than_the_reader_makes_no_gap(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a standby that lags: a snapshot that was taken before."""
    monkeypatch.setattr(watching, "BACKLOG_MAX", 1)

    async def main() -> None:
        async with feeding(database) as feeding_, database.connected(Role.READER) as old:
            await posted(database, reward("before"))
            feed = feeding_.feed
            (quick,) = await feeding_.watchers(1)
            is_old = True

            async def ask(question: Any, *arguments: Any) -> Any:
                connection = old if is_old else new
                return await question(connection, *arguments)

            await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            place = await get_end(old)
            for name in ("a", "b", "c"):
                await posted(database, reward(name))
                assert await quick.told(1) == [name]
            monkeypatch.setattr(feed, "_ask", ask)
            async with database.connected(Role.READER) as new:
                late = Watcher(feed.watch(place, print))
                await asyncio.sleep(0.3)
                is_old = False
                assert await late.told(3) == ["a", "b", "c"]
                await posted(database, reward("d"))
                assert await late.told(1) == await quick.told(1) == ["d"]
                await late.leave()
            await quick.leave()

    run(main())


def test_a_standby_is_watched_too_and_waited_for_when_it_lags(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(standby: Database) -> None:
        async with feeding(database) as first, feeding(standby) as second:
            (here,) = await first.watchers(1)
            there = Watcher(second.feed.watch(BEGINNING, print))
            await there.told(1)
            for name in ("a", "b"):
                await posted(database, reward(name))
                assert await here.told(1) == await there.told(1) == [name]
            standby.rows("SELECT pg_wal_replay_pause()", SUPERUSER)
            await posted(database, reward("c"))
            async with database.connected(Role.READER) as connection:
                place = await get_end(connection)
            # It will have that place in a moment; those of other books, never.
            with pytest.raises(DatabaseUnavailable):
                await told(second.feed.watch(place, print))
            other = place._replace(position=place.position - 1)
            with pytest.raises(InvalidArgument):
                await told(second.feed.watch(other, print))
            standby.rows("SELECT pg_wal_replay_resume()", SUPERUSER)
            assert await there.told(1) == ["c"]
            assert not (await told(second.feed.watch(place, print))).lines
            await here.leave()
            await there.leave()

    with standby_of(database.postgres, monkeypatch) as standby:
        run(main(Database(standby, database.name)))
