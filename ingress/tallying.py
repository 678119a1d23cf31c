"""What a worker believed and what became of it, counted here and written beside the books.

Every believed delivery ends in one of a closed set of outcomes, or is still under way: so these
add up, in each worker at every moment, and ``ledger verify`` can hold them against the books. It
is plain counting; once a second the sums are written, in one statement. A worker that is killed
takes its last second along, with both sides of the sum.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from uuid import uuid4

from ingress.keeping import Keeper
from ledger.database import Pool
from ledger.errors import LedgerError, Unavailable, where
from ledger.quarantine import Unposted
from ledger.tallying import Tally, take_row, write
from ledger.writing import Status

ABANDONED = "abandoned"
"""The outcome of a believed delivery whose sender was gone before there was an answer."""

WRITE_EVERY_SECONDS = 1.0
STILL_HERE_SECONDS = 60.0
"""How often what has not changed is written too, so that nobody takes this worker for killed."""
END_SECONDS_MAX = 1.0
"""How long the last writing may take: a worker's end has other things to do."""
COMPLAIN_SECONDS = 60.0

COUNTED_AS: Mapping[str, str] = MappingProxyType(
    {
        Status.CREDITED: "credited",
        Status.RECORDED: "recorded",
        Status.REPLAYED: "replayed",
        "ignored": "ignored",
        "spooled": "spooled",
        "unavailable": "unavailable",
        ABANDONED: "abandoned",
        "conflict": "conflicts",
        "not-json": "quarantined",
        "not-a-reward": "quarantined",
        "unknown-currency": "quarantined",
        "invalid-amount": "quarantined",
        "broken-rule": "quarantined",
        "refused": "quarantined",
    }
)
"""Every outcome that a believed delivery can have, and the count of the tally it belongs to.

An outcome that is missing here is in no count, and then ``ledger verify`` says so.
"""

log = logging.getLogger("ingress")


class Counts:
    """What one worker counted since it started: whole numbers that only grow, but ``in_flight``."""

    def __init__(self) -> None:
        self.believed = 0
        self.in_flight = 0
        """Believed, and without an outcome yet."""
        self.kept = 0
        """How often something was put into the quarantine."""
        self._outcomes: defaultdict[str, int] = defaultdict(int)
        self._drained: defaultdict[str, int] = defaultdict(int)

    def believe(self) -> None:
        """Count a delivery for which a token vouched."""
        self.believed += 1
        self.in_flight += 1

    def end(self, outcome: str) -> None:
        """Count what became of a believed delivery."""
        self.in_flight -= 1
        self._outcomes[outcome] += 1

    def drain(self, outcome: str, count: int) -> None:
        """Count what was removed from the spool, and what became of it there."""
        self._drained[f"drained_{outcome}"] += count

    def tally(self) -> Tally:
        """The sums of this moment."""
        counts: defaultdict[str, int] = defaultdict(int)
        for outcome, count in self._outcomes.items():
            if outcome in COUNTED_AS:
                counts[COUNTED_AS[outcome]] += count
        counts.update(self._drained)
        return Tally(believed=self.believed, in_flight=self.in_flight, kept=self.kept, **counts)


class CountingKeeper:
    """A quarantine, and how often something was put there."""

    def __init__(self, quarantine: Keeper, counts: Counts) -> None:
        self._quarantine = quarantine
        self._counts = counts

    async def keep(self, delivery: Unposted) -> None:
        """Done when it is kept for good; raises ``Unavailable``."""
        await self._quarantine.keep(delivery)
        self._counts.kept += 1


class Tallying:
    """Writes what a worker counted into a row of its own; belongs to one event loop.

    While Postgres is away nothing is lost: the next writing writes the sums of then. Whether the
    last writing arrived does not matter to the next one either.
    """

    def __init__(self, pool: Pool, counts: Counts) -> None:
        self._pool = pool
        self._counts = counts
        self._worker = uuid4()
        # What others counted in our row before, or None while we have none.
        self._before: Tally | None = None
        # What we had counted when we took it: that stands in another row.
        self._elsewhere = Tally()
        # What we had counted when we wrote it last, whether or not that arrived.
        self._last: Tally | None = None
        self._has_arrived = False
        self._arrived_at = time.monotonic()
        self._has_complained = False
        self._has_ended = False
        self._writing = asyncio.Lock()

    async def write(self) -> None:
        """Write what has changed; raises what the database raises, and may be repeated."""
        try:
            async with self._writing:
                if not self._has_ended:
                    await self._write(has_ended=False)
        except Unavailable as error:
            self._complain(error)
            raise

    async def end(self) -> None:
        """Write what was counted until now as the last of this worker; nothing when it is late."""
        with suppress(TimeoutError, LedgerError):
            async with asyncio.timeout(END_SECONDS_MAX), self._writing:
                self._has_ended = True
                await self._write(has_ended=True)

    async def _write(self, *, has_ended: bool) -> None:
        now = self._counts.tally()
        if self._before is None and now == Tally():
            return
        is_told = self._has_arrived and now == self._last
        is_soon = time.monotonic() - self._arrived_at < STILL_HERE_SECONDS
        if is_told and is_soon and not has_ended:
            return
        async with self._pool.connection() as connection:
            while True:
                if self._before is None:
                    self._before = await take_row(connection, self._worker)
                sums = self._before.plus(now.minus(self._elsewhere))
                last, self._last, self._has_arrived = self._last, now, False
                if await write(connection, self._worker, sums, has_ended=has_ended):
                    break
                self._leave_row(last)
        self._has_arrived = True
        self._arrived_at = time.monotonic()
        self._has_complained = False

    def _leave_row(self, last: Tally | None) -> None:
        """Go on in another row: ours was taken for one of a worker that was killed.

        What had been under way when it was written last, it says, was never answered. Hence it is
        believed once more in the next row, where its answer is counted.
        """
        self._worker, self._before, self._last = uuid4(), None, None
        if last is not None:
            self._elsewhere = last._replace(believed=last.believed - last.in_flight, in_flight=0)

    def _complain(self, error: Unavailable) -> None:
        if not self._has_complained and time.monotonic() - self._arrived_at > COMPLAIN_SECONDS:
            self._has_complained = True
            log.warning("what was counted cannot be written: %s", where(error))
