"""What a user was told of: rewards as they stand in the books, one by one and page by page."""

from datetime import datetime
from typing import Any, NamedTuple

from ledger.database import Connection
from ledger.errors import RewardNotFound
from ledger.money import plain

UNBOUNDED = 2**62


class Booked(NamedTuple):
    """The posting of a reward as it stands in the books."""

    debit_account: str
    credit_account: str
    currency: str
    amount: str
    version: int
    balance_after: str
    posted_at: datetime


class RecordedReward(NamedTuple):
    """A reward as it stands in the books, without its bytes."""

    number: int
    reward_id: str
    user_id: str
    campaign_id: str
    type: str | None
    reward_type: str | None
    reward_name: str | None
    status: str | None
    transaction_id: str | None
    category: str | None
    details: str | None
    expires_at: datetime | None
    recorded_at: datetime
    code: str | None
    """The coupon's: for those alone who may see it."""
    posting: Booked | None


class RewardFilter(NamedTuple):
    """Which of a user's rewards are asked for; ``None`` asks for any."""

    user_id: str
    currency: str | None = None
    campaign_id: str | None = None
    type: str | None = None
    start_time: datetime | None = None
    """Recorded at this time or later."""
    end_time: datetime | None = None
    """Recorded before this time."""


class RewardPage(NamedTuple):
    """Some of a user's rewards, newest first."""

    rewards: list[RecordedReward]
    below: int | None
    """Below which number the next page begins; ``None`` after the last."""


# The text that a reward came in bounds what is told of it, and to know its length costs nothing.
_LIST_REWARDS = """
SELECT
    page.is_chosen, page.goes_on,
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM (
    SELECT
        number, is_chosen, is_last OR lead(number) OVER newest_first IS NOT NULL AS goes_on,
        sum(length) OVER (
            newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS length_before
    FROM (
        SELECT
            number, octet_length(believed_bytes) AS length,
            row_number() OVER (ORDER BY number DESC) = %(looked_at_max)s AS is_last,
            (%(currency)s::text IS NULL OR currency = %(currency)s)
            AND (%(campaign_id)s::text IS NULL OR campaign_id = %(campaign_id)s)
            AND (%(type)s::text IS NULL OR type = %(type)s)
            AND (%(start_time)s::timestamptz IS NULL OR recorded_at >= %(start_time)s)
            AND (%(end_time)s::timestamptz IS NULL OR recorded_at < %(end_time)s) AS is_chosen
        FROM rewards
        WHERE user_id = %(user_id)s AND number < %(before)s
        ORDER BY number DESC
        LIMIT %(looked_at_max)s
    ) AS looked_at
    WHERE is_chosen OR is_last
    WINDOW newest_first AS (ORDER BY number DESC)
    ORDER BY number DESC
    LIMIT %(limit)s
) AS page
JOIN rewards ON rewards.user_id = %(user_id)s AND rewards.number = page.number
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE coalesce(page.length_before, 0) < %(length_max)s
ORDER BY page.number DESC
"""


async def list_rewards(
    connection: Connection,
    chosen: RewardFilter,
    before: int,
    limit: int,
    *,
    looked_at_max: int = UNBOUNDED,
    length_max: int = UNBOUNDED,
) -> RewardPage:
    """At most ``limit`` of the chosen rewards, newest first, with a number below ``before``.

    It ends early when ``looked_at_max`` rewards were looked at, or when what they came in has
    ``length_max`` bytes.
    """
    cursor = await connection.execute(
        _LIST_REWARDS,
        {
            **chosen._asdict(),
            "before": before,
            "limit": limit,
            "looked_at_max": looked_at_max,
            "length_max": length_max,
        },
    )
    rewards = []
    below = None
    for is_chosen, goes_on, *row in await cursor.fetchall():
        if is_chosen:
            rewards.append(recorded_reward(tuple(row)))
        below = row[0] if goes_on else None
    return RewardPage(rewards, below)


_GET_REWARD = """
SELECT
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM rewards
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE rewards.reward_id = %(reward_id)s
"""


async def get_reward(connection: Connection, reward_id: str) -> RecordedReward:
    """The reward; raises ``RewardNotFound``."""
    cursor = await connection.execute(_GET_REWARD, {"reward_id": reward_id})
    row = await cursor.fetchone()
    if row is None:
        raise RewardNotFound
    return recorded_reward(row)


def recorded_reward(row: tuple[Any, ...]) -> RecordedReward:
    """The reward of a row that has its columns and its posting's, as ``_GET_REWARD`` lists them."""
    told, booked = row[:14], row[14:]
    debit, credit, currency, amount, version, balance_after, posted_at = booked
    posting = None
    if version is not None:
        posting = Booked(
            debit, credit, currency, plain(amount), version, plain(balance_after), posted_at
        )
    return RecordedReward._make((*told, posting))
