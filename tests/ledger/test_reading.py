"""Reading: one statement for each question, by the index that was made for it."""

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from ledger import history, reading
from ledger.database import Connection, Pool, Role
from ledger.errors import DatabaseUnavailable, RewardNotFound
from ledger.history import RewardFilter
from ledger.money import plain
from ledger.operations.migrate import MIGRATIONS
from ledger.reading import Balance, BalanceKey, PastBalanceKey, Reader
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward

AT = datetime(9999, 1, 1, tzinfo=UTC)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def blocks(connection: Connection) -> int:
    """How many blocks of the books this connection has looked at."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    cursor = await connection.execute(
        "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)"
        " FROM pg_statio_user_tables"
    )
    ((count,),) = await cursor.fetchall()
    return int(count)


async def plan_of(connection: Connection, statement: str, parameters: dict[str, Any]) -> Any:
    """The plan that the reader keeps for ``statement``, whatever its parameters are."""
    await connection.execute(statement, parameters, prepare=True)
    cursor = await connection.execute("SELECT name FROM pg_prepared_statements")
    ((name,),) = await cursor.fetchall()
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", statement))
    given = ", ".join(f"%({name})s" for name in names)
    cursor = await psycopg.AsyncClientCursor(connection).execute(
        f"EXPLAIN (FORMAT json) EXECUTE {name} ({given})", parameters
    )
    ((explained,),) = await cursor.fetchall()
    return explained[0]["Plan"]


@pytest.mark.parametrize(
    ("statement", "parameters", "index", "users"),
    [
        (
            reading._GET_BALANCES,
            {"account": '{"user:user-1"}', "currency": "{USD}"},
            "balance_is_held_once",
            5000,
        ),
        (
            reading._GET_PAST_BALANCES,
            {"user_id": "{user-1}", "currency": "{USD}", "as_of": f'{{"{AT}"}}'},
            "postings_as_of",
            5000,
        ),
        (
            reading._LIST_BALANCES,
            {"account": "user:user-1"},
            "balance_is_held_once",
            5000,
        ),
        (
            reading._LIST_PAST_BALANCES,
            {"account": "user:user-1", "user_id": "user-1", "as_of": AT},
            "postings_as_of",
            5000,
        ),
        (
            history._LIST_HISTORY,
            {
                **RewardFilter("user-1", "USD")._asdict(),
                "before": 2**62,
                "limit": 51,
                "looked_at_max": 5000,
                "length_max": 2**20,
            },
            "rewards_of_a_user",
            30,
        ),
        (
            history._GET_REWARD,
            {"reward_id": "reward-1"},
            "reward_is_recorded_once",
            5000,
        ),
    ],
)
def test_a_question_of_one_user_is_answered_from_its_index_without_sorting(
    database: Database,
    run: Run,
    statement: str,
    parameters: dict[str, Any],
    index: str,
    users: int,
) -> None:
    async def main() -> Any:
        rewards = [reward(f"r-{i}", "1", user_id=f"user-{i % users}") for i in range(5000)]
        async with database.connected() as connection:
            await post(connection, rewards)
        database.rows("ANALYZE")
        async with database.connected(Role.READER) as connection:
            return await plan_of(connection, statement, parameters)

    found = list(nodes(run(main())))
    kinds = {node["Node Type"] for node in found}
    assert not kinds & {"Seq Scan", "Sort", "Incremental Sort", "Bitmap Heap Scan"}, kinds
    assert index in {node.get("Index Name") for node in found}


def test_a_page_reads_no_more_than_it_tells_wherever_it_is_and_whatever_it_passes_over(
    database: Database, run: Run
) -> None:
    """Also by a plan that was made while the books were empty."""

    async def main() -> None:
        async with database.connected(Role.READER) as connection:
            chosen = RewardFilter("user-1")
            for _ in range(6):
                assert not (await history.list_history(connection, chosen, 2**62, 50)).lines
            database.rows("ALTER TABLE rewards SET (autovacuum_enabled = false)")
            async with database.connected() as writer:
                for start in range(0, 5000, 500):
                    await post(writer, [reward(f"r-{start + i}", "1") for i in range(500)])
            for analyzed in (False, True):
                if analyzed:
                    database.rows("ANALYZE")
                for asked, before, expected in (
                    (chosen, 2**62, 50),
                    (chosen, 100, 50),
                    (chosen._replace(type="none"), 2**62, 0),
                    (chosen._replace(end_time=datetime(2000, 1, 1, tzinfo=UTC)), 2**62, 0),
                ):
                    looked_before = await blocks(connection)
                    page = await history.list_history(
                        connection, asked, before, 50, looked_at_max=200
                    )
                    assert (len(page.lines), page.below is not None) == (expected, True)
                    assert await blocks(connection) - looked_before < 1000

    run(main())


def test_of_large_rewards_a_page_takes_no_more_than_its_length(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        details = '"' + "x" * 10_000 + '"'
        async with database.connected() as connection:
            await post(connection, [reward(f"r-{i}", "1", details=details) for i in range(10, 30)])
        async with database.connected(Role.READER) as connection:
            chosen = RewardFilter("user-1")
            page = await history.list_history(connection, chosen, 2**62, 50, length_max=95_000)
        # The last one may pass it, so that a page is never empty.
        assert [told.reward_id for told in page.lines] == [f"r-{i}" for i in range(29, 19, -1)]
        assert page.below == page.lines[-1].number

    run(main())


def test_totals_of_now_are_not_summed_from_the_postings(database: Database, run: Run) -> None:
    database.rows("REVOKE SELECT ON postings, entries FROM ledger_reader")

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward(amount="2")])
        async with database.connected(Role.READER) as connection:
            (totals,) = await reading.list_currency_totals(connection, None)
        assert totals == ("USD", "2", "2", "0", 1, 1)

    run(main())


SHIFT = """
SET session_replication_role = replica;
UPDATE postings SET posted_at = date_trunc('day', posted_at) + CASE abs(hashtext(reward_id)) % 5
    -- Some on the very edge of a day or a minute, the others anywhere in three days.
    WHEN 0 THEN interval '0' WHEN 1 THEN interval '1 day' WHEN 2 THEN interval '12:34:00'
    ELSE interval '1 s' * (abs(hashtext(reward_id || 'x')) % 259200 + 0.5) END;
