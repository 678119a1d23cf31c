"""Books whose postings were made at other times: no test can wait for a month to end."""

import re

import psycopg

from ledger.operations.migrate import MIGRATIONS
from tests.conftest import SUPERUSER, Database

_FILLS = re.compile(
    r"^(?:INSERT INTO (?:period_totals|movements)|UPDATE period_totals) .*?;\n",
    re.DOTALL | re.MULTILINE,
)

_MEND = """
UPDATE balances SET posted_at = (
    SELECT max(posted_at) FROM entries
    WHERE entries.account = balances.account AND entries.currency = balances.currency
);
UPDATE postings SET seal = posting_seal(postings);
UPDATE period_totals SET corrections = (
    SELECT count(correction_key) FROM postings
    WHERE postings.currency = period_totals.currency
      AND date_trunc(period, posted_at, 'UTC') = starts_at
)
"""
"""What else follows from the times; no migration fills it."""


def move(database: Database, posted_at: str) -> None:
    """Let every posting have been made at ``posted_at``, an expression of its own columns.

    The roll-ups are filled anew by the migrations that filled them first.
    """
    with psycopg.connect(database.url(SUPERUSER)) as connection:
        move_over(connection, posted_at)


def move_over(connection: psycopg.Connection, posted_at: str) -> None:
    """The same over a superuser's connection, in the database transaction that it is in."""
    names = ("0006_period_totals.sql", "0011_movements.sql")
    fills = [fill for name in names for fill in _FILLS.findall((MIGRATIONS / name).read_text())]
    connection.execute("SET session_replication_role = replica")
    connection.execute(f"UPDATE postings SET posted_at = {posted_at}")  # type: ignore[call-overload]
    connection.execute("DELETE FROM period_totals; DELETE FROM movements")
    connection.execute("".join(fills))  # type: ignore[call-overload]
    connection.execute(_MEND)
