"""What is counted, for Prometheus.

prometheus-client shares what several workers count through one file for each worker, and every
write there costs a microsecond or more. So a worker counts in plain Python, and once a second
adds what is new to its file: a worker that is killed takes at most that last second with it.

Label values come from closed sets only. Nothing that a sender wrote ever becomes one: it could
hold what nobody should read, and each new value is a new series for as long as Prometheus keeps.
"""

import asyncio
import logging
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from ingress.signature import Form
from ledger.errors import Unavailable, where
from ledger.writing import Status

PUBLISH_EVERY_SECONDS = 1.0
WATCH_EVERY_SECONDS = 15.0
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNSIGNED = "unsigned"
"""The form of a delivery where nobody has to sign, and the name of the token it has not."""
OTHER = "other"
"""Stands for every label value that is not in its closed set."""

log = logging.getLogger("ingress")


class _Sizes:
    """How often which bucket was met since it was last asked."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, size: float) -> None:
        self._counts[bisect_left(self._bounds, size)] += 1
        self._sum += size

    def take(self) -> tuple[list[int], float]:
        taken = self._counts, self._sum
        self._counts, self._sum = [0] * len(self._counts), 0.0
        return taken


class _Buckets(Histogram):
    """A histogram that takes many observations at once, which the library does not offer."""

    def take_over(self, sizes: _Sizes) -> None:
        counts, total = sizes.take()
        if not any(counts):
            return
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Metrics:
    """What one worker counts, and a Falcon middleware that publishes it while the worker lives.

    ``outcomes`` are the slugs of all problems; those of ``ledger.writing.Status`` are known.
    ``tokens`` are the names of tokens. Belongs to one event loop; build one for each process.
    """

    def __init__(
        self, outcomes: Collection[str], tokens: Collection[str] = ("current", "previous")
    ) -> None:
        # The library decides when it is imported whether values are shared, which may have been
        # before the directory for them was known.
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._outcomes = frozenset({*Status, "ignored", "spooled", *outcomes})
        self._tokens = frozenset({*tokens, UNSIGNED})
        self._seen: defaultdict[tuple[str, str | None, str | None], int] = defaultdict(int)
        self._addresses = {True: 0, False: 0}
        self._seconds = _Sizes(SECONDS)
        self._batches = _Sizes(BATCH_SIZES)
        self._publishing: asyncio.Task[None] | None = None
        self._watched: list[Callable[[], Awaitable[None]]] = []
        self._define()

    def _define(self) -> None:
        """Every series from the start, at zero: what appears later hides its first step."""
        known: dict[str, Any] = {"registry": self.registry, "namespace": "ingress"}
        self._deliveries = Counter(
            "deliveries",
            "Deliveries answered, by what became of them and whether a token vouched for them.",
            ["outcome", "believed"],
            **known,
        )
        for outcome in (*sorted(self._outcomes), OTHER):
            for believed in ("yes", "no"):
                self._deliveries.labels(outcome, believed)
        self._believed = Counter(
            "believed_deliveries",
            "Believed deliveries, by which form of the body was signed and which token vouched.",
            ["form", "token"],
            **known,
        )
        for form in Form:
            for token in sorted(self._tokens - {UNSIGNED}):
                self._believed.labels(form.value, token)
        self._believed.labels(UNSIGNED, UNSIGNED)
        self._delivery_seconds = _Buckets(
            "delivery_seconds", "From headers to answer.", buckets=SECONDS, **known
        )
        self._batch_size = _Buckets(
            "batch_size", "Rewards in one database transaction.", buckets=BATCH_SIZES, **known
        )
        self._peers = Counter(
            "peers", "Deliveries, by whether their address is in the list.", ["expected"], **known
        )
        for expected in ("yes", "no"):
            self._peers.labels(expected)
        self._shared_transactions = Counter(
            "shared_transactions", "A transactionId seen under a second rewardId.", **known
        )
        self._dropped_lines = Counter(
            "dropped_log_lines", "Log lines that nobody read in time.", **known
        )
        self._define_gauges(known)

    def _define_gauges(self, known: Mapping[str, Any]) -> None:
        def gauge(name: str, meaning: str, mode: Any) -> Gauge:  # noqa: ANN401 - the library's literal
            return Gauge(name, meaning, multiprocess_mode=mode, **known)

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
        self._credited_at = gauge(
            "last_credited_timestamp_seconds", "When a reward was credited last.", "max"
        )

    def delivery(
        self, outcome: str, seconds: float, form: str | None = None, token: str | None = None
    ) -> None:
        """Count an answer; ``form`` and ``token`` of a delivery that was believed."""
        self._seen[outcome, form, token] += 1
        self._seconds.add(seconds)

    def peer(self, *, is_expected: bool) -> None:
        """Count an address against the list of those allowed."""
        self._addresses[is_expected] += 1

    def batch(self, size: int) -> None:
        """Count a database transaction that posted ``size`` rewards."""
        self._batches.add(size)

    def shared_transaction(self) -> None:
        """Count a transactionId that was seen under another rewardId before."""
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

    def set_spool(self, depth: int, oldest_at: float | None) -> None:
        """Say how many deliveries are spooled, and since when (Unix time) the oldest."""
        self._spool_depth.set(depth)
        self._spool_oldest.set(oldest_at or 0)

    def watch(self, look: Callable[[], Awaitable[None]]) -> None:
        """Call ``look``, which sets gauges, now and then while the worker lives."""
        self._watched.append(look)

    def publish(self) -> None:
        """Add what was counted since the last time to the shared files."""
        seen, self._seen = self._seen, defaultdict(int)
        for (outcome, form, token), count in seen.items():
            name = outcome if outcome in self._outcomes else OTHER
            self._deliveries.labels(name, "no" if form is None else "yes").inc(count)
            if form is not None:
                signed = form if form in set(Form) else UNSIGNED
                voucher = token if token in self._tokens else OTHER
                self._believed.labels(signed, voucher).inc(count)
            if outcome == Status.CREDITED:
                self._credited_at.set(time.time())
        addresses, self._addresses = self._addresses, {True: 0, False: 0}
        for is_expected, count in addresses.items():
            self._peers.labels("yes" if is_expected else "no").inc(count)
        self._delivery_seconds.take_over(self._seconds)
        self._batch_size.take_over(self._batches)

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the start of a worker."""
        self._publishing = asyncio.create_task(self._keep_publishing())

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for its end."""
        if self._publishing is not None:
            self._publishing.cancel()
        self.publish()

    async def _keep_publishing(self) -> None:
        watch_at = 0.0
        while True:
            # To be blind is no reason to stop: whatever goes wrong here, rewards are taken.
            try:
                if time.monotonic() >= watch_at:
                    watch_at = time.monotonic() + WATCH_EVERY_SECONDS
                    for look in self._watched:
                        with suppress(Unavailable):
                            await look()
                self.publish()
            except Exception as error:
                log.warning("the metrics stand still: %s", where(error))
            await asyncio.sleep(PUBLISH_EVERY_SECONDS)
