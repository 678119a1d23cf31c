"""Which balances and which postings an export holds: those of one snapshot, also later.

The cut is the balances of all accounts. Along an account versions count without a gap, so the
version of each user's balance says which of its postings are in, whatever is posted afterwards:
in any later snapshot, and with any number of writers, the same postings are found again.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any

import msgspec

from ledger.database import Connection
from ledger.operations.manifest import Snapshot, Wanted

FETCH_ROWS = 10_000
EXACT = Context(prec=1000, traps=[Inexact])
"""Adds amounts exactly or not at all."""


class Held(msgspec.Struct, frozen=True):
    """One account in one currency, when the exported period begins and when it ends."""

    account: str
    currency: str
    opening_version: int
    opening_debits: str
    opening_credits: str
    closing_version: int
    closing_debits: str
    closing_credits: str

    def opening(self) -> Decimal:
        """The debits less the credits before the period."""
        return EXACT.subtract(Decimal(self.opening_debits), Decimal(self.opening_credits))

    def closing(self) -> Decimal:
        """The debits less the credits at its end."""
        return EXACT.subtract(Decimal(self.closing_debits), Decimal(self.closing_credits))


@asynccontextmanager
async def one_snapshot(connection: Connection) -> AsyncIterator[None]:
    """All that is read in the block is read from the books as they stood at one moment."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Between two reads a file is brought to disk, which may take a while.
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")
        await connection.execute("SET LOCAL work_mem = '64MB'")
        # What is asked for is read to its end.
        await connection.execute("SET LOCAL cursor_tuple_fraction = 1")
        yield


_SNAPSHOT = """
SELECT
    to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    coalesce(position, 0), coalesce(last_number, 0),
    to_char(committed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM (VALUES (true)) AS one (is_there)
LEFT JOIN (
    SELECT position, last_number, committed_at FROM commits ORDER BY position DESC LIMIT 1
) AS last ON is_there
"""


async def get_snapshot(connection: Connection) -> Snapshot:
    """Where the books stand."""
    row = await (await connection.execute(_SNAPSHOT)).fetchone()
    if row is None:
        raise AssertionError
    return Snapshot(*row)


_HAS_COMMIT = """
SELECT FROM commits WHERE position = %(position)s AND committed_at = %(committed_at)s::timestamptz
"""


async def has_snapshot(connection: Connection, snapshot: Snapshot) -> bool:
    """Whether these are books in which ``snapshot`` was taken: not others, nor older ones."""
    if snapshot.last_committed_at is None:
        return True
    told = {"position": snapshot.last_commit_position, "committed_at": snapshot.last_committed_at}
    return (await connection.execute(_HAS_COMMIT, told)).rowcount == 1


_DAYS = """
SELECT
    to_char(min(posted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
    to_char(max(posted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')
FROM postings
WHERE posted_at >= coalesce(%(start)s::timestamptz, '-infinity')
  AND posted_at < coalesce(%(end)s::timestamptz, 'infinity')
"""


async def get_days(connection: Connection, wanted: Wanted) -> tuple[str | None, str | None]:
    """The first and the last day, in UTC, on which something was posted in the period."""
    row = await (await connection.execute(_DAYS, period(wanted))).fetchone()
    return (None, None) if row is None else (row[0], row[1])


# The balances as they are kept or, as of a time, as the entries until then make them.
_HELD = """
WITH closing AS (
    SELECT account, currency, version, debits, credits
    FROM balances
    WHERE %(end)s::timestamptz IS NULL
    UNION ALL
    SELECT account, currency, count(*), coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0),
           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0)
    FROM entries
    WHERE posted_at < %(end)s::timestamptz
    GROUP BY account, currency
),
opening AS (
    SELECT account, currency, count(*) AS version,
           coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
    FROM entries
    WHERE posted_at < %(start)s::timestamptz
    GROUP BY account, currency
)
SELECT
    closing.account, closing.currency, coalesce(opening.version, 0),
    coalesce(opening.debits, 0)::text, coalesce(opening.credits, 0)::text,
    closing.version, closing.debits::text, closing.credits::text
FROM closing
LEFT JOIN opening
    ON opening.account = closing.account AND opening.currency = closing.currency
ORDER BY closing.account COLLATE "C", closing.currency COLLATE "C"
"""


async def list_held(connection: Connection, wanted: Wanted) -> AsyncIterator[Held]:
    """Every account in every currency, in their order."""
    async with connection.cursor(name="held") as cursor:
        await cursor.execute(_HELD, period(wanted))
        while rows := await cursor.fetchmany(FETCH_ROWS):
            for row in rows:
                yield Held(*row)


def period(wanted: Wanted) -> dict[str, Any]:
    """The parameters of a statement that asks for its period."""
    return {"start": wanted.start, "end": wanted.end}


def read_held(path: Path) -> Iterator[Held]:
    """Every balance of the cut that stands in the file at ``path``."""
    decode = msgspec.json.Decoder(Held).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)
