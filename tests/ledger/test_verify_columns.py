"""Verifying: every column of every table is corrupted, one at a time, and each time it is named."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import uvloop
from psycopg import sql

from ledger.correcting import approve, propose, reject, reverse
from ledger.correction import Adjustment, Reversal
from ledger.database import Connection, Role, conninfo
from ledger.embedded import EmbeddedPostgres
from ledger.operations.close import close as close_month
from ledger.quarantine import Unposted, close, keep
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run, cloned
from tests.ledger.past import move
from tests.rewards import reward
from tests.verifying import look_at_all

TABLES = [
    *("balances", "commits", "corrections", "currencies", "movements", "period_totals", "postings"),
    *("proposals", "quarantine", "reconciliations", "rewards", "sealing_keys"),
    *("statements", "tallies"),
]

ROWS = {
    # When the row of a house account was locked: nothing else in the books says that, no answer
    # shows it, and a seal of it would have to be written with every batch.
    ("balances", "posted_at"): "starts_with(account, 'user:')",
}
"""Of which rows only a column can be held against something. Of all others: of every row."""

CHANGES = {
    "bigint": "coalesce({}, 0) + 1",
    "boolean": "NOT {}",
    "date": "{} + 1",
    "bytea": "coalesce({}, '') || 'x'",
    "json": "'[1]'",
    "jsonb": "'[1]'",
    "numeric": "coalesce({}, 0) + 1",
    "smallint": "{} + 1",
    "text": "coalesce({}, '') || 'x'",
    "timestamp with time zone": "coalesce({} + interval '1 us', '2026-01-01Z')",
    "uuid": "gen_random_uuid()",
    "xid8": "({}::text::bigint + 1)::text::xid8",
}
"""The smallest change of a value of each type."""

RECONCILED = """
INSERT INTO reconciliations (
    file_sha256, options, starts_at, ends_at, position, read_at, lines, matched, missing_here,
    missing_there, differs, duplicate, conflict, quarantined, reversed, answer_sha256, run_by,
    repeats
)
VALUES (sha256(''), '{"a": 1}', '2026-01-01Z', '2026-02-01Z', 3, now(), 0, 0, 0, 0, 0, 0, 0, 0, 0,
        sha256(''), 'ann', %s)
