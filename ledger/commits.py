"""Commits that brought something: where their order ends, what follows a place, who is told.

Every database transaction that brings rewards or corrections takes its position just before its
commit, and
positions become visible in their order (``migrations/0004_watching.sql``). So there is one commit
order, the same for everybody and for ever; along an account its versions ascend; and a place in
it is all that a watcher needs to go on, in this process or in another.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from ledger.database import Connection
from ledger.errors import DatabaseUnavailable, InvalidArgument
from ledger.history import Line, line_of
from ledger.place import BEGINNING, Place

STRETCH_SIZE_MAX = 256
STRETCH_LENGTH_MAX = 128 * 1024
"""How many characters of text a stretch holds, unless a single reward is longer."""


class Committed(NamedTuple):
    """A reward or a correction, and its place."""

    place: Place
    line: Line


class Stretch:
    """What follows each other in commit order without a gap; perhaps nothing."""

    def __init__(
        self, after: Place, lines: Sequence[Committed] = (), *, was_cut: bool = False
    ) -> None:
        self.after = after
        self.lines = lines
        self.was_cut = was_cut
        """Whether more was there already."""
        self.through = lines[-1].place if lines else after
        """Where those stand who have taken it."""
        self.made: dict[object, Any] = {}
        """What watchers made of it, so that one makes it for all."""

    def beyond(self, place: Place) -> "Stretch":
        """What of it lies beyond ``place``."""
        if place <= self.after:
            return self
        start = bisect_right(self.lines, place, key=lambda committed: committed.place)
        return Stretch(place, self.lines[start:])


_GET_END = """
SELECT position, last_number, committed_at FROM commits ORDER BY position DESC LIMIT 1
"""


async def get_end(connection: Connection) -> Place:
    """Behind everything that is committed now."""
    row = await (await connection.execute(_GET_END)).fetchone()
    return BEGINNING if row is None else Place._make(row)


_HAS_PLACE = """
SELECT FROM commits WHERE position = %(position)s AND committed_at = %(committed_at)s
"""

_MAY_COME = """
SELECT pg_is_in_recovery() AND coalesce(max(position), 0) < %(position)s FROM commits
"""


async def check_place(connection: Connection, place: Place) -> None:
    """Raises ``InvalidArgument`` for a place that the books do not have.

    A standby that took over, or a backup, may lack what was committed last. It gives the same
    positions to other rewards, and whoever went on from such a place would never hear of them.
    One that still follows will have it in a moment: ``DatabaseUnavailable``.
    """
    if place == BEGINNING:
        return
    parameters = {"position": place.position, "committed_at": place.committed_at}
    cursor = await connection.execute(_HAS_PLACE, parameters)
    if not cursor.rowcount:
        row = await (await connection.execute(_MAY_COME, parameters)).fetchone()
        if row == (True,):
            raise DatabaseUnavailable
        raise InvalidArgument("token", "is of other books, or of what a restore undid")


# As in `ledger.history`, but each kind with its own posting: what is watched is read in bulk. The
# order of the corrections leaves their own index alone to be used, also while there are none.
_LIST_COMMITTED = """
SELECT
    position, number, committed_at,
    number, reward_id, user_id, campaign_id, type, reward_type, reward_name, status,
    transaction_id, reward_category, details, reward_expires_at, recorded_at, code, debit_account,
    credit_account, currency, amount, version, balance_after, posted_at, reversed, correction_key,
    kind, reason, actor, approver
FROM commits
CROSS JOIN LATERAL (
    SELECT
        rewards.number, rewards.reward_id, rewards.user_id, campaign_id, type, reward_type,
        reward_name, status, transaction_id, reward_category, details::text, reward_expires_at,
        recorded_at, code, debit_account, credit_account, postings.currency, amount::text, version,
        balance_after::text, posted_at,
        (
            SELECT round(sum(amount), scale(postings.amount))::text
            FROM corrections WHERE reward_id = rewards.reward_id
        ) AS reversed,
        NULL AS correction_key, NULL AS kind, NULL AS reason, NULL AS actor, NULL AS approver
    FROM rewards
    LEFT JOIN postings ON postings.reward_id = rewards.reward_id
    WHERE rewards.written_by = commits.written_by
      AND rewards.number BETWEEN commits.first_number AND commits.last_number
      AND (commits.position, rewards.number) > (%(position)s, %(number)s)
    UNION ALL
    SELECT
        mended.number, mended.reward_id, mended.user_id, campaign_id, type, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, mended.recorded_at, NULL, debit_account, credit_account,
        postings.currency, amount::text, version, balance_after::text, posted_at, NULL,
        mended.correction_key, kind, reason, actor, approver
    FROM (
        SELECT
            number, correction_key, reward_id, user_id, recorded_at, kind, reason, actor, approver
        FROM corrections
        WHERE written_by = commits.written_by
          AND number BETWEEN commits.first_number AND commits.last_number
          AND (commits.position, number) > (%(position)s, %(number)s)
        ORDER BY number
    ) AS mended
    JOIN postings ON postings.correction_key = mended.correction_key
    LEFT JOIN rewards ON rewards.reward_id = mended.reward_id
) AS lines
WHERE position >= %(position)s
ORDER BY position, number
LIMIT %(limit)s
"""


async def list_committed(connection: Connection, after: Place) -> Stretch:
    """What was committed beyond ``after``, as much of it as a stretch may hold.

    Raises ``InvalidArgument`` for a place that the books do not have, or not any more.
    """
    await check_place(connection, after)
    limit = STRETCH_SIZE_MAX
    parameters = {"position": after.position, "number": after.number, "limit": limit}
    cursor = await connection.execute(_LIST_COMMITTED, parameters)
    lines: list[Committed] = []
    length = 0
    for row in await cursor.fetchall():
        line = line_of(row[3:])
        length += line.length
        if lines and length > STRETCH_LENGTH_MAX:
            return Stretch(after, lines, was_cut=True)
        lines.append(Committed(Place._make(row[:3]), line))
    return Stretch(after, lines, was_cut=len(lines) == limit)


_LISTEN = "LISTEN ledger_commits"


async def listen(connection: Connection) -> bool:
    """Whether ``connection`` is told of every commit from now on; a standby tells nobody."""
    try:
        await connection.execute(_LISTEN)
    except psycopg.errors.ReadOnlySqlTransaction:
        return False
    return True


async def hear(connection: Connection, seconds: float) -> None:
    """Returns when ``connection`` was told of a commit, or when nothing came for ``seconds``."""
    async for _ in connection.notifies(timeout=seconds, stop_after=1):
        pass
