"""``ledger close`` and ``ledger statement``: a month that is over, as it stands for good.

Nothing is posted into the past, as the time of a posting is taken when it is posted. But a
database transaction that took it just before the month's end may commit after it, and so a month
is closed when each that was open at its end has ended.
"""

import asyncio
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from psycopg.errors import LockNotAvailable

from ledger.coalescing import Seconds
from ledger.database import Connection
from ledger.money import plain
from ledger.operations.verify_finance import STATEMENTS

WAIT_SECONDS_MAX: Seconds = 10
"""How long what was open at the month's end may take to end. What is posted takes two at most."""
ASK_INTERVAL_SECONDS: Seconds = 0.1


class CloseRefused(Exception):
    """The month cannot be closed, or is not closed: the sentence says why, and what to do."""


class Line(NamedTuple):
    """All accounts of one kind in one currency; amounts are above zero on its normal side."""

    currency: str
    kind: str
    """``adjustment``, ``campaign`` or ``user``."""
    opening: str
    rewarded: str
    reversed: str
    adjusted: str
    closing: str
    rewards: int
    reversals: int
    adjustments: int


class Statement(NamedTuple):
    """A month that is closed."""

    month: date
    text: str
    """What the digest is of: the month, the digest of the one before, the position, the lines."""
    sha256: str
    position: int
    closed_by: str
    login: str
    closed_at: datetime

    def lines(self) -> list[Line]:
        """What ``text`` says of each currency and kind of account, below its head of four lines."""
        lines = []
        for line in self.text.splitlines()[4:]:
            currency, kind, *cells = line.split("\t")
            opening, rewarded, taken_back, adjusted, closing = map(plain, cells[:5])
            moved = (opening, rewarded, taken_back, adjusted, closing)
            lines.append(Line(currency, kind, *moved, *map(int, cells[5:])))
        return lines


# Longer than whoever holds it waits: two at once make one statement.
_WAIT_FOR_THE_LOCK = "SET LOCAL lock_timeout = '12s'"

_LOCK = """
SELECT pg_advisory_xact_lock('statements'::regclass::oid::bigint)
"""

_NEXT_MONTH = """
SELECT next_month, clock_timestamp() >= (next_month + interval '1 month') AT TIME ZONE 'UTC'
FROM (
    SELECT coalesce(
        (SELECT max(month) + interval '1 month' FROM statements),
        (SELECT date_trunc('month', min(starts_at) AT TIME ZONE 'UTC') FROM period_totals
         WHERE period = 'day')
    )::date AS next_month
) AS told
"""

# Ids of database transactions are given in order, when one begins to write: before it takes a time
# for a posting. When none that came before this one is open, nothing is on its way that is older.
# (`pg_snapshot_xmax` would not do: it is behind the last that ended, not behind the last given.)
_OTHERS_HAVE_ENDED = """
SELECT pg_snapshot_xmin(pg_current_snapshot()) = pg_current_xact_id()
"""

_CLOSE = """
WITH totals AS (
    SELECT
        currency, starts_at >= %(month)s::timestamp AT TIME ZONE 'UTC' AS is_within,
        amount - reversed - granted - taken AS rewarded, -reversed AS reversed,
        granted - taken AS adjusted, postings - corrections AS rewards, reversals,
        corrections - reversals AS adjustments
    FROM period_totals
    WHERE period = 'day'
      AND starts_at < (%(month)s::timestamp + interval '1 month') AT TIME ZONE 'UTC'
),
kinds (kind, has_rewards, has_adjustments) AS (
    VALUES ('adjustment', 0, 1), ('campaign', 1, 0), ('user', 1, 1)
),
summed AS (
    SELECT
        currency, kind,
        coalesce(sum(
            has_rewards * (rewarded + reversed) + has_adjustments * adjusted
        ) FILTER (WHERE NOT is_within), 0) AS opening,
        has_rewards * coalesce(sum(rewarded) FILTER (WHERE is_within), 0) AS rewarded,
        has_rewards * coalesce(sum(reversed) FILTER (WHERE is_within), 0) AS reversed,
        has_adjustments * coalesce(sum(adjusted) FILTER (WHERE is_within), 0) AS adjusted,
        has_rewards * coalesce(sum(rewards) FILTER (WHERE is_within), 0) AS rewards,
        has_rewards * coalesce(sum(reversals) FILTER (WHERE is_within), 0) AS reversals,
        has_adjustments * coalesce(sum(adjustments) FILTER (WHERE is_within), 0) AS adjustments
    FROM totals CROSS JOIN kinds
    GROUP BY currency, kind, has_rewards, has_adjustments
),
made AS (
    SELECT
        coalesce(max(commits.position), 0) AS position,
        coalesce((
            SELECT encode(sha256, 'hex') FROM statements
            WHERE month = %(month)s::date - interval '1 month'
        ), 'none') AS previous,
        coalesce((
            SELECT string_agg(
                concat_ws(
                    E'\\t', currency, kind, round(opening, scale), round(rewarded, scale),
                    round(reversed, scale), round(adjusted, scale),
                    round(opening + rewarded + reversed + adjusted, scale),
                    rewards, reversals, adjustments
                ) || E'\\n', '' ORDER BY currency, kind COLLATE "C"
            )
            FROM summed JOIN currencies ON currencies.code = currency
        ), '') AS lines
    FROM commits
),
told AS (
    SELECT position, concat(
        E'statement\\t', to_char(%(month)s::date, 'YYYY-MM'), E'\\n',
        E'previous\\t', previous, E'\\n',
        E'position\\t', position, E'\\n',
        E'currency\\tkind\\topening\\trewarded\\treversed\\tadjusted\\tclosing\\t',
        E'rewards\\treversals\\tadjustments\\n', lines
    ) AS text
    FROM made
)
INSERT INTO statements (month, text, sha256, position, closed_by)
SELECT %(month)s, text, sha256(convert_to(text, 'UTF8')), position, %(closed_by)s FROM told
"""

