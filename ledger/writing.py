"""The only door in: rewards become rows, each once.

Whatever way a reward comes in, it comes through ``post``. The unique key of ``rewards`` is the
single gate; everything else derives from the rows that passed it.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from psycopg import AsyncRawCursor

from ledger.coalescing import Coalescer, Seconds
from ledger.database import Connection, Pool, array
from ledger.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidAmount,
    Refused,
    UnknownCurrency,
)
from ledger.reward import Reward

BATCH_SIZE_MAX = 256
WAIT_SECONDS_MAX = 2.5
"""How long a caller waits for its reward: the sender must have an answer within three seconds."""
TRIES_MAX = 3
QUIET_TURNS = 2
"""Else callers that wait for one batch come back while the next, half full, is on its way."""


class Status(StrEnum):
    """What became of a reward that stands in the books now."""

    CREDITED = "credited"
    RECORDED = "recorded"
    REPLAYED = "replayed"


class Receipt(NamedTuple):
    """Proof that a reward stands in the books; the same one, whenever it is asked for."""

    status: Status
    reward_id: str
    user_id: str
    currency: str | None
    """``None``, as ``version``, when the reward was recorded and nothing was posted."""
    version: int | None
    posted_at: datetime


Outcome = Receipt | Refused
"""A receipt, or the error why the reward does not stand in the books as it was told."""


ObserveBatch = Callable[[Sequence[Reward], Sequence[Outcome]], None]
"""Hears of each batch that is committed, before its callers do; must neither raise nor wait."""


class Writer:
    """Posts single rewards for many callers, in few database transactions."""

    def __init__(
        self,
        pool: Pool,
        *,
        batch_size_max: int = BATCH_SIZE_MAX,
        wait_seconds_max: Seconds = WAIT_SECONDS_MAX,
        observe_batch: ObserveBatch | None = None,
    ) -> None:
        self._pool = pool
        self._observe_batch = observe_batch
        self._expects_replays = False
        self._coalescer = Coalescer(
            self._post_batch,
            batch_size_max=batch_size_max,
            wait_seconds_max=wait_seconds_max,
            quiet_turns=QUIET_TURNS,
        )

    def post(self, reward: Reward) -> "asyncio.Future[Outcome]":
        """What became of ``reward``, known when its database transaction was committed.

        Awaiting it raises ``Unavailable`` when that is not known: ask again with the same reward;
        and ``BrokenRule`` when the database refused a reward that nobody else foresaw it would.
        Raises ``Overloaded`` at once when too many wait.
        """
        return self._coalescer.submit(reward)

    async def drain(self) -> None:
        """Returns when everything that was handed in has been answered."""
        await self._coalescer.drain()

    async def _post_batch(self, rewards: list[Reward]) -> list[Outcome]:
        # Every trouble that passes is met by asking again with the same keys: if the lost
        # connection did commit, the second try finds the rewards there and reports replays.
        for tries_left in range(TRIES_MAX - 1, -1, -1):
            try:
                outcomes = await self._pool.ask(
                    post, rewards, expects_replays=self._expects_replays
                )
            except DatabaseUnavailable:
                if not tries_left:
                    raise
                await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - not a secret
            else:
                # A storm of duplicates is met as one from its second batch on.
                self._expects_replays = _are_mostly_replays(outcomes)
                if self._observe_batch is not None:
                    self._observe_batch(rewards, outcomes)
                return outcomes
        raise AssertionError


def _are_mostly_replays(outcomes: Sequence[Outcome]) -> bool:
    replays = sum(
        isinstance(outcome, Receipt) and outcome.status is Status.REPLAYED for outcome in outcomes
    )
    return 2 * replays > len(outcomes)


async def post(
    connection: Connection, rewards: Sequence[Reward], *, expects_replays: bool = False
) -> list[Outcome]:
    """Posts any number of rewards in one statement; tells for each what became of it.

    Each is credited or recorded now, or a replay of what stands there already, or the reason why
    it is neither (``IdempotencyConflict``, ``UnknownCurrency``, ``InvalidAmount``). The same
    rewardId twice in ``rewards`` counts as sent twice. Needs a connection in autocommit mode:
    when it returns, the rows are committed. Raises what psycopg raises; then nothing of this call
    was written, unless the connection was lost, and it can be called again with the same rewards.

    ``expects_replays`` changes no outcome: it looks up first what stands in the books, which costs
    less than it saves when most of ``rewards`` were posted before.
    """
    known: dict[str, _Standing] = {}
    if expects_replays:
        await _look_up(connection, list({r.reward_id: r for r in rewards}.values()), known)
    outcomes: dict[int, Outcome] = {}
    remaining = dict(enumerate(rewards))
    while remaining:
        # The first of each key is tried; if it is refused, the next one has its turn.
        first: dict[str, int] = {}
        for index, reward in remaining.items():
            first.setdefault(reward.reward_id, index)
        tried = [remaining[index] for key, index in first.items() if key not in known]
        standing = known | (await _insert(connection, tried) if tried else {})
        missing = [reward for reward in tried if reward.reward_id not in standing]
        refused = await _look_up(connection, missing, standing) if missing else {}
        for index, reward in list(remaining.items()):
            was_tried = first[reward.reward_id] == index
            outcome = _judge(reward, was_tried, standing, refused)
            if outcome is not None:
                outcomes[index] = outcome
                del remaining[index]
    return [outcomes[index] for index in range(len(rewards))]


class _Standing(NamedTuple):
    """What stands in the books under a rewardId."""

    fingerprint: bytes
    believed_bytes_sha256: bytes | None
    """``None`` when it is new."""
    receipt: Receipt

    def is_told_by(self, reward: Reward) -> bool:
        """Whether ``reward`` is the same fact: equal in what decides the money, or the same text.

        The same text may be read otherwise than before, when the mapping or the default currency
        was changed in between. What was posted stays.
        """
        return self.fingerprint == reward.fingerprint() or (
            self.believed_bytes_sha256 is not None
            and self.believed_bytes_sha256 == sha256(reward.believed_bytes).digest()
        )


def _judge(
    reward: Reward,
    was_tried: bool,  # noqa: FBT001
    standing: dict[str, _Standing],
    refused: dict[str, Refused],
) -> Outcome | None:
    """What became of ``reward``; ``None`` when it is to be tried in the next turn."""
    stands = standing.get(reward.reward_id)
    if stands is None:
        return refused.get(reward.reward_id) if was_tried else None
    if was_tried and stands.believed_bytes_sha256 is None:
        return stands.receipt
    if not stands.is_told_by(reward):
        return IdempotencyConflict()
    return stands.receipt._replace(status=Status.REPLAYED)


# `accepted` is the gate. Keys are inserted, and so locked, in their order: overlapping batches
# cannot wait for each other in a ring. `held` follows, once for each account and batch, in key
# order again; the time is taken when the row is locked, so that along an account it never runs
# backwards, nor, whatever the clock says, into a month that is closed. Then come `moved` and,
# locked for the shortest time, `totalled`, of which every batch needs the same rows: what nobody
# reads, Postgres runs from the last to the first. Versions of a batch follow the keys' own
# collation, as the rewards' numbers do. The seals are what `reward_seal` and `posting_seal` make
# of the rows (0013_seals.sql).
_POST = """
WITH batch AS MATERIALIZED (
    SELECT
        reward_id, user_id, campaign_id, type, reward_type, reward_name, reward_amount, currency,
        told.code, status, transaction_id, reward_expires_at, reward_category, details, body, tnc,
        webhook_type, believed_bytes, fingerprint, debit_account, credit_account,
        currencies.scale AS decimals, now() AS recorded_at, hash_record_extended(
            ROW(
                reward_id, type, reward_name, status, transaction_id, reward_expires_at,
                reward_category, details, body, tnc, webhook_type, believed_bytes, told.code, now()
            ), 0
        ) AS seal
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::numeric[],
        $8::text[], $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::text[],
        $14::text[], $15::text[], $16::text[], $17::text[], $18::bytea[], $19::bytea[],
        $20::text[], $21::text[]
    ) AS told (
        reward_id, user_id, campaign_id, type,
        reward_type, reward_name, reward_amount,
        currency, code, status, transaction_id,
        reward_expires_at, reward_category, details,
        body, tnc, webhook_type, believed_bytes,
        fingerprint, debit_account, credit_account
    )
    LEFT JOIN currencies ON currencies.code = told.currency
),
accepted AS (
    INSERT INTO rewards (
        reward_id, user_id, campaign_id, type, reward_type, reward_name, reward_amount, currency,
        code, status, transaction_id, reward_expires_at, reward_category, details, body, tnc,
        webhook_type, believed_bytes, fingerprint, recorded_at, seal
    )
    SELECT
        reward_id, user_id, campaign_id, type, reward_type, reward_name, reward_amount, currency,
        code, status, transaction_id, reward_expires_at, reward_category, details::json, body,
        tnc::json, webhook_type, believed_bytes, fingerprint, recorded_at, seal
    FROM batch
    WHERE currency IS NULL OR scale(reward_amount) <= decimals
    ORDER BY reward_id COLLATE "C"
    ON CONFLICT (reward_id) DO NOTHING
    RETURNING reward_id, recorded_at
),
booked AS (
    SELECT accepted.reward_id, user_id, currency, debit_account, credit_account,
           round(reward_amount, decimals) AS amount, campaign_id, type, reward_type,
           reward_category
    FROM accepted JOIN batch ON batch.reward_id = accepted.reward_id
    WHERE currency IS NOT NULL
),
legs AS (
    SELECT debit_account AS account, currency, amount AS debit, 0 AS credit FROM booked
    UNION ALL
    SELECT credit_account, currency, 0, amount FROM booked
),
opened AS MATERIALIZED (
    SELECT (max(month) + interval '1 month') AT TIME ZONE 'UTC' AS at FROM statements
),
held AS (
    INSERT INTO balances AS kept (account, currency, debits, credits, version, posted_at)
    SELECT account, currency, sum(debit), sum(credit), count(*),
           greatest(clock_timestamp(), (SELECT at FROM opened))
    FROM legs
    GROUP BY account, currency
    ORDER BY account COLLATE "C", currency COLLATE "C"
    ON CONFLICT (account, currency) DO UPDATE SET
        debits = kept.debits + excluded.debits,
        credits = kept.credits + excluded.credits,
        version = kept.version + excluded.version,
        posted_at = greatest(kept.posted_at, excluded.posted_at, clock_timestamp())
    RETURNING account, currency, credits - debits AS balance, version, posted_at
),
timed AS MATERIALIZED (
    SELECT reward_id, user_id, booked.currency, debit_account, credit_account, amount, balance,
           version, posted_at, campaign_id, type, reward_type, reward_category
    FROM booked
    JOIN held ON held.account = booked.credit_account AND held.currency = booked.currency
),
posted AS (
    INSERT INTO postings (
        user_id, currency, version, reward_id, debit_account, credit_account,
        amount, balance_after, posted_at, seal
    )
    SELECT
        user_id, currency, version - count(*) OVER whole + row_number() OVER so_far,
        reward_id, debit_account, credit_account, amount,
        balance - sum(amount) OVER whole + sum(amount) OVER so_far, posted_at,
        hash_record_extended(ROW(reward_id, posted_at), 0)
    FROM timed
    WINDOW
        whole AS (PARTITION BY user_id, currency),
        so_far AS (PARTITION BY user_id, currency ORDER BY reward_id)
    RETURNING reward_id, currency, version, amount, posted_at
),
minutes AS (
    SELECT currency, date_bin('1 minute', posted_at, '2000-01-01Z') AS starts_at,
           sum(amount) AS amount, count(*) AS postings, count(*) FILTER (WHERE version = 1) AS users
    FROM posted
    GROUP BY 1, 2
),
totalled AS (
    INSERT INTO period_totals AS kept (currency, period, starts_at, amount, postings, users)
    SELECT currency, period, date_trunc(period, starts_at, 'UTC'), sum(amount), sum(postings),
           sum(users)
    FROM minutes CROSS JOIN unnest(ARRAY['day', 'minute']) AS period
    GROUP BY 1, 2, 3
    ORDER BY 2, 3, 1
    ON CONFLICT (period, starts_at, currency) DO UPDATE SET
        amount = kept.amount + excluded.amount,
        postings = kept.postings + excluded.postings,
        users = kept.users + excluded.users
),
moved AS (
    INSERT INTO movements AS kept (
        day, currency, kind, campaign_id, type, reward_type, reward_category, credits, postings
    )
    SELECT
        (posted_at AT TIME ZONE 'UTC')::date, currency, 'reward', left(campaign_id, 200),
        left(coalesce(type, ''), 100), left(coalesce(reward_type, ''), 100),
        left(coalesce(reward_category, ''), 100), sum(amount), count(*)
    FROM timed
    GROUP BY 1, 2, 4, 5, 6, 7
    -- What tells most apart comes first, which is sorted soonest.
    ORDER BY 4, 5, 1, 2, 6, 7
    ON CONFLICT (day, currency, kind, campaign_id, type, reward_type, reward_category)
    DO UPDATE SET
        credits = kept.credits + excluded.credits,
        postings = kept.postings + excluded.postings
)
SELECT accepted.reward_id, posted.version, coalesce(posted.posted_at, accepted.recorded_at)
FROM accepted LEFT JOIN posted ON posted.reward_id = accepted.reward_id
"""


async def _insert(connection: Connection, rewards: list[Reward]) -> dict[str, _Standing]:
    """Posts what is not there yet and can be booked; the rewards that were, by rewardId."""
    by_id = {reward.reward_id: (reward, reward.fingerprint()) for reward in rewards}
    rows = [_row(reward, fingerprint) for reward, fingerprint in by_id.values()]
    # Raw: psycopg parses placeholders of its own anew for each batch in a text as long as this.
    cursor = AsyncRawCursor(connection)
    await cursor.execute(_POST, [array(values) for values in zip(*rows, strict=True)])
    standing = {}
    for reward_id, version, posted_at in await cursor.fetchall():
        reward, fingerprint = by_id[reward_id]
        status = Status.RECORDED if version is None else Status.CREDITED
        receipt = Receipt(status, reward_id, reward.user_id, reward.currency, version, posted_at)
        standing[reward_id] = _Standing(fingerprint, None, receipt)
    return standing


def _row(reward: Reward, fingerprint: bytes) -> tuple[object, ...]:
    """What the statement is told of a reward, in the order of its placeholders."""
    posting = reward.posting()
    debit, credit = (posting.debit_account, posting.credit_account) if posting else (None, None)
    return (*reward, fingerprint, debit, credit)


_LOOK_UP = """
SELECT asked.reward_id, rewards.fingerprint, rewards.believed_bytes_sha256, rewards.user_id,
       postings.currency, postings.version, coalesce(postings.posted_at, rewards.recorded_at),
       currencies.code IS NOT NULL AS is_currency_known,
       coalesce(scale(asked.amount) <= currencies.scale, false) AS is_amount_bookable
