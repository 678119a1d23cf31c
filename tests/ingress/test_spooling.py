"""Spooling and draining: a real Postgres that is stopped, started and killed under load."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

import ingress
from ingress.app import SPOOL_AFTER_SECONDS
from ingress.draining import DOUBTED_TRIES, Drainer, Keep, are_answering
from ingress.errors import NotAReward
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ingress.spool import Delivery, Spool
from ingress.spool_file import FILE_NAME, SpoolFull, SpoolUnavailable, lease
from ingress.spooling import (
    KEEP_SECONDS_MAX,
    PAUSE_SECONDS,
    PUT_SECONDS_MAX,
    Spooled,
    SpoolingBooks,
    SpoolingQuarantine,
    SpoolSettings,
    drain,
    read_spool_settings,
    status,
)
from ledger.config import InvalidSetting
from ledger.database import Pool, Role
from ledger.embedded import AlreadyRunning, EmbeddedPostgres
from ledger.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    Overloaded,
    Refused,
    Unavailable,
    UnknownCurrency,
)
from ledger.quarantine import Unposted
from ledger.reward import Reward
from ledger.writing import Receipt, Writer
from tests.conftest import OWNER, SUPERUSER, Database, Run, throw_away_postgres

REPOSITORY = Path(ingress.__file__).resolve().parents[1]
ROOM = 2**30
NOWHERE = "postgresql://nobody@/nothing?host=/nonexistent"
"""Where no Postgres is."""


def read(text: bytes) -> Reward | None:
    return read_reward(text, Mapping(default_currency="USD"))


# A worker without its socket: drains until it is killed.
WORKER = """
import asyncio, sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ingress.spool import Spool
from ingress.spooling import SpoolingBooks
from ledger.database import Pool, Role
from ledger.errors import Unavailable
from ledger.writing import Writer
async def main():
    pool = Pool(sys.argv[2], Role.WRITER, size_max=2)
    async with pool:
        read = partial(read_reward, mapping=Mapping(default_currency="USD"))
        spool = Spool(Path(sys.argv[1]), 2**30)
        books = SpoolingBooks(Writer(pool, batch_size_max=4), pool, spool, read)
        await books.start()
        print("started", flush=True)
        for number in range(int(sys.argv[4])):
            text = b'{"campaignId":"c","userId":"%b","rewardId":"%b-%06d","rewardAmount":1}' % (
                sys.argv[3].encode(), sys.argv[3].encode(), number)
            outcome = None
            while outcome is None:
                # A disk that is busy with something else may be too slow.
                with suppress(Unavailable):
                    outcome = await books.post(read(text))
            print(outcome.reward_id, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a spool may be made."""
    return tmp_path / "spool"


@pytest.fixture(scope="module")
def stoppable() -> Iterator[EmbeddedPostgres]:
    """A server that this module's tests may stop; its database is to be cloned."""
    with throw_away_postgres() as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
def own(stoppable: EmbeddedPostgres) -> Database:
    """A migrated database of the test's own, on a server that it may stop."""
    name = f"own_{next(_numbers)}"
    # The test before may have failed while it was stopped.
    with contextlib.suppress(AlreadyRunning):
        stoppable.start()
    with psycopg.connect(stoppable.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE ledger OWNER {OWNER}")
    return Database(stoppable, name)


def told(reward_id: str, user_id: str = "user-1", **fields: object) -> bytes:
    """The believed text of a reward of 1 USD."""
    reward = {"campaignId": "campaign-1", "userId": user_id, "rewardId": reward_id}
    return json.dumps(reward | {"rewardAmount": 1} | fields).encode()


def delivery(text: bytes) -> Delivery:
    return Delivery(text, "current", "raw", datetime.now(UTC))


def settings(directory: Path) -> SpoolSettings:
    return SpoolSettings(directory, ROOM)


class Worker(NamedTuple):
    """What one worker of the ingress has."""

    books: SpoolingBooks
    writer: Writer
    spool: Spool

    async def post(self, text: bytes) -> Any:
        reward = read(text)
        assert reward is not None
        return await self.books.post(reward, "current", "raw")


@contextlib.asynccontextmanager
async def working(
    url: str, directory: Path, size_max_bytes: int = ROOM, keep: Keep | None = None
) -> AsyncIterator[Worker]:
    """A worker between its start and its stop."""
    async with Pool(url, Role.WRITER, size_max=2) as pool:
        writer = Writer(pool)
        spool = Spool(directory, size_max_bytes)
        books = SpoolingBooks(writer, pool, spool, read, keep)
        await books.start()
        try:
            yield Worker(books, writer, spool)
        finally:
            await books.stop()
            await writer.drain()


@contextlib.asynccontextmanager
async def draining(
    url: str, directory: Path, keep: Keep | None = None
) -> AsyncIterator[tuple[Drainer, Spool]]:
    """A drainer that drains when it is told to, and its open spool."""
    async with Pool(url, Role.WRITER, size_max=1) as pool:
        with Spool(directory, ROOM) as spool:
            yield Drainer(Writer(pool), spool, read, keep), spool


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def versions(database: Database, user_id: str = "user-1") -> list[str]:
    """The rewards of the user, in the order in which they were posted."""
    rows = database.rows("SELECT user_id, version, reward_id FROM postings ORDER BY version")
    assert len({reward_id for _, _, reward_id in rows}) == len(rows)
    return [reward_id for user, _, reward_id in rows if user == user_id]


def assert_that_all_is_posted(database: Database, directory: Path, reward_ids: set[str]) -> None:
    """Each reward is in the books, the balances say so too, and nothing is left."""
    rows = database.rows("SELECT reward_id FROM postings")
    assert sorted(rows) == sorted((reward_id,) for reward_id in reward_ids)
    (total,) = database.rows(
        "SELECT coalesce(sum(credits - debits), 0) FROM balances WHERE account LIKE 'user:%'"
    )
    assert total == (len(reward_ids),)
    assert status(settings(directory))[:2] == (0, 0)


# Settings.


def test_without_a_directory_there_is_no_spool() -> None:
    assert read_spool_settings({}) is None
    assert read_spool_settings({"INGRESS_SPOOL": ""}) is None


def test_a_spool_has_a_directory_and_a_bound(tmp_path: Path) -> None:
    given = {"INGRESS_SPOOL": str(tmp_path / "spool")}
    assert read_spool_settings(given) == SpoolSettings(tmp_path / "spool", 2**30)
    given["INGRESS_SPOOL_SIZE_MAX_BYTES"] = "20000000"
    assert read_spool_settings(given) == SpoolSettings(tmp_path / "spool", 20_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INGRESS_SPOOL", __file__),
        ("INGRESS_SPOOL_SIZE_MAX_BYTES", "1000"),
        ("INGRESS_SPOOL_SIZE_MAX_BYTES", "a lot"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} "):
        read_spool_settings({name: value})


# While the books are there.


def test_nothing_is_spooled_while_the_books_answer(
    database: Database, directory: Path, run: Run
) -> None:
    async def main() -> None:
        async with working(database.url(), directory) as worker:
            assert isinstance(await worker.post(told("reward-1")), Receipt)
            assert isinstance(await worker.post(told("reward-1", user_id="x")), IdempotencyConflict)
            unknown = told("reward-2", details={"currency": "XXQ"})
            assert isinstance(await worker.post(unknown), UnknownCurrency)
            assert worker.spool.status()[:2] == (0, 0)
            assert not worker.books.are_away

    run(main())


def test_too_much_to_do_is_spooled_and_the_books_are_not_called_away(
    database: Database, directory: Path, run: Run
) -> None:
    async def main() -> None:
        async with working(database.url(), directory) as worker:
            worker.writer._coalescer._waiting_max = 0
            assert isinstance(await worker.post(told("reward-1")), Spooled)
            assert not worker.books.are_away
            with pytest.raises(Overloaded):
                worker.writer.post(read(told("reward-2")))  # type: ignore[arg-type]
            worker.writer._coalescer._waiting_max = 10
            await until(lambda: worker.spool.status().depth == 0)
        assert_that_all_is_posted(database, directory, {"reward-1"})

    run(main())


def test_what_an_earlier_process_left_is_posted_by_the_next(
    database: Database, directory: Path, run: Run
) -> None:
    with Spool(directory, ROOM) as spool:
        spool.put([delivery(told("reward-1"))])

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            await until(lambda: worker.spool.status().depth == 0)

    run(main())
    assert_that_all_is_posted(database, directory, {"reward-1"})


def test_nobody_drains_while_another_process_does(
    database: Database, directory: Path, run: Run
) -> None:
    with Spool(directory, ROOM) as spool:
        spool.put([delivery(told("reward-1"))])

    async def main() -> None:
        with lease(directory) as is_ours:
            assert is_ours
            async with working(database.url(), directory) as worker:
                await worker.books._drain()
                assert worker.spool.status().depth == 1
        async with working(database.url(), directory) as worker:
            await until(lambda: worker.spool.status().depth == 0)

    run(main())


class NoQuarantine:
    """A quarantine that never says anything."""

    async def keep(self, refused: Unposted) -> None:
        await asyncio.Event().wait()


def test_a_quarantine_that_is_late_leaves_time_for_the_disk(
    database: Database, directory: Path, run: Run
) -> None:
    """The books may have taken theirs before, and the sender waits for all three."""

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            quarantine = SpoolingQuarantine(NoQuarantine(), worker.books)
            async with asyncio.timeout(KEEP_SECONDS_MAX + PUT_SECONDS_MAX):
                await quarantine.keep(Unposted(b"[]", "NotAReward", token="current", form="raw"))
            assert sum(worker.spool.status()[:2]) == 1

    assert SPOOL_AFTER_SECONDS + KEEP_SECONDS_MAX + PUT_SECONDS_MAX < 3
    run(main())


def test_a_worker_goes_on_without_a_damaged_spool_until_somebody_has_moved_it_away(
    database: Database,
    directory: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ingress.spooling.UNUSABLE_SECONDS", 0.05)
    directory.mkdir(mode=0o700)
    damaged = directory / FILE_NAME
    damaged.write_bytes(b"a letter")

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            assert isinstance(await worker.post(told("reward-1")), Receipt)
            assert not worker.books.can_spool
            with pytest.raises(SpoolUnavailable):
                await worker.books.put(told("reward-2"), None, None)
            await asyncio.sleep(3 * PAUSE_SECONDS)
            assert damaged.read_bytes() == b"a letter"
            damaged.unlink()
            await until(lambda: worker.books.can_spool)
            await worker.books.put(told("reward-2"), None, None)
            await until(lambda: worker.spool.status().depth == 0)

    run(main())
    assert versions(database) == ["reward-1", "reward-2"]
    # Said once, however often it was looked at.
    assert caplog.text.count(f"{damaged} is damaged") == 1


# The order, and what cannot be posted.


def test_what_was_spooled_is_posted_in_its_order(
    database: Database, directory: Path, chance: random.Random, run: Run
) -> None:
    # Several pages, and rewardIds that would sort in another order.
    reward_ids = [f"{chance.random()}" for _ in range(300)]
    users = [chance.choice(["user-1", "user-2", f"single-{number}"]) for number in range(300)]

    async def main() -> None:
        async with draining(database.url(), directory) as (drainer, spool):
            pairs = list(zip(reward_ids, users, strict=True))
            spool.put([delivery(told(*pair)) for pair in pairs])
            spool.note_tries(chance.sample(range(1, 300), 20))
            assert await drainer.drain()

    run(main())
    for user_id in ("user-1", "user-2"):
        expected = [id_ for id_, user in zip(reward_ids, users, strict=True) if user == user_id]
        assert versions(database, user_id) == expected
    assert_that_all_is_posted(database, directory, set(reward_ids))


def test_of_two_spooled_rewards_with_one_id_the_first_is_credited(
    database: Database, directory: Path, run: Run
) -> None:
    async def main() -> None:
        async with draining(database.url(), directory) as (drainer, spool):
            texts = [
                told("same", "user-2"),
                told("same", "user-1"),
                told("same", "user-2", type="x"),
            ]
            spool.put([delivery(text) for text in texts])
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 1)

    run(main())
    assert versions(database, "user-2") == ["same"]


POISON = [
    told("poison", details={"currency": "XXQ"}),
    told("poison", rewardAmount=0.001),
    told("poison", rewardAmount=-1),
    b"[]",
    b"not JSON at all",
    b"\0\xff",
]


@pytest.mark.parametrize("poison", POISON)
def test_what_is_refused_is_set_aside_and_does_not_hold_up_those_behind_it(
    database: Database, directory: Path, run: Run, poison: bytes
) -> None:
    async def main() -> None:
        async with draining(database.url(), directory) as (drainer, spool):
            spool.put([delivery(text) for text in (told("reward-1"), poison, told("reward-2"))])
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 1)

    run(main())
    assert versions(database) == ["reward-1", "reward-2"]


def test_what_is_refused_is_kept_by_whom_is_told_to_and_leaves_the_spool(
    database: Database, directory: Path, run: Run
) -> None:
    kept: list[tuple[bytes, type[Exception]]] = []

    async def keep(refused: Delivery, error: Exception) -> None:
        assert (refused.token, refused.form) == ("current", "raw")
        kept.append((refused.text, type(error)))

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(text) for text in (b"[]", told("reward-1"), POISON[0])])
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 0)

    run(main())
    assert kept == [(b"[]", NotAReward), (POISON[0], UnknownCurrency)]


