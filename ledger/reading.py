"""The only door out: each question is one statement in one snapshot.

Amounts come as Postgres's own exact text, formed for wires by ``ledger.money.plain``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from ledger.account import USER
from ledger.coalescing import Coalescer
from ledger.database import Connection, Pool, array
from ledger.errors import Overloaded, RewardNotFound
from ledger.money import Currency, plain
from ledger.seal import Seal

BATCH_SIZE_MAX = 500
QUIET_TURNS = 8
"""grpc.aio hands over about one call in a turn of the loop: those on their way travel along."""
WAIT_SECONDS_MAX = 2.5
LONG_QUESTIONS_MAX = 2
"""How many pages of history and totals are asked for at once: fewer than a pool has connections."""
TURN_SECONDS_MAX = 1.0
"""How long such a question waits for those before it."""
LOOKED_AT_MAX = 5000
"""How many of a user's rewards a page looks at, however few of them are asked for."""
UNBOUNDED = 2**62

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class BalanceKey(NamedTuple):
    """Which balance is asked for."""

    user_id: str
    currency: str


class PastBalanceKey(NamedTuple):
    """Which balance is asked for, after all postings up to and including ``as_of``."""

    user_id: str
    currency: str
    as_of: datetime


class Balance(NamedTuple):
    """What a user is owed in one currency."""

    user_id: str
    currency: str
    value: str
    version: int
    """How many postings made it; 0 if none."""
    posted_at: datetime | None
    """When the last of them was posted."""


class Booked(NamedTuple):
    """The posting of a reward as it stands in the books."""

    debit_account: str
    credit_account: str
    currency: str
    amount: str
    version: int
    balance_after: str
    posted_at: datetime


class RecordedReward(NamedTuple):
    """A reward as it stands in the books, without its bytes."""

    number: int
    reward_id: str
    user_id: str
    campaign_id: str
    type: str | None
    reward_type: str | None
    reward_name: str | None
    status: str | None
    transaction_id: str | None
    category: str | None
    details: str | None
    expires_at: datetime | None
    recorded_at: datetime
    code: str | None
    """The coupon's: for those alone who may see it."""
    posting: Booked | None


class RewardFilter(NamedTuple):
    """Which of a user's rewards are asked for; ``None`` asks for any."""

    user_id: str
    currency: str | None = None
    campaign_id: str | None = None
    type: str | None = None
    start_time: datetime | None = None
    """Recorded at this time or later."""
    end_time: datetime | None = None
    """Recorded before this time."""


class RewardPage(NamedTuple):
    """Some of a user's rewards, newest first."""

    rewards: list[RecordedReward]
    below: int | None
    """Below which number the next page begins; ``None`` after the last."""


class CurrencyTotals(NamedTuple):
    """All debits and all credits of one currency, which must agree."""

    currency: str
    debits: str
    credits: str
    difference: str
    rewards: int
    users: int


