"""A report's lines against the books, by rewardId, inside Postgres, in one snapshot.

The lines are copied into a temporary table and joined there, so that neither this process nor a
round trip for each line bounds how many there may be. The snapshot is of a read-only database
transaction: of what it may write there are the temporary tables alone.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from ledger.database import Connection, array
from ledger.operations.differences import FIELDS, Class, Difference
from ledger.operations.report import Line
from ledger.operations.rows import Cells
from ledger.reward import NOTHING_TO_POST

COPIED_MAX = 2000
FETCHED_MAX = 2000


class AsOf(NamedTuple):
    """Up to where the books are read."""

    position: int
    """Rewards: up to this position of ``commits``."""
    at: datetime
    """What has no such position, such as the quarantine: until then."""


class Scope(NamedTuple):
    """What a report claims to hold all of, and what its lines say."""

    starts_at: datetime
    ends_at: datetime
    """The first moment after the period."""
    campaigns: tuple[str, ...] | None
    """``None``: those that the lines name, or all if they name none."""
    fields: frozenset[str]
    """What the lines say, of the fields of a report."""


_TABLES = """
CREATE TEMPORARY TABLE report_lines (
    line bigint NOT NULL,
    reward_id text COLLATE "C" NOT NULL,
    amount numeric NOT NULL,
    currency text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    cells text
);
CREATE TEMPORARY TABLE report_campaigns (campaign_id text COLLATE "C" NOT NULL);
CREATE TEMPORARY TABLE report_later (reward_id text COLLATE "C" NOT NULL);
CREATE TEMPORARY TABLE report_waiting (
    reward_id text COLLATE "C" NOT NULL,
    is_conflict boolean NOT NULL
);
CREATE TEMPORARY TABLE report_reversed (reward_id text COLLATE "C" NOT NULL);
CREATE TEMPORARY TABLE report_differences (
    class text NOT NULL,
    line bigint,
    reward_id text COLLATE "C" NOT NULL,
    differing text[] NOT NULL,
    reported_amount numeric,
    reported_currency text,
    reported_user text,
    reported_campaign text,
    booked_amount numeric,
    booked_currency text,
    booked_user text,
    booked_campaign text,
    recorded_at timestamptz
)
"""

_COPY_LINES = """
COPY report_lines (line, reward_id, amount, currency, user_id, campaign_id, cells) FROM STDIN
"""

_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


async def load(connection: Connection, lines: Iterable[Line], *, with_cells: bool) -> int:
    """Copy ``lines`` to where they are compared, and say how many there are.

    Raises what ``lines`` raises. ``with_cells`` keeps what a reward can be posted from.
    """
    await connection.execute(_TABLES)
    copied = 0
    remaining = iter(lines)
    while some := list(islice(remaining, COPIED_MAX)):
        # One after the other: within one, libpq keeps all that Postgres is too slow to take.
        async with connection.cursor() as cursor, cursor.copy(_COPY_LINES) as copy:
            for line in some:
                await copy.write_row(_row(line, with_cells))
        copied += len(some)
    await connection.execute("ANALYZE report_lines")
    return copied


def _row(line: Line, with_cells: bool) -> tuple[object, ...]:  # noqa: FBT001
    # What moves money: of a reward of nothing that is nothing, whatever its amount says.
    amount = line.amount if line.amount and line.reward_type != NOTHING_TO_POST else 0
    cells = _encode(line.cells).decode() if with_cells else None
    return (
        line.number, line.reward_id, f"{amount:f}", line.currency, line.user_id, line.campaign_id,
        cells,
    )  # fmt: skip


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """All that is asked in the block is asked of the books as they are at its beginning."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await connection.execute("SET LOCAL work_mem = '64MB'")
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield


_NOW = """
SELECT coalesce(max(position), 0), clock_timestamp() FROM commits
"""


async def now(connection: Connection) -> AsOf:
    """Up to where the books of this snapshot go."""
    row = await (await connection.execute(_NOW)).fetchone()
    if row is None:
        raise AssertionError
    return AsOf(*row)


async def compare(
    connection: Connection, scope: Scope, as_of: AsOf, quarantined_keys: tuple[str, ...]
) -> None:
    """Find every difference; what is asked of them afterwards is answered from there."""
    await _find_later(connection, as_of)
    await _find_waiting(connection, as_of, quarantined_keys)
    await _find_reversed(connection)
    await _judge_lines(connection, scope)
    await _find_missing_there(connection, scope)


_FIND_LATER = """
INSERT INTO report_later (reward_id)
SELECT rewards.reward_id
FROM commits
JOIN rewards
    ON rewards.written_by = commits.written_by
    AND rewards.number BETWEEN commits.first_number AND commits.last_number
WHERE commits.position > %(position)s
"""


async def _find_later(connection: Connection, as_of: AsOf) -> None:
    await connection.execute(_FIND_LATER, {"position": as_of.position})


_OPEN = """
SELECT reward_id, reason, believed_bytes
FROM quarantine
WHERE first_seen_at <= %(at)s AND (closed_at IS NULL OR closed_at > %(at)s)
"""