@pytest.mark.parametrize("poison", [POISON[0], b"[]"])
def test_what_nobody_can_keep_now_stays_in_the_spool_and_waits(
    database: Database, directory: Path, run: Run, poison: bytes
) -> None:
    async def keep(_refused: Delivery, _error: Exception) -> None:
        raise DatabaseUnavailable

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(poison)])
            assert not await drainer.drain()
            assert spool.status()[:2] == (1, 0)
        with pytest.raises(DatabaseUnavailable):
            await drain(settings(directory), database.url(), read, keep)

    run(main())


def test_what_nobody_can_ever_keep_stops_nobody_in_the_end(
    database: Database, directory: Path, run: Run
) -> None:
    async def keep(_refused: Delivery, _error: Exception) -> None:
        raise DatabaseUnavailable

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(text) for text in (b"[]", told("reward-1"), POISON[0])])
            assert not await drainer.drain()
            assert versions(database) == []
            spool.note_tries([1] * DOUBTED_TRIES + [3] * DOUBTED_TRIES)
            assert await drainer.drain()
            assert [waiting.number for waiting in spool.oldest(10)] == [1, 3]

    run(main())
    assert versions(database) == ["reward-1"]


def test_an_outages_worth_of_refusals_is_kept_at_once(
    database: Database, directory: Path, run: Run
) -> None:
    keeping = 0
    most = 0

    async def keep(_refused: Delivery, _error: Exception) -> None:
        nonlocal keeping, most
        keeping += 1
        most = max(most, keeping)
        await asyncio.sleep(0.05)
        keeping -= 1

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(b"[%d]" % number) for number in range(400)])
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 0)

    run(main())
    assert most > 100


