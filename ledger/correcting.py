"""The other door in: corrections become postings, each once, and nothing is edited.

A correction is recorded and posted in one database transaction. Its key is the idempotency key:
who asks again with the same key and facts gets what stands there. Locks are taken as
``ledger.writing`` takes them: what is corrected, then balances in their order, then movements and
the periods' totals. Everything here needs a connection of the corrector's role, in autocommit mode.
"""

from decimal import Decimal
from typing import NamedTuple

from ledger.account import USER
from ledger.correction import Adjustment, Corrected, CorrectionKind, Proposal, Reversal
from ledger.database import Connection
from ledger.errors import (
    BalanceTooLow,
    IdempotencyConflict,
    InvalidAmount,
    NothingToReverse,
    ProposalNotFound,
    RewardNotFound,
    SamePerson,
    TooMuchToReverse,
    UnknownCurrency,
)
from ledger.money import plain
from ledger.posting import Posting


async def reverse(
    connection: Connection, reversal: Reversal, *, may_go_below_zero: bool = False
) -> Corrected:
    """Post the opposite of what a reward posted, whole or in part.

    Raises ``RewardNotFound``, ``NothingToReverse``, ``TooMuchToReverse``, ``InvalidAmount``,
    ``BalanceTooLow`` unless ``may_go_below_zero``, and ``IdempotencyConflict`` when the key stands
    for another correction; then nothing was posted.
    """
    async with connection.transaction():
        await connection.execute(_LOCK_REWARD, {"reward_id": reversal.reward_id})
        before = await get_correction(connection, reversal.key)
        if before is not None and before.reward_id != reversal.reward_id:
            raise IdempotencyConflict
        credited = await _credited(connection, reversal.reward_id)
        if before is not None:
            return _same(before, reversal.amount, credited.left)
        amount = credited.left if reversal.amount is None else reversal.amount
        if not credited.left:
            raise NothingToReverse
        if amount > credited.left:
            raise TooMuchToReverse(plain(str(credited.left)))
        opposite = Posting(
            credited.credit_account, credited.debit_account, credited.currency, amount
        )
        record = _Record(
            CorrectionKind.REVERSAL, reversal.key, reversal.reward_id, credited.user_id,
            reversal.reason, reversal.actor, None,
        )  # fmt: skip
        return await _post(connection, record, opposite, may_go_below_zero)


def _same(before: Corrected, amount: Decimal | None, left: Decimal) -> Corrected:
    # All that was left is asked for again only where nothing is left; else a part has the key.
    if left if amount is None else amount != Decimal(before.amount):
        raise IdempotencyConflict
    return before


# The same lock as of the trigger `reversals_are_checked`.
_LOCK_REWARD = """
SELECT pg_advisory_xact_lock(hashtextextended('reversal of ' || %(reward_id)s, 0))
"""

_GET_CREDITED = """
SELECT
    rewards.user_id, debit_account, credit_account, postings.currency,
    amount - (
        SELECT coalesce(sum(amount), 0) FROM corrections WHERE reward_id = rewards.reward_id
    )
FROM rewards
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE rewards.reward_id = %(reward_id)s
"""


class _Credited(NamedTuple):
    user_id: str
    debit_account: str
    credit_account: str
    currency: str
    left: Decimal
    """What of its amount was not taken back yet."""


async def _credited(connection: Connection, reward_id: str) -> _Credited:
    row = await (await connection.execute(_GET_CREDITED, {"reward_id": reward_id})).fetchone()
    if row is None:
        raise RewardNotFound
    if row[-1] is None:
        raise NothingToReverse
    return _Credited._make(row)


_PROPOSE = """
INSERT INTO proposals (
    proposal_key, user_id, currency, debit_account, credit_account, amount, reason, proposed_by
)
VALUES (
    %(key)s, %(user_id)s, %(currency)s, %(debit_account)s, %(credit_account)s, %(amount)s,
    %(reason)s, %(actor)s
)
ON CONFLICT (proposal_key) DO NOTHING
"""

