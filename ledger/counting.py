"""Counting many things cheaply, for Prometheus.

prometheus-client shares what several processes count through one file for each process, and every
write there costs a microsecond or more. So a process counts in plain Python, and now and then adds
what is new to its file: one that is killed takes at most what is new with it.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Histogram, values

PUBLISH_EVERY_SECONDS = 1.0
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Where the buckets of times end."""


def new_registry() -> CollectorRegistry:
    """A registry whose values are shared if the environment says where."""
    # The library decides when it is imported, which may have been before the directory for shared
    # values was known.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
    return CollectorRegistry()


class Sizes:
    """How often which bucket was met since it was last asked."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, size: float) -> None:
        """Count one of ``size``."""
        self._counts[bisect_left(self._bounds, size)] += 1
        self._sum += size

    def take(self) -> tuple[list[int], float]:
        """The counts of the buckets, and the sum of all sizes; both are zero afterwards."""
        taken = self._counts, self._sum
        self._counts, self._sum = [0] * len(self._counts), 0.0
        return taken


class Buckets(Histogram):
    """A histogram that takes many observations at once, which the library does not offer."""

    def take_over(self, sizes: Sizes) -> None:
        """Add what was counted since the last time."""
        counts, total = sizes.take()
        if not any(counts):
            return
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)
