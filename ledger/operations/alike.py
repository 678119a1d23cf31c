"""Two books, compared row by row, as after a rebuild.

Times, numbers and who was logged in are of the second time, so they are not compared; nor is what
follows from times, which is commit order, the periods' totals, movements and statements. Nor is
what no posting follows from: proposals, the quarantine, tallies and reconciliations.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import psycopg

from ledger.database import Connection
from ledger.operations.verify import SNAPSHOT

FETCHED_MAX = 1000


class Difference(NamedTuple):
    """Something in which the rebuilt books are not the original ones."""

    table: str
    row: str
    """The row's key."""
    column: str
    """Empty when the row is missing in one of them, or could not be posted."""
    original: str | None
    rebuilt: str | None


Tell = Callable[[Difference], None]


_REWARDS = """
SELECT
    reward_id, user_id, campaign_id, type, reward_type, reward_name,
    trim_scale(reward_amount)::text AS reward_amount, currency, code, status, transaction_id,
    reward_expires_at::text, reward_category, details::text, body, tnc::text, webhook_type,
    encode(believed_bytes_sha256, 'hex') AS believed_bytes_sha256,
    encode(fingerprint, 'hex') AS fingerprint
FROM rewards
ORDER BY reward_id
"""

_POSTINGS = """
SELECT
    concat(user_id, ' ', currency, ' v', version), user_id, currency, version,
    reward_id, correction_key, debit_account, credit_account, amount::text, balance_after::text
FROM postings
ORDER BY user_id, currency, version
"""

_BALANCES = """
SELECT
    concat(account, ' ', currency), account, currency, debits::text, credits::text, version::text
FROM balances
ORDER BY account, currency
"""

_CORRECTIONS = """
SELECT
    correction_key, kind, reward_id, user_id, currency, debit_account, credit_account,
    amount::text, reason, actor, approver
FROM corrections
ORDER BY correction_key
"""

_COMPARED = {
    "rewards": (_REWARDS, slice(0, 1)),
    "postings": (_POSTINGS, slice(1, 4)),
    "balances": (_BALANCES, slice(1, 3)),
    "corrections": (_CORRECTIONS, slice(0, 1)),
}
"""The rows of each table: first the name of a row, then its columns; and where its key stands."""


async def compare(original: Connection, rebuilt: Connection, tell: Tell) -> None:
    """Tells each difference. ``original`` is in a database transaction, ``rebuilt`` in none."""
    async with rebuilt.transaction():
        await rebuilt.execute(SNAPSHOT)
        await rebuilt.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        for table in _COMPARED:
            await _compare(original, rebuilt, table, tell)


async def _compare(original: Connection, rebuilt: Connection, table: str, tell: Tell) -> None:
    """Both tables in the order of their keys, side by side: no more is held than a row of each."""
    text, key = _COMPARED[table]
    names: list[str] = []
    first, second = rows(original, text, names), rows(rebuilt, text)
    ours, theirs = await anext(first, None), await anext(second, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours[key] < theirs[key]):
            if ours is None:
                raise AssertionError
            tell(Difference(table, ours[0], "", "there", "missing"))
            ours = await anext(first, None)
        elif ours is None or theirs[key] < ours[key]:
            tell(Difference(table, theirs[0], "", "missing", "there"))
            theirs = await anext(second, None)
        else:
            for difference in _differences(table, names, ours, theirs):
                tell(difference)
            ours, theirs = await anext(first, None), await anext(second, None)


def _differences(
    table: str, names: list[str], ours: tuple[Any, ...], theirs: tuple[Any, ...]
) -> Iterator[Difference]:
    if ours == theirs:
        return
    for name, original, rebuilt in zip(names, ours, theirs, strict=True):
        if original != rebuilt:
            # Whoever reads a terminal or the log of a build could redeem a code.
            shown = (None, None) if name == "code" else (original, rebuilt)
            yield Difference(table, ours[0], name, *shown)


async def rows(
    connection: Connection, query: str, names: list[str] | None = None
) -> AsyncIterator[tuple[Any, ...]]:
    """The rows of ``query``, as they come; ``names`` takes the names of its columns."""
    async with psycopg.AsyncServerCursor(connection, "rebuilding") as cursor:
        cursor.itersize = FETCHED_MAX
        await cursor.execute(query)
        if names is not None:
            names += [column.name for column in cursor.description or ()]
        async for row in cursor:
            yield row
