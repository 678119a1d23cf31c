"""The history of a user: rewards and corrections as they stand in the books, in one order.

Both have their numbers from one sequence, so a line of history is the one or the other.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from ledger.correction import Corrected, CorrectionKind
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
    reversed: str | None
    """How much of it was taken back; ``None`` if nothing was."""

    @property
    def currency(self) -> str | None:
        """What it was posted in; ``None`` if nothing was posted."""
        return self.posting and self.posting.currency

    @property
    def length(self) -> int:
        """How many characters of text it holds."""
        return _length(self)


class RecordedCorrection(NamedTuple):
    """A correction as it stands in the books; of a reversal, also what its reward was of."""

    number: int
    corrected: Corrected
    campaign_id: str | None
    type: str | None
    recorded_at: datetime

    @property
    def user_id(self) -> str:
        """Whose balance it corrects."""
        return self.corrected.user_id

    @property
    def currency(self) -> str:
        """What it was posted in."""
        return self.corrected.currency

    @property
    def length(self) -> int:
        """How many characters of text it holds."""
        return _length(self.corrected)


Line: TypeAlias = RecordedReward | RecordedCorrection


def _length(values: tuple[object, ...]) -> int:
    return sum(len(value) for value in values if isinstance(value, str))


class RewardFilter(NamedTuple):
    """Which part of a user's history is asked for; ``None`` asks for any."""

    user_id: str
    currency: str | None = None
    campaign_id: str | None = None
    type: str | None = None
    start_time: datetime | None = None
    """Recorded at this time or later."""
    end_time: datetime | None = None
    """Recorded before this time."""


class HistoryPage(NamedTuple):
    """Some of a user's rewards and corrections, newest first."""

    lines: list[Line]
    below: int | None
    """Below which number the next page begins; ``None`` after the last."""


# The text that a reward came in bounds what is told of it, and to know its length costs nothing.
# Each arm comes from its index in order, so that the two are merged and neither is read further
# than it is needed.
_LIST_HISTORY = """
SELECT
    page.is_chosen, page.goes_on,
    page.number, page.reward_id, coalesce(rewards.user_id, booked.user_id),
    rewards.campaign_id, rewards.type, rewards.reward_type, rewards.reward_name, rewards.status,
    rewards.transaction_id, rewards.reward_category, rewards.details::text,
    rewards.reward_expires_at, page.recorded_at, rewards.code, booked.debit_account,
    booked.credit_account, booked.currency, booked.amount::text, booked.version,
    booked.balance_after::text, booked.posted_at,
    (
        SELECT round(sum(amount), scale(booked.amount))::text
        FROM corrections WHERE reward_id = page.reward_id
    ),
    page.correction_key, booked.kind, booked.reason, booked.actor, booked.approver
FROM (
    SELECT
        number, reward_id, correction_key, recorded_at, is_chosen,
        is_last OR lead(number) OVER newest_first IS NOT NULL AS goes_on,
        sum(length) OVER (
            newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS length_before
    FROM (
        SELECT
            number, reward_id, correction_key, recorded_at, length,
            row_number() OVER (ORDER BY number DESC) = %(looked_at_max)s AS is_last,
            (%(currency)s::text IS NULL OR currency = %(currency)s)
            AND (%(campaign_id)s::text IS NULL OR campaign_id = %(campaign_id)s)
            AND (%(type)s::text IS NULL OR type = %(type)s)
            AND (%(start_time)s::timestamptz IS NULL OR recorded_at >= %(start_time)s)
            AND (%(end_time)s::timestamptz IS NULL OR recorded_at < %(end_time)s) AS is_chosen
        FROM (
            (
                SELECT
                    number, reward_id, NULL AS correction_key, currency, campaign_id, type,
                    recorded_at, octet_length(believed_bytes) AS length
                FROM rewards
                WHERE user_id = %(user_id)s AND number < %(before)s
                ORDER BY number DESC
                LIMIT %(looked_at_max)s
            )
            UNION ALL
            (
                SELECT
                    corrections.number, corrections.reward_id, correction_key,
                    corrections.currency, campaign_id, type, corrections.recorded_at,
                    octet_length(reason)
                FROM corrections
                LEFT JOIN rewards ON rewards.reward_id = corrections.reward_id
                WHERE corrections.user_id = %(user_id)s AND corrections.number < %(before)s
                ORDER BY corrections.number DESC
                LIMIT %(looked_at_max)s
            )
            ORDER BY number DESC
            LIMIT %(looked_at_max)s
        ) AS history
    ) AS looked_at
    WHERE is_chosen OR is_last
    WINDOW newest_first AS (ORDER BY number DESC)
    ORDER BY number DESC
    LIMIT %(limit)s
) AS page
LEFT JOIN rewards ON rewards.reward_id = page.reward_id
LEFT JOIN LATERAL (
    SELECT
        user_id, debit_account, credit_account, currency, amount, version, balance_after,
        posted_at, NULL AS kind, NULL AS reason, NULL AS actor, NULL AS approver
    FROM postings
    WHERE page.correction_key IS NULL AND postings.reward_id = page.reward_id
    UNION ALL
    SELECT
        postings.user_id, postings.debit_account, postings.credit_account, postings.currency,
        postings.amount, version, balance_after, posted_at, kind, reason, actor, approver
    FROM corrections
    JOIN postings ON postings.correction_key = corrections.correction_key
    WHERE corrections.correction_key = page.correction_key
) AS booked ON true
WHERE coalesce(page.length_before, 0) < %(length_max)s
ORDER BY page.number DESC
"""