# What users were credited and debited, from the postings themselves, which both roll-ups sum up.
_POSTED = """
SELECT
    currency, coalesce(sum(moved) FILTER (WHERE kind = 'reward'), 0),
    coalesce(sum(moved) FILTER (WHERE kind = 'reversal'), 0),
    coalesce(sum(moved) FILTER (WHERE kind = 'adjustment'), 0),
    count(*) FILTER (WHERE kind = 'reward'), count(*) FILTER (WHERE kind = 'reversal'),
    count(*) FILTER (WHERE kind = 'adjustment')
FROM (
    SELECT
        postings.currency,
        CASE WHEN postings.correction_key IS NULL THEN 'reward' ELSE kind END AS kind,
        CASE WHEN starts_with(postings.credit_account, 'user:')
            THEN postings.amount ELSE -postings.amount END AS moved
    FROM postings
    LEFT JOIN corrections ON corrections.correction_key = postings.correction_key
    WHERE posted_at >= %(month)s::timestamp AT TIME ZONE 'UTC'
      AND posted_at < (%(month)s::timestamp + interval '1 month') AT TIME ZONE 'UTC'
) AS posted
GROUP BY currency
"""


async def close(
    connection: Connection,
    month: date,
    closed_by: str,
    *,
    wait_seconds_max: Seconds = WAIT_SECONDS_MAX,
) -> Statement:
    """The statement of ``month``, its first day, made now if there is none yet.

    Needs a connection of the closer's role, in autocommit mode. Raises ``CloseRefused`` when it is
    not the next month's turn, when that is not over, when not all of it can be seen yet, or when
    postings, movements and periods' totals do not tell the same of it.
    """
    async with connection.transaction():
        await _lock(connection)
        closed = await get_statement(connection, month)
        if closed is None:
            await _check_turn(connection, month)
            # Only now, when the month is over: who begins to write later, posts later.
            await _wait_for_the_open(connection, wait_seconds_max)
            await connection.execute(_CLOSE, {"month": month, "closed_by": closed_by})
            closed = await get_statement(connection, month)
            if closed is None:
                raise AssertionError
            # What is refused now is undone: nothing was written.
            await _check_sums(connection, closed)
    return closed


async def _lock(connection: Connection) -> None:
    await connection.execute(_WAIT_FOR_THE_LOCK)
    try:
        await connection.execute(_LOCK)
    except LockNotAvailable:
        raise CloseRefused(
            "Somebody else is closing a month: wait for that, and give the same command again."
        ) from None


async def _check_turn(connection: Connection, month: date) -> None:
    row = await (await connection.execute(_NEXT_MONTH)).fetchone()
    next_month, is_over = row or (None, None)
    if next_month is None:
        raise CloseRefused("Nothing was posted yet, so no month can be closed.")
    if month != next_month:
        raise CloseRefused(f"Months are closed in their order, and the next is {next_month:%Y-%m}.")
    if not is_over:
        raise CloseRefused(f"{month:%Y-%m} is not over in UTC: close it when it is.")


async def _wait_for_the_open(connection: Connection, seconds_max: Seconds) -> None:
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + seconds_max
    while await (await connection.execute(_OTHERS_HAVE_ENDED)).fetchone() != (True,):
        if loop.time() >= gives_up_at:
            raise CloseRefused(
                "A database transaction that may hold something of the month is still open: end "
                "it (pg_stat_activity shows it), and give the same command again."
            )
        await asyncio.sleep(ASK_INTERVAL_SECONDS)


async def _check_sums(connection: Connection, closed: Statement) -> None:
    """It was made from the periods' totals: the movements and the postings must tell the same."""
    broken = await (await connection.execute(STATEMENTS)).fetchall()
    posted = await (await connection.execute(_POSTED, {"month": closed.month})).fetchall()
    told = [
        (line.currency, *map(Decimal, line[3:6]), *line[7:])
        for line in closed.lines()
        if line.kind == "user" and any(line[7:])
    ]
    if f"{closed.month:%Y-%m}" in {subject for subject, *_ in broken} or set(told) != set(posted):
        raise CloseRefused(
            f"{closed.month:%Y-%m} cannot be closed: postings, movements and periods' totals "
            "differ, see `ledger verify`."
        )


_GET_STATEMENT = """
SELECT month, text, encode(sha256, 'hex'), position, closed_by, login, closed_at
FROM statements
WHERE month = %(month)s
"""


async def get_statement(connection: Connection, month: date) -> Statement | None:
    """The statement of ``month``, its first day; ``None`` while it is not closed."""
    row = await (await connection.execute(_GET_STATEMENT, {"month": month})).fetchone()
    return None if row is None else Statement(*row)
