"""Every reward's columns, against what its believed bytes are read as now.

The seals tell exactly whether a column was changed. This tells whether it is what the bytes say, by
the mapping and the default currencies of today: with others than when it was posted, columns
differ in which nothing was changed.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import psycopg

from ingress.errors import NotAReward, NotJson
from ingress.mapping import FIELDS, Mapping
from ingress.payload import read_reward
from ledger.operations.finding import FINDINGS_MAX, Finding
from ledger.operations.importing import WEBHOOK_TYPE
from ledger.operations.verify import SNAPSHOT
from ledger.operations.verifying import ReadAgain
from ledger.reward import Reward

RULE = "the columns are what the believed bytes say"
FETCHED_MAX = 1000

_DOCUMENTS = """
SELECT
    told.reward_id, user_id, campaign_id, type, reward_type, reward_name, reward_amount, currency,
    code, status, transaction_id, reward_expires_at, reward_category, details, body, tnc,
    webhook_type, believed_bytes
FROM commits
CROSS JOIN LATERAL (
    SELECT
        reward_id, user_id, campaign_id, type, reward_type, reward_name,
        trim_scale(reward_amount)::text AS reward_amount, currency, code, status, transaction_id,
        extract(epoch FROM reward_expires_at)::bigint AS reward_expires_at, reward_category,
        details::text AS details, body, tnc::text AS tnc, webhook_type, believed_bytes
    FROM rewards
    WHERE rewards.written_by = commits.written_by
      AND rewards.number BETWEEN commits.first_number AND commits.last_number
    OFFSET 0
) AS told
WHERE position BETWEEN %(first)s AND %(last)s
"""


@contextmanager
def reading_again(conninfo: str, *, mapping: Mapping, processes: int) -> Iterator[ReadAgain]:
    """Reads stretches of the books of ``conninfo``, on as many cores as ``processes``."""
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:

        async def read_again(snapshot: str, first: int, last: int) -> list[Finding]:
            look = partial(look_at_documents, conninfo, snapshot, first, last, mapping)
            return await asyncio.get_running_loop().run_in_executor(pool, look)

        yield read_again
    finally:
        pool.shutdown(cancel_futures=True)


def look_at_documents(
    conninfo: str, snapshot: str, first: int, last: int, mapping: Mapping
) -> list[Finding]:
    """What differs in the rewards of the commits at positions ``first`` to ``last``."""
    findings: list[Finding] = []
    with psycopg.connect(conninfo) as connection, connection.cursor("documents") as cursor:
        connection.execute(SNAPSHOT)
        connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        cursor.itersize = FETCHED_MAX
        cursor.execute(_DOCUMENTS, {"first": first, "last": last})
        for *held, text in cursor:
            findings += _compare(tuple(held), text, mapping)
            if len(findings) >= FINDINGS_MAX:
                break
    return findings


def _compare(held: tuple[str | int | None, ...], text: bytes, mapping: Mapping) -> list[Finding]:
    # What was imported from a report is kept under the names of the default.
    if held[-1] == WEBHOOK_TYPE:
        mapping = Mapping()
    reward_id = str(held[0])
    try:
        reward = read_reward(text, mapping)
    except NotJson:
        return [Finding(RULE, reward_id, "is not JSON", "a reward")]
    except NotAReward as error:
        return [Finding(RULE, reward_id, f"{error.field} {error.reason}".strip(), "a reward")]
    if reward is None:
        return [Finding(RULE, reward_id, "a nudge, which is ignored", "a reward")]
    told = _told(reward)
    if told == held:
        return []
    return [
        Finding(RULE, f"{reward_id} {field}", _shown(field, says), _shown(field, stands))
        for field, says, stands in zip(FIELDS, told, held, strict=True)
        if says != stands
    ]


def _told(reward: Reward) -> tuple[str | int | None, ...]:
    amount, expiry = reward.reward_amount, reward.reward_expires_at
    return reward._replace(  # type: ignore[return-value]
        reward_amount=None if amount is None else f"{amount:f}",  # type: ignore[arg-type]
        reward_expires_at=None if expiry is None else int(expiry.timestamp()),  # type: ignore[arg-type]
    )[:-1]


def _shown(field: str, value: str | int | None) -> str | None:
    if value is None or field != "code":
        return None if value is None else str(value)
    # Whoever reads a terminal or the log of a build could redeem it.
    return f"a code of {len(str(value))} characters"