def test_what_the_keeper_refuses_is_set_aside(
    database: Database, directory: Path, run: Run
) -> None:
    async def keep(_refused: Delivery, _error: Exception) -> None:
        raise Refused

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(POISON[0]), delivery(b"[]")])
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 2)

    run(main())


def test_a_text_that_changed_on_disk_is_neither_posted_nor_kept_as_believed(
    database: Database, directory: Path, run: Run
) -> None:
    async def keep(_refused: Delivery, _error: Exception) -> None:
        raise AssertionError

    async def main() -> None:
        async with draining(database.url(), directory, keep) as (drainer, spool):
            spool.put([delivery(told("reward-1")), delivery(told("reward-2"))])
            assert spool._connection is not None
            changed = told("reward-1", rewardAmount=9)
            spool._connection.execute("UPDATE deliveries SET text=? WHERE number=1", (changed,))
            assert await drainer.drain()
            assert spool.status()[:2] == (0, 1)

    run(main())
    assert versions(database) == ["reward-2"]


def test_a_nudge_leaves_the_spool_and_is_not_posted(
    database: Database, directory: Path, run: Run
) -> None:
    async def main() -> None:
        async with draining(database.url(), directory) as (drainer, spool):
            spool.put([delivery(told("reward-1", webhookType="nudge"))])
            assert await drainer.drain()

    run(main())
    assert_that_all_is_posted(database, directory, set())


