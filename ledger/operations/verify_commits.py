"""Verifying along commits: what each brought, as it was told, sealed and posted.

A stretch of positions is looked at by itself, so many of them can be looked at side by side, later
ones without the earlier ones, and the whole with few of them in memory.
"""

from typing import NamedTuple

from ledger.database import Connection
from ledger.operations.finding import SEALED, Finding, find, find_of

PLACED = "each reward has one place in commit order"
TOLD = "what was told is what was posted"
FIRST = "a commit brought the row with its first number"


class Brought(NamedTuple):
    """How much a stretch of commits brought."""

    rewards: int
    posted: int
    """How many of them have a posting."""

    def plus(self, other: "Brought") -> "Brought":
        """What both brought."""
        return Brought(self.rewards + other.rewards, self.posted + other.posted)


class End(NamedTuple):
    """The last commit that can be seen, by which these books are known again."""

    position: int
    seal: int


_END = """
SELECT position, seal FROM commits ORDER BY position DESC LIMIT 1
"""

_SEAL_OF = """
SELECT seal FROM commits WHERE position = %(position)s
"""


async def get_end(connection: Connection) -> End:
    """Where commit order ends now; position 0 in empty books."""
    row = await (await connection.execute(_END)).fetchone()
    return End._make(row) if row else End(0, 0)


async def is_there(connection: Connection, end: End) -> bool:
    """Whether these are books in which commit order once ended at ``end``."""
    if not end.position:
        return True
    row = await (await connection.execute(_SEAL_OF, {"position": end.position})).fetchone()
    return row is not None and row[0] == end.seal


_COUNT = """
SELECT (SELECT count(*) FROM rewards), (SELECT count(reward_id) FROM postings)
"""


async def count(connection: Connection) -> Brought:
    """How many rewards the books hold, and how many postings of rewards."""
    row = await (await connection.execute(_COUNT)).fetchone()
    if row is None:
        raise AssertionError
    return Brought._make(row)


# Each commit finds its rewards, and each reward its posting, by index: OFFSET 0 keeps the planner
# from comparing all with all, whatever it guesses of how many there are. The fingerprint is of the
# same text as `ledger.reward.Reward.fingerprint`, put together a second time.
_LOOK_AT = """
WITH looked_at AS MATERIALIZED (
    SELECT
        told.reward_id, number, is_sealed, fingerprint, derived_fingerprint, digest,
        derived_digest, told.user_id, campaign_id, told.currency, reward_amount,
        posted.reward_id IS NOT NULL AS is_posted, posted.user_id AS posting_user,
        debit_account, credit_account, posted.currency AS posting_currency, amount
    FROM commits
    CROSS JOIN LATERAL (
        SELECT
            reward_id, number, seal IS NOT DISTINCT FROM reward_seal(rewards) AS is_sealed,
            fingerprint, believed_bytes_sha256 AS digest, sha256(
                convert_to(user_id, 'UTF8') || '\\x00'::bytea
                || convert_to(coalesce(trim_scale(reward_amount)::text, ''), 'UTF8')
                || '\\x00'::bytea
                || convert_to(coalesce(currency, ''), 'UTF8') || '\\x00'::bytea
                || convert_to(campaign_id, 'UTF8') || '\\x00'::bytea
                || convert_to(coalesce(reward_type, ''), 'UTF8') || '\\x00'::bytea
                || convert_to(coalesce(code, ''), 'UTF8')
            ) AS derived_fingerprint,
            sha256(believed_bytes) AS derived_digest,
            user_id, campaign_id, currency, reward_amount
        FROM rewards
        WHERE rewards.written_by = commits.written_by
          AND rewards.number BETWEEN commits.first_number AND commits.last_number
        OFFSET 0
    ) AS told
    LEFT JOIN LATERAL (
        SELECT reward_id, user_id, debit_account, credit_account, currency, amount
        FROM postings
        WHERE postings.reward_id = told.reward_id
        OFFSET 0
    ) AS posted ON true
    WHERE position BETWEEN %(first)s AND %(last)s
)
SELECT NULL AS rule, NULL AS subject, count(*)::text, (count(*) FILTER (WHERE is_posted))::text
FROM looked_at
UNION ALL
(
    SELECT checked.rule, reward_id, checked.expected, checked.found
    FROM looked_at
    CROSS JOIN LATERAL (
        VALUES
            (
                %(sealed)s, NOT is_sealed,
                'as it was when it was sealed', 'changed since'
            ),
            (
                'the fingerprint is of what was told',
                fingerprint IS DISTINCT FROM derived_fingerprint,
                encode(derived_fingerprint, 'hex'), encode(fingerprint, 'hex')
            ),
            (
                'the digest is of the believed bytes',
                digest IS DISTINCT FROM derived_digest,
                encode(derived_digest, 'hex'), encode(digest, 'hex')
            ),
            (
                %(told)s,
                (
                    user_id, 'campaign:' || campaign_id, 'user:' || user_id, currency,
                    reward_amount
                ) IS DISTINCT FROM (
                    posting_user, debit_account, credit_account, posting_currency, amount
                ) AND (currency IS NOT NULL OR is_posted),
                CASE WHEN currency IS NOT NULL THEN concat_ws(
                    ' ', user_id, 'campaign:' || campaign_id, 'user:' || user_id, currency,
                    trim_scale(reward_amount)
                ) END,
                CASE WHEN is_posted THEN concat_ws(
                    ' ', posting_user, debit_account, credit_account, posting_currency,
                    trim_scale(amount)
                ) END
            )
    ) AS checked (rule, is_broken, expected, found)
    WHERE (
        NOT is_sealed OR fingerprint IS DISTINCT FROM derived_fingerprint
        OR digest IS DISTINCT FROM derived_digest
        OR currency IS DISTINCT FROM posting_currency
        OR (
            currency IS NOT NULL AND (
                user_id, 'campaign:' || campaign_id, 'user:' || user_id, reward_amount
            ) IS DISTINCT FROM (posting_user, debit_account, credit_account, amount)
        )
    )
      AND checked.is_broken
)
UNION ALL
(
    SELECT %(placed)s, min(reward_id),
           'number ' || number || ' once', count(*) || ' times'
    FROM looked_at
    GROUP BY number
    HAVING count(*) > 1
)
"""

