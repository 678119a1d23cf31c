"""What is recorded of every comparison: of what with what, as of when, and the answer."""

import json
from datetime import datetime
from typing import Any, NamedTuple

from ledger.database import Connection
from ledger.operations.comparing import AsOf
from ledger.operations.differences import Class


class Run(NamedTuple):
    """A comparison that was made."""

    file_sha256: bytes
    options: dict[str, Any]
    """What else decides the answer."""
    starts_at: datetime
    ends_at: datetime
    as_of: AsOf
    repeats: int | None
    """The number of the run whose ``as_of`` was taken."""
    imports: bool
    lines: int
    counts: dict[Class, int]
    answer_sha256: bytes
    run_by: str


class Former(NamedTuple):
    """A run that can be repeated."""

    number: int
    as_of: AsOf
    answer_sha256: bytes


_FORMER = """
SELECT number, position, read_at, answer_sha256
FROM reconciliations
WHERE file_sha256 = %(file_sha256)s AND options = %(options)s::jsonb AND repeats IS NULL
ORDER BY number DESC
LIMIT 1
"""


async def former(
    connection: Connection, file_sha256: bytes, options: dict[str, Any]
) -> Former | None:
    """The last run for which this file was compared with the books as they were then."""
    cursor = await connection.execute(
        _FORMER, {"file_sha256": file_sha256, "options": json.dumps(options)}
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    number, position, read_at, answer_sha256 = row
    return Former(number, AsOf(position, read_at), bytes(answer_sha256))


_RECORD = """
INSERT INTO reconciliations (
    file_sha256, options, starts_at, ends_at, position, read_at, repeats, imports, lines, matched,
    missing_here, missing_there, differs, duplicate, conflict, quarantined, reversed,
    answer_sha256, run_by
)
VALUES (
    %(file_sha256)s, %(options)s::jsonb, %(starts_at)s, %(ends_at)s, %(position)s, %(read_at)s,
    %(repeats)s, %(imports)s, %(lines)s, %(matched)s, %(missing_here)s, %(missing_there)s,
    %(differs)s, %(duplicate)s, %(conflict)s, %(quarantined)s, %(reversed)s, %(answer_sha256)s,
    %(run_by)s
)
RETURNING number
"""


async def record(connection: Connection, run: Run) -> int:
    """Record ``run`` for good; its number."""
    counts = {name.value.replace(" ", "_"): number for name, number in run.counts.items()}
    cursor = await connection.execute(
        _RECORD,
        {
            **run._asdict(),
            **counts,
            "options": json.dumps(run.options),
            "position": run.as_of.position,
            "read_at": run.as_of.at,
        },
    )
    row = await cursor.fetchone()
    if row is None:
        raise AssertionError
    return int(row[0])
