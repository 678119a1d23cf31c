"""What belongs to a closed month, as far as the books know, and was posted after it."""

from datetime import date, datetime
from typing import NamedTuple

from ledger.database import Connection
from ledger.money import plain


class Late(NamedTuple):
    """A reward that was posted after a month's end, although somebody knew of it before."""

    reward_id: str
    currency: str
    amount: str
    posted_at: datetime
    why: str


# An imported reward belongs to the month in which its report's period ended, one that was in
# the quarantine to the month in which it was first seen there.
_LIST_LATE = """
WITH bounds AS (
    SELECT %(month)s::timestamp AT TIME ZONE 'UTC' AS starts_at,
           (%(month)s::timestamp + interval '1 month') AT TIME ZONE 'UTC' AS ends_at
),
since AS (
    SELECT postings.reward_id, postings.currency, amount, posted_at, number, webhook_type,
           believed_bytes, believed_bytes_sha256
    FROM bounds
    JOIN postings ON posted_at >= ends_at
    JOIN rewards ON rewards.reward_id = postings.reward_id
),
late AS (
    SELECT since.reward_id, currency, amount, posted_at, since.number,
           'in the quarantine since ' || to_char(first_seen_at, 'YYYY-MM-DD') AS why
    FROM bounds
    JOIN quarantine ON first_seen_at >= starts_at AND first_seen_at < ends_at
    JOIN since ON since.believed_bytes_sha256 = quarantine.believed_bytes_sha256
    UNION ALL
    SELECT DISTINCT ON (since.number)
           since.reward_id, currency, amount, posted_at, since.number,
           'in a report until ' || to_char(run.ends_at - interval '1 us', 'YYYY-MM-DD')
    FROM bounds
    CROSS JOIN (
        SELECT encode(file_sha256, 'hex') AS file, ends_at FROM reconciliations WHERE imports
    ) AS run
    JOIN since ON webhook_type = 'import' AND run.file = substring(
        convert_from(believed_bytes, 'UTF8') FROM '"sha256":"([0-9a-f]{64})"'
    )
    WHERE run.ends_at > bounds.starts_at AND run.ends_at <= bounds.ends_at
)
SELECT reward_id, currency, amount::text, posted_at, why FROM late ORDER BY number
"""


async def list_late(connection: Connection, month: date) -> list[Late]:
    """What was posted after ``month`` and, as far as the books know, belongs to it; oldest first.

    A role that may read is enough.
    """
    cursor = await connection.execute(_LIST_LATE, {"month": month})
    return [
        Late(reward_id, currency, plain(amount), posted_at, why)
        for reward_id, currency, amount, posted_at, why in await cursor.fetchall()
    ]
