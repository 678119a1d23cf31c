"""Tells of rewards that came under the ``transactionId`` of another reward.

Nobody's answer waits for it: what a batch posted is noted, and looked up a few seconds later with
everything else. The pause is longer than a statement may take, so that by then the order in which
rewards came is settled, and exactly one of two is the second.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

from ledger.database import STATEMENT_SECONDS_MAX, Pool
from ledger.errors import LedgerError
from ledger.reward import Reward
from ledger.sharing import Told, shared
from ledger.writing import Outcome, Receipt

LOOK_EVERY_SECONDS = STATEMENT_SECONDS_MAX + 0.5
END_SECONDS_MAX = 1.0
"""How long the last look may take: a worker's end has other things to do."""
PAGE_SIZE = 1000
WAITING_MAX = 100_000
"""How many may wait to be looked up; while the answers fail, what comes on top is not told."""
REMEMBERED_MAX = 10_000

Tell = Callable[[str, str], None]
"""Takes the rewardId, and the one that came first under the same transactionId."""


class Sharing:
    """What one worker posted, and ``tell`` for each that was not the first of its transactionId.

    A reward is told once, however often it is sent again. Belongs to one event loop.
    """

    def __init__(self, pool: Pool, tell: Tell) -> None:
        self._pool = pool
        self._tell = tell
        self._fresh: dict[str, str] = {}
        self._settled: dict[str, str] = {}
        self._told: dict[str, None] = {}

    def posted(self, rewards: Sequence[Reward], outcomes: Sequence[Outcome]) -> None:
        """Note what a batch posted, replays too: the answer to the first try may have been lost."""
        for reward, outcome in zip(rewards, outcomes, strict=True):
            transaction_id = reward.transaction_id
            if transaction_id and isinstance(outcome, Receipt) and len(self._fresh) < WAITING_MAX:
                self._fresh[reward.reward_id] = transaction_id

    async def look(self) -> None:
        """Look up what was noted before the last look; raises ``Unavailable``, and may be repeated.

        To be called every ``LOOK_EVERY_SECONDS``.
        """
        await self._look_up_settled()
        self._settled, self._fresh = self._fresh, {}

    async def end(self) -> None:
        """Look up everything, also what is not settled; not what takes too long."""
        with suppress(TimeoutError, LedgerError):
            async with asyncio.timeout(END_SECONDS_MAX):
                await self.look()
                await self._look_up_settled()

    async def _look_up_settled(self) -> None:
        while self._settled:
            page = [Told(*item) for item in islice(self._settled.items(), PAGE_SIZE)]
            async with self._pool.connection() as connection:
                found = await shared(connection, page)
            for told in page:
                self._settled.pop(told.reward_id, None)
            for reward_id, first_reward_id in found:
                self._tell_once(reward_id, first_reward_id)

    def _tell_once(self, reward_id: str, first_reward_id: str) -> None:
        if reward_id in self._told:
            return
        if len(self._told) >= REMEMBERED_MAX:
            self._told.clear()
        self._told[reward_id] = None
        self._tell(reward_id, first_reward_id)
