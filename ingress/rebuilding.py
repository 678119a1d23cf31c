"""Books, posted a second time from the stored bytes, and compared with the first, row by row.

Everything goes through the doors that it went through before: believed bytes are read as the
webhook reads them and posted by ``ledger.writing``, corrections by ``ledger.correcting``, in commit
order.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from ingress.errors import NotAReward, NotJson
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ledger.account import ADJUSTMENT, USER
from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, CorrectionKind, Reversal
from ledger.database import Connection
from ledger.errors import LedgerError
from ledger.operations.alike import Difference, Tell, compare, rows
from ledger.operations.importing import WEBHOOK_TYPE
from ledger.operations.verify import SNAPSHOT
from ledger.reward import Reward
from ledger.writing import BATCH_SIZE_MAX, Receipt, Status, post

Report = Callable[[int, int], None]


class Books(NamedTuple):
    """The connections of a rebuild."""

    original: Connection
    """A reader's, inside no database transaction."""
    writer: Connection
    corrector: Connection


async def rebuild(books: Books, mapping: Mapping, report: Report, tell: Tell) -> int:
    """Post everything again and compare; tells each difference, and gives how many rewards.

    What is rebuilt must be empty, and know the currencies of the original.
    """
    async with books.original.transaction():
        await books.original.execute(SNAPSHOT)
        await books.original.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        rewards = await _post_all(books, mapping, report, tell)
        await compare(books.original, books.writer, tell)
    return rewards


_IS_EMPTY = """
SELECT NOT EXISTS (SELECT FROM rewards) AND NOT EXISTS (SELECT FROM postings)
    AND NOT EXISTS (SELECT FROM balances)
"""


async def is_empty(connection: Connection) -> bool:
    """Whether nothing was posted yet."""
    return await (await connection.execute(_IS_EMPTY)).fetchone() == (True,)


_COUNT = """
SELECT count(*) FROM rewards
"""

_COMMITTED = """
SELECT
    came.key, believed_bytes, webhook_type, kind, came.reward_id, user_id, currency,
    debit_account, credit_account, amount, reason, actor, approver
FROM commits
CROSS JOIN LATERAL (
    SELECT
        number, reward_id AS key, believed_bytes, webhook_type, NULL AS kind,
        NULL AS reward_id, NULL AS user_id, NULL AS currency, NULL AS debit_account,
        NULL AS credit_account, NULL::numeric AS amount, NULL AS reason, NULL AS actor,
        NULL AS approver
    FROM rewards
    WHERE rewards.written_by = commits.written_by
      AND rewards.number BETWEEN commits.first_number AND commits.last_number
    UNION ALL
    SELECT
        number, correction_key, NULL, NULL, kind, reward_id, user_id, currency, debit_account,
        credit_account, amount, reason, actor, approver
    FROM corrections
    WHERE corrections.written_by = commits.written_by
      AND corrections.number BETWEEN commits.first_number AND commits.last_number
    OFFSET 0
) AS came
ORDER BY position, number
"""


class _Corrected(NamedTuple):
    """A correction of the original books."""

    kind: str
    reward_id: str | None
    user_id: str
    currency: str
    debit_account: str
    credit_account: str
    amount: Decimal
    reason: str
    actor: str
    approver: str | None


async def _post_all(books: Books, mapping: Mapping, report: Report, tell: Tell) -> int:
    row = await (await books.original.execute(_COUNT)).fetchone()
    of = row[0] if row else 0
    batch, done = _Batch(), 0
    async for key, text, webhook_type, *corrected in rows(books.original, _COMMITTED):
        if text is None:
            await _post(books.writer, batch.take(), tell)
            await _correct(books.corrector, key, _Corrected(*corrected), tell)
            continue
        # What was imported from a report is kept under the names of the default.
        reward = _read(key, text, Mapping() if webhook_type == WEBHOOK_TYPE else mapping, tell)
        done += 1
        if reward is None:
            continue
        if not batch.fits(reward):
            await _post(books.writer, batch.take(), tell)
            report(done, of)
        batch.add(reward)
    await _post(books.writer, batch.take(), tell)
    return done


class _Batch:
    """Rewards that one statement posts in the order in which they were committed.

    It gives a user's versions in the order of the rewards' keys, so a reward whose key comes
    before that of another of its user has to wait for the next.
    """

    def __init__(self) -> None:
        self._rewards: list[Reward] = []
        self._last: dict[str, str] = {}

    def fits(self, reward: Reward) -> bool:
        """Whether ``reward`` can be added to it."""
        return (
            len(self._rewards) < BATCH_SIZE_MAX
            and self._last.get(reward.user_id, "") < reward.reward_id
        )

    def add(self, reward: Reward) -> None:
        """Add a reward that fits."""
        self._rewards.append(reward)
        self._last[reward.user_id] = reward.reward_id

    def take(self) -> list[Reward]:
        """What it holds; it is empty afterwards."""
        taken, self._rewards, self._last = self._rewards, [], {}
        return taken


def _read(key: str, text: bytes, mapping: Mapping, tell: Tell) -> Reward | None:
    try:
        reward = read_reward(text, mapping)
    except NotJson:
        tell(_not_posted(key, "is not JSON"))
        return None
    except NotAReward as error:
        tell(_not_posted(key, f"{error.field} {error.reason}".strip()))
        return None
    if reward is None:
        tell(_not_posted(key, "is a nudge"))
    return reward


def _not_posted(key: str, why: str, table: str = "rewards") -> Difference:
    return Difference(table, key, "", "posted", f"not posted: {why}")


async def _post(connection: Connection, rewards: list[Reward], tell: Tell) -> None:
    outcomes = await post(connection, rewards) if rewards else []
    for reward, outcome in zip(rewards, outcomes, strict=True):
        if not isinstance(outcome, Receipt):
            tell(_not_posted(reward.reward_id, type(outcome).__name__))
        elif outcome.status is Status.REPLAYED:
            tell(_not_posted(reward.reward_id, "another body has the same rewardId"))


async def _correct(connection: Connection, key: str, told: _Corrected, tell: Tell) -> None:
    try:
        if told.kind == CorrectionKind.REVERSAL:
            reversal = Reversal(key, str(told.reward_id), told.amount, told.reason, told.actor)
            await reverse(connection, reversal, may_go_below_zero=True)
        else:
            await propose(connection, _adjustment(key, told), told.actor)
            await approve(connection, key, str(told.approver), may_go_below_zero=True)
    except LedgerError as error:
        tell(_not_posted(key, type(error).__name__, "corrections"))


def _adjustment(key: str, told: _Corrected) -> Adjustment:
    is_credit = told.credit_account == USER.account(told.user_id)
    house = told.debit_account if is_credit else told.credit_account
    return Adjustment(
        key,
        told.user_id,
        told.currency,
        told.amount if is_credit else -told.amount,
        house.removeprefix(ADJUSTMENT.prefix),
        told.reason,
    )
