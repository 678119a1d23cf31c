"""Verifying along accounts: versions, balances, times and sums, from the postings.

Users are looked at in slices, each by itself. House accounts have few rows and many postings:
their sums are derived in one pass over all.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ledger.account import USER
from ledger.database import Connection, array
from ledger.operations.finding import SEALED, Finding, find


class Users(NamedTuple):
    """Whose accounts are looked at: the slice of all users with this number, or some by name."""

    slice: int = 0
    slices: int = 1
    """A power of two."""
    names: Sequence[str] | None = None

    def asked(self) -> dict[str, object]:
        """As the statements below ask for them."""
        names = accounts = None
        if self.names is not None:
            names = array(self.names)
            accounts = array(USER.account(name) for name in self.names)
        return {"slice": self.slice, "mask": self.slices - 1, "users": names, "accounts": accounts}


_LOOK_AT_CHAINS = """
SELECT
    checked.rule,
    CASE WHEN is_scale_wrong AND checked.rule = 'an amount has the decimals of its currency'
        THEN coalesce(reward_id, correction_key)
        ELSE concat(user_id, ' ', currency, ' v', version)
    END,
    checked.expected, checked.found
FROM (
    SELECT
        user_id, currency, version, reward_id, correction_key, amount, balance_after, posted_at,
        currencies.scale AS decimals,
        scale(amount) IS DISTINCT FROM currencies.scale AS is_scale_wrong,
        postings.seal IS DISTINCT FROM posting_seal(postings) AS is_unsealed,
        row_number() OVER so_far AS place,
        sum(CASE WHEN credit_account = 'user:' || user_id THEN amount ELSE -amount END)
            OVER so_far AS balance,
        lag(posted_at) OVER so_far AS previous
    FROM postings
    LEFT JOIN currencies ON currencies.code = postings.currency
    WHERE (%(users)s::text[] IS NULL OR user_id = ANY(%(users)s::text[]))
      AND (%(mask)s::bigint = 0 OR hashtextextended(user_id, 0) & %(mask)s::bigint = %(slice)s)
    WINDOW so_far AS (
        PARTITION BY user_id, currency ORDER BY version ROWS UNBOUNDED PRECEDING
    )
) AS chain
CROSS JOIN LATERAL (
    VALUES
        (
            'versions count without a gap', version IS DISTINCT FROM place,
            place::text, version::text
        ),
        (
            'each balance after is the one before and its posting',
            balance_after IS DISTINCT FROM balance, balance::text, balance_after::text
        ),
        (
            'time does not run backwards along versions', posted_at < previous,
            'at or after ' || previous, posted_at::text
        ),
        (
            'an amount has the decimals of its currency', is_scale_wrong,
            decimals || ' decimals', amount::text
        ),
        (
            %(sealed)s, is_unsealed,
            'as it was when it was sealed', 'changed since'
        )
) AS checked (rule, is_broken, expected, found)
WHERE (
    version IS DISTINCT FROM place OR balance_after IS DISTINCT FROM balance
    OR posted_at < previous OR is_scale_wrong OR is_unsealed
)
  AND checked.is_broken
