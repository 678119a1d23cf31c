"""``ledger totals`` of a period and ``ledger trial-balance``: what finance asks of the roll-ups.

Each is one statement in one snapshot, and reads no reward: movements are kept by day
(``migrations/0011_movements.sql``), the periods' totals by day and minute.
"""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from ledger.account import KINDS, Side
from ledger.database import Connection
from ledger.money import plain


class Group(StrEnum):
    """By what movements are told apart, besides their currency."""

    CAMPAIGN = "campaign"
    TYPE = "type"
    REWARD_TYPE = "reward-type"
    CATEGORY = "category"


class Movement(NamedTuple):
    """What users are owed in one currency, or in one group of it, and what moved it in a period."""

    currency: str
    group: str | None
    """Empty for what tells none, such as an adjustment; ``None`` when all are told together."""
    opening: str
    rewarded: str
    reversed: str
    """Taken back of rewards, and so below zero."""
    adjusted: str
    """Granted less taken."""
    closing: str
    rewards: int
    reversals: int
    adjustments: int


class Control(NamedTuple):
    """What one currency's movements must come to.

    Debits are told by the movements, credits by the periods' totals, which are kept beside them:
    each posting is both.
    """

    currency: str
    debits: str
    credits: str
    difference: str
    postings: int


class Totals(NamedTuple):
    """The movements of a period, by currency and group, and their control by currency."""

    movements: list[Movement]
    controls: list[Control]


# First summed with few aggregates, as that is done for every row; then laid out.
_LIST_MOVEMENTS = """
WITH summed AS (
    SELECT
        currency, kind, false AS is_within,
        CASE %(group)s
            WHEN 'campaign' THEN campaign_id WHEN 'type' THEN type
            WHEN 'reward-type' THEN reward_type WHEN 'category' THEN reward_category
        END AS name,
        sum(credits - debits) AS moved, 0 AS amount, 0 AS postings
    FROM movements
    WHERE day < %(start)s
    GROUP BY 1, 2, 4
    UNION ALL
    SELECT
        currency, kind, true,
        CASE %(group)s
            WHEN 'campaign' THEN campaign_id WHEN 'type' THEN type
            WHEN 'reward-type' THEN reward_type WHEN 'category' THEN reward_category
        END AS name,
        sum(credits - debits), sum(credits + debits), sum(postings)
    FROM movements
    WHERE day >= %(start)s AND day < %(end)s
    GROUP BY 1, 2, 4
),
laid_out AS (
    SELECT
        currency, name,
        coalesce(sum(moved) FILTER (WHERE NOT is_within), 0) AS opening,
        coalesce(sum(moved) FILTER (WHERE is_within AND kind = 'reward'), 0) AS rewarded,
        coalesce(sum(moved) FILTER (WHERE is_within AND kind = 'reversal'), 0) AS reversed,
        coalesce(sum(moved) FILTER (WHERE is_within AND kind = 'adjustment'), 0) AS adjusted,
        sum(moved) AS closing,
        coalesce(sum(postings) FILTER (WHERE kind = 'reward'), 0) AS rewards,
        coalesce(sum(postings) FILTER (WHERE kind = 'reversal'), 0) AS reversals,
        coalesce(sum(postings) FILTER (WHERE kind = 'adjustment'), 0) AS adjustments
    FROM summed
    GROUP BY currency, name
),
moved AS (
    SELECT currency, sum(amount) AS amount, sum(postings) AS postings
    FROM summed
    GROUP BY currency
),
totalled AS (
    SELECT currency, sum(amount) AS amount
    FROM period_totals
    WHERE period = 'day'
      AND starts_at >= %(start)s::timestamp AT TIME ZONE 'UTC'
      AND starts_at < %(end)s::timestamp AT TIME ZONE 'UTC'
    GROUP BY currency
)
SELECT
    laid_out.currency, name, opening::text, rewarded::text, reversed::text, adjusted::text,
    closing::text, rewards::bigint, reversals::bigint, adjustments::bigint,
    coalesce(moved.currency, totalled.currency), coalesce(moved.amount, 0)::text,
    coalesce(totalled.amount, 0)::text,
    (coalesce(moved.amount, 0) - coalesce(totalled.amount, 0))::text,
    coalesce(moved.postings, 0)::bigint
FROM moved
JOIN laid_out ON laid_out.currency = moved.currency
FULL JOIN totalled ON totalled.currency = moved.currency
ORDER BY coalesce(moved.currency, totalled.currency), name
"""


# The service's connections plan for questions that find little, by index; this one reads it all.
_PLAN_ANEW = """
SELECT set_config('enable_seqscan', 'on', true), set_config('plan_cache_mode', 'auto', true),
       set_config('enable_hashjoin', 'on', true)
"""


