"""``ledger verify``: the books against themselves, and against what the ingress counted.

Everything that can be derived is derived again, from the postings and from the rewards, and each
difference is named. It reads one snapshot and never writes.

Of what the ingress counted, two things are true whatever was killed when. Each worker writes both
sides of its sum at once, so the sum holds in every row. And it counts only what was committed
before, so the books hold at least what it counted; they may hold more, because what a worker did
in its last second nobody has counted.
"""

from typing import NamedTuple

from ledger.database import Connection
from ledger.operations import verify_finance
from ledger.tallying import Tally


class Finding(NamedTuple):
    """One thing that does not hold."""

    rule: str
    """Which rule is broken, as a sentence."""
    subject: str
    """The account, reward or posting that breaks it."""
    expected: str | None
    """What follows from the rest of the books; ``None``: it should not be there."""
    found: str | None
    """What stands there; ``None``: it is missing."""


async def verify(connection: Connection) -> list[Finding]:
    """Every difference in the books, empty when they hold.

    Needs a connection outside a database transaction; a role that may read is enough.
    """
    findings: list[Finding] = []
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for rule, query in _RULES.items():
            cursor = await connection.execute(query)
            findings += [Finding(rule, *row) for row in await cursor.fetchall()]
    return findings


def in_words(tally: Tally) -> str:
    """The sum of ``tally`` as a line for a person, without what never happened."""
    outcomes = [
        f"{outcome.replace('_', ' ')} {count}"
        for outcome, count in tally.outcomes().items()
        if count
    ]
    is_so = "=" if tally.believed == sum(tally.outcomes().values()) else "is not"
    said = f"believed deliveries {tally.believed} {is_so} {' + '.join(outcomes) or 0}"
    drained = [f"{outcome} {count}" for outcome, count in tally.drained().items() if count]
    return f"{said}; from the spool: {' + '.join(drained)}" if drained else said


_BALANCES = """
SELECT
    coalesce(derived.account, held.account) || ' ' || coalesce(derived.currency, held.currency),
    derived.debits || ' / ' || derived.credits || ' v' || derived.version,
    held.debits || ' / ' || held.credits || ' v' || held.version
FROM (
    SELECT account, currency,
           coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits,
           count(*) AS version, max(posted_at) AS posted_at
    FROM entries
    GROUP BY account, currency
) AS derived
FULL JOIN balances AS held
    ON held.account = derived.account AND held.currency = derived.currency
WHERE (derived.debits, derived.credits, derived.version)
    IS DISTINCT FROM (held.debits, held.credits, held.version)
"""

_BALANCE_TIMES = """
SELECT held.account || ' ' || held.currency, derived.posted_at::text, held.posted_at::text
FROM (
    SELECT user_id, currency, max(posted_at) AS posted_at FROM postings GROUP BY user_id, currency
) AS derived
JOIN balances AS held
    ON held.account = 'user:' || derived.user_id AND held.currency = derived.currency
WHERE held.posted_at <> derived.posted_at
"""

_VERSIONS = """
SELECT user_id || ' ' || currency || ' v' || version, place::text, version::text
FROM (
    SELECT user_id, currency, version,
           row_number() OVER (PARTITION BY user_id, currency ORDER BY version) AS place
    FROM postings
) AS chain
WHERE version <> place
"""

_RUNNING_BALANCES = """
SELECT user_id || ' ' || currency || ' v' || version, derived::text, balance_after::text
FROM (
    SELECT user_id, currency, version, balance_after,
           sum(CASE WHEN credit_account = 'user:' || user_id THEN amount ELSE -amount END)
               OVER (PARTITION BY user_id, currency ORDER BY version) AS derived
    FROM postings
) AS chain
WHERE balance_after <> derived
"""

_TIMES = """
SELECT user_id || ' ' || currency || ' v' || version, 'at or after ' || previous, posted_at::text
FROM (
    SELECT user_id, currency, version, posted_at,
           lag(posted_at) OVER (PARTITION BY user_id, currency ORDER BY version) AS previous
    FROM postings
) AS chain
WHERE posted_at < previous
"""

_BOOKED_AS_TOLD = """
SELECT
    coalesce(rewards.reward_id, postings.reward_id),
    CASE WHEN rewards.currency IS NOT NULL THEN concat_ws(
        ' ', rewards.user_id, 'campaign:' || rewards.campaign_id, 'user:' || rewards.user_id,
        rewards.currency, trim_scale(rewards.reward_amount)
    ) END,
    CASE WHEN postings.reward_id IS NOT NULL THEN concat_ws(
        ' ', postings.user_id, postings.debit_account, postings.credit_account,
        postings.currency, trim_scale(postings.amount)
    ) END
FROM rewards
FULL JOIN postings ON postings.reward_id = rewards.reward_id
WHERE (
    rewards.user_id, 'campaign:' || rewards.campaign_id, 'user:' || rewards.user_id,
    rewards.currency, rewards.reward_amount
) IS DISTINCT FROM (
    postings.user_id, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount
)
AND (rewards.currency IS NOT NULL OR postings.reward_id IS NOT NULL)
"""

