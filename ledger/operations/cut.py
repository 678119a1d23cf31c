"""Which balances and which postings an export holds: those of one snapshot, also later.

The cut is the balances of all accounts. Along an account versions count without a gap, so the
version of each user's balance says which of its postings are in, whatever is posted afterwards:
in any later snapshot, and with any number of writers, the same postings are found again.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ledger.account import USER
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


class ExportedPosting(NamedTuple):
    """A posting as it stands in the books."""

    user_id: str
    currency: str
    version: int
    reward_id: str | None
    """The reward that it posts, or else:"""
    correction_key: str | None
    reversed_reward_id: str | None
    """Of a reversal: the reward that it takes back."""
    debit_account: str
    credit_account: str
    amount: str
    balance_after: str
    posted_at: str


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
    row = await (await connection.execute(_DAYS, _period(wanted))).fetchone()
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
        await cursor.execute(_HELD, _period(wanted))
        while rows := await cursor.fetchmany(FETCH_ROWS):
            for row in rows:
                yield Held(*row)


# What was reversed is looked up for each correction: a join could cost the order of the index.
_LIST_POSTINGS = """
SELECT
    user_id, currency, version, reward_id, correction_key,
    CASE WHEN correction_key IS NOT NULL THEN (
        SELECT corrections.reward_id
        FROM corrections
        WHERE corrections.correction_key = postings.correction_key
    ) END,
    debit_account, credit_account, amount::text, balance_after::text,
    to_char(posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM postings
WHERE (user_id, currency, version) > (%(user_id)s, %(currency)s, %(version)s)
  AND posted_at >= coalesce(%(start)s::timestamptz, '-infinity')
  AND posted_at < coalesce(%(end)s::timestamptz, 'infinity')
ORDER BY user_id, currency, version
"""


def _period(wanted: Wanted) -> dict[str, Any]:
    return {"start": wanted.start, "end": wanted.end}


Key = tuple[str, str, int]
"""A posting's place: user, currency, version."""
BEFORE_ALL: Key = ("", "", 0)


class Postings:
    """The postings of a cut, by user, currency and version; taken in pieces of any size."""

    def __init__(self, cursor: Any, held: Iterator[Held]) -> None:  # noqa: ANN401 - psycopg's own
        self._cursor = cursor
        self._held = held
        self._account = ("", "")
        self._closing_version = 0
        self._key = ("", "")
        self._version = 0
        self._kept: list[ExportedPosting] = []
        self._is_over = False

    async def has_more(self) -> bool:
        """Whether there is another one."""
        await self._gather(1)
        return bool(self._kept)

    async def take(self, count: int) -> list[ExportedPosting]:
        """The next ``count`` of them; fewer when there are no more."""
        await self._gather(count)
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    async def _gather(self, count: int) -> None:
        while len(self._kept) < count and not self._is_over:
            rows = await self._cursor.fetchmany(FETCH_ROWS)
            self._is_over = not rows
            self._kept += [row for row in map(ExportedPosting._make, rows) if self._is_in(row)]

    def _is_in(self, posting: ExportedPosting) -> bool:
        """Whether it was posted before the cut; both it and the accounts come in their order."""
        # Most follow another of the same balance.
        key = (posting.user_id, posting.currency)
        if key != self._key:
            self._key, self._version = key, self._version_of(*key)
        return posting.version <= self._version

    def _version_of(self, user_id: str, currency: str) -> int:
        account = (USER.account(user_id), currency)
        while self._account < account:
            held = next(self._held, None)
            if held is None:
                self._account, self._closing_version = _BEHIND_ALL, 0
            else:
                self._account = (held.account, held.currency)
                self._closing_version = held.closing_version
        return self._closing_version if self._account == account else 0


_BEHIND_ALL = ("\U0010ffff", "")
"""No account comes after it: each begins with the name of its kind."""


@asynccontextmanager
async def postings_after(
    connection: Connection, wanted: Wanted, after: Key, held: Iterator[Held]
) -> AsyncIterator[Postings]:
    """The postings of the cut ``held`` that come after the place ``after``."""
    user_id, currency, version = after
    told = {**_period(wanted), "user_id": user_id, "currency": currency, "version": version}
    async with connection.cursor(name="postings") as cursor:
        await cursor.execute(_LIST_POSTINGS, told)
        yield Postings(cursor, held)


def read_held(path: Path) -> Iterator[Held]:
    """Every balance of the cut that stands in the file at ``path``."""
    decode = msgspec.json.Decoder(Held).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)
