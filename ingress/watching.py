"""What the gauges say: the pools, the quarantine, the spool, and when was credited last."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from ingress.metrics import PUBLISH_EVERY_SECONDS, Metrics
from ingress.spooling import SpoolingBooks
from ledger.database import Pool
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt, Status


class Watching:
    """Looks at what one worker has to do with, and tells ``metrics``.

    It asks by ``pool``; how ``pools`` are used is told as one.
    """

    def __init__(self, metrics: Metrics, pool: Pool, pools: Sequence[Pool]) -> None:
        self._metrics = metrics
        self._pool = pool
        self._pools = pools
        self._knows_last_credit = False

    def begin(self, spooling: SpoolingBooks | None) -> None:
        """Have ``metrics`` look now and then, and at ``spooling`` if there is one."""
        self._metrics.watch(self._look_at_pools, PUBLISH_EVERY_SECONDS)
        self._metrics.watch(self._look_at_quarantine)
        self._metrics.watch(self._look_for_last_credit)
        if spooling is not None:
            self._metrics.watch(partial(self._look_at_spool, spooling))

    def posted(self, _rewards: Sequence[Reward], outcomes: Sequence[Outcome]) -> None:
        """Tell of a batch that the books took, what was spooled before included."""
        self._metrics.batch(len(outcomes))
        for outcome in reversed(outcomes):
            if isinstance(outcome, Receipt) and outcome.status is Status.CREDITED:
                self._metrics.credited(outcome.posted_at.timestamp())
                break

    async def _look_at_pools(self) -> None:
        stats = [pool.stats() for pool in self._pools]
        self._metrics.set_pool(
            size=sum(each.size for each in stats),
            idle=sum(each.idle for each in stats),
            waiting=sum(each.waiting for each in stats),
        )

    async def _look_at_quarantine(self) -> None:
        async with self._pool.connection() as connection:
            (row,) = await (await connection.execute(_COUNT_OPEN)).fetchall()
        self._metrics.set_quarantine(row[0])

    async def _look_for_last_credit(self) -> None:
        """Once: from then on, what is posted tells."""
        if self._knows_last_credit:
            return
        async with self._pool.connection() as connection:
            (row,) = await (await connection.execute(_LAST_CREDIT)).fetchall()
        self._knows_last_credit = True
        if row[0] is not None:
            self._metrics.credited(row[0].timestamp())

    async def _look_at_spool(self, spooling: SpoolingBooks) -> None:
        status = await asyncio.to_thread(spooling.status)
        age = status.oldest_age_seconds
        oldest_at = None if age is None else time.time() - age
        self._metrics.set_spool(status.depth, status.set_aside, oldest_at)


_COUNT_OPEN = """
SELECT count(*) FROM quarantine WHERE state = 'open'
"""

# Every credit debits a campaign, and there are few of those: no reading of the postings.
_LAST_CREDIT = """
SELECT max(posted_at) FROM balances WHERE account >= 'campaign:' AND account < 'campaign;'
"""
