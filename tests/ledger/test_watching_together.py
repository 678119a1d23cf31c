"""Many who watch at once, slow ones among them, while connections and processes come and go."""

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import grpc
import grpc.aio
import psycopg
import pytest

from ledger import commits, watching
from ledger.database import Connection, Role, conninfo
from ledger.place import BEGINNING
from ledger.reward import Reward
from ledger.server import POOL_SIZE_MAX
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run, throw_away_postgres
from tests.ledger.test_reading import blocks
from tests.ledger.test_server import make_slow, process, until_asked
from tests.rewards import reward
from tests.serving import Refusal, connected, free_port, refusal
from tests.watches import AWAY, SECONDS_MAX, SLOW, Watch, posted, watching_books

SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))


# Many watchers, and slow ones


class Cost(NamedTuple):
    threads: int
    connections: int


def cost(database: Database) -> Cost:
    """What this process and its server use."""
    ((connections,),) = database.rows(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}'"
        f" AND application_name = '{Role.READER}'",
        SUPERUSER,
    )
    return Cost(len(os.listdir("/proc/self/task")), connections)


def test_five_hundred_watchers_cost_no_thread_and_no_connection_each(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await posted(database, *(reward(f"before-{i}", "1") for i in range(30)))
        async with watching_books(database) as channel:
            few = [await Watch(channel).begin() for _ in range(5)]
            await posted(database, reward("first"))
            for watch in few:
                await watch.until(1)
            before = cost(database)
            watches = few + [
                Watch(channel, **asked)
                for asked in ({}, {"from_beginning": True}, {"token": few[0].token}) * 165
            ]
            await asyncio.gather(*(watch.begin() for watch in watches[5:]))
            rewards = [reward(f"r-{i}", "1") for i in range(10)]
            async with asyncio.timeout(SECONDS_MAX):
                for made in rewards:
                    await posted(database, made)
                names = [made.reward_id for made in rewards]
                for watch in watches:
                    while watch.names()[-10:] != names:
                        await watch.read()
            during = cost(database)
            print(f"before {before}, with 500 watchers {during}")
            assert len(watches) == 500
            # The pool may have grown to its size, and gRPC's own threads come and go.
            assert during.connections <= POOL_SIZE_MAX + 1
            assert during.threads <= before.threads + 4
            told = Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", can_be_retried=True)
            assert await refusal(Watch(channel).begin()) == told

    run(main())


def test_streams_do_not_count_as_calls(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database, calls_max=1) as channel:
            for _ in range(5):
                await Watch(channel).begin()
            await LedgerServiceStub(channel).GetBalance(
                pb.GetBalanceRequest(user_id="user-1", currency="USD")
            )

    run(main())


def test_those_who_are_behind_leave_connections_for_others(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            await Watch(channel).begin()
            make_slow(database, "commits", 0.5)
            watches = [Watch(channel, from_beginning=True) for _ in range(100)]
            # Their first message comes before they ask.
            await asyncio.gather(*(watch.begin() for watch in watches))
            await until_asked(database, "commits")
            request = pb.GetBalanceRequest(user_id="user-1", currency="USD")
            async with asyncio.timeout(0.4):
                await LedgerServiceStub(channel).GetBalance(request)

    run(main())


def test_who_begins_does_not_wait_behind_those_who_are_behind(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward("before"))
        async with watching_books(database) as channel:
            token = (await Watch(channel).begin()).token
            make_slow(database, "commits", 0.5)
            behind = [Watch(channel, from_beginning=True) for _ in range(60)]
            await asyncio.gather(*(watch.begin() for watch in behind))
            await until_asked(database, "commits")
            # Half a minute, if one after the other were asked for first.
            async with asyncio.timeout(10):
                await Watch(channel).begin()
                await Watch(channel, token=token).begin()

    run(main())


def large(name: str) -> Reward:
    return reward(name, "1", details='"' + "x" * 60_000 + '"')


def test_a_slow_watcher_is_ended_and_can_go_on_and_nobody_waits_for_it(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BACKLOG_MAX", 4)

    async def main() -> None:
        port = free_port()
        async with (
            watching_books(database, port=port) as channel,
            # Over another connection: one connection's streams share what may be on its way.
            connected(port) as its_own,
        ):
            slow = await Watch(its_own).begin()
            quick = [await Watch(channel).begin() for _ in range(3)]
            names = [f"r-{i:03}" for i in range(120)]
            for count in range(6, 121, 6):
                await posted(database, *map(large, names[count - 6 : count]))
                committed_at = time.monotonic()
                for watch in quick:
                    assert await watch.until(count) == names[:count]
                assert time.monotonic() - committed_at < 1
            told, token = await slow.end()
            assert told == SLOW
            assert token == slow.token
            read = slow.names()
            assert 0 < len(read) < 120
            again = Watch(its_own, token=token)
            await again.until(120 - len(read))
            assert read + again.names() == names

    run(main())


def test_a_watcher_that_is_slow_alone_is_waited_for(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be won by ending it: there is nobody whom it could hold up."""
    monkeypatch.setattr(watching, "BACKLOG_MAX", 4)

    async def main() -> None:
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            behind = await Watch(channel, from_beginning=True).begin()
            behind.cut()
            names = [f"r-{i:03}" for i in range(120)]
            for count in range(10, 121, 10):
                await posted(database, *map(large, names[count - 10 : count]))
            # As long as it takes to read all of it, were it not waited for.
            await asyncio.sleep(1)
            assert await watch.until(120) == names

    run(main())


def test_a_message_is_never_larger_than_a_client_takes(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            live = await Watch(channel).begin()
            names = [f"r-{i:03}" for i in range(40)]
            euros = '"' + "€" * 120_000 + '"'
            # A few at a time: a slow machine must not run into the statement's own time limit.
            for start in range(0, len(names), 5):
                few = names[start : start + 5]
                await posted(database, *(reward(name, "1", details=euros) for name in few))
            await posted(database, reward("s", "1", details='"' + "x" * 2_500_000 + '"'))
            for watch in (live, Watch(channel, from_beginning=True)):
                assert await watch.until(41) == [*names, "s"]

    run(main())


def test_a_place_in_large_books_is_found_by_index(database: Database, run: Run) -> None:
    """Also by a plan that was made while they were empty."""

    async def main() -> None:
        async with database.connected(Role.READER) as connection:
            for _ in range(6):
                assert not (await commits.list_committed(connection, BEGINNING)).lines
            database.rows("ALTER TABLE rewards SET (autovacuum_enabled = false)")
            for batch in range(20):
                await posted(database, *(reward(f"r-{batch}-{i}", "1") for i in range(256)))
            for analyzed in (False, True):
                if analyzed:
                    database.rows("ANALYZE")
                after = BEGINNING
                for _ in range(20):
                    before = await blocks(connection)
                    found = await commits.list_committed(connection, after)
                    assert len(found.lines) == 256
                    assert await blocks(connection) - before < 3000
                    after = found.through

    run(main())


# Trouble, and the end


def test_at_the_end_of_the_process_a_stream_ends_within_a_second_with_its_token(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        port = free_port()
        with process(database, port) as server:
            async with connected(port) as channel, connected(port) as its_own:
                watch = await Watch(channel).begin()
                blocked = await Watch(its_own, from_beginning=True).begin()
                await posted(database, *(large(f"r-{i:03}") for i in range(60)))
                await watch.until(60)
                server.send_signal(signal.SIGTERM)
                stopped_at = time.monotonic()
                told, token = await watch.end()
                assert time.monotonic() - stopped_at < 1
                assert told == AWAY
                assert token == watch.token
                # Also when somebody does not take what comes.
                assert await asyncio.to_thread(server.wait, SECONDS_MAX) == 0
                assert time.monotonic() - stopped_at < 5
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await blocked.until(61)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        port = free_port()
        async with watching_books(database, port=port) as channel:
            again = Watch(channel, token=blocked.token)
            await again.until(60 - len(blocked.rewards))
            assert blocked.names() + again.names() == watch.names()
            assert watch.names() == [f"r-{i:03}" for i in range(60)]

    run(main())


@contextmanager
def closed(database: Database) -> Iterator[None]:
    """Nobody can connect meanwhile, and whoever was connected is not any more."""
    with psycopg.connect(database.postgres.url(SUPERUSER, "postgres"), autocommit=True) as other:
        allow = f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS"
        other.execute(f"{allow} false")  # type: ignore[call-overload]
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (database.name,),
        )
        try:
            yield
        finally:
            other.execute(f"{allow} true")  # type: ignore[call-overload]


def test_while_postgres_is_away_streams_are_ended_and_go_on_afterwards(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE_SECONDS", 0.5)

    async def main() -> None:
        async with watching_books(database) as channel:
            watches = [await Watch(channel).begin() for _ in range(3)]
            await posted(database, reward("before"))
            for watch in watches:
                await watch.until(1)
            with closed(database):
                for watch in watches:
                    assert await watch.end() == (AWAY, watch.token)
                assert await refusal(Watch(channel, token=watch.token).begin()) == AWAY
            await posted(database, reward("after"))
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    watch = Watch(channel, token=watches[0].token)
                    with suppress(grpc.aio.AioRpcError):
                        assert await watch.until(1) == ["after"]
                        break

    run(main())


def test_a_crash_of_postgres_that_is_short_is_not_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE_SECONDS", 60)

    async def main(database: Database) -> None:
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            await posted(database, reward("before"))
            await watch.until(1)
            # Postgres ends all others, and reads its log again, when one is killed.
            with suppress(psycopg.OperationalError):
                database.rows("COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'", SUPERUSER)
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    with suppress(psycopg.OperationalError):
                        await posted(database, reward("after"))
                        break
                    await asyncio.sleep(0.1)
            assert await watch.until(2) == ["before", "after"]

    with throw_away_postgres() as postgres:
        run(main(Database(postgres, "ledger")))


def test_a_connection_that_was_closed_is_not_noticed(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            for count in range(1, 4):
                database.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE datname = '{database.name}'"
                    f" AND application_name = '{Role.READER}'",
                    SUPERUSER,
                )
                await posted(database, reward(f"r-{count}"))
                assert len(await watch.until(count)) == count

    run(main())


def test_a_fault_of_ours_ends_the_stream_without_a_word_of_it(
    database: Database, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            # Books of another shape than the program thinks: a text that is no time.
            database.rows("DROP FUNCTION commit_seal")
            database.rows(
                "ALTER TABLE commits ALTER committed_at TYPE text USING 'secret',"
                " ALTER committed_at SET DEFAULT 'secret'"
            )
            await posted(database, reward("r"))
            told, _ = await watch.end()
            assert told == Refusal("INTERNAL", "INTERNAL")

    run(main())
    assert " at " in caplog.text
    assert "secret" not in caplog.text


# All of it at once


class Books:
    """What was posted, by name: whom and in which currency; names are never used twice."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self.database = database
        self.chance = chance
        self.posted: dict[str, tuple[str, str | None]] = {}
        self.is_over = False

    def batch(self) -> list[Reward]:
        made = []
        for _ in range(self.chance.choice([1, 1, 2, 5, 30])):
            name = f"r-{self.chance.getrandbits(64):016x}"
            user, currency = f"u{self.chance.randrange(4)}", self.chance.choice(["USD", "JPY"])
            is_recorded = self.chance.random() < 0.1
            self.posted[name] = (user, None if is_recorded else currency)
            told: dict[str, Any] = {} if is_recorded else {"currency": currency}
            made.append(reward(name, None if is_recorded else "1", user_id=user, **told))
        return made

    async def write(self) -> None:
        """Posts, in long and short database transactions, until it is committed or over."""
        connection: Connection | None = None
        while not self.is_over:
            batches = [self.batch() for _ in range(self.chance.choice([1, 1, 1, 3]))]
            # Each by itself, or all together with time in between.
            together = self.chance.random() < 0.3
            while batches:
                try:
                    if connection is None or connection.closed:
                        info = conninfo(self.database.url(), Role.WRITER)
                        connection = await psycopg.AsyncConnection.connect(info, autocommit=True)
                    if together:
                        async with connection.transaction():
                            for batch in batches:
                                await post(connection, batch)
                                await asyncio.sleep(self.chance.uniform(0, 0.05))
                        batches = []
                    else:
                        await post(connection, batches[0])
                        del batches[0]
                except psycopg.OperationalError:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(self.chance.uniform(0, 0.02))
        if connection is not None:
            await connection.close()

    async def kill(self) -> int:
        """How many backends were ended in the middle of what they did."""
        killed = 0
        info = self.database.postgres.url(SUPERUSER)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            while not self.is_over:
                await asyncio.sleep(self.chance.uniform(0.05, 0.3))
                role = self.chance.choice([Role.WRITER, Role.WRITER, Role.READER])
                cursor = await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = %s AND application_name = %s ORDER BY random() LIMIT 1",
                    (self.database.name, role),
                )
                killed += cursor.rowcount
        return killed


class Follower:
    """Watches from the beginning and is cut, again and again, at one server or another."""

    def __init__(self, channels: list[grpc.aio.Channel], chance: random.Random) -> None:
        self._channels = channels
        self._chance = chance
        self.rewards: list[pb.Reward] = []
        self.streams = 0

    async def follow(self, books: Books) -> None:
        """Returns when everything has come that was posted."""
        asked: dict[str, Any] = {"from_beginning": True}
        while not (books.is_over and len(self.rewards) >= len(books.posted)):
            watch = Watch(self._chance.choice(self._channels), **asked)
            self.streams += 1
            with suppress(grpc.aio.AioRpcError):
                for _ in range(self._chance.choice([1, 2, 5, 50])):
                    self.rewards += (await watch.read()).rewards
                    asked = {"token": watch.token}
                    if self._chance.random() < 0.1:
                        await asyncio.sleep(self._chance.uniform(0, 0.3))
                    if books.is_over and len(self.rewards) >= len(books.posted):
                        break
            watch.cut()


def test_whatever_happens_each_watcher_is_told_every_reward_once_in_the_same_order(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    monkeypatch.setattr(watching, "BACKLOG_MAX", 3)
    monkeypatch.setattr(commits, "STRETCH_SIZE_MAX", 7)
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.01)

    async def main() -> None:
        books = Books(database, chance)
        async with watching_books(database) as one, watching_books(database) as other:
            followers = [
                Follower([one, other], random.Random(chance.getrandbits(64))) for _ in range(6)
            ]
            writing = [asyncio.create_task(books.write()) for _ in range(4)]
            killing = asyncio.create_task(books.kill())
            following = [asyncio.create_task(each.follow(books)) for each in followers]
            await asyncio.sleep(6)
            books.is_over = True
            await asyncio.gather(*writing)
            killed = await killing
            async with asyncio.timeout(SECONDS_MAX):
                await asyncio.gather(*following)
            last = Watch(one, from_beginning=True)
            order = await last.until(len(books.posted))
        streams = sum(each.streams for each in followers)
        print(f"{len(order)} rewards, {killed} backends killed, {streams} streams")
        assert killed
        assert sorted(order) == sorted(books.posted)
        for follower in followers:
            assert [told.reward_id for told in follower.rewards] == order
        check(last.rewards, books.posted)

    run(main())


def check(told: Iterable[pb.Reward], posted: dict[str, tuple[str, str | None]]) -> None:
    """Along each account there is version after version, without a gap."""
    versions: defaultdict[tuple[str, str | None], int] = defaultdict(int)
    for each in told:
        user, currency = posted[each.reward_id]
        assert each.user_id == user
        assert each.HasField("posting") is (currency is not None)
        if currency is not None:
            assert each.posting.amount.currency == currency
            versions[user, currency] += 1
            assert each.posting.version == versions[user, currency]