DELETE FROM period_totals;
"""
ENTRIES_TOTALS = """
SELECT currency, sum(amount) FILTER (WHERE side = 'debit'),
       sum(amount) FILTER (WHERE side = 'credit'), count(*) FILTER (WHERE side = 'credit'),
       count(*) FILTER (WHERE side = 'credit' AND version = 1)
FROM entries WHERE posted_at <= %s GROUP BY currency ORDER BY currency
"""


def test_totals_as_of_any_time_are_the_sums_of_the_entries(
    database: Database, run: Run, chance: random.Random
) -> None:
    """The migration that fills the periods from the postings is what fills them here."""
    migration = (MIGRATIONS / "0006_period_totals.sql").read_text()
    (fill,) = re.findall(r"^INSERT INTO period_totals.*?;", migration, re.DOTALL | re.MULTILINE)

    async def main() -> None:
        rewards = [
            reward(
                f"r-{i}", f"{i}.25", user_id=f"u-{i % 7}", currency=chance.choice(["USD", "EUR"])
            )
            for i in range(1, 300)
        ]
        async with database.connected() as connection:
            await post(connection, rewards)
        with psycopg.connect(database.url(SUPERUSER), autocommit=True) as superuser:
            superuser.execute(SHIFT)
            superuser.execute(fill)
            times = [at for (at,) in superuser.execute("SELECT DISTINCT posted_at FROM postings")]
            async with database.connected(Role.READER) as connection:
                for at in times:
                    nearby = at + chance.choice([-1, 0, 1]) * timedelta(microseconds=1)
                    as_of = chance.choice([at, nearby, at.replace(second=0, microsecond=0)])
                    rows = superuser.execute(ENTRIES_TOTALS, [as_of])
                    assert await reading.list_currency_totals(connection, as_of) == [
                        (currency, plain(str(debits)), plain(str(credits_)), "0", count, users)
                        for currency, debits, credits_, count, users in rows
                    ]

    run(main())


def test_totals_as_of_a_time_are_not_summed_from_all_postings(database: Database, run: Run) -> None:
    async def main() -> Any:
        async with database.connected() as connection:
            await post(connection, [reward(f"r-{i}", "1") for i in range(2000)])
        database.rows("ANALYZE")
        async with database.connected(Role.READER) as connection:
            return await plan_of(connection, reading._LIST_PAST_CURRENCY_TOTALS, {"as_of": AT})

    found = list(nodes(run(main())))
    assert "Seq Scan" not in {node["Node Type"] for node in found}
    names = [node["Index Name"] for node in found if "Index Name" in node]
    assert sorted(names) == [
        "period_is_totalled_once",
        "period_is_totalled_once",
        "postings_by_time",
    ]


def test_no_keys_are_no_balances(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected(Role.READER) as connection:
            assert await reading.get_balances(connection, []) == []
            assert await reading.get_past_balances(connection, []) == []

    run(main())


def test_a_key_may_hold_what_arrays_are_written_with(database: Database, run: Run) -> None:
    async def main() -> None:
        names = ['a"b', "a\\b", "a,b", "{a}", "NULL", "ä\n", " "]
        rewards = [reward(name, str(place), user_id=name) for place, name in enumerate(names, 1)]
        async with database.connected() as connection:
            await post(connection, rewards)
        async with database.connected(Role.READER) as connection:
            now = await reading.get_balances(connection, [BalanceKey(n, "USD") for n in names])
            past = await reading.get_past_balances(
                connection, [PastBalanceKey(name, "USD", AT) for name in names]
            )
        assert now == past
        assert [(b.user_id, b.value) for b in now] == [
            (name, str(place)) for place, name in enumerate(names, 1)
        ]

    run(main())


def test_a_reader_answers_and_refuses(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(Role.READER), Role.READER, size_max=1) as pool:
            reader = Reader(pool)
            nothing = Balance("user-1", "USD", "0", 0, None)
            assert await reader.balance(BalanceKey("user-1", "USD")) == nothing
            assert await reader.past_balance(PastBalanceKey("user-1", "USD", AT)) == nothing
            with pytest.raises(RewardNotFound):
                await reader.reward("unknown")

    run(main())


def test_a_reader_does_not_wait_twice_for_a_postgres_that_is_away(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(
            database.url(Role.READER).replace(database.name, "missing"), Role.READER, size_max=1
        ) as pool:
            with pytest.raises(DatabaseUnavailable) as caught:
                await Reader(pool).balances_of("user-1", None)
            assert isinstance(caught.value.__cause__, PoolTimeout)
            assert caught.value.__context__ is caught.value.__cause__
            assert pool._pool.get_stats()["requests_errors"] == 1

    run(main())
