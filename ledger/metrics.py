"""What one process of the gRPC service counts, for Prometheus.

Label values come from closed sets only: methods and statuses. Nothing that a caller wrote ever
becomes one.
"""

from collections import defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge

from ledger.counting import SECONDS, Buckets, Sizes, new_registry

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Load(NamedTuple):
    """What is going on in a process now."""

    calls: int
    streams: int
    pool_connections: int
    pool_idle_connections: int
    pool_waiting: int
    is_behind: bool


class Metrics:
    """What one process counts; ``methods`` and ``statuses`` are the closed sets of labels.

    Belongs to one event loop; build one for each process.
    """

    def __init__(self, methods: Collection[str], statuses: Collection[str]) -> None:
        self.registry = new_registry()
        self._seen: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._seconds = {method: Sizes(SECONDS) for method in methods}
        self._batches = Sizes(BATCH_SIZES)
        known: dict[str, Any] = {"registry": self.registry, "namespace": "ledger"}
        self._calls = Counter(
            "calls", "Calls answered, by method and status.", ["method", "status"], **known
        )
        self._call_seconds = Buckets(
            "call_seconds",
            "From a call's arrival to its answer; of a stream, to its end.",
            ["method"],
            buckets=SECONDS,
            **known,
        )
        # Every series from the start, at zero: what appears later hides its first step.
        for method in methods:
            self._call_seconds.labels(method)
            for status in statuses:
                self._calls.labels(method, status)
        self._batch_size = Buckets(
            "batch_size", "Balances in one round trip.", buckets=BATCH_SIZES, **known
        )
        self._dropped_lines = Counter(
            "dropped_log_lines", "Log lines that nobody read in time.", **known
        )
        self._gauges = {
            name: Gauge(name, meaning, multiprocess_mode="livesum", **known)
            for name, meaning in (
                ("calls_in_flight", "Calls being answered, without streams."),
                ("watchers", "Streams that are open."),
                ("pool_connections", "Connections to Postgres."),
                ("pool_idle_connections", "Those not in use."),
                ("pool_waiting", "Who waits for a connection."),
                (
                    "files_not_usable",
                    "Processes whose certificate or callers are those from before a change.",
                ),
            )
        }

    def call(self, method: str, status: str, seconds: float) -> None:
        """Count an answer to a known method."""
        self._seen[method, status] += 1
        self._seconds[method].add(seconds)

    def batch(self, size: int) -> None:
        """Count a round trip that asked for ``size`` balances."""
        self._batches.add(size)

    def dropped_line(self) -> None:
        """Count a log line that could not be kept until somebody reads it."""
        self._dropped_lines.inc()

    def publish(self, load: Load) -> None:
        """Add what was counted since the last time to the shared files, and say the load."""
        seen, self._seen = self._seen, defaultdict(int)
        for (method, status), count in seen.items():
            self._calls.labels(method, status).inc(count)
        for method, seconds in self._seconds.items():
            self._call_seconds.labels(method).take_over(seconds)
        self._batch_size.take_over(self._batches)
        for gauge, value in zip(self._gauges.values(), load, strict=True):
            gauge.set(value)
