"""``ledger verify``: the books against themselves, and against what the ingress counted.

Everything that can be derived is derived again, from the postings and from the rewards, and each
difference is named. It reads one snapshot and never writes.

Of what the ingress counted, two things are true whatever was killed when. Each worker writes both
sides of its sum at once, so the sum holds in every row. And it counts only what was committed
before, so the books hold at least what it counted; they may hold more, because what a worker did
in its last second nobody has counted.
"""

from ledger.database import Connection
from ledger.operations import verify_finance
from ledger.operations.finding import SEALED, Finding, find_of
from ledger.tallying import Tally


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
    coalesce(reversed.reward_id, 'no reward'),
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
    coalesce(corrections.correction_key, proposals.proposal_key),
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

# A reward's place is looked at along commits.
_CORRECTIONS_PLACED = """
SELECT correction_key, 'in 1 commit', 'in ' || count(position)
FROM corrections
LEFT JOIN commits
    ON commits.written_by = corrections.written_by
    AND corrections.number BETWEEN first_number AND last_number
GROUP BY correction_key
HAVING count(position) <> 1
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

_PERIODS = """
WITH minutes AS (
    SELECT currency, date_bin('1 minute', posted_at, '2000-01-01Z') AS starts_at,
           sum(amount) AS amount, count(*) AS postings,
           count(*) FILTER (WHERE version = 1) AS users, count(correction_key) AS corrections
    FROM postings
    WHERE %(since)s::timestamptz IS NULL OR posted_at >= %(since)s::timestamptz
    GROUP BY 1, 2
),
derived AS (
    SELECT currency, 'minute' AS period, starts_at, amount, postings, users, corrections
    FROM minutes
    UNION ALL
    SELECT currency, 'day', date_trunc('day', starts_at, 'UTC'), sum(amount), sum(postings),
           sum(users), sum(corrections)
    FROM minutes
    GROUP BY 1, 3
)
SELECT
    concat_ws(
        ' ', coalesce(derived.currency, held.currency), coalesce(derived.period, held.period),
        coalesce(derived.starts_at, held.starts_at)
    ),
    concat_ws(' ', derived.amount, derived.postings, derived.users, derived.corrections),
    concat_ws(' ', held.amount, held.postings, held.users, held.corrections)
FROM derived
FULL JOIN (
    SELECT currency, period, starts_at, amount, postings, users, corrections
    FROM period_totals
    WHERE %(since)s::timestamptz IS NULL OR starts_at >= %(since)s::timestamptz
) AS held
    ON held.currency = derived.currency AND held.period = derived.period
    AND held.starts_at = derived.starts_at
WHERE (derived.amount, derived.postings, derived.users, derived.corrections)
    IS DISTINCT FROM (held.amount, held.postings, held.users, held.corrections)
"""

# What was posted later than a commit was posted at most some seconds before it.
_DAY_OF = """
SELECT date_trunc('day', committed_at - interval '1 hour', 'UTC')
FROM commits
WHERE position = %(position)s
"""


async def look_at_periods(connection: Connection, position: int) -> list[Finding]:
    """What does not hold of the sums of periods: of all, or from the day of a commit on."""
    row = await (await connection.execute(_DAY_OF, {"position": position})).fetchone()
    since = row[0] if row else None
    return [
        *await find_of(connection, TOTALLED, _PERIODS, since=since),
        *await find_of(connection, verify_finance.MOVED, verify_finance.MOVEMENTS, since=since),
    ]


_ROWS = """
SELECT subject, 'as it was when it was sealed', 'changed since'
FROM (
    SELECT concat('currency ', code) AS subject, seal, row_seal(to_jsonb(currencies)) AS derived
    FROM currencies
    UNION ALL
    SELECT concat('correction ', correction_key), seal, row_seal(to_jsonb(corrections))
    FROM corrections
    UNION ALL
    SELECT concat('proposal ', proposal_key), seal, row_seal(to_jsonb(proposals)) FROM proposals
    UNION ALL
    SELECT concat('quarantine ', number), seal, row_seal(to_jsonb(quarantine)) FROM quarantine
    UNION ALL
    SELECT concat('reconciliation ', number), seal, row_seal(to_jsonb(reconciliations))
    FROM reconciliations
    UNION ALL
    SELECT concat('statement ', month), seal, row_seal(to_jsonb(statements)) FROM statements
    UNION ALL
    SELECT 'the sealing key', seal, row_seal(to_jsonb(sealing_keys)) FROM sealing_keys
    UNION ALL
    SELECT concat('the tally of worker ', worker), seal, row_seal(to_jsonb(tallies)) FROM tallies
) AS sealed
WHERE seal IS DISTINCT FROM derived
"""

_QUARANTINE_DIGESTS = """
SELECT concat('quarantine ', number), encode(sha256(believed_bytes), 'hex'),
       encode(believed_bytes_sha256, 'hex')
FROM quarantine
WHERE believed_bytes_sha256 IS DISTINCT FROM sha256(believed_bytes)
"""

TOTALLED = "a period's totals are the sum of its postings"

_RULES = {
    "a correction is posted as it was recorded": _CORRECTED_AS_RECORDED,
    "a reversal takes back what its reward posted": _REVERSED,
    "an adjustment is what two persons agreed on": _APPROVED,
    "each correction has one place in commit order": _CORRECTIONS_PLACED,
    SEALED: _ROWS,
    "the digest is of the believed bytes": _QUARANTINE_DIGESTS,
    "each believed delivery has one outcome": _OUTCOMES,
    "what the ingress counted as done stands in the books": _COUNTED,
    **verify_finance.RULES,
}
"""What is looked at as a whole, each time: small tables, and counts."""


async def look_at_rules(connection: Connection) -> list[Finding]:
    """What does not hold of the small tables and of what the ingress counted."""
    findings = []
    for rule, query in _RULES.items():
        findings += await find_of(connection, rule, query)
    return findings


SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
