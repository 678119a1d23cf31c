"""One transactionId under two rewardIds: both are posted, and somebody hears of it."""

import asyncio
import random
from typing import Any, NamedTuple

import pytest

from ingress import sharing
from ingress.sharing import Sharing
from ledger.database import Pool, Role
from ledger.errors import DatabaseUnavailable, IdempotencyConflict
from ledger.reward import Reward
from ledger.sharing import Told, shared
from ledger.writing import Writer, post
from tests.conftest import Database, Run
from tests.ingress.deliveries import body
from tests.ingress.observed import running, wait_until
from tests.rewards import reward


def under(transaction_id: str | None, *reward_ids: str) -> list[Reward]:
    return [reward(reward_id, transaction_id=transaction_id) for reward_id in reward_ids]


# Which they are


def found(database: Database, run: Run, *told: Told, posted: list[list[Reward]]) -> Any:
    async def main() -> Any:
        async with database.connected() as connection:
            for batch in posted:
                await post(connection, batch)
            return await shared(connection, told)

    return run(main())


def test_only_the_first_under_a_transaction_is_not_told(database: Database, run: Run) -> None:
    told = [Told("b", "t1"), Told("c", "t1"), Told("a", "t1"), Told("d", "t2"), Told("e", "t3")]
    posted = [under("t1", "b"), under("t1", "a"), under("t1", "c"), under("t2", "d")]
    assert sorted(found(database, run, *told, posted=posted)) == [("a", "b"), ("c", "b")]


def test_rewards_without_a_transaction_share_none(database: Database, run: Run) -> None:
    posted = [under(None, "a", "b"), under("", "c", "d")]
    assert found(database, run, Told("a", "t1"), posted=posted) == []


def test_a_transaction_may_be_as_long_as_a_body(database: Database, run: Run) -> None:
    """No index holds a text of that length, and no reward may be refused for it."""
    long = random.Random(1).randbytes(16_000).hex()
    told = [Told("b", long), Told("c", f"{long}!")]
    posted = [under(long, "a"), under(long, "b"), under(f"{long}!", "c")]
    assert found(database, run, *told, posted=posted) == [("b", "a")]


def test_each_is_found_by_one_probe_however_many_share_a_transaction(
    database: Database, run: Run
) -> None:
    """Else one constant in a mapping would have every look read all rewards."""

    async def main() -> None:
        async with database.connected() as connection:
            for start in range(0, 4000, 500):
                ids = [f"r{number:05}" for number in range(start, start + 500)]
                await post(connection, under("the same", *ids))
            await connection.execute("SELECT pg_stat_force_next_flush()")
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            before = await reads(connection)
            told = [Told(f"r{number:05}", "the same") for number in range(100)]
            assert len(await shared(connection, told)) == 99
            assert await reads(connection) - before <= 200

    async def reads(connection: Any) -> int:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        cursor = await connection.execute("""
            SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'rewards'
        """)
        (row,) = await cursor.fetchall()
        return int(row[0])

    run(main())


# When it is told


class Heard(NamedTuple):
    """A worker's posting and its sharing, and what was told."""

    writer: Writer
    sharing: Sharing
    told: list[tuple[str, str]]

    async def post(self, *rewards: Reward) -> None:
        await asyncio.gather(*(self.writer.post(one) for one in rewards))

    async def settle(self) -> None:
        await self.sharing.look()
        await self.sharing.look()


def hearing(pool: Pool) -> Heard:
    told: list[tuple[str, str]] = []
    shares = Sharing(pool, lambda *both: told.append(both))
    return Heard(Writer(pool, observe_batch=shares.posted), shares, told)