FROM unnest(%(reward_id)s::text[], %(currency)s::text[], %(amount)s::numeric[])
    AS asked (reward_id, currency, amount)
-- The keys are given once more to each table: this connection does not plan nested loops, and
-- without them a hash join would read the whole table for one replay.
LEFT JOIN rewards
    ON rewards.reward_id = asked.reward_id AND rewards.reward_id = ANY(%(reward_id)s::text[])
LEFT JOIN postings
    ON postings.reward_id = asked.reward_id AND postings.reward_id = ANY(%(reward_id)s::text[])
LEFT JOIN currencies ON currencies.code = asked.currency
"""


async def _look_up(
    connection: Connection, rewards: list[Reward], standing: dict[str, _Standing]
) -> dict[str, Refused]:
    """Why each of ``rewards`` did not pass the gate: adds to ``standing`` what was there before.

    A statement of its own, because only a new snapshot sees what another worker committed while
    we waited for its key.
    """
    cursor = await connection.execute(
        _LOOK_UP,
        {
            "reward_id": array(reward.reward_id for reward in rewards),
            "currency": array(reward.currency for reward in rewards),
            "amount": array(reward.reward_amount for reward in rewards),
        },
    )
    refused: dict[str, Refused] = {}
    for row in await cursor.fetchall():
        reward_id, fingerprint, text_sha256, user_id, currency, version, posted_at, *known = row
        is_known, is_bookable = known
        if fingerprint is not None:
            receipt = Receipt(Status.REPLAYED, reward_id, user_id, currency, version, posted_at)
            standing[reward_id] = _Standing(fingerprint, text_sha256, receipt)
        elif not is_known:
            refused[reward_id] = UnknownCurrency()
        elif not is_bookable:
            refused[reward_id] = InvalidAmount()
    # Neither: its currency was registered between the two statements, and it is tried again.
    return refused