async def list_movements(
    connection: Connection, start: date, end: date, group: Group | None = None
) -> Totals:
    """What was posted from the day ``start`` to before the day ``end``, in UTC.

    Every currency, and every group, that was posted in before ``end`` is told. A role that may
    read is enough.
    """
    told = {"start": start, "end": end, "group": group}
    async with connection.transaction():
        await connection.execute(_PLAN_ANEW)
        cursor = await connection.execute(_LIST_MOVEMENTS, told, prepare=False)
        rows = await cursor.fetchall()
    movements: list[Movement] = []
    controls: dict[str, Control] = {}
    for row in rows:
        moved, (currency, *amounts, postings) = row[:10], row[10:]
        if moved[0] is not None:
            movements.append(Movement(*moved[:2], *map(plain, moved[2:7]), *moved[7:]))
        debits, credits_, difference = map(plain, amounts)
        controls[currency] = Control(currency, debits, credits_, difference, postings)
    return Totals(movements, list(controls.values()))


class AccountKind(NamedTuple):
    """All accounts of one kind in one currency."""

    kind: str
    """``user``, ``campaign`` or ``adjustment``."""
    debits: str
    credits: str
    balance: str
    """The kind's normal side less the other."""
    postings: int
    """How many postings touched one of them."""


class TrialBalance(NamedTuple):
    """All accounts of one currency, by their kind, whose debits and credits must agree."""

    currency: str
    accounts: list[AccountKind]
    debits: str
    credits: str
    difference: str
    postings: int


# As in `ledger.reading`: whole days, then whole minutes of that day, then that minute's postings.
# `granted` and `taken` are adjustments: to users, and from them.
_LIST_TRIAL_BALANCE = """
WITH parts AS (
    SELECT currency, amount, postings, corrections, reversals, reversed, granted, taken
    FROM period_totals
    WHERE period = 'day'
      AND (
          %(as_of)s::timestamptz IS NULL
          OR starts_at < date_trunc('day', %(as_of)s::timestamptz, 'UTC')
      )
    UNION ALL
    SELECT currency, amount, postings, corrections, reversals, reversed, granted, taken
    FROM period_totals
    WHERE period = 'minute'
      AND starts_at >= date_trunc('day', %(as_of)s::timestamptz, 'UTC')
      AND starts_at < date_trunc('minute', %(as_of)s::timestamptz, 'UTC')
    UNION ALL
    SELECT
        postings.currency, postings.amount, 1, num_nonnulls(postings.correction_key),
        CASE WHEN kind = 'reversal' THEN 1 ELSE 0 END,
        CASE WHEN kind = 'reversal' THEN postings.amount ELSE 0 END,
        CASE WHEN kind = 'adjustment' AND starts_with(postings.credit_account, 'user:')
            THEN postings.amount ELSE 0 END,
        CASE WHEN kind = 'adjustment' AND starts_with(postings.debit_account, 'user:')
            THEN postings.amount ELSE 0 END
    FROM postings
    LEFT JOIN corrections ON corrections.correction_key = postings.correction_key
    WHERE posted_at >= date_trunc('minute', %(as_of)s::timestamptz, 'UTC')
      AND posted_at <= %(as_of)s::timestamptz
),
summed AS (
    SELECT
        currency, sum(amount) AS amount, sum(postings) AS postings,
        sum(corrections) AS corrections, sum(reversals) AS reversals, sum(reversed) AS reversed,
        sum(granted) AS granted, sum(taken) AS taken
    FROM parts
    GROUP BY currency
)
SELECT
    currency, kind, kinds.debits, kinds.credits, kinds.postings::bigint,
    (sum(kinds.debits) OVER whole)::text, (sum(kinds.credits) OVER whole)::text,
    (sum(kinds.debits) OVER whole - sum(kinds.credits) OVER whole)::text, summed.postings::bigint
FROM summed
CROSS JOIN LATERAL (
    VALUES
        (1, 'user', reversed + taken, amount - reversed - taken, postings),
        (2, 'campaign', amount - reversed - granted - taken, reversed,
         postings - corrections + reversals),
        (3, 'adjustment', granted, taken, corrections - reversals)
) AS kinds (place, kind, debits, credits, postings)
WHERE kinds.postings > 0
WINDOW whole AS (PARTITION BY currency)
ORDER BY currency, place
"""

_NORMAL_SIDES = {kind.prefix.removesuffix(":"): kind.normal_side for kind in KINDS}


async def list_trial_balance(
    connection: Connection, as_of: datetime | None = None
) -> list[TrialBalance]:
    """The trial balance of every currency after all postings up to and including ``as_of``.

    A role that may read is enough.
    """
    cursor = await connection.execute(_LIST_TRIAL_BALANCE, {"as_of": as_of})
    found: dict[str, TrialBalance] = {}
    for currency, kind, debits, credits_, postings, *whole in await cursor.fetchall():
        sums = (*map(plain, whole[:3]), *whole[3:])
        balance = found.setdefault(currency, TrialBalance(currency, [], *sums))
        is_debit = _NORMAL_SIDES[kind] is Side.DEBIT
        more = debits - credits_ if is_debit else credits_ - debits
        balance.accounts.append(
            AccountKind(kind, _text(debits), _text(credits_), _text(more), postings)
        )
    return list(found.values())


def _text(amount: Decimal) -> str:
    return plain(f"{amount:f}")
