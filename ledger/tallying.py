"""What the ingress counted, kept beside the books: believed deliveries, and what became of them.

A worker writes all that it has counted, as sums, into one row: to write it twice changes nothing.
The row of a worker that has ended is continued by the next one, so there are never many rows; so
is one that nobody has written for a while, because whoever was killed cannot say that it ended.
"""

from typing import NamedTuple
from uuid import UUID

from ledger.database import Connection

STALE_MINUTES = 10
"""From when on a row that nobody writes is taken for one of a worker that was killed."""


_DRAINED = "drained_"


class Tally(NamedTuple):
    """How many deliveries were believed, and what became of them.

    What each count means, ``migrations/0003_tallies.sql`` and ``0009_provenance.sql`` say.
    """

    believed: int = 0
    credited: int = 0
    recorded: int = 0
    ignored: int = 0
    replayed: int = 0
    conflicts: int = 0
    quarantined: int = 0
    spooled: int = 0
    unavailable: int = 0
    abandoned: int = 0
    in_flight: int = 0
    kept: int = 0
    drained_credited: int = 0
    drained_recorded: int = 0
    drained_replayed: int = 0
    drained_ignored: int = 0
    drained_kept: int = 0

    def outcomes(self) -> dict[str, int]:
        """What became of what was believed: these add up to it."""
        counts = self._asdict()
        del counts["believed"], counts["kept"]
        return {name: count for name, count in counts.items() if not name.startswith(_DRAINED)}

    def drained(self) -> dict[str, int]:
        """What became of what had been spooled, as far as it has left the spool."""
        return {
            name.removeprefix(_DRAINED): count
            for name, count in self._asdict().items()
            if name.startswith(_DRAINED)
        }

    def plus(self, other: "Tally") -> "Tally":
        """Both, count by count."""
        return Tally._make(mine + its for mine, its in zip(self, other, strict=True))

    def minus(self, other: "Tally") -> "Tally":
        """What was counted since ``other``."""
        return Tally._make(mine - its for mine, its in zip(self, other, strict=True))


# A row of our own is there already when the answer to the first try was lost. What a worker had
# under way when it was killed was never answered by it. Whoever is killed later is not waited for:
# two who look at once skip each other's row.
_TAKE_ROW = """
WITH free AS (
    SELECT worker
    FROM tallies
    WHERE worker = %(worker)s
        OR has_ended
        OR written_at < clock_timestamp() - make_interval(mins => %(stale_minutes)s)
    ORDER BY worker <> %(worker)s, worker
    LIMIT 1
    FOR UPDATE SKIP LOCKED
),
taken AS (
    UPDATE tallies AS mine
    SET worker = %(worker)s, abandoned = abandoned + in_flight, in_flight = 0,
        has_ended = false, written_at = clock_timestamp()
    FROM free
    WHERE mine.worker = free.worker
    RETURNING believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
        unavailable, abandoned, in_flight, kept, drained_credited, drained_recorded,
        drained_replayed, drained_ignored, drained_kept
),
begun AS (
    INSERT INTO tallies (worker)
    SELECT %(worker)s
    WHERE NOT EXISTS (SELECT FROM taken)
    RETURNING believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
        unavailable, abandoned, in_flight, kept, drained_credited, drained_recorded,
        drained_replayed, drained_ignored, drained_kept
)
SELECT believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
    unavailable, abandoned, in_flight, kept, drained_credited, drained_recorded,
    drained_replayed, drained_ignored, drained_kept
FROM taken
UNION ALL
SELECT believed, credited, recorded, ignored, replayed, conflicts, quarantined, spooled,
    unavailable, abandoned, in_flight, kept, drained_credited, drained_recorded,
    drained_replayed, drained_ignored, drained_kept
FROM begun
"""


async def take_row(connection: Connection, worker: UUID) -> Tally:
    """Make a row ``worker``'s own, and give what others counted in it before; nothing in flight.

    Safe to repeat for a worker that has not written yet.
    """
    cursor = await connection.execute(_TAKE_ROW, {"worker": worker, "stale_minutes": STALE_MINUTES})
    (row,) = await cursor.fetchall()
    return Tally(*row)


_WRITE = """
UPDATE tallies
SET believed = %(believed)s, credited = %(credited)s, recorded = %(recorded)s,
    ignored = %(ignored)s, replayed = %(replayed)s, conflicts = %(conflicts)s,
    quarantined = %(quarantined)s, spooled = %(spooled)s, unavailable = %(unavailable)s,
    abandoned = %(abandoned)s, in_flight = %(in_flight)s, kept = %(kept)s,
    drained_credited = %(drained_credited)s, drained_recorded = %(drained_recorded)s,
    drained_replayed = %(drained_replayed)s, drained_ignored = %(drained_ignored)s,
    drained_kept = %(drained_kept)s,
    has_ended = %(has_ended)s, written_at = clock_timestamp()
WHERE worker = %(worker)s AND NOT has_ended
"""


async def write(
    connection: Connection, worker: UUID, tally: Tally, *, has_ended: bool = False
) -> bool:
    """Write ``tally`` into the worker's row; false when the row is no longer its own.

    It has been taken for ended then, and another continues what it had written until then.
    """
    cursor = await connection.execute(
        _WRITE, {**tally._asdict(), "worker": worker, "has_ended": has_ended}
    )
    return cursor.rowcount == 1


_TOTAL = """
SELECT coalesce(sum(believed), 0)::bigint, coalesce(sum(credited), 0)::bigint,
    coalesce(sum(recorded), 0)::bigint, coalesce(sum(ignored), 0)::bigint,
    coalesce(sum(replayed), 0)::bigint, coalesce(sum(conflicts), 0)::bigint,
    coalesce(sum(quarantined), 0)::bigint, coalesce(sum(spooled), 0)::bigint,
    coalesce(sum(unavailable), 0)::bigint, coalesce(sum(abandoned), 0)::bigint,
    coalesce(sum(in_flight), 0)::bigint, coalesce(sum(kept), 0)::bigint,
    coalesce(sum(drained_credited), 0)::bigint, coalesce(sum(drained_recorded), 0)::bigint,
    coalesce(sum(drained_replayed), 0)::bigint, coalesce(sum(drained_ignored), 0)::bigint,
    coalesce(sum(drained_kept), 0)::bigint
FROM tallies
"""


async def total(connection: Connection) -> Tally:
    """What all workers counted that ever were, as of what they have written."""
    (row,) = await (await connection.execute(_TOTAL)).fetchall()
    return Tally(*row)
