"""One connection of the feed's own is told of commits, while somebody watches and no longer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import pytest

from ledger import watching
from ledger.commits import Stretch
from ledger.database import Connection, Pool, Role
from ledger.reading import Reader
from ledger.watching import Feed
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward
from tests.watches import SECONDS_MAX, posted

class Watcher:
    """One who always asks for what comes next."""

    def __init__(self, stream: AsyncGenerator[Stretch, None]) -> None:
        self._stream = stream
        self._next = asyncio.create_task(self._take())

    async def _take(self) -> Stretch:
        while not (stretch := await anext(self._stream)).rewards:
            pass
        return stretch

    async def told(self, count: int) -> list[str]:
        """The names of the next so many rewards."""
        found: list[str] = []
        async with asyncio.timeout(SECONDS_MAX):
            while len(found) < count:
                stretch = await self._next
                found += [each.reward.reward_id for each in stretch.rewards]
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


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not is_so():
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
    async def main() -> None:
        async with feeding(database) as feeding_:
            (watcher,) = await feeding_.watchers(1)
            for _ in range(5):
                await watcher.leave()
                watcher = Watcher(feeding_.feed.watch(None, print))
                await feeding_.until_listening(1)
            await watcher.leave()
            await feeding_.until_listening(0)

    run(main())
