"""Closing: a month that is over stands for good, whatever comes later and whoever asks."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from ledger.database import Connection, Role
from ledger.operations.close import CloseRefused, Line, Statement, close
from ledger.operations.late import list_late
from ledger.operations.verify_finance import MONTHS, STATEMENTS
from ledger.quarantine import Unposted, keep
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.past import move, move_over
from tests.ledger.reports import compared, csv_of, said
from tests.ledger.test_calls import until
from tests.ledger.test_reconcile import EVER
from tests.ledger.test_totals import fill
from tests.rewards import reward
from tests.verifying import verify

HEAD = "\t".join(("currency", *Line._fields[1:]))
JANUARY, FEBRUARY, MARCH = date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1)


@asynccontextmanager
async def closer(database: Database) -> AsyncIterator[Connection]:
    async with database.connected(Role.CLOSER, is_service=False) as connection:
        yield connection


def closed(database: Database, run: Run, *months: date) -> list[Statement]:
    async def main() -> list[Statement]:
        async with closer(database) as connection:
            return [await close(connection, month, "ann") for month in months]

    statements: list[Statement] = run(main())
    return statements


def posted(database: Database, run: Run, *rewards: tuple[str, str]) -> None:
    """Rewards of an amount, each posted at a time."""

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward(f"r-{n}", each[0]) for n, each in enumerate(rewards)])

    run(main())
    times = " ".join(f"WHEN 'r-{n}' THEN timestamptz '{at}'" for n, (_, at) in enumerate(rewards))
    move(database, f"CASE reward_id {times} END")


def findings(database: Database, run: Run) -> set[str]:
    async def main() -> set[str]:
        return {finding.rule for finding in await verify(database.url())}

    found: set[str] = run(main())
    return found


def test_a_month_is_closed_as_it_was_posted(database: Database, run: Run) -> None:
    posted(
        database,
        run,
        ("400", "2026-01-31 23:59:59.999999Z"),
        ("2.5", "2026-02-01 00:00Z"),
        ("1", "2026-03-01 00:00Z"),
    )
    january, february = closed(database, run, JANUARY, FEBRUARY)
    assert january.text.splitlines()[3:] == [
        HEAD,
        "USD\tadjustment\t0.00\t0.00\t0.00\t0.00\t0.00\t0\t0\t0",
        "USD\tcampaign\t0.00\t400.00\t0.00\t0.00\t400.00\t1\t0\t0",
        "USD\tuser\t0.00\t400.00\t0.00\t0.00\t400.00\t1\t0\t0",
    ]
    assert february.text.splitlines()[:2] == ["statement\t2026-02", f"previous\t{january.sha256}"]
    assert february.sha256 == sha256(february.text.encode()).hexdigest()
    assert february.lines()[2] == ("USD", "user", "400", "2.50", "0", "0", "402.50", 1, 0, 0)
    assert (february.closed_by, february.login) == ("ann", "ledger_closer")
    assert findings(database, run) == set()


def test_statements_of_corrected_books_are_derived_again(
    database: Database, run: Run, chance: random.Random
) -> None:
    """Two ways to the same bytes: from the totals of days, and from their movements."""
    run(fill(database, chance))
    move(database, "timestamptz '2026-01-20Z' + interval '1 day' * (version * 2 + random())")
    months = [JANUARY, FEBRUARY, MARCH]
    statements = closed(database, run, *months)
    assert findings(database, run) == set()
    for before, statement in pairwise(statements):
        for line, line_before in zip(statement.lines(), before.lines(), strict=True):
            assert (line.opening, line.kind) == (line_before.closing, line_before.kind)
    another = "replace(text, 'USD\tuser\t', 'USD\tuser\t1')"
    digest = f"sha256(convert_to({another}, 'UTF8'))"
    march = "WHERE month = '2026-03-01'"
    for corruption in (
        "UPDATE statements SET position = position + 1 WHERE month = '2026-02-01'",
        f"UPDATE statements SET (text, sha256) = ({another}, {digest}) {march}",
        f"UPDATE statements SET month = '2026-04-01' {march}",
        "DELETE FROM statements WHERE month = '2026-01-01'",
    ):
        with psycopg.connect(database.url(SUPERUSER)) as superuser:
            superuser.execute("SET session_replication_role = replica")
            assert superuser.execute(corruption).rowcount == 1  # type: ignore[call-overload]
            found = superuser.execute(STATEMENTS).fetchall()
            assert len(found) == 1, corruption
            superuser.rollback()
    missing = "DELETE FROM statements WHERE month = '2026-02-01'"
    database.rows(f"SET session_replication_role = replica; {missing}", SUPERUSER)
    assert database.rows(MONTHS) == [("2026-02", "closed, as a later one is", None)]


def test_a_month_is_closed_once_however_many_close_it(database: Database, run: Run) -> None:
    posted(database, run, ("400", "2026-01-31Z"))

    async def main() -> None:
        async def one(who: str) -> Statement:
            async with closer(database) as connection:
                return await close(connection, JANUARY, who)

        statements = await asyncio.gather(*(one(f"person-{n}") for n in range(4)))
        async with database.connected() as connection:
            await post(connection, [reward("later")])
        assert {*statements, await one("somebody")} == {statements[0]}

    run(main())
    assert findings(database, run) == set()


def test_months_are_closed_in_their_order_and_when_they_are_over(
    database: Database, run: Run
) -> None:
    with pytest.raises(CloseRefused, match="Nothing was posted"):
        closed(database, run, JANUARY)
    now = datetime.now(UTC)
    this = now.date().replace(day=1)
    before = (this - timedelta(days=1)).replace(day=1)
    posted(database, run, ("400", before.isoformat()), ("1", now.isoformat()))
    with pytest.raises(CloseRefused, match=f"the next is {before:%Y-%m}"):
        closed(database, run, this)
    closed(database, run, before)
    with pytest.raises(CloseRefused, match="is not over"):
        closed(database, run, this)


def test_a_month_is_not_closed_while_a_part_of_it_cannot_be_seen(
    database: Database, run: Run
) -> None:
    """A database transaction that posted before the month's end, and commits after it."""
    posted(database, run, ("400", "2026-01-31 12:00Z"), ("1", "2026-02-01 12:00Z"))

    async def main() -> None:
        async with closer(database) as connection, closer(database) as another:
            with psycopg.connect(database.url(SUPERUSER)) as late:
                move_over(late, "timestamptz '2026-01-31 12:00Z'")
                with pytest.raises(CloseRefused, match="still open"):
                    await close(connection, JANUARY, "ann", wait_seconds_max=0.3)
                closing = asyncio.create_task(close(connection, JANUARY, "ann"))
                await until(lambda: bool(database.rows(WAITS, SUPERUSER)))
                # Longer than other commands wait for a lock.
                second = asyncio.create_task(close(another, JANUARY, "bob"))
                await until(lambda: second.done() or bool(database.rows(WAITS_LONG, SUPERUSER)))
            assert [line.closing for line in (await closing).lines()] == ["0", "401", "401"]
            assert await second == await closing

    run(main())
    assert findings(database, run) == set()