"""


async def fill(database: Database) -> None:
    """Books in which every column of every table holds something in some row."""
    whole = {
        "type": "scratchcard",
        "code": "SECRET",
        "status": "issued",
        "transaction_id": "t1",
        "reward_expires_at": datetime(2027, 1, 1, tzinfo=UTC),
        "reward_category": "gold",
        "details": '{"currency": "USD"}',
        "body": "a body",
        "tnc": '["a term"]',
        "webhook_type": "reward",
    }
    async with database.connected() as connection:
        await post(connection, [reward("r1", **whole), reward("r2"), reward("r3", user_id="u2")])
        await post(connection, [reward("r4", amount="1.5"), reward("r5", amount=None)])
        await keep(connection, [Unposted(b"[]", "NotAReward", "is no object", "r1", "t", "f", "c")])
        await keep(connection, [Unposted(b"{}", "NotAReward")])
        await close(connection, 1, "discarded", "ann", "a test")
    info = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
    async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
        await reverse(connection, Reversal("a", "r4", None, "a mistake", "ann"))
        for key in ("b", "c", "d"):
            adjustment = Adjustment(key, "user-1", "USD", Decimal(2), "goodwill", "an apology")
            await propose(connection, adjustment, "ann")
        await approve(connection, "b", "bob")
        await reject(connection, "c", "bob")
    database.rows(
        "INSERT INTO tallies (worker, believed, ignored) VALUES (gen_random_uuid(), 1, 1)"
    )
    database.rows(RECONCILED % "NULL")
    database.rows(RECONCILED % "1")
    database.rows("UPDATE quarantine SET read_under = 'a digest' WHERE state = 'open'")
    database.rows("INSERT INTO currencies VALUES ('GEMS', 0, 'Gems')")
    move(database, "timestamptz '2026-01-20Z' + interval '1 minute' * version")
    async with database.connected(Role.CLOSER) as connection:
        await close_month(connection, date(2026, 1, 1), "ann")


@pytest.fixture(scope="module")
def books(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    with cloned(postgres, template) as database:
        uvloop.run(fill(database))
        yield database


@asynccontextmanager
async def corrupting(books: Database, table: str) -> AsyncIterator[Connection]:
    """A superuser, whom no rule stops: neither triggers nor constraints."""
    options = "-c session_replication_role=replica -c timezone=UTC"
    url = psycopg.conninfo.make_conninfo(books.url(SUPERUSER), options=options)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for what, names in (
            (
                "ALTER TABLE {} DROP CONSTRAINT {} CASCADE",
                """
                SELECT conname FROM pg_constraint
                WHERE conrelid = %s::regclass AND contype IN ('p', 'u', 'c')
                """,
            ),
            (
                "DROP INDEX {1}",
                """
                SELECT indexrelid::regclass::text FROM pg_index
                WHERE indrelid = %s::regclass AND indisunique
                """,
            ),
            (
                "ALTER TABLE {} ALTER {} SET GENERATED BY DEFAULT",
                """
                SELECT attname FROM pg_attribute
                WHERE attrelid = %s::regclass AND attidentity = 'a'
                """,
            ),
            (
                "ALTER TABLE {} ALTER {} DROP EXPRESSION",
                """
                SELECT attname FROM pg_attribute
                WHERE attrelid = %s::regclass AND attgenerated <> ''
                """,
            ),
        ):
            for (name,) in await (await connection.execute(names, [table])).fetchall():
                await execute(connection, what, table, name)
        yield connection
        await connection.rollback()


async def execute(connection: Connection, statement: str, *names: str) -> Any:
    named = sql.SQL(statement).format(*map(sql.Identifier, names))
    return await connection.execute(named)


async def columns(connection: Connection, table: str) -> list[tuple[str, str, bool]]:
    """Name, type, and whether it may be empty."""
    cursor = await connection.execute(
        "SELECT attname, format_type(atttypid, NULL), NOT attnotnull FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    )
    return await cursor.fetchall()


def test_these_are_all_tables_of_the_books(books: Database) -> None:
    """Of others' tables there are those of the tool that migrates."""
    found = books.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p') AND relname !~ 'yoyo' ORDER BY relname"
    )
    assert [name for (name,) in found] == TABLES


@pytest.mark.parametrize("table", TABLES)
def test_whatever_column_is_corrupted_it_is_named(
    books: Database, run: Run, chance: random.Random, table: str
) -> None:
    async def main() -> list[str]:
        unnamed = []
        async with corrupting(books, table) as connection:
            await connection.execute("SELECT setseed(%s)", [chance.random()])
            assert await look_at_all(connection) == []
            for column, type_, is_optional in await columns(connection, table):
                for what, change, where in changes(column, type_, is_optional):
                    await connection.execute("SAVEPOINT whole")
                    changed = await execute(
                        connection,
                        f"UPDATE {{}} SET {{}} = {change} WHERE ctid = (SELECT ctid FROM {{}}"
                        f" WHERE {where} AND {ROWS.get((table, column), 'true')}"
                        " ORDER BY random() LIMIT 1)",
                        table,
                        column,
                        table,
                    )
                    found = await look_at_all(connection)
                    await connection.execute("ROLLBACK TO whole")
                    if changed.rowcount and not (found and all(each.subject for each in found)):
                        unnamed.append(f"{table}.{column} {what}")
        return unnamed

    assert run(main()) == []


def changes(column: str, type_: str, is_optional: bool) -> Iterator[tuple[str, str, str]]:
    """What is done to a value, as words, as an expression, and to which rows."""
    name = f'"{column}"'
    yield "changed", CHANGES[type_].format(name), f"{name} IS NOT NULL"
    if is_optional:
        yield "added", CHANGES[type_].format(name), f"{name} IS NULL"
        yield "removed", "NULL", f"{name} IS NOT NULL"


def test_every_column_holds_something_that_can_be_corrupted(books: Database, run: Run) -> None:
    async def main() -> list[str]:
        empty = []
        async with corrupting(books, "rewards") as connection:
            for table in TABLES:
                for column, *_ in await columns(connection, table):
                    cursor = await execute(connection, "SELECT count({}) FROM {}", column, table)
                    if await cursor.fetchone() == (0,):
                        empty.append(f"{table}.{column}")
        return empty

    assert run(main()) == []