_IS_PROPOSED = """
SELECT
    (user_id, currency, debit_account, credit_account, amount)
    = (%(user_id)s, %(currency)s, %(debit_account)s, %(credit_account)s, %(amount)s::numeric)
FROM proposals
WHERE proposal_key = %(key)s
"""


async def propose(connection: Connection, adjustment: Adjustment, actor: str) -> bool:
    """Keep an adjustment until somebody else approves it; false when it was proposed before.

    Raises ``UnknownCurrency``, ``InvalidAmount``, and ``IdempotencyConflict`` when the key stands
    for another adjustment.
    """
    posting = adjustment.posting()
    await _check_amount(connection, posting)
    parameters = {
        **posting._asdict(),
        "key": adjustment.key,
        "user_id": adjustment.user_id,
        "reason": adjustment.reason,
        "actor": actor,
    }
    if (await connection.execute(_PROPOSE, parameters)).rowcount:
        return True
    if await (await connection.execute(_IS_PROPOSED, parameters)).fetchone() != (True,):
        raise IdempotencyConflict
    return False


_GET_PROPOSAL = """
SELECT
    proposal_key, state, user_id, debit_account, credit_account, currency, amount, reason,
    proposed_by, proposed_at, decided_by
FROM proposals
WHERE proposal_key = %(key)s
FOR UPDATE
"""

_LIST_PROPOSALS = """
SELECT
    proposal_key, state, user_id, debit_account, credit_account, currency, amount, reason,
    proposed_by, proposed_at, decided_by
FROM proposals
WHERE %(with_decided)s OR state = 'open'
ORDER BY proposed_at, proposal_key
"""

_DECIDE = """
UPDATE proposals
SET state = %(state)s, decided_by = %(actor)s, decided_at = clock_timestamp()
WHERE proposal_key = %(key)s AND state = 'open'
"""


async def list_proposals(connection: Connection, *, with_decided: bool = False) -> list[Proposal]:
    """What waits for a second person, oldest first; with what was decided, if asked."""
    cursor = await connection.execute(_LIST_PROPOSALS, {"with_decided": with_decided})
    return [_proposal(*row) for row in await cursor.fetchall()]


def _proposal(
    key: str, state: str, user_id: str, debit: str, credit: str, currency: str, amount: Decimal,
    *rest: object,
) -> Proposal:  # fmt: skip
    posting = Posting(debit, credit, currency, amount)
    return Proposal._make((key, state, user_id, posting, *rest))


async def approve(
    connection: Connection, key: str, actor: str, *, may_go_below_zero: bool = False
) -> Corrected:
    """Post what was proposed under ``key``; ``actor`` must be another person than proposed it.

    Asked again, it gives what stands there. Raises ``ProposalNotFound``, ``SamePerson``,
    ``BalanceTooLow`` unless ``may_go_below_zero``, and ``IdempotencyConflict`` when a reversal took
    the key since it was proposed; then it stays open.
    """
    async with connection.transaction():
        row = await (await connection.execute(_GET_PROPOSAL, {"key": key})).fetchone()
        if row is None:
            raise ProposalNotFound
        proposal = _proposal(*row)
        before = await get_correction(connection, key)
        if before is not None:
            if before.kind is not CorrectionKind.ADJUSTMENT:
                raise IdempotencyConflict
            return before
        if proposal.state != "open":
            raise ProposalNotFound
        if proposal.proposed_by == actor:
            raise SamePerson
        await connection.execute(_DECIDE, {"key": key, "state": "approved", "actor": actor})
        record = _Record(
            CorrectionKind.ADJUSTMENT, key, None, proposal.user_id, proposal.reason,
            proposal.proposed_by, actor,
        )  # fmt: skip
        return await _post(connection, record, proposal.posting, may_go_below_zero)


async def reject(connection: Connection, key: str, actor: str) -> None:
    """Give up what was proposed under ``key``; whoever proposed it may do so too.

    Raises ``ProposalNotFound`` when it is not open.
    """
    parameters = {"key": key, "state": "rejected", "actor": actor}
    if not (await connection.execute(_DECIDE, parameters)).rowcount:
        raise ProposalNotFound