UNANSWERED = """
CREATE FUNCTION no_answer() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE 'the server is at a loss' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER no_answer BEFORE INSERT ON rewards FOR EACH ROW
WHEN (NEW.reward_id = 'poison') EXECUTE FUNCTION no_answer()
"""


def test_a_reward_whose_outcome_is_never_known_stays_and_stops_nobody_in_the_end(
    database: Database, directory: Path, run: Run
) -> None:
    database.rows(UNANSWERED)

    async def main() -> None:
        async with draining(database.url(), directory) as (drainer, spool):
            reward_ids = ["reward-1", "poison", "reward-2", "reward-3"]
            spool.put([delivery(told(reward_id, reward_id)) for reward_id in reward_ids])
            spool.put([delivery(told("reward-4", "poison"))])
            answers = [await drainer.drain() for _ in range(DOUBTED_TRIES + 1)]
            assert answers == [False] * DOUBTED_TRIES + [True]
            assert [waiting.number for waiting in spool.oldest(10)] == [2]
            database.rows("DROP TRIGGER no_answer ON rewards")
            assert await drainer.drain()

    run(main())
    assert_that_all_is_posted(
        database, directory, {f"reward-{n}" for n in range(1, 5)} | {"poison"}
    )


def test_a_delivery_that_the_books_cannot_answer_does_not_keep_the_others_from_them(
    database: Database, directory: Path, run: Run
) -> None:
    database.rows(UNANSWERED)

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            assert isinstance(await worker.post(told("poison")), Spooled)
            await until(lambda: worker.spool.oldest(1)[0].tries > DOUBTED_TRIES)
            await until(lambda: not worker.books.are_away)
            assert isinstance(await worker.post(told("reward-1")), Receipt)
            assert not worker.books.are_away

    run(main())


