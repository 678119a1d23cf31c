"""Whether the process lives, and whether a reward could be taken now."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from falcon.asgi import Request, Response

from ledger.database import Pool
from ledger.errors import LedgerError

CHECK_SECONDS_MAX = 2.0
"""How long Postgres may take to answer; a probe should wait longer."""
KEEP_SECONDS = 1.0
"""How long what was found stays true: whoever asks more often asks nobody."""


class Live:
    """``GET /livez``: 200 while the event loop turns; touches nothing."""

    async def on_get(self, _request: Request, response: Response) -> None:
        """Answer."""
        _answer(response, is_well=True)


class Ready:
    """``GET /readyz``: 200 when a reward could be taken now, else 503.

    That is when ``can_post`` says so, or, if Postgres is away, ``can_spool``. Anybody may ask, as
    often as they like: all who ask at once share one check.
    """

    def __init__(
        self,
        can_post: Callable[[], Awaitable[bool]],
        can_spool: Callable[[], bool] = lambda: False,
    ) -> None:
        self._can_post = can_post
        self._can_spool = can_spool
        self._checking: asyncio.Task[bool] | None = None
        self._checked_at = 0.0

    async def on_get(self, _request: Request, response: Response) -> None:
        """Answer."""
        # A probe that gives up takes back its own wait, not everybody's check.
        _answer(response, is_well=await asyncio.shield(self._check()) or self._can_spool())

    def _check(self) -> "asyncio.Task[bool]":
        is_old = time.monotonic() - self._checked_at > KEEP_SECONDS
        if self._checking is None or (self._checking.done() and is_old):
            self._checking = asyncio.create_task(self._look())
        return self._checking

    async def _look(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._can_post()
        except (LedgerError, TimeoutError):
            return False
        finally:
            self._checked_at = time.monotonic()


_CAN_POST = """
SELECT current_setting('transaction_read_only') = 'off' AND to_regclass('rewards') IS NOT NULL
"""


async def can_post(pool: Pool) -> bool:
    """Whether Postgres answers, may be written to, and holds books.

    A standby, and a database that nobody migrated, answer too. Raises ``LedgerError``.
    """
    async with pool.connection() as connection:
        row = await (await connection.execute(_CAN_POST)).fetchone()
        return row == (True,)


def _answer(response: Response, *, is_well: bool) -> None:
    response.status = 200 if is_well else 503
    response.data = b'{"status":"ok"}' if is_well else b'{"status":"unavailable"}'
    response.set_header("Cache-Control", "no-store")