async def list_history(
    connection: Connection,
    chosen: RewardFilter,
    before: int,
    limit: int,
    *,
    looked_at_max: int = UNBOUNDED,
    length_max: int = UNBOUNDED,
) -> HistoryPage:
    """At most ``limit`` of the chosen lines, newest first, with a number below ``before``.

    It ends early when ``looked_at_max`` of them were looked at, or when what they came in has
    ``length_max`` bytes. A filter of campaign or type keeps the reversals of such rewards.
    """
    cursor = await connection.execute(
        _LIST_HISTORY,
        {
            **chosen._asdict(),
            "before": before,
            "limit": limit,
            "looked_at_max": looked_at_max,
            "length_max": length_max,
        },
    )
    lines = []
    below = None
    for is_chosen, goes_on, *row in await cursor.fetchall():
        if is_chosen:
            lines.append(line_of(tuple(row)))
        below = row[0] if goes_on else None
    return HistoryPage(lines, below)


_GET_REWARD = """
SELECT
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at,
    (
        SELECT round(sum(amount), scale(postings.amount))::text
        FROM corrections WHERE reward_id = rewards.reward_id
    )
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
    return _reward_of(row)


def line_of(row: tuple[Any, ...]) -> Line:
    """The line of a row with the columns of ``_LIST_HISTORY`` from the number on."""
    *told, key, kind, reason, actor, approver = row
    if key is None:
        return _reward_of(told)
    number, reward_id, user_id, campaign_id, type_ = told[:5]
    recorded_at = told[12]
    debit, credit, currency, amount, version, balance_after, posted_at = told[14:21]
    corrected = Corrected(
        key, CorrectionKind(kind), reward_id, user_id, debit, credit, currency, plain(amount),
        reason, actor, approver, version, plain(balance_after), posted_at,
    )  # fmt: skip
    return RecordedCorrection(number, corrected, campaign_id, type_, recorded_at)


def _reward_of(row: Sequence[Any]) -> RecordedReward:
    told, booked, taken_back = row[:14], row[14:21], row[21]
    debit, credit, currency, amount, version, balance_after, posted_at = booked
    posting = None
    if version is not None:
        posting = Booked(
            debit, credit, currency, plain(amount), version, plain(balance_after), posted_at
        )
    return RecordedReward._make((*told, posting, taken_back and plain(taken_back)))
