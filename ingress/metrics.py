"""What is counted, for Prometheus.

A worker counts in plain Python, and once a second publishes what is new: one that is killed takes
at most that last second with it.

Label values come from closed sets only. Nothing that a sender wrote ever becomes one: it could
hold what nobody should read, and each new value is a new series for as long as Prometheus keeps.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from prometheus_client import Counter, Gauge

from ingress.signature import Form
from ingress.tallying import ABANDONED, Counts
from ledger.counting import SECONDS, Buckets, Sizes, new_registry
from ledger.errors import Unavailable, where
from ledger.writing import Status

PUBLISH_EVERY_SECONDS = 1.0
WATCH_EVERY_SECONDS = 5.0
END_SECONDS_MAX = 1.0
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNSIGNED = "unsigned"
"""The form of a delivery where nobody has to sign, and the name of the token it has not."""
OTHER = "other"
"""Stands for every label value that is not in its closed set."""

log = logging.getLogger("ingress")


class Metrics:
    """What one worker counts, and a Falcon middleware that publishes it while the worker lives.

    ``outcomes`` are the slugs of all problems; those of ``ledger.writing.Status`` are known.
    ``tokens`` are the names of tokens. Belongs to one event loop; build one for each process.
    """

    def __init__(
        self, outcomes: Collection[str], tokens: Collection[str] = ("current", "previous")
    ) -> None:
        self.registry = new_registry()
        self._outcomes = frozenset({*Status, "ignored", "spooled", ABANDONED, *outcomes})
        self._tokens = frozenset({*tokens, UNSIGNED})
        self.counts = Counts()
        """What was believed and what became of it, since the start of this worker."""
        self._ended: defaultdict[tuple[str, bool], int] = defaultdict(int)
        self._vouched: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._addresses = {True: 0, False: 0}
        self._seconds = Sizes(SECONDS)
        self._batches = Sizes(BATCH_SIZES)
        self._credited_last_at = 0.0
        self._watched: list[tuple[Callable[[], Awaitable[None]], float]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._define()

    def _define(self) -> None:
        """Every series from the start, at zero: what appears later hides its first step."""
        known: dict[str, Any] = {"registry": self.registry, "namespace": "ingress"}
        self._deliveries = Counter(
            "deliveries",
            "Deliveries at their end, by what became of them and whether a token vouched for them.",
            ["outcome", "believed"],
            **known,
        )
        for outcome in (*sorted(self._outcomes), OTHER):
            for believed in ("yes", "no"):
                self._deliveries.labels(outcome, believed)
        self._believed = Counter(
            "believed_deliveries",
            "Deliveries for which a token vouched, by which one, and for which form of the body.",
            ["form", "token"],
            **known,
        )
        for form in Form:
            for token in sorted(self._tokens - {UNSIGNED}):
                self._believed.labels(form.value, token)
        self._believed.labels(UNSIGNED, UNSIGNED)
        self._delivery_seconds = Buckets(
            "delivery_seconds", "From headers to answer.", buckets=SECONDS, **known
        )
        self._batch_size = Buckets(
            "batch_size", "Rewards in one database transaction.", buckets=BATCH_SIZES, **known
        )
        self._peers = Counter(
            "peers", "Deliveries, by whether their address is in the list.", ["expected"], **known
        )
        for expected in ("yes", "no"):
            self._peers.labels(expected)
        self._shared_transactions = Counter(
            "shared_transactions", "Rewards that came under another's transactionId.", **known
        )
        self._dropped_lines = Counter(
            "dropped_log_lines", "Log lines that nobody read in time.", **known
        )
        self._define_gauges(known)

    def _define_gauges(self, known: Mapping[str, Any]) -> None:
        def gauge(name: str, meaning: str, mode: Any) -> Gauge:  # noqa: ANN401 - the library's literal
            return Gauge(name, meaning, multiprocess_mode=mode, **known)

        # What a killed worker had under way stays, as what it believed does: without it they
        # would not add up.
        self._unanswered = gauge(
            "unanswered_deliveries", "Believed, and under way or lost with a killed worker.", "sum"
        )
        # Each worker has a pool of its own; the other facts are the same whoever looks last.
        self._pool_size = gauge("pool_connections", "Connections to Postgres.", "livesum")
        self._pool_idle = gauge("pool_idle_connections", "Those not in use.", "livesum")
        self._pool_waiting = gauge("pool_waiting", "Who waits for a connection.", "livesum")
        self._quarantine_open = gauge(
            "quarantine_open", "Deliveries that somebody must deal with.", "livemostrecent"
        )
        self._spool_depth = gauge(
            "spool_depth", "Deliveries on disk that are not posted yet.", "livemostrecent"
        )
        self._spool_oldest = gauge(
            "spool_oldest_timestamp_seconds",
            "When the oldest of them arrived; 0 while there is none.",
            "livemostrecent",
        )
        self._spool_set_aside = gauge(
            "spool_set_aside",
            "Deliveries on disk that could not be posted and are kept nowhere else.",
            "livemostrecent",
        )
        self._credited_at = gauge(
            "last_credited_timestamp_seconds", "When a reward was credited last.", "max"
        )

    def believed(self, form: str, token: str) -> None:
        """Count a delivery when the token of this name has vouched for this form of it."""
        self._vouched[form, token] += 1
        self.counts.believe()

    def delivery(self, outcome: str, seconds: float, *, is_believed: bool) -> None:
        """Count what became of a delivery, once for each and at its end."""
        self._ended[outcome, is_believed] += 1
        self._seconds.add(seconds)
        if is_believed:
            self.counts.end(outcome)

    def peer(self, *, is_expected: bool) -> None:
        """Count an address against the list of those allowed."""
        self._addresses[is_expected] += 1

    def batch(self, size: int) -> None:
        """Count a database transaction that posted ``size`` rewards."""
        self._batches.add(size)

    def credited(self, at: float) -> None:
        """Say that a reward was credited at that Unix time; the latest counts."""
        self._credited_last_at = max(self._credited_last_at, at)

    def shared_transaction(self) -> None:
        """Count a reward that came under the transactionId of another."""
        self._shared_transactions.inc()

    def dropped_line(self) -> None:
        """Count a log line that could not be kept until somebody reads it."""
        self._dropped_lines.inc()

    def set_pool(self, *, size: int, idle: int, waiting: int) -> None:
        """Say how this worker's pool is used."""
        self._pool_size.set(size)
        self._pool_idle.set(idle)
        self._pool_waiting.set(waiting)

    def set_quarantine(self, open_deliveries: int) -> None:
        """Say how many deliveries are kept and not dealt with."""
        self._quarantine_open.set(open_deliveries)

    def set_spool(self, depth: int, set_aside: int, oldest_at: float | None) -> None:
        """Say how many deliveries wait in the spool, since when (Unix time), and how many do not.

        Those are set aside: somebody must deal with them.
        """
        self._spool_depth.set(depth)
        self._spool_set_aside.set(set_aside)
        self._spool_oldest.set(oldest_at or 0)

    def watch(
        self, look: Callable[[], Awaitable[None]], every_seconds: float = WATCH_EVERY_SECONDS
    ) -> None:
        """Call ``look`` every so often from the worker's start to its end; it may take its time."""
        self._watched.append((look, every_seconds))

    def publish(self) -> None:
        """Add what was counted since the last time to the shared files."""
        vouched, self._vouched = self._vouched, defaultdict(int)
        for (form, token), count in vouched.items():
            signed = form if form in set(Form) else UNSIGNED
            voucher = token if token in self._tokens else OTHER
            self._believed.labels(signed, voucher).inc(count)
        ended, self._ended = self._ended, defaultdict(int)
        for (outcome, is_believed), count in ended.items():
            name = outcome if outcome in self._outcomes else OTHER
            self._deliveries.labels(name, "yes" if is_believed else "no").inc(count)
        self._unanswered.set(self.counts.in_flight)
        if self._credited_last_at:
            self._credited_at.set(self._credited_last_at)
        addresses, self._addresses = self._addresses, {True: 0, False: 0}
        for is_expected, count in addresses.items():
            self._peers.labels("yes" if is_expected else "no").inc(count)
        self._delivery_seconds.take_over(self._seconds)
        self._batch_size.take_over(self._batches)

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the start of a worker."""
        # Each on its own: who waits for Postgres holds up nobody else.
        self._tasks = [
            asyncio.create_task(_repeat(self._publish, PUBLISH_EVERY_SECONDS)),
            *(asyncio.create_task(_repeat(look, every)) for look, every in self._watched),
        ]

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for its end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_SECONDS_MAX)
        self.publish()

    async def _publish(self) -> None:
        self.publish()


async def _repeat(look: Callable[[], Awaitable[None]], every_seconds: float) -> None:
    trouble = ""
    while True:
        # To be blind is no reason to stop: whatever goes wrong here, rewards are taken.
        try:
            await look()
        except Unavailable:
            pass
        except Exception as error:
            # Once, not at every turn.
            if where(error) != trouble:
                trouble = where(error)
                log.warning("the metrics stand still: %s", trouble)
        await asyncio.sleep(every_seconds)