def test_the_commands_say_what_waits_post_it_and_try_again_what_was_set_aside(
    database: Database, directory: Path, run: Run
) -> None:
    url = database.url()
    assert status(settings(directory)) == (0, 0, 0, None)
    assert run(drain(settings(directory), url, read)) == (0, 0, 0, None)
    assert not directory.exists()
    with Spool(directory, ROOM) as spool:
        unknown = told("reward-2", details={"currency": "XXQ"})
        spool.put([delivery(told("reward-1")), delivery(unknown)])
    assert status(settings(directory))[:2] == (2, 0)
    assert run(drain(settings(directory), url, read))[:2] == (0, 1)
    assert versions(database) == ["reward-1"]
    database.rows("INSERT INTO currencies (code, scale, name) VALUES ('XXQ', 2, 'x')")
    assert run(drain(settings(directory), url, read))[:2] == (0, 0)
    assert sorted(versions(database)) == ["reward-1", "reward-2"]


# While they are away.


def test_deliveries_are_spooled_while_postgres_is_stopped_and_posted_when_it_is_back(
    own: Database, directory: Path, run: Run
) -> None:
    reward_ids = [f"reward-{99 - number}" for number in range(60)]

    async def main() -> None:
        async with working(own.url(), directory) as worker:
            assert isinstance(await worker.post(told("reward-0")), Receipt)
            await asyncio.to_thread(own.postgres.stop)
            assert isinstance(await worker.post(told(reward_ids[0])), Spooled)
            # Known to be away: from now on nobody waits for the books.
            assert worker.books.are_away
            for reward_id in reward_ids[1:]:
                outcome = await worker.post(told(reward_id))
                assert outcome == (reward_id, "spooled")
                assert not worker.writer._coalescer._unanswered
            assert worker.spool.status().depth == len(reward_ids)
            assert worker.spool.oldest(1)[0].delivery[:3] == (told(reward_ids[0]), "current", "raw")
            with pytest.raises(DatabaseUnavailable):
                await drain(settings(directory), own.url(), read)
            assert worker.spool.status().depth == len(reward_ids)
            await asyncio.to_thread(own.postgres.start)
            await until(lambda: worker.spool.status().depth == 0)
            await until(lambda: not worker.books.are_away)
            assert isinstance(await worker.post(told("reward-1")), Receipt)

    run(main())
    assert versions(own) == ["reward-0", *reward_ids, "reward-1"]
    assert_that_all_is_posted(own, directory, {"reward-0", *reward_ids, "reward-1"})