def test_of_two_workers_the_one_that_posted_the_second_tells(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            one, other = hearing(pool), hearing(pool)
            await one.post(*under("t1", "a"))
            await other.post(*under("t1", "b"))
            for _ in range(3):
                await one.sharing.look()
                await other.sharing.look()
            assert (one.told, other.told) == ([], [("b", "a")])

    run(main())


def test_two_of_one_batch_share_too(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            heard = hearing(pool)
            await heard.post(*under("t1", "a", "b"), *under(None, "c", "d"), *under("t2", "e"))
            await heard.settle()
            assert len(heard.told) == 1
            assert sorted(heard.told[0]) == ["a", "b"]

    run(main())


def test_it_is_not_looked_up_before_those_that_came_first_can_be_seen(
    database: Database, run: Run
) -> None:
    """A lower number may still be under way when a higher one is committed."""

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            heard = hearing(pool)
            async with database.connected() as slow:
                await slow.execute("BEGIN")
                # Of nothing, so that the other does not wait for its balances.
                await post(slow, [reward("a", amount=None, transaction_id="t1")])
                await heard.post(*under("t1", "b"))
                await heard.sharing.look()
                await slow.execute("COMMIT")
            await heard.sharing.look()
            assert heard.told == [("b", "a")]

    run(main())


def test_a_reward_that_is_sent_again_is_told_once_and_a_replay_is_looked_up(
    database: Database, run: Run
) -> None:
    """The answer to its first try may have been lost."""

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            async with database.connected() as connection:
                await post(connection, under("t1", "a"))
                await post(connection, under("t1", "b"))
            heard = hearing(pool)
            for _ in range(3):
                await heard.post(*under("t1", "b", "a"))
                await heard.settle()
            assert heard.told == [("b", "a")]

    run(main())


def test_what_is_refused_is_not_looked_up(run: Run) -> None:
    async def main() -> None:
        async with Pool("host=/nowhere", Role.WRITER, size_max=1) as pool:
            shares = Sharing(pool, lambda *_: None)
            shares.posted(under("t1", "a"), [IdempotencyConflict()])
            await shares.look()
            await shares.look()

    run(main())


def test_a_reward_without_a_transaction_asks_nothing(database: Database, run: Run) -> None:
    async def main() -> None:
        async with (
            Pool(database.url(), Role.WRITER, size_max=1) as pool,
            Pool("host=/nowhere", Role.WRITER, size_max=1) as nowhere,
        ):
            shares = Sharing(nowhere, lambda *_: None)
            await Writer(pool, observe_batch=shares.posted).post(under(None, "a")[0])
            await shares.look()
            await shares.look()

    run(main())


def test_what_could_not_be_looked_up_is_looked_up_later(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "PAGE_SIZE", 2)

    async def lose(*_: Any) -> Any:
        raise DatabaseUnavailable

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            heard = hearing(pool)
            await heard.post(*under("t1", "a"))
            await heard.post(*under("t1", *(f"b{number}" for number in range(5))))
            await heard.sharing.look()
            with monkeypatch.context() as patch:
                patch.setattr(sharing, "shared", lose)
                for _ in range(2):
                    with pytest.raises(DatabaseUnavailable):
                        await heard.sharing.look()
            await heard.sharing.look()
            assert sorted(heard.told) == [(f"b{number}", "a") for number in range(5)]

    run(main())


def test_no_more_is_kept_than_there_is_room_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr(sharing, "WAITING_MAX", 3)

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            heard = hearing(pool)
            await heard.post(*under("t1", *(f"b{number}" for number in range(9))))
            await heard.settle()
            assert len(heard.told) <= 3

    run(main())


def test_the_end_looks_up_what_is_not_settled(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            heard = hearing(pool)
            await heard.post(*under("t1", "a"))
            await heard.sharing.look()
            await heard.post(*under("t1", "b"))
            await heard.sharing.end()
            assert heard.told == [("b", "a")]
        async with Pool("host=/nowhere", Role.WRITER, size_max=1) as pool:
            shares = Sharing(pool, lambda *_: None)
            shares._fresh["a"] = "t1"
            await shares.end()

    run(main())


# As it really runs


def test_both_are_credited_and_the_second_is_counted_and_logged(database: Database) -> None:
    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        texts = [
            body(rewardId="first", transactionId="T"),
            body(rewardId="second", transactionId="T"),
            body(rewardId="other", transactionId="U"),
            body(rewardId="none"),
            body(rewardId="none either"),
        ]
        for text in texts:
            status, told = ingress.deliver(text)
            assert (status, told["status"]) == (200, "credited")
        counter = "ingress_shared_transactions_total"
        wait_until(lambda: ingress.samples(counter) == {frozenset(): 1})
        for text in texts[:3]:
            assert ingress.deliver(text)[1]["status"] == "replayed"
        wait_until(lambda: ingress.answered() == 8)
        ingress.end()
        alerts = [line for line in ingress.lines() if "alert" in line]
        # Once by each worker that has seen it.
        assert 1 <= len(alerts) <= 2
        for line in alerts:
            del line["at"]
            assert line == {
                "alert": "shared-transaction",
                "reward_id": "second",
                "first_reward_id": "first",
            }
    assert database.rows("SELECT count(*), sum(amount)::text FROM postings") == [(5, "2000.00")]