_CORRECTED_AS_RECORDED = """
SELECT
    coalesce(corrections.correction_key, postings.correction_key),
    concat_ws(
        ' ', corrections.user_id, corrections.debit_account, corrections.credit_account,
        corrections.currency, trim_scale(corrections.amount)
    ),
    concat_ws(
        ' ', postings.user_id, postings.debit_account, postings.credit_account,
        postings.currency, trim_scale(postings.amount)
    )
FROM corrections
FULL JOIN (
    SELECT correction_key, user_id, debit_account, credit_account, currency, amount
    FROM postings WHERE correction_key IS NOT NULL
) AS postings ON postings.correction_key = corrections.correction_key
WHERE (
    corrections.user_id, corrections.debit_account, corrections.credit_account,
    corrections.currency, corrections.amount
) IS DISTINCT FROM (
    postings.user_id, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount
)
"""

_REVERSED = """
SELECT
    reversed.reward_id,
    concat_ws(
        ' ', 'at most', trim_scale(postings.amount), postings.currency,
        'from', credit_account, 'to', debit_account
    ),
    concat_ws(
        ' ', trim_scale(reversed.amount), reversed.currency, 'from', debits, 'to', credits
    )
FROM (
    SELECT reward_id, currency, sum(amount) AS amount,
           min(debit_account) AS debits, min(credit_account) AS credits,
           count(DISTINCT (debit_account, credit_account)) AS ways
    FROM corrections
    WHERE kind = 'reversal'
    GROUP BY reward_id, currency
) AS reversed
LEFT JOIN postings ON postings.reward_id = reversed.reward_id
WHERE ways <> 1
    OR (reversed.currency, debits, credits)
        IS DISTINCT FROM (postings.currency, credit_account, debit_account)
    OR reversed.amount > postings.amount
"""

_APPROVED = """
SELECT
    corrections.correction_key,
    concat_ws(
        ' ', trim_scale(proposals.amount), proposals.currency, proposals.debit_account,
        proposals.credit_account, proposals.reason, proposed_by, decided_by, state
    ),
    concat_ws(
        ' ', trim_scale(corrections.amount), corrections.currency, corrections.debit_account,
        corrections.credit_account, corrections.reason, actor, approver, 'approved'
    )
FROM (
    SELECT correction_key, currency, debit_account, credit_account, amount, reason, actor, approver
    FROM corrections WHERE kind = 'adjustment'
) AS corrections
FULL JOIN (
    SELECT proposal_key, currency, debit_account, credit_account, amount, reason, proposed_by,
           decided_by, state
    FROM proposals WHERE state = 'approved'
) AS proposals ON proposals.proposal_key = corrections.correction_key
WHERE (
    corrections.currency, corrections.debit_account, corrections.credit_account,
    corrections.amount, corrections.reason, actor, approver
) IS DISTINCT FROM (
    proposals.currency, proposals.debit_account, proposals.credit_account,
    proposals.amount, proposals.reason, proposed_by, decided_by
)
"""

_SCALES = """
SELECT
    coalesce(postings.reward_id, postings.correction_key),
    currencies.scale || ' decimals', postings.amount::text
FROM postings
LEFT JOIN currencies ON currencies.code = postings.currency
WHERE scale(postings.amount) IS DISTINCT FROM currencies.scale
"""

# The same text as `ledger.reward.Reward.fingerprint`, put together a second time.
_FINGERPRINTS = """
SELECT reward_id, encode(derived, 'hex'), encode(fingerprint, 'hex')
FROM (
    SELECT reward_id, fingerprint, sha256(
        convert_to(user_id, 'UTF8') || '\\x00'::bytea
        || convert_to(coalesce(trim_scale(reward_amount)::text, ''), 'UTF8') || '\\x00'::bytea
        || convert_to(coalesce(currency, ''), 'UTF8') || '\\x00'::bytea
        || convert_to(campaign_id, 'UTF8') || '\\x00'::bytea
        || convert_to(coalesce(reward_type, ''), 'UTF8') || '\\x00'::bytea
        || convert_to(coalesce(code, ''), 'UTF8')
    ) AS derived
    FROM rewards
) AS hashed
WHERE fingerprint <> derived
"""

