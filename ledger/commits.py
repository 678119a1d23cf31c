"""Commits that brought rewards: where their order ends, what follows a place, who is told of them.

Every database transaction that brings rewards takes its position just before its commit, and
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
from ledger.history import RecordedReward, recorded_reward
from ledger.place import BEGINNING, Place

STRETCH_SIZE_MAX = 256
STRETCH_LENGTH_MAX = 128 * 1024
"""How many characters of text a stretch holds, unless a single reward is longer."""


class Committed(NamedTuple):
    """A reward and its place."""

    place: Place
    reward: RecordedReward


class Stretch:
    """Rewards that follow each other in commit order without a gap; perhaps none."""

    def __init__(
        self, after: Place, rewards: Sequence[Committed] = (), *, was_cut: bool = False
    ) -> None:
        self.after = after
        self.rewards = rewards
        self.was_cut = was_cut
        """Whether more was there already."""
        self.through = rewards[-1].place if rewards else after
        """Where those stand who have taken it."""
        self.made: dict[object, Any] = {}
        """What watchers made of it, so that one makes it for all."""

    def beyond(self, place: Place) -> "Stretch":
        """What of it lies beyond ``place``."""
        if place <= self.after:
            return self
        start = bisect_right(self.rewards, place, key=lambda committed: committed.place)
        return Stretch(place, self.rewards[start:])


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


_LIST_COMMITTED = """
SELECT
    commits.position, rewards.number, commits.committed_at,
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM commits
JOIN rewards
    ON rewards.written_by = commits.written_by
    AND rewards.number BETWEEN commits.first_number AND commits.last_number
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE commits.position >= %(position)s
  AND (commits.position, rewards.number) > (%(position)s, %(number)s)
ORDER BY commits.position, rewards.number
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
    rewards: list[Committed] = []
    length = 0
    for row in await cursor.fetchall():
        reward = recorded_reward(row[3:])
        length += sum(len(told) for told in reward if isinstance(told, str))
        if rewards and length > STRETCH_LENGTH_MAX:
            return Stretch(after, rewards, was_cut=True)
        rewards.append(Committed(Place._make(row[:3]), reward))
    return Stretch(after, rewards, was_cut=len(rewards) == limit)


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
