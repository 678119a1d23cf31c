"""The service's way to correct: a pool of its own, of the one role that may."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from ledger.correcting import reverse
from ledger.correction import Corrected, Reversal
from ledger.database import Pool, Role
from ledger.service import Reverse

POOL_SIZE_MAX = 2


@asynccontextmanager
async def reversing(url: str) -> AsyncIterator[Reverse]:
    """What takes back rewards in the database of ``url``, for the time of the block.

    When its connection breaks, nobody knows whether a reversal was committed. It is asked for again
    under its key, which gives what stands there or posts it; otherwise ``Unavailable`` is raised.
    """
    async with Pool(url, Role.CORRECTOR, size_max=POOL_SIZE_MAX) as pool:

        def ask(reversal: Reversal, *, may_go_below_zero: bool) -> Awaitable[Corrected]:
            return pool.ask(reverse, reversal, may_go_below_zero=may_go_below_zero)

        yield ask