class _Record(NamedTuple):
    """Why something is posted."""

    kind: CorrectionKind
    key: str
    reward_id: str | None
    user_id: str
    reason: str
    actor: str
    approver: str | None


_GET_SCALE = """
SELECT scale FROM currencies WHERE code = %(currency)s
"""


async def _check_amount(connection: Connection, posting: Posting) -> None:
    row = await (await connection.execute(_GET_SCALE, posting._asdict())).fetchone()
    if row is None:
        raise UnknownCurrency
    if posting.amount <= 0 or posting.amount != round(posting.amount, row[0]):
        raise InvalidAmount


_RECORD = """
INSERT INTO corrections (
    correction_key, kind, reward_id, user_id, currency, debit_account, credit_account, amount,
    reason, actor, approver
)
VALUES (
    %(key)s, %(kind)s, %(reward_id)s, %(user_id)s, %(currency)s, %(debit_account)s,
    %(credit_account)s, %(amount)s, %(reason)s, %(actor)s, %(approver)s
)
ON CONFLICT (correction_key) DO NOTHING
"""

# As in `ledger.writing`: the balances are locked in their order, and the time is taken then.
_POST = """
WITH legs (account, debit, credit) AS (
    SELECT %(debit_account)s, round(%(amount)s::numeric, scale), 0
    FROM currencies WHERE code = %(currency)s
    UNION ALL
    SELECT %(credit_account)s, 0, round(%(amount)s::numeric, scale)
    FROM currencies WHERE code = %(currency)s
),
opened AS MATERIALIZED (
    SELECT (max(month) + interval '1 month') AT TIME ZONE 'UTC' AS at FROM statements
),
held AS (
    INSERT INTO balances AS kept (account, currency, debits, credits, version, posted_at)
    SELECT account, %(currency)s, debit, credit, 1,
           greatest(clock_timestamp(), (SELECT at FROM opened))
    FROM legs
    ORDER BY account COLLATE "C"
    ON CONFLICT (account, currency) DO UPDATE SET
        debits = kept.debits + excluded.debits,
        credits = kept.credits + excluded.credits,
        version = kept.version + 1,
        posted_at = greatest(kept.posted_at, excluded.posted_at, clock_timestamp())
    RETURNING account, credits - debits AS balance, version, posted_at
),
posted AS (
    INSERT INTO postings (
        user_id, currency, version, correction_key, debit_account, credit_account, amount,
        balance_after, posted_at, seal
    )
    SELECT
        %(user_id)s, %(currency)s, version, %(key)s, %(debit_account)s, %(credit_account)s,
        (SELECT sum(debit) FROM legs), balance, posted_at,
        hash_record_extended(ROW(%(key)s::text, posted_at), 0)
    FROM held
    WHERE account = 'user:' || %(user_id)s
    RETURNING
        version, amount, balance_after, posted_at,
        CASE WHEN debit_account = 'user:' || user_id THEN amount ELSE 0 END AS debited,
        CASE WHEN credit_account = 'user:' || user_id THEN amount ELSE 0 END AS credited
),
totalled AS (
    INSERT INTO period_totals AS kept (
        currency, period, starts_at, amount, postings, users, corrections,
        reversals, reversed, granted, taken
    )
    SELECT
        %(currency)s, period, date_trunc(period, posted_at, 'UTC'), amount, 1,
        CASE WHEN version = 1 THEN 1 ELSE 0 END, 1,
        is_reversal::integer, CASE WHEN is_reversal THEN amount ELSE 0 END,
        credited, CASE WHEN is_reversal THEN 0 ELSE debited END
    FROM posted
    CROSS JOIN (SELECT %(kind)s = 'reversal' AS is_reversal) AS told
    CROSS JOIN unnest(ARRAY['day', 'minute']) AS period
    ORDER BY 2
    ON CONFLICT (period, starts_at, currency) DO UPDATE SET
        amount = kept.amount + excluded.amount,
        postings = kept.postings + excluded.postings,
        users = kept.users + excluded.users,
        corrections = kept.corrections + excluded.corrections,
        reversals = kept.reversals + excluded.reversals,
        reversed = kept.reversed + excluded.reversed,
        granted = kept.granted + excluded.granted,
        taken = kept.taken + excluded.taken
),
moved AS (
    INSERT INTO movements AS kept (
        day, currency, kind, campaign_id, type, reward_type, reward_category, debits, credits,
        postings
    )
    SELECT
        (posted_at AT TIME ZONE 'UTC')::date, %(currency)s, %(kind)s,
        left(coalesce(campaign_id, ''), 200), left(coalesce(type, ''), 100),
        left(coalesce(reward_type, ''), 100), left(coalesce(reward_category, ''), 100),
        debited, credited, 1
    FROM posted
    LEFT JOIN rewards ON rewards.reward_id = %(reward_id)s
    ON CONFLICT (day, currency, kind, campaign_id, type, reward_type, reward_category)
    DO UPDATE SET
        debits = kept.debits + excluded.debits,
        credits = kept.credits + excluded.credits,
        postings = kept.postings + excluded.postings
)
SELECT balance_after FROM posted
"""


