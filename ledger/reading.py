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
from ledger.errors import Overloaded
from ledger.history import HistoryPage, RecordedReward, RewardFilter, get_reward, list_history
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
"""How many lines of a user's history a page looks at, however few of them are asked for."""

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

    async def history(
        self, chosen: RewardFilter, before: int, limit: int, length_max: int
    ) -> HistoryPage:
        """At most ``limit`` lines, newest first, whose number is less than ``before``.

        Fewer, perhaps none, when they are large or when many had to be passed over. Raises
        ``Overloaded`` when too many such questions are asked already.
        """
        return await self.ask_in_turn(
            list_history,
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
        return await self.ask_in_turn(list_currency_totals, as_of)

    async def seal(self) -> Seal:
        """What tokens of these books are sealed with; asked for once."""
        if self._seal is None:
            self._seal = Seal(await self.ask(get_sealing_key))
        return self._seal

    async def ask_in_turn(
        self,
        question: Callable[Concatenate[Connection, Arguments], Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """``ask``, few at a time: connections are left for questions that are quick.

        Raises ``Overloaded`` when too many such questions are asked already.
        """
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
