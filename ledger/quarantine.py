"""Believed deliveries that could not be posted: kept whole, until somebody deals with them."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from ledger.coalescing import Coalescer
from ledger.database import Connection, Pool, array

BATCH_SIZE_MAX = 64
WAIT_SECONDS_MAX = 2.5


class Unposted(NamedTuple):
    """A believed delivery, and why it was not posted."""

    believed_bytes: bytes
    reason: str
    """The kind of the error, such as ``NotAReward`` or ``IdempotencyConflict``."""
    detail: str | None = None
    """Which field is wrong and how, in constant words."""
    reward_id: str | None = None
    """Of a conflict: the reward that stands in the books."""
    token: str | None = None
    form: str | None = None
    content_type: str | None = None
    read_under: str | None = None
    """The digest of the mapping and default currencies by which it was read."""


class Listed(NamedTuple):
    """A row of the quarantine, without what was delivered."""

    number: int
    state: str
    reason: str
    detail: str | None
    reward_id: str | None
    seen: int
    first_seen_at: datetime
    last_seen_at: datetime


class Kept(NamedTuple):
    """A row of the quarantine, whole."""

    number: int
    state: str
    reason: str
    detail: str | None
    reward_id: str | None
    token: str | None
    form: str | None
    content_type: str | None
    read_under: str | None
    seen: int
    first_seen_at: datetime
    last_seen_at: datetime
    closed_at: datetime | None
    closed_by: str | None
    closed_why: str | None
    believed_bytes: bytes


class Quarantine:
    """Keeps single deliveries for many callers, in few database transactions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._coalescer = Coalescer(
            self._keep, batch_size_max=BATCH_SIZE_MAX, wait_seconds_max=WAIT_SECONDS_MAX
        )

    def keep(self, delivery: Unposted) -> "asyncio.Future[None]":
        """Done when the delivery is kept for good; awaiting it raises ``Unavailable``."""
        return self._coalescer.submit(delivery)

    async def drain(self) -> None:
        """Return when everything that was handed in has been kept."""
        await self._coalescer.drain()

    async def _keep(self, deliveries: list[Unposted]) -> list[None]:
        # Asked again after a lost answer it may count a delivery twice, and keeps it once.
        await self._pool.ask(keep, deliveries)
        return [None] * len(deliveries)


_KEEP = """
INSERT INTO quarantine AS kept (
    believed_bytes_sha256, believed_bytes, reason, detail, reward_id, token, form, content_type,
    read_under, seen, first_seen_at, last_seen_at
)
SELECT DISTINCT ON (sha256(told.believed_bytes))
    sha256(told.believed_bytes), told.believed_bytes, reason, detail, reward_id, token, form,
    content_type, read_under, count(*) OVER (PARTITION BY told.believed_bytes),
    statement_timestamp(), statement_timestamp()
FROM unnest(
    %(believed_bytes)s::bytea[], %(reason)s::text[], %(detail)s::text[], %(reward_id)s::text[],
    %(token)s::text[], %(form)s::text[], %(content_type)s::text[], %(read_under)s::text[]
) WITH ORDINALITY
    AS told (believed_bytes, reason, detail, reward_id, token, form, content_type, read_under, turn)
ORDER BY 1, turn DESC
ON CONFLICT (believed_bytes_sha256) DO UPDATE SET
    reason = CASE WHEN kept.state = 'open' THEN excluded.reason ELSE kept.reason END,
    detail = CASE WHEN kept.state = 'open' THEN excluded.detail ELSE kept.detail END,
    reward_id = CASE WHEN kept.state = 'open' THEN excluded.reward_id ELSE kept.reward_id END,
    read_under = CASE WHEN kept.state = 'open' THEN excluded.read_under ELSE kept.read_under END,
    seen = kept.seen + excluded.seen,
    last_seen_at = clock_timestamp()
"""


async def keep(connection: Connection, deliveries: Sequence[Unposted]) -> None:
    """Keep every delivery, once for each distinct body; one seen before is counted.

    Of the same body told more than once, what was told last is kept.

    A body that was dealt with stays so: only the count and the last time change.
    """
    columns = zip(Unposted._fields, zip(*deliveries, strict=True), strict=True)
    await connection.execute(_KEEP, {name: array(values) for name, values in columns})


_LIST = """
SELECT number, state, reason, detail, reward_id, seen, first_seen_at, last_seen_at
FROM quarantine
WHERE %(with_closed)s OR state = 'open'
ORDER BY number
"""


async def list_kept(connection: Connection, *, with_closed: bool = False) -> list[Listed]:
    """What is open, oldest first; with what was dealt with, if asked."""
    cursor = await connection.execute(_LIST, {"with_closed": with_closed})
    return [Listed(*row) for row in await cursor.fetchall()]


_LIST_OPEN = """
SELECT number FROM quarantine
WHERE state = 'open' AND number > %(after)s
ORDER BY number
LIMIT %(limit)s
"""


async def list_open(connection: Connection, after: int, limit: int) -> list[int]:
    """The numbers of the oldest that are open, behind the number ``after``."""
    cursor = await connection.execute(_LIST_OPEN, {"after": after, "limit": limit})
    return [number for (number,) in await cursor.fetchall()]


_GET = """
SELECT
    number, state, reason, detail, reward_id, token, form, content_type, read_under, seen,
    first_seen_at, last_seen_at, closed_at, closed_by, closed_why, believed_bytes
FROM quarantine
WHERE number = %(number)s
"""


async def get_kept(connection: Connection, number: int) -> Kept | None:
    """The delivery with this number."""
    cursor = await connection.execute(_GET, {"number": number})
    row = await cursor.fetchone()
    return Kept(*row) if row else None


_CREDITED_BYTES = """
SELECT believed_bytes FROM rewards WHERE reward_id = %(reward_id)s
"""


async def get_credited_bytes(connection: Connection, reward_id: str) -> bytes | None:
    """The believed text of the reward that stands in the books."""
    cursor = await connection.execute(_CREDITED_BYTES, {"reward_id": reward_id})
    row = await cursor.fetchone()
    return bytes(row[0]) if row else None


_EXPLAIN = """
UPDATE quarantine
SET reason = %(reason)s, detail = %(detail)s, reward_id = %(reward_id)s
WHERE number = %(number)s AND state = 'open'
"""


async def explain(connection: Connection, number: int, refused: Unposted) -> None:
    """Say of an open delivery why it is refused by now: ``refused`` is what it was found to be.

    It is not counted as seen: nobody has sent it again.
    """
    reasons = {name: getattr(refused, name) for name in ("reason", "detail", "reward_id")}
    await connection.execute(_EXPLAIN, {"number": number, **reasons})


_CLOSE = """
UPDATE quarantine
SET state = %(state)s, closed_at = clock_timestamp(), closed_by = %(by)s, closed_why = %(why)s
WHERE number = %(number)s AND state = 'open'
"""


async def close(connection: Connection, number: int, state: str, by: str, why: str) -> bool:
    """Close an open delivery as ``posted`` or ``discarded``; false when it is not open."""
    cursor = await connection.execute(
        _CLOSE, {"number": number, "state": state, "by": by, "why": why}
    )
    return cursor.rowcount == 1