async def _post(
    connection: Connection, record: _Record, posting: Posting, may_go_below_zero: bool
) -> Corrected:  # fmt: skip
    await _check_amount(connection, posting)
    parameters = {**record._asdict(), **posting._asdict()}
    if not (await connection.execute(_RECORD, parameters)).rowcount:
        # The key was taken, for something else, since it was looked for.
        raise IdempotencyConflict
    row = await (await connection.execute(_POST, parameters)).fetchone()
    # What is credited to a user who is below zero already brings the balance nearer to it.
    is_debited = posting.debit_account == USER.account(record.user_id)
    if row is not None and row[0] < 0 and is_debited and not may_go_below_zero:
        raise BalanceTooLow(plain(str(row[0])))
    posted = await get_correction(connection, record.key)
    if posted is None:
        raise AssertionError
    return posted


_GET_CORRECTION = """
SELECT
    corrections.correction_key, kind, corrections.reward_id, corrections.user_id,
    postings.debit_account, postings.credit_account, postings.currency, postings.amount::text,
    reason, actor, approver, version, balance_after::text, posted_at
FROM corrections
JOIN postings ON postings.correction_key = corrections.correction_key
WHERE corrections.correction_key = %(key)s
"""


async def get_correction(connection: Connection, key: str) -> Corrected | None:
    """The correction that stands in the books under ``key``; a role that may read is enough."""
    row = await (await connection.execute(_GET_CORRECTION, {"key": key})).fetchone()
    return None if row is None else corrected(row)


_LIST_CORRECTIONS = """
SELECT
    corrections.correction_key, kind, corrections.reward_id, corrections.user_id,
    postings.debit_account, postings.credit_account, postings.currency, postings.amount::text,
    reason, actor, approver, version, balance_after::text, posted_at
FROM corrections
JOIN postings ON postings.correction_key = corrections.correction_key
WHERE corrections.user_id = %(user_id)s
ORDER BY corrections.number DESC
LIMIT %(limit)s
"""


async def list_corrections(connection: Connection, user_id: str, limit: int) -> list[Corrected]:
    """At most ``limit`` corrections of a user, newest first; a role that may read is enough."""
    parameters = {"user_id": user_id, "limit": limit}
    cursor = await connection.execute(_LIST_CORRECTIONS, parameters)
    return [corrected(row) for row in await cursor.fetchall()]


def corrected(row: tuple[object, ...]) -> Corrected:
    """The correction of a row with the columns of ``_GET_CORRECTION``."""
    found = Corrected._make(row)
    return found._replace(
        kind=CorrectionKind(found.kind),
        amount=plain(found.amount),
        balance_after=plain(found.balance_after),
    )