WAITS = """
SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND usename = 'ledger_closer' AND query LIKE '%xmin%'
"""

WAITS_LONG = """
SELECT 1 FROM pg_stat_activity
WHERE datname = current_database() AND usename = 'ledger_closer' AND wait_event_type = 'Lock'
    AND clock_timestamp() - query_start > interval '1.5 s'
"""


@pytest.mark.parametrize(
    "corruption",
    [
        "UPDATE period_totals SET amount = amount + 1 WHERE period = 'day'",
        "UPDATE movements SET credits = credits + 1",
        "DELETE FROM movements",
        # Both alike: only the postings tell.
        (
            "UPDATE period_totals SET amount = amount + 1 WHERE period = 'day';"
            " UPDATE movements SET credits = credits + 1"
        ),
        "DELETE FROM postings",
    ],
)
def test_a_month_that_does_not_hold_is_not_closed(
    database: Database, run: Run, corruption: str
) -> None:
    posted(database, run, ("400", "2026-01-31 12:00Z"))
    database.rows(f"SET session_replication_role = replica; {corruption}", SUPERUSER)
    with pytest.raises(CloseRefused, match="see `ledger verify`"):
        closed(database, run, JANUARY)
    assert database.rows("SELECT month FROM statements") == []


async def _late(database: Database, month: date) -> list[tuple[str, str]]:
    async with database.connected(Role.READER, is_service=False) as connection:
        return [(each.reward_id, each.why) for each in await list_late(connection, month)]


def test_what_was_known_in_the_month_and_posted_after_it_is_late(
    database: Database, run: Run, tmp_path: Path
) -> None:
    replayed = reward("replayed", "7")

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("in time", "1")])
            await keep(connection, [Unposted(replayed.believed_bytes, "UnknownCurrency")])
            await post(connection, [replayed, reward("as ever", "3")])

    run(main())
    report = tmp_path / "report.csv"
    report.write_text(csv_of([said("imported")]))
    january = EVER._replace(first_day=JANUARY, last_day=date(2026, 1, 31), imports=True)
    compared(database, run, report, january)
    move(
        database,
        "CASE reward_id WHEN 'in time' THEN timestamptz '2026-01-05Z'"
        " ELSE timestamptz '2026-02-03Z' END",
    )
    database.rows("UPDATE quarantine SET first_seen_at = '2026-01-30'", SUPERUSER)
    assert run(_late(database, JANUARY)) == [
        ("replayed", "in the quarantine since 2026-01-30"),
        ("imported", "in a report until 2026-01-31"),
    ]
    assert run(_late(database, FEBRUARY)) == []
