"""The postings of a cut, from the database, in their order and in pieces of any size."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from ledger.account import USER
from ledger.database import Connection
from ledger.operations.cut import Held, period
from ledger.operations.manifest import Wanted

FETCH_ROWS = 10_000


class ExportedPosting(NamedTuple):
    """A posting as it stands in the books."""

    user_id: str
    currency: str
    version: int
    reward_id: str | None
    """The reward that it posts, or else:"""
    correction_key: str | None
    reversed_reward_id: str | None
    """Of a reversal: the reward that it takes back."""
    debit_account: str
    credit_account: str
    amount: str
    balance_after: str
    posted_at: str


Key = tuple[str, str, int]
"""A posting's place: user, currency, version."""
BEFORE_ALL: Key = ("", "", 0)


class Postings:
    """The postings of a cut, by user, currency and version; taken in pieces of any size."""

    def __init__(self, cursor: Any, held: Iterator[Held]) -> None:  # noqa: ANN401 - psycopg's own
        self._cursor = cursor
        self._held = held
        self._account = ("", "")
        self._closing_version = 0
        self._key = ("", "")
        self._version = 0
        self._kept: list[ExportedPosting] = []
        self._is_over = False

    async def has_more(self) -> bool:
        """Whether there is another one."""
        await self._gather(1)
        return bool(self._kept)

    async def take(self, count: int) -> list[ExportedPosting]:
        """The next ``count`` of them; fewer when there are no more."""
        await self._gather(count)
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    async def _gather(self, count: int) -> None:
        while len(self._kept) < count and not self._is_over:
            rows = await self._cursor.fetchmany(FETCH_ROWS)
            self._is_over = not rows
            self._kept += [row for row in map(ExportedPosting._make, rows) if self._is_in(row)]

    def _is_in(self, posting: ExportedPosting) -> bool:
        """Whether it was posted before the cut; both it and the accounts come in their order."""
        # Most follow another of the same balance.
        key = (posting.user_id, posting.currency)
        if key != self._key:
            self._key, self._version = key, self._version_of(*key)
        return posting.version <= self._version

    def _version_of(self, user_id: str, currency: str) -> int:
        account = (USER.account(user_id), currency)
        while self._account < account:
            held = next(self._held, None)
            if held is None:
                self._account, self._closing_version = _BEHIND_ALL, 0
            else:
                self._account = (held.account, held.currency)
                self._closing_version = held.closing_version
        return self._closing_version if self._account == account else 0


_BEHIND_ALL = ("\U0010ffff", "")
"""No account comes after it: each begins with the name of its kind."""


# What was reversed is looked up for each correction: a join could cost the order of the index.
_LIST_POSTINGS = """
SELECT
    user_id, currency, version, reward_id, correction_key,
    CASE WHEN correction_key IS NOT NULL THEN (
        SELECT corrections.reward_id
        FROM corrections
        WHERE corrections.correction_key = postings.correction_key
    ) END,
    debit_account, credit_account, amount::text, balance_after::text,
    to_char(posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM postings
WHERE (user_id, currency, version) > (%(user_id)s, %(currency)s, %(version)s)
  AND posted_at >= coalesce(%(start)s::timestamptz, '-infinity')
  AND posted_at < coalesce(%(end)s::timestamptz, 'infinity')
ORDER BY user_id, currency, version
"""


@asynccontextmanager
async def postings_after(
    connection: Connection, wanted: Wanted, after: Key, held: Iterator[Held]
) -> AsyncIterator[Postings]:
    """The postings of the cut ``held`` that come after the place ``after``."""
    user_id, currency, version = after
    told = {**period(wanted), "user_id": user_id, "currency": currency, "version": version}
    async with connection.cursor(name="postings") as cursor:
        await cursor.execute(_LIST_POSTINGS, told)
        yield Postings(cursor, held)