_DIGESTS = """
SELECT reward_id, encode(sha256(believed_bytes), 'hex'), encode(believed_bytes_sha256, 'hex')
FROM rewards
WHERE believed_bytes_sha256 <> sha256(believed_bytes)
"""

_TOTALS = """
SELECT
    coalesce(derived.currency, held.currency),
    derived.amount || ' / ' || derived.amount,
    held.debits || ' / ' || held.credits
FROM (SELECT currency, sum(amount) AS amount FROM postings GROUP BY currency) AS derived
FULL JOIN (
    SELECT currency, sum(debits) AS debits, sum(credits) AS credits FROM balances GROUP BY currency
) AS held ON held.currency = derived.currency
WHERE (derived.amount, derived.amount) IS DISTINCT FROM (held.debits, held.credits)
"""

_PERIODS = """
SELECT
    concat_ws(
        ' ', coalesce(derived.currency, held.currency), coalesce(derived.period, held.period),
        coalesce(derived.starts_at, held.starts_at)
    ),
    concat_ws(' ', derived.amount, derived.postings, derived.users, derived.corrections),
    concat_ws(' ', held.amount, held.postings, held.users, held.corrections)
FROM (
    SELECT currency, period, date_trunc(period, posted_at, 'UTC') AS starts_at,
           sum(amount) AS amount, count(*) AS postings,
           count(*) FILTER (WHERE version = 1) AS users, count(correction_key) AS corrections
    FROM postings CROSS JOIN (VALUES ('day'), ('minute')) AS periods (period)
    GROUP BY currency, period, date_trunc(period, posted_at, 'UTC')
) AS derived
FULL JOIN period_totals AS held
    ON held.currency = derived.currency AND held.period = derived.period
    AND held.starts_at = derived.starts_at
WHERE (derived.amount, derived.postings, derived.users, derived.corrections)
    IS DISTINCT FROM (held.amount, held.postings, held.users, held.corrections)
"""

# From the commits, each of which finds its few rewards by index: those that stood there when
# commits were first counted have one each, and all the same writer.
_PLACES = """
SELECT reward_id, 'in 1 commit', 'in ' || coalesce(commits, 0)
FROM rewards
LEFT JOIN (
    SELECT found.reward_id, count(*) AS commits
    FROM commits
    CROSS JOIN LATERAL (
        SELECT reward_id
        FROM rewards
        WHERE rewards.written_by = commits.written_by
          AND rewards.number BETWEEN commits.first_number AND commits.last_number
        OFFSET 0
    ) AS found
    GROUP BY found.reward_id
) AS placed USING (reward_id)
WHERE commits IS DISTINCT FROM 1
"""

_OUTCOMES = """
SELECT 'worker ' || worker, answered::text, believed::text
FROM (
    SELECT worker, believed,
           credited + recorded + ignored + replayed + conflicts + quarantined + spooled
               + unavailable + abandoned + in_flight AS answered
    FROM tallies
) AS counted
WHERE believed <> answered
"""

_COUNTED = """
SELECT subject, 'at least ' || counted, found::text
FROM (
    SELECT 'postings' AS subject, (SELECT sum(credited + drained_credited) FROM tallies) AS counted,
           (SELECT count(reward_id) FROM postings) AS found
    UNION ALL
    SELECT 'rewards without a posting', (SELECT sum(recorded + drained_recorded) FROM tallies),
           (SELECT count(*) FROM rewards WHERE currency IS NULL)
    UNION ALL
    SELECT 'deliveries seen by the quarantine', (SELECT sum(kept) FROM tallies),
           (SELECT coalesce(sum(seen), 0) FROM quarantine)
) AS compared
WHERE found < counted
"""

_RULES = {
    "a balance is the sum of its entries": _BALANCES,
    "a user's balance has the time of its last posting": _BALANCE_TIMES,
    "versions count without a gap": _VERSIONS,
    "each balance after is the one before and its posting": _RUNNING_BALANCES,
    "time does not run backwards along versions": _TIMES,
    "what was told is what was posted": _BOOKED_AS_TOLD,
    "a correction is posted as it was recorded": _CORRECTED_AS_RECORDED,
    "a reversal takes back what its reward posted": _REVERSED,
    "an adjustment is what two persons agreed on": _APPROVED,
    "an amount has the decimals of its currency": _SCALES,
    "the fingerprint is of what was told": _FINGERPRINTS,
    "the digest is of the believed bytes": _DIGESTS,
    "debits and credits of a currency are the sum of its postings": _TOTALS,
    "a period's totals are the sum of its postings": _PERIODS,
    "each reward has one place in commit order": _PLACES,
    "each believed delivery has one outcome": _OUTCOMES,
    "what the ingress counted as done stands in the books": _COUNTED,
    **verify_finance.RULES,
}