def test_a_full_spool_is_told_and_what_was_promised_is_in_it(
    directory: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    promised: list[str] = []

    async def answer(worker: Worker, number: int) -> Any:
        try:
            return await worker.post(told(f"reward-{number}", rewardName="x" * 9000))
        except SpoolFull as error:
            return error

    async def main() -> None:
        async with working(NOWHERE, directory, 600_000) as worker:
            await until(lambda: worker.books.can_spool)
            while not isinstance(outcome := await answer(worker, len(promised)), SpoolFull):
                promised.append(outcome.reward_id)
            assert len(promised) > 10
            await until(lambda: not worker.books.can_spool)
            assert "spool: it can take nothing" in caplog.messages
            found = [read(waiting.delivery.text) for waiting in worker.spool.oldest(1000)]
            assert [reward and reward.reward_id for reward in found] == promised

    run(main())


def test_postgres_killed_again_and_again_under_load_loses_and_doubles_no_200(
    own: Database, directory: Path, run: Run, chance: random.Random
) -> None:
    promised: list[set[str]] = [set(), set()]
    sent: set[str] = set()
    is_over = False

    async def sender(worker: Worker, name: int, user: str) -> None:
        number = 0
        while not is_over:
            number += 1
            reward_id = f"{name}-{user}-{number:06}"
            text = told(reward_id, user)
            sent.add(reward_id)
            # A disk that is busy with something else may be too slow; then nothing is promised.
            with contextlib.suppress(Unavailable):
                outcome = await worker.post(text)
                assert outcome.status in {"spooled", "credited", "replayed"}
                promised[name].add(outcome.reward_id)
            await asyncio.sleep(0.002)

    async def main() -> None:
        nonlocal is_over
        async with (
            working(own.url(), directory) as first,
            working(own.url(), directory) as second,
        ):
            async with asyncio.TaskGroup() as group:
                for name, worker in enumerate((first, second)):
                    for user in ("user-1", "user-2"):
                        group.create_task(sender(worker, name, user))
                for _ in range(2):
                    await asyncio.sleep(chance.uniform(0.05, 0.5))
                    await asyncio.to_thread(kill_postgres, own.postgres)
                    await asyncio.sleep(chance.uniform(0, 0.5))
                    await asyncio.to_thread(own.postgres.start)
                    await until(lambda: not first.books.are_away and not second.books.are_away)
                is_over = True
            # Only now: what was asked last may have been spooled since.
            await until(lambda: first.spool.status().depth == 0)

    run(main())
    assert all(promised)
    posted = {reward_id for (reward_id,) in own.rows("SELECT reward_id FROM postings")}
    assert promised[0] | promised[1] <= posted <= sent
    assert_that_all_is_posted(own, directory, posted)


def kill_postgres(postgres: EmbeddedPostgres) -> None:
    process_id = int((postgres.data_directory / "postmaster.pid").read_text().split()[0])
    os.kill(process_id, 9)
    postgres.stop()


def start_worker(
    database: Database, directory: Path, user: str = "nobody", count: int = 0
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(directory), database.url(), user, str(count)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_workers_killed_while_they_drain_post_each_reward_once_and_in_order(
    database: Database, directory: Path, chance: random.Random, run: Run
) -> None:
    reward_ids = [f"{chance.random()}" for _ in range(450)]
    with Spool(directory, ROOM) as spool:
        for reward_id in reward_ids:
            spool.put([delivery(told(reward_id, f"user-{len(reward_id) % 3}"))])
        depths = [spool.status().depth]
        for _ in range(3):
            workers = [start_worker(database, directory) for _ in range(2)]
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "started\n"
            time.sleep(chance.uniform(0, 0.25))
            for worker in workers:
                worker.kill()
                worker.communicate()
            depths.append(spool.status().depth)
    print(f"left after each kill: {depths}")
    run(drain(settings(directory), database.url(), read))
    for user in range(3):
        expected = [reward_id for reward_id in reward_ids if len(reward_id) % 3 == user]
        assert versions(database, f"user-{user}") == expected
    assert_that_all_is_posted(database, directory, set(reward_ids))


def test_two_workers_that_put_and_drain_at_once_post_every_200_once(
    own: Database, directory: Path
) -> None:
    own.postgres.stop()
    workers = [start_worker(own, directory, f"user-{number}", 200) for number in range(2)]
    promised: set[str] = set()
    for number, worker in enumerate(workers):
        assert worker.stdout is not None
        promised |= {worker.stdout.readline().strip() for _ in range(40)} - {"started"}
        if number == 0:
            own.postgres.start()
    for worker in workers:
        assert worker.stdout is not None
        while len(promised) < 400 and (line := worker.stdout.readline()):
            promised.add(line.strip())
            if line.endswith("-000199\n"):
                break
    while status(settings(directory)).depth:
        time.sleep(0.05)
    for worker in workers:
        worker.kill()
        worker.communicate()
    promised.discard("started")
    assert len(promised) == 400
    assert_that_all_is_posted(own, directory, promised)


def test_asking_whether_the_books_are_back_writes_nothing_into_them(
    database: Database, directory: Path, run: Run
) -> None:
    before = database.rows("SELECT count(*) FROM rewards")

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            worker.books.are_away = True
            await until(lambda: not worker.books.are_away)

    run(main())
    assert database.rows("SELECT count(*) FROM rewards") == before


TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def test_a_server_that_takes_no_writes_is_away_until_it_does(
    database: Database, directory: Path, run: Run
) -> None:
    setting = f"ALTER DATABASE {database.name} SET default_transaction_read_only = "
    database.rows(setting + "on")

    async def main() -> None:
        async with working(database.url(), directory) as worker:
            assert isinstance(await worker.post(told("reward-1")), Spooled)
            async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
                assert not await are_answering(pool)
            assert worker.books.are_away
            with psycopg.connect(database.postgres.url(OWNER, "postgres")) as connection:
                connection.execute(setting + "off")
            database.rows(TERMINATE, SUPERUSER)
            await until(lambda: worker.spool.status().depth == 0)

    run(main())
    assert_that_all_is_posted(database, directory, {"reward-1"})