"""

_LOOK_AT_SUMS = """
SELECT checked.rule, checked.subject, checked.expected, checked.found
FROM (
    SELECT user_id, currency,
           coalesce(sum(amount) FILTER (WHERE debit_account = 'user:' || user_id), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE credit_account = 'user:' || user_id), 0) AS credits,
           count(*) AS version, max(posted_at) AS posted_at
    FROM postings
    WHERE (%(users)s::text[] IS NULL OR user_id = ANY(%(users)s::text[]))
      AND (%(mask)s::bigint = 0 OR hashtextextended(user_id, 0) & %(mask)s::bigint = %(slice)s)
    GROUP BY user_id, currency
) AS derived
FULL JOIN (
    SELECT substr(account, 6) AS user_id, currency, debits, credits, version, posted_at
    FROM balances
    WHERE starts_with(account, 'user:')
      AND (%(accounts)s::text[] IS NULL OR account = ANY(%(accounts)s::text[]))
      AND (
          %(mask)s::bigint = 0
          OR hashtextextended(substr(account, 6), 0) & %(mask)s::bigint = %(slice)s
      )
) AS held ON held.user_id = derived.user_id AND held.currency = derived.currency
CROSS JOIN LATERAL (
    VALUES
        (
            'a balance is the sum of its entries',
            concat(
                'user:', coalesce(derived.user_id, held.user_id), ' ',
                coalesce(derived.currency, held.currency)
            ),
            (derived.debits, derived.credits, derived.version)
                IS DISTINCT FROM (held.debits, held.credits, held.version),
            derived.debits || ' / ' || derived.credits || ' v' || derived.version,
            held.debits || ' / ' || held.credits || ' v' || held.version
        ),
        (
            'a user''s balance has the time of its last posting',
            concat('user:', derived.user_id, ' ', derived.currency),
            held.posted_at <> derived.posted_at, derived.posted_at::text, held.posted_at::text
        )
) AS checked (rule, subject, is_broken, expected, found)
WHERE ((derived.debits, derived.credits, derived.version, derived.posted_at)
        IS DISTINCT FROM (held.debits, held.credits, held.version, held.posted_at))
  AND checked.is_broken
"""


async def look_at_users(connection: Connection, users: Users) -> list[Finding]:
    """What does not hold along the accounts of ``users``."""
    asked = users.asked()
    return [
        *await find(connection, _LOOK_AT_CHAINS, sealed=SEALED, **asked),
        *await find(connection, _LOOK_AT_SUMS, **asked),
    ]


# Each posting has one leg that is not the user's own, so the house's sum up all postings.
_LOOK_AT_HOUSES = """
WITH houses AS MATERIALIZED (
    SELECT
        account, currency, coalesce(sum(amount) FILTER (WHERE is_debit), 0) AS debits,
        coalesce(sum(amount) FILTER (WHERE NOT is_debit), 0) AS credits, count(*) AS version
    FROM (
        SELECT
            currency, amount, credit_account = 'user:' || user_id AS is_debit,
            CASE WHEN credit_account = 'user:' || user_id THEN debit_account ELSE credit_account END
                AS account
        FROM postings
    ) AS legs
    GROUP BY account, currency
)
(
    SELECT
        'a balance is the sum of its entries',
        concat_ws(
            ' ', coalesce(derived.account, held.account),
            coalesce(derived.currency, held.currency)
        ),
        derived.debits || ' / ' || derived.credits || ' v' || derived.version,
        held.debits || ' / ' || held.credits || ' v' || held.version
    FROM houses AS derived
    FULL JOIN (
        SELECT account, currency, debits, credits, version FROM balances
        WHERE NOT starts_with(account, 'user:')
    ) AS held ON held.account = derived.account AND held.currency = derived.currency
    WHERE (derived.debits, derived.credits, derived.version)
        IS DISTINCT FROM (held.debits, held.credits, held.version)
)
UNION ALL
(
    SELECT
        'debits and credits of a currency are the sum of its postings',
        concat('currency ', coalesce(derived.currency, held.currency)),
        derived.amount || ' / ' || derived.amount,
        held.debits || ' / ' || held.credits
    FROM (
        SELECT currency, sum(debits + credits) AS amount FROM houses GROUP BY currency
    ) AS derived
    FULL JOIN (
        SELECT currency, sum(debits) AS debits, sum(credits) AS credits
        FROM balances GROUP BY currency
    ) AS held ON held.currency = derived.currency
    WHERE (derived.amount, derived.amount) IS DISTINCT FROM (held.debits, held.credits)
)
"""


async def look_at_houses(connection: Connection) -> list[Finding]:
    """What does not hold of the house accounts' balances, and of all balances together."""
    return await find(connection, _LOOK_AT_HOUSES)