_INSERT_WAITING = """
INSERT INTO report_waiting (reward_id, is_conflict)
SELECT reward_id, is_conflict
FROM unnest(%(reward_id)s::text[], %(is_conflict)s::boolean[]) AS waiting (reward_id, is_conflict)
"""


async def _find_waiting(connection: Connection, as_of: AsOf, keys: tuple[str, ...]) -> None:
    # Not by Postgres, which has no way to ask whether bytes are text, and gives up on the first
    # that are not.
    async with connection.cursor("open") as cursor:
        await cursor.execute(_OPEN, {"at": as_of.at})
        while rows := await cursor.fetchmany(FETCHED_MAX):
            waiting = [
                (reward_id, reason == "IdempotencyConflict")
                for told, reason, body in rows
                if (reward_id := told or _reward_id(body, keys)) is not None
            ]
            names = ("reward_id", "is_conflict")
            columns = [array(column) for column in zip(*waiting, strict=True)] or ["{}", "{}"]
            await connection.execute(_INSERT_WAITING, dict(zip(names, columns, strict=True)))


def _reward_id(body: bytes, keys: tuple[str, ...]) -> str | None:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) and "\0" not in value else None


_FIND_REVERSED = """
INSERT INTO report_reversed (reward_id)
SELECT DISTINCT reward_id FROM corrections WHERE kind = 'reversal'
"""


async def _find_reversed(connection: Connection) -> None:
    """Which rewards were taken back, in whole or in part."""
    await connection.execute(_FIND_REVERSED)


# The amounts are what moves money: a reward that was only recorded has none, whatever it said.
# A currency is compared where there is an amount on both sides.
_JUDGE_LINES = """
INSERT INTO report_differences (
    class, line, reward_id, differing, reported_amount, reported_currency, reported_user,
    reported_campaign, booked_amount, booked_currency, booked_user, booked_campaign, recorded_at
)
SELECT
    class, line, reward_id, differing, amount, currency, user_id, campaign_id,
    booked_amount, booked_currency, booked_user, booked_campaign, recorded_at
FROM (
    SELECT
        CASE
            WHEN place > 1 THEN 'duplicate'
            WHEN is_booked AND is_conflict THEN 'conflict'
            WHEN differing <> '{}' THEN 'differs'
            WHEN is_booked AND is_reversed THEN 'reversed'
            WHEN is_booked THEN 'matched'
            WHEN is_waiting THEN 'quarantined'
            ELSE 'missing here'
        END AS class,
        line, reward_id, differing, amount, currency, user_id, campaign_id,
        booked_amount, booked_currency, booked_user, booked_campaign, recorded_at
    FROM (
        SELECT
            line, reward_id, place, amount, currency, user_id, campaign_id, is_booked, is_waiting,
            is_conflict, is_reversed, booked_amount, booked_currency, booked_user,
            booked_campaign, recorded_at,
            array_remove(ARRAY[
                CASE WHEN amount <> booked_amount THEN 'amount' END,
                CASE WHEN %(has_currency)s AND amount <> 0 AND booked_amount <> 0
                     AND currency <> booked_currency THEN 'currency' END,
                CASE WHEN %(has_user_id)s AND user_id <> booked_user THEN 'user' END,
                CASE WHEN %(has_campaign_id)s AND campaign_id <> booked_campaign
                     THEN 'campaign' END
            ], NULL) AS differing
        FROM (
            SELECT
                told.line, told.reward_id, told.place, told.amount, told.currency, told.user_id,
                told.campaign_id,
                rewards.reward_id IS NOT NULL AS is_booked,
                waiting.reward_id IS NOT NULL AS is_waiting,
                coalesce(waiting.is_conflict, false) AS is_conflict,
                reversed.reward_id IS NOT NULL AS is_reversed,
                CASE WHEN rewards.reward_id IS NULL THEN NULL
                     WHEN rewards.currency IS NULL THEN 0
                     ELSE rewards.reward_amount END AS booked_amount,
                rewards.currency AS booked_currency, rewards.user_id AS booked_user,
                rewards.campaign_id AS booked_campaign, rewards.recorded_at
            FROM (
                SELECT
                    lines.line, lines.reward_id, lines.amount, lines.currency, lines.user_id,
                    lines.campaign_id, later.reward_id IS NULL AS is_not_later,
                    row_number() OVER (PARTITION BY lines.reward_id ORDER BY lines.line) AS place
                FROM report_lines AS lines
                LEFT JOIN report_later AS later ON later.reward_id = lines.reward_id
            ) AS told
            LEFT JOIN rewards ON rewards.reward_id = told.reward_id AND told.is_not_later
            LEFT JOIN (
                SELECT reward_id, bool_or(is_conflict) AS is_conflict
                FROM report_waiting GROUP BY reward_id
            ) AS waiting ON waiting.reward_id = told.reward_id
            LEFT JOIN report_reversed AS reversed ON reversed.reward_id = told.reward_id
        ) AS joined
    ) AS compared
) AS judged
WHERE class <> 'matched'
"""