class Reader:
    """Answers many callers; those who ask for single balances at once share round trips."""

    def __init__(self, pool: Pool, asked: Callable[[int], None] = lambda _balances: None) -> None:
        """``asked`` is told how many balances each round trip asks for."""
        self._pool = pool
        self._asked = asked
        self._seal: Seal | None = None
        self._turns = asyncio.Semaphore(LONG_QUESTIONS_MAX)
        self._balances = Coalescer(
            self._get_balances,
            batch_size_max=BATCH_SIZE_MAX,
            wait_seconds_max=WAIT_SECONDS_MAX,
            quiet_turns=QUIET_TURNS,
        )
        self._past_balances = Coalescer(
            self._get_past_balances,
            batch_size_max=BATCH_SIZE_MAX,
            wait_seconds_max=WAIT_SECONDS_MAX,
            quiet_turns=QUIET_TURNS,
        )

    def balance(self, key: BalanceKey) -> "asyncio.Future[Balance]":
        """A future of the balance now; awaiting it raises ``Unavailable``."""
        return self._balances.submit(key)

    def past_balance(self, key: PastBalanceKey) -> "asyncio.Future[Balance]":
        """A future of the balance as of a time; awaiting it raises ``Unavailable``."""
        return self._past_balances.submit(key)

    async def balances(self, keys: Sequence[BalanceKey], as_of: datetime | None) -> list[Balance]:
        """One balance for each key, in their order, from one snapshot."""
        if as_of is None:
            return await self._get_balances(keys)
        return await self._get_past_balances([PastBalanceKey(*key, as_of) for key in keys])

    async def _get_balances(self, keys: Sequence[BalanceKey]) -> list[Balance]:
        self._asked(len(keys))
        return await self.ask(get_balances, keys)

    async def _get_past_balances(self, keys: Sequence[PastBalanceKey]) -> list[Balance]:
        self._asked(len(keys))
        return await self.ask(get_past_balances, keys)

    async def balances_of(self, user_id: str, as_of: datetime | None) -> list[Balance]:
        """The user's balances in every currency that it was credited in until then, by currency."""
        return await self.ask(list_balances, user_id, as_of)

    async def rewards(
        self, chosen: RewardFilter, before: int, limit: int, length_max: int
    ) -> RewardPage:
        """At most ``limit`` rewards, newest first, whose number is less than ``before``.

        Fewer, perhaps none, when they are large or when many had to be passed over. Raises
        ``Overloaded`` when too many such questions are asked already.
        """
        return await self._ask_in_turn(
            list_rewards,
            chosen,
            before,
            limit,
            looked_at_max=LOOKED_AT_MAX,
            length_max=length_max,
        )

    async def reward(self, reward_id: str) -> RecordedReward:
        """The reward; raises ``RewardNotFound``."""
        return await self.ask(get_reward, reward_id)

    async def currency_totals(self, as_of: datetime | None) -> list[CurrencyTotals]:
        """The trial balance of every currency that was posted in, by currency.

        Raises ``Overloaded`` when too many such questions are asked already.
        """
        return await self._ask_in_turn(list_currency_totals, as_of)

    async def seal(self) -> Seal:
        """What tokens of these books are sealed with; asked for once."""
        if self._seal is None:
            self._seal = Seal(await self.ask(get_sealing_key))
        return self._seal

    async def _ask_in_turn(
        self,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """``ask``, few at a time: connections are left for questions that are quick."""
        try:
            async with asyncio.timeout(TURN_SECONDS_MAX):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded from None
        try:
            return await self.ask(question, *arguments, **options)
        finally:
            self._turns.release()

    async def ask(
        self,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """What ``question`` answers to a connection and ``arguments``; raises ``Unavailable``."""
        return await self._pool.ask(question, *arguments, **options)

    def connection_besides(self) -> AbstractAsyncContextManager[Connection]:
        """A connection that is not one of those that are shared, for one block."""
        return self._pool.connection_besides()


_GET_BALANCES = """
SELECT asked.place, (credits - debits)::text, version, posted_at
FROM unnest(%(account)s::text[], %(currency)s::text[])
    WITH ORDINALITY AS asked (account, currency, place)
JOIN balances ON balances.account = asked.account AND balances.currency = asked.currency
"""


async def get_balances(connection: Connection, keys: Sequence[BalanceKey]) -> list[Balance]:
    """The balance now for each key, in their order; zero for what was never credited."""
    cursor = await connection.execute(
        _GET_BALANCES,
        {
            "account": array([USER.account(key.user_id) for key in keys]),
            "currency": array([key.currency for key in keys]),
        },
    )
    return _in_place(keys, await cursor.fetchall())


_GET_PAST_BALANCES = """
SELECT asked.place, past.balance_after::text, past.version, past.posted_at
FROM unnest(%(user_id)s::text[], %(currency)s::text[], %(as_of)s::timestamptz[])
    WITH ORDINALITY AS asked (user_id, currency, as_of, place)
CROSS JOIN LATERAL (
    SELECT balance_after, version, posted_at
    FROM postings
    WHERE postings.user_id = asked.user_id
      AND postings.currency = asked.currency
      AND postings.posted_at <= asked.as_of
    ORDER BY postings.posted_at DESC, postings.version DESC
    LIMIT 1
) AS past
"""


async def get_past_balances(
    connection: Connection, keys: Sequence[PastBalanceKey]
) -> list[Balance]:
    """The balance as of its time for each key, in their order: one index probe for each."""
    cursor = await connection.execute(
        _GET_PAST_BALANCES,
        {
            "user_id": array([key.user_id for key in keys]),
            "currency": array([key.currency for key in keys]),
            "as_of": array([key.as_of for key in keys]),
        },
    )
    return _in_place(keys, await cursor.fetchall())


def _in_place(
    keys: Sequence[BalanceKey | PastBalanceKey], rows: list[tuple[Any, ...]]
) -> list[Balance]:
    found = {place: (plain(value), version, at) for place, value, version, at in rows}
    return [
        Balance(key.user_id, key.currency, *found.get(place, ("0", 0, None)))
        for place, key in enumerate(keys, start=1)
    ]


_LIST_BALANCES = """
SELECT currency, (credits - debits)::text, version, posted_at
FROM balances
WHERE account = %(account)s
ORDER BY currency
"""


# An account's currencies only become more, so those of now hold those of then.
_LIST_PAST_BALANCES = """
SELECT balances.currency, past.balance_after::text, past.version, past.posted_at
FROM balances
CROSS JOIN LATERAL (
    SELECT balance_after, version, posted_at
    FROM postings
    WHERE postings.user_id = %(user_id)s
      AND postings.currency = balances.currency
      AND postings.posted_at <= %(as_of)s
    ORDER BY postings.posted_at DESC, postings.version DESC
    LIMIT 1
) AS past
WHERE balances.account = %(account)s
ORDER BY balances.currency
"""


async def list_balances(
    connection: Connection, user_id: str, as_of: datetime | None
) -> list[Balance]:
    """Every balance that the user was credited in until then, by currency."""
    account = USER.account(user_id)
    if as_of is None:
        cursor = await connection.execute(_LIST_BALANCES, {"account": account})
    else:
        cursor = await connection.execute(
            _LIST_PAST_BALANCES, {"account": account, "user_id": user_id, "as_of": as_of}
        )
    return [
        Balance(user_id, currency, plain(value), version, posted_at)
        for currency, value, version, posted_at in await cursor.fetchall()
    ]


# The text that a reward came in bounds what is told of it, and to know its length costs nothing.
_LIST_REWARDS = """
SELECT
    page.is_chosen, page.goes_on,
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM (
    SELECT
        number, is_chosen, is_last OR lead(number) OVER newest_first IS NOT NULL AS goes_on,
        sum(length) OVER (
            newest_first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS length_before
    FROM (
        SELECT
            number, octet_length(believed_bytes) AS length,
            row_number() OVER (ORDER BY number DESC) = %(looked_at_max)s AS is_last,
            (%(currency)s::text IS NULL OR currency = %(currency)s)
            AND (%(campaign_id)s::text IS NULL OR campaign_id = %(campaign_id)s)
            AND (%(type)s::text IS NULL OR type = %(type)s)
            AND (%(start_time)s::timestamptz IS NULL OR recorded_at >= %(start_time)s)
            AND (%(end_time)s::timestamptz IS NULL OR recorded_at < %(end_time)s) AS is_chosen
        FROM rewards
        WHERE user_id = %(user_id)s AND number < %(before)s
        ORDER BY number DESC
        LIMIT %(looked_at_max)s
    ) AS looked_at
    WHERE is_chosen OR is_last
    WINDOW newest_first AS (ORDER BY number DESC)
    ORDER BY number DESC
    LIMIT %(limit)s
) AS page
JOIN rewards ON rewards.user_id = %(user_id)s AND rewards.number = page.number
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE coalesce(page.length_before, 0) < %(length_max)s
ORDER BY page.number DESC
"""


async def list_rewards(
    connection: Connection,
    chosen: RewardFilter,
    before: int,
    limit: int,
    *,
    looked_at_max: int = UNBOUNDED,
    length_max: int = UNBOUNDED,
) -> RewardPage:
    """At most ``limit`` of the chosen rewards, newest first, with a number below ``before``.

    It ends early when ``looked_at_max`` rewards were looked at, or when what they came in has
    ``length_max`` bytes.
    """
    cursor = await connection.execute(
        _LIST_REWARDS,
        {
            **chosen._asdict(),
            "before": before,
            "limit": limit,
            "looked_at_max": looked_at_max,
            "length_max": length_max,
        },
    )
    rewards = []
    below = None
    for is_chosen, goes_on, *row in await cursor.fetchall():
        if is_chosen:
            rewards.append(recorded_reward(tuple(row)))
        below = row[0] if goes_on else None
    return RewardPage(rewards, below)


_GET_REWARD = """
SELECT
    rewards.number, rewards.reward_id, rewards.user_id, rewards.campaign_id, rewards.type,
    rewards.reward_type, rewards.reward_name, rewards.status, rewards.transaction_id,
    rewards.reward_category, rewards.details::text, rewards.reward_expires_at,
    rewards.recorded_at, rewards.code, postings.debit_account, postings.credit_account,
    postings.currency, postings.amount::text, postings.version, postings.balance_after::text,
    postings.posted_at
FROM rewards
LEFT JOIN postings ON postings.reward_id = rewards.reward_id
WHERE rewards.reward_id = %(reward_id)s
"""


async def get_reward(connection: Connection, reward_id: str) -> RecordedReward:
    """The reward; raises ``RewardNotFound``."""
    cursor = await connection.execute(_GET_REWARD, {"reward_id": reward_id})
    row = await cursor.fetchone()
    if row is None:
        raise RewardNotFound
    return recorded_reward(row)


def recorded_reward(row: tuple[Any, ...]) -> RecordedReward:
    """The reward of a row that has its columns and its posting's, as ``_GET_REWARD`` lists them."""
    told, booked = row[:14], row[14:]
    debit, credit, currency, amount, version, balance_after, posted_at = booked
    posting = None
    if version is not None:
        posting = Booked(
            debit, credit, currency, plain(amount), version, plain(balance_after), posted_at
        )
    return RecordedReward._make((*told, posting))


_LIST_CURRENCY_TOTALS = """
SELECT
    currency, sum(debits)::text, sum(credits)::text, (sum(debits) - sum(credits))::text,
    (
        coalesce(sum(version) FILTER (WHERE starts_with(account, 'user:')), 0)
        - coalesce((
            SELECT sum(corrections) FROM period_totals
            WHERE period = 'day' AND period_totals.currency = balances.currency
        ), 0)
    )::bigint,
    count(*) FILTER (WHERE starts_with(account, 'user:'))
FROM balances
GROUP BY currency
ORDER BY currency
"""

# Each posting is a debit and a credit of its amount, so their difference is zero as it is made.
_LIST_PAST_CURRENCY_TOTALS = """
SELECT
    currency, sum(amount)::text, sum(amount)::text, '0', sum(rewards)::bigint, sum(users)::bigint
FROM (
    SELECT currency, amount, postings - corrections AS rewards, users
    FROM period_totals
    WHERE period = 'day' AND starts_at < date_trunc('day', %(as_of)s::timestamptz, 'UTC')
    UNION ALL
    SELECT currency, amount, postings - corrections, users
    FROM period_totals
    WHERE period = 'minute'
      AND starts_at >= date_trunc('day', %(as_of)s::timestamptz, 'UTC')
      AND starts_at < date_trunc('minute', %(as_of)s::timestamptz, 'UTC')
    UNION ALL
    SELECT currency, amount, num_nonnulls(reward_id), CASE WHEN version = 1 THEN 1 ELSE 0 END
    FROM postings
    WHERE posted_at >= date_trunc('minute', %(as_of)s::timestamptz, 'UTC')
      AND posted_at <= %(as_of)s
) AS parts
GROUP BY currency
ORDER BY currency
"""


async def list_currency_totals(
    connection: Connection, as_of: datetime | None
) -> list[CurrencyTotals]:
    """The trial balance of every currency, by currency.

    Now it comes from the balances; as of a time from the totals of the days before, of the
    minutes of that day, and from the postings of that minute.
    """
    if as_of is None:
        cursor = await connection.execute(_LIST_CURRENCY_TOTALS)
    else:
        cursor = await connection.execute(_LIST_PAST_CURRENCY_TOTALS, {"as_of": as_of})
    return [
        CurrencyTotals(currency, plain(debits), plain(credits_), plain(difference), rewards, users)
        for currency, debits, credits_, difference, rewards, users in await cursor.fetchall()
    ]


_GET_SEALING_KEY = """
SELECT key FROM sealing_keys
"""


async def get_sealing_key(connection: Connection) -> bytes:
    """The key of the books' tokens."""
    row = await (await connection.execute(_GET_SEALING_KEY)).fetchone()
    if row is None:
        raise AssertionError
    return bytes(row[0])


_LIST_CURRENCIES = """
SELECT code, scale, name FROM currencies ORDER BY code
"""


async def list_currencies(connection: Connection) -> list[Currency]:
    """Every registered currency, by code."""
    cursor = await connection.execute(_LIST_CURRENCIES)
    return [Currency(*row) for row in await cursor.fetchall()]
