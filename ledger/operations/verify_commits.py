"""Verifying along commits: what each brought, as it was sealed, told and posted.

A stretch of positions is looked at by itself, so many of them can be looked at side by side, later
ones without the earlier ones, and the whole with few of them in memory.
"""

from typing import NamedTuple

from ledger.database import Connection
from ledger.operations.finding import Finding, find, find_of

SEALED = "what a commit brought is as it was sealed"
PLACED = "each reward has one place in commit order"
TOLD = "what was told is what was posted"


class Brought(NamedTuple):
    """How much a stretch of commits brought."""

    rewards: int
    posted: int
    """How many of them have a posting."""


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


_LOOK_AT_SEALS = """
SELECT
    coalesce(sum(rewards), 0)::bigint, coalesce(sum(posted), 0)::bigint,
    array_agg(position) FILTER (WHERE seal IS DISTINCT FROM derived)
FROM (
    SELECT position, commits.seal, told.rewards, told.posted,
           commit_seal(commits, told.seal # corrected.seal) AS derived
    FROM commits
    CROSS JOIN LATERAL (
        SELECT count(*) AS rewards, count(posting) AS posted,
               coalesce(bit_xor(reward # coalesce(posting, 0)), 0) AS seal
        FROM (
            SELECT reward_seal(rewards) AS reward, (
                SELECT posting_seal(postings) FROM postings
                WHERE postings.reward_id = rewards.reward_id
            ) AS posting
            FROM rewards
            WHERE rewards.written_by = commits.written_by
              AND rewards.number BETWEEN commits.first_number AND commits.last_number
            OFFSET 0
        ) AS sealed
    ) AS told
    CROSS JOIN LATERAL (
        SELECT coalesce(bit_xor(correction # coalesce(posting, 0)), 0) AS seal
        FROM (
            SELECT corrections.seal AS correction, (
                SELECT posting_seal(postings) FROM postings
                WHERE postings.correction_key = corrections.correction_key
            ) AS posting
            FROM corrections
            WHERE corrections.written_by = commits.written_by
              AND corrections.number BETWEEN commits.first_number AND commits.last_number
            OFFSET 0
        ) AS sealed
    ) AS corrected
    WHERE position BETWEEN %(first)s AND %(last)s
) AS looked_at
"""

# Which of them changed, a seal does not tell: all that came with the commit are named, or few.
_SEALS_BROKEN = """
SELECT
    'commit ' || position || concat(': ', (
        SELECT string_agg(name, ', ') || CASE WHEN count(*) = 10 THEN ', …' ELSE '' END
        FROM (
            (SELECT reward_id FROM rewards
             WHERE rewards.written_by = commits.written_by
               AND rewards.number BETWEEN commits.first_number AND commits.last_number
             ORDER BY number)
            UNION ALL
            (SELECT correction_key FROM corrections
             WHERE corrections.written_by = commits.written_by
               AND corrections.number BETWEEN commits.first_number AND commits.last_number
             ORDER BY number)
            LIMIT 10
        ) AS came (name)
    )),
    'as it was when it was sealed', 'changed since'
FROM commits
WHERE position = ANY(%(positions)s)
ORDER BY position
"""

# The fingerprint is of the same text as `ledger.reward.Reward.fingerprint`, put together a second
# time.
_LOOK_AT_REWARDS = """
SELECT checked.rule, told.reward_id, checked.expected, checked.found
FROM (
    SELECT
        rewards.reward_id, rewards.fingerprint, rewards.believed_bytes_sha256,
        sha256(rewards.believed_bytes) AS digest,
        sha256(
            convert_to(rewards.user_id, 'UTF8') || '\\x00'::bytea
            || convert_to(coalesce(trim_scale(reward_amount)::text, ''), 'UTF8') || '\\x00'::bytea
            || convert_to(coalesce(rewards.currency, ''), 'UTF8') || '\\x00'::bytea
            || convert_to(campaign_id, 'UTF8') || '\\x00'::bytea
            || convert_to(coalesce(reward_type, ''), 'UTF8') || '\\x00'::bytea
            || convert_to(coalesce(code, ''), 'UTF8')
        ) AS derived,
        (
            rewards.user_id, 'campaign:' || campaign_id, 'user:' || rewards.user_id,
            rewards.currency, reward_amount
        ) IS DISTINCT FROM (
            postings.user_id, debit_account, credit_account, postings.currency, amount
        )
        AND (rewards.currency IS NOT NULL OR postings.reward_id IS NOT NULL)
            AS is_booked_otherwise,
        rewards.currency, rewards.user_id, campaign_id, reward_amount,
        postings.reward_id AS posting, postings.user_id AS posting_user, debit_account,
        credit_account, postings.currency AS posting_currency, amount
    FROM commits
    CROSS JOIN LATERAL (
        SELECT reward_id, user_id, campaign_id, reward_type, reward_amount, currency, code,
               believed_bytes, believed_bytes_sha256, fingerprint
        FROM rewards
        WHERE rewards.written_by = commits.written_by
          AND rewards.number BETWEEN commits.first_number AND commits.last_number
        OFFSET 0
    ) AS rewards
    LEFT JOIN LATERAL (
        SELECT reward_id, user_id, debit_account, credit_account, currency, amount
        FROM postings
        WHERE postings.reward_id = rewards.reward_id
        OFFSET 0
    ) AS postings ON true
    WHERE position BETWEEN %(first)s AND %(last)s
    OFFSET 0
) AS told
CROSS JOIN LATERAL (
    VALUES
        (
            'the fingerprint is of what was told', fingerprint IS DISTINCT FROM derived,
            encode(derived, 'hex'), encode(fingerprint, 'hex')
        ),
        (
            'the digest is of the believed bytes', believed_bytes_sha256 IS DISTINCT FROM digest,
            encode(digest, 'hex'), encode(believed_bytes_sha256, 'hex')
        ),
        (
            'what was told is what was posted', is_booked_otherwise,
            CASE WHEN currency IS NOT NULL THEN concat_ws(
                ' ', user_id, 'campaign:' || campaign_id, 'user:' || user_id, currency,
                trim_scale(reward_amount)
            ) END,
            CASE WHEN posting IS NOT NULL THEN concat_ws(
                ' ', posting_user, debit_account, credit_account, posting_currency,
                trim_scale(amount)
            ) END
        )
) AS checked (rule, is_broken, expected, found)
WHERE (fingerprint IS DISTINCT FROM derived OR believed_bytes_sha256 IS DISTINCT FROM digest
        OR is_booked_otherwise)
  AND checked.is_broken
"""


async def look_at_commits(
    connection: Connection, first: int, last: int
) -> tuple[Brought, list[Finding]]:
    """What the commits at positions ``first`` to ``last`` brought, and what of it does not hold."""
    stretch = {"first": first, "last": last}
    row = await (await connection.execute(_LOOK_AT_SEALS, stretch)).fetchone()
    if row is None:
        raise AssertionError
    rewards, posted, broken = row
    findings = await find(connection, _LOOK_AT_REWARDS, **stretch)
    if broken:
        findings += await find_of(connection, SEALED, _SEALS_BROKEN, positions=broken)
    return Brought(rewards, posted), findings


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
    whether there is more, and only then looked for.
    """
    held = await count(connection)
    findings = []
    if held.rewards != brought.rewards:
        findings += await find_of(connection, PLACED, _UNPLACED)
    if held.posted != brought.posted:
        findings += await find_of(connection, TOLD, _UNTOLD)
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