async def _judge_lines(connection: Connection, scope: Scope) -> None:
    has = {f"has_{field}": field in scope.fields for field in _OPTIONAL}
    await connection.execute(_JUDGE_LINES, has)


_OPTIONAL = ("currency", "user_id", "campaign_id")

_NAME_CAMPAIGNS = """
INSERT INTO report_campaigns (campaign_id)
SELECT DISTINCT campaign_id FROM report_lines
"""

_CHOOSE_CAMPAIGNS = """
INSERT INTO report_campaigns (campaign_id)
SELECT unnest(%(campaigns)s::text[])
"""

# Posted ones only: whether a report of rewards holds those of nothing, nobody knows.
_FIND_MISSING_THERE = """
INSERT INTO report_differences (
    class, reward_id, differing, booked_amount, booked_currency, booked_user, booked_campaign,
    recorded_at
)
SELECT
    'missing there', rewards.reward_id, '{}', rewards.reward_amount, rewards.currency,
    rewards.user_id, rewards.campaign_id, rewards.recorded_at
FROM postings
JOIN rewards ON rewards.reward_id = postings.reward_id
LEFT JOIN report_later AS later ON later.reward_id = postings.reward_id
LEFT JOIN report_lines AS lines ON lines.reward_id = postings.reward_id
WHERE postings.posted_at >= %(starts_at)s
  AND postings.posted_at < %(ends_at)s
  AND later.reward_id IS NULL
  AND lines.reward_id IS NULL
  AND (
      NOT %(is_of_campaigns)s
      OR rewards.campaign_id IN (SELECT campaign_id FROM report_campaigns)
  )
"""


async def _find_missing_there(connection: Connection, scope: Scope) -> None:
    if scope.campaigns is not None:
        await connection.execute(_CHOOSE_CAMPAIGNS, {"campaigns": array(scope.campaigns)})
    elif "campaign_id" in scope.fields:
        await connection.execute(_NAME_CAMPAIGNS)
    await connection.execute(
        _FIND_MISSING_THERE,
        {
            "starts_at": scope.starts_at,
            "ends_at": scope.ends_at,
            "is_of_campaigns": scope.campaigns is not None or "campaign_id" in scope.fields,
        },
    )


_COUNT = """
SELECT class, count(*), count(*) FILTER (WHERE 'amount' = ANY(differing)),
       count(*) FILTER (WHERE 'currency' = ANY(differing)),
       count(*) FILTER (WHERE 'user' = ANY(differing)),
       count(*) FILTER (WHERE 'campaign' = ANY(differing))
FROM report_differences
GROUP BY class
"""


class Counts(NamedTuple):
    """How many lines, and rewards that are missing there, are of each class."""

    by_class: dict[Class, int]
    differing: dict[str, int]
    """Of those that differ, in how many each field does."""


async def count(connection: Connection, lines: int) -> Counts:
    """The counts of a report of so many ``lines``."""
    cursor = await connection.execute(_COUNT)
    found = {Class(name): counts for name, *counts in await cursor.fetchall()}
    by_class = {class_: found[class_][0] if class_ in found else 0 for class_ in Class}
    by_class[Class.MATCHED] = lines - sum(
        number for class_, number in by_class.items() if class_ is not Class.MISSING_THERE
    )
    of_fields = found.get(Class.DIFFERS, [0] * (1 + len(FIELDS)))[1:]
    return Counts(by_class, dict(zip(FIELDS, of_fields, strict=True)))


_DIFFERENCES = """
SELECT
    class, line, reward_id, array_to_string(differing, ', '), trim_scale(reported_amount)::text,
    reported_currency, reported_user, reported_campaign, trim_scale(booked_amount)::text,
    booked_currency, booked_user, booked_campaign, recorded_at
FROM report_differences
ORDER BY line, reward_id
"""


async def differences(connection: Connection) -> AsyncIterator[list[Difference]]:
    """Every difference, by line, then what is missing there by rewardId; some at a time."""
    async with connection.cursor("differences") as cursor:
        await cursor.execute(_DIFFERENCES)
        while rows := await cursor.fetchmany(FETCHED_MAX):
            yield [Difference(Class(class_), *rest) for class_, *rest in rows]


# What stands in the file more than once is left out: which of its lines is right nobody knows.
_MISSING_HERE = """
SELECT missing.line, lines.cells
FROM report_differences AS missing
JOIN report_lines AS lines ON lines.line = missing.line
WHERE missing.class = 'missing here' AND NOT EXISTS (
    SELECT FROM report_differences AS again
    WHERE again.class = 'duplicate' AND again.reward_id = missing.reward_id
)
ORDER BY missing.line
"""


async def missing_here(
    connection: Connection, size_max: int
) -> AsyncIterator[list[tuple[int, Cells]]]:
    """The number and cells of each line that is missing here and stands once, in batches.

    They outlive the snapshot, so that meanwhile they can be posted.
    """
    async with connection.cursor("missing_here", withhold=True) as cursor:
        await cursor.execute(_MISSING_HERE)
        while rows := await cursor.fetchmany(size_max):
            yield [(line, _decode(cells)) for line, cells in rows]
