"""Which rewards share a ``transactionId`` of the sender, who says that each reward has its own.

Such a reward is posted as every other: its idempotency key is its rewardId. But somebody should
look, because it may have been given twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ledger.database import Connection, array


class Told(NamedTuple):
    """A reward, and the transactionId that a delivery told of it."""

    reward_id: str
    transaction_id: str


class Shared(NamedTuple):
    """A reward that came under the transactionId of another."""

    reward_id: str
    first_reward_id: str
    """The first that came under it."""


# One probe of the index for each, however many rewards have come under one transactionId.
_FIRST = """
SELECT asked.reward_id, first.reward_id
FROM unnest(%(reward_id)s::text[], %(transaction_id)s::text[]) AS asked (reward_id, transaction_id)
CROSS JOIN LATERAL (
    SELECT reward_id, transaction_id
    FROM rewards
    WHERE hashtextextended(rewards.transaction_id, 0) = hashtextextended(asked.transaction_id, 0)
        AND rewards.transaction_id IS NOT NULL
    ORDER BY number
    LIMIT 1
) AS first
WHERE first.transaction_id = asked.transaction_id AND first.reward_id <> asked.reward_id
"""


async def shared(connection: Connection, rewards: Sequence[Told]) -> list[Shared]:
    """Those of ``rewards`` that were not the first under their transactionId.

    The first is the one whose number is the lowest. Numbers are drawn while posting: until every
    statement is over that began before one's own was, a lower one may still appear.
    """
    cursor = await connection.execute(
        _FIRST,
        {
            "reward_id": array(told.reward_id for told in rewards),
            "transaction_id": array(told.transaction_id for told in rewards),
        },
    )
    return [Shared(*row) for row in await cursor.fetchall()]