_SEALS = """
SELECT 'commit ' || position, 'as it was when it was sealed', 'changed since'
FROM commits
WHERE position BETWEEN %(first)s AND %(last)s AND seal IS DISTINCT FROM commit_seal(commits)
"""

# Each by index, as above. Of a reward that posted nothing no other row may tell.
_FIRSTS = """
SELECT 'commit ' || position, 'number ' || first_number, NULL
FROM commits
WHERE position BETWEEN %(first)s AND %(last)s
  AND 0 = (
      SELECT count(*) FROM rewards
      WHERE rewards.written_by = commits.written_by AND rewards.number = first_number
  )
  AND 0 = (
      SELECT count(*) FROM corrections
      WHERE corrections.written_by = commits.written_by AND corrections.number = first_number
  )
"""


async def look_at_commits(
    connection: Connection, first: int, last: int
) -> tuple[Brought, list[Finding]]:
    """What the commits at positions ``first`` to ``last`` brought, and what of it does not hold."""
    asked = {"first": first, "last": last}
    rules = {"sealed": SEALED, "told": TOLD, "placed": PLACED}
    (_, _, rewards, posted), *findings = await find(connection, _LOOK_AT, **asked, **rules)
    findings += await find_of(connection, SEALED, _SEALS, **asked)
    findings += await find_of(connection, FIRST, _FIRSTS, **asked)
    return Brought(int(rewards or 0), int(posted or 0)), findings


_UNPLACED = """
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

_UNTOLD = """
SELECT
    reward_id, NULL,
    concat_ws(' ', user_id, debit_account, credit_account, currency, trim_scale(amount))
FROM postings
WHERE reward_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM rewards WHERE rewards.reward_id = postings.reward_id)
"""


async def look_at_counts(connection: Connection, brought: Brought) -> list[Finding]:
    """What no commit brought, when ``brought`` is what all of them did.

    A commit that lost something, or has it twice, is named by its own stretch. Here it is counted
    whether there is more, and only then looked for. What a run before counted may be gone since:
    then only how much.
    """
    held = await count(connection)
    findings = []
    if held.rewards != brought.rewards:
        findings += await find_of(connection, PLACED, _UNPLACED) or [
            Finding(PLACED, "rewards", str(brought.rewards), str(held.rewards))
        ]
    if held.posted != brought.posted:
        findings += await find_of(connection, TOLD, _UNTOLD)
        # The posting of a reward that no commit brought is not counted, and nothing else is wrong.
        if not findings:
            posted = ("postings of rewards", str(brought.posted), str(held.posted))
            findings.append(Finding(TOLD, *posted))
    return findings


_USERS = """
SELECT DISTINCT came.user_id
FROM commits
CROSS JOIN LATERAL (
    SELECT user_id FROM rewards
    WHERE rewards.written_by = commits.written_by
      AND rewards.number BETWEEN commits.first_number AND commits.last_number
    UNION ALL
    SELECT user_id FROM corrections
    WHERE corrections.written_by = commits.written_by
      AND corrections.number BETWEEN commits.first_number AND commits.last_number
    OFFSET 0
) AS came
WHERE position > %(position)s
ORDER BY 1
"""


async def list_users_since(connection: Connection, position: int) -> list[str]:
    """Whose rewards or corrections were committed after ``position``."""
    cursor = await connection.execute(_USERS, {"position": position})
    return [user_id for (user_id,) in await cursor.fetchall()]
