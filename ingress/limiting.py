"""How many deliveries that nobody vouches for one address may have checked.

To refuse a delivery costs more than to take one, because its canonical text has to be made before
it is known that no token signed that either. So each address has a budget of failures, and only
failures spend it: a delivery that is believed never does. Whose budget is spent may still send
what is believed, so that is checked too, but when its turn comes.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from ingress.errors import NotCheckedInTime
from ledger.config import whole_number

ADDRESSES_MAX = 10_000
"""How many addresses one worker remembers, some 3 MB; then the one that failed longest ago goes."""

Result = TypeVar("Result")


class FailureLimit:
    """A budget of failures for each address: ``burst`` at once, ``per_minute`` in the long run.

    No ``per_minute``, no limit. An IPv6 address counts as its /64, which is what one customer of
    a provider has; all whose address is unknown share one budget. It is kept in memory, in each
    worker by itself, and never grows over ``addresses_max`` addresses. ``now`` is any clock in
    seconds that does not run backwards.
    """

    def __init__(self, per_minute: int, burst: int, addresses_max: int = ADDRESSES_MAX) -> None:
        self._failures_per_second = per_minute / 60
        self._burst = burst
        self._addresses_max = addresses_max
        # How many failures were unpaid, and when; in the order of the latest failure.
        self._spent: OrderedDict[tuple[int, int], tuple[float, float]] = OrderedDict()

    def wait_seconds(self, address: IPv4Address | IPv6Address | None, now: float) -> int:
        """After how many whole seconds the address may fail again: 0 if it may now."""
        if not self._spent:
            return 0
        over = self._still_spent(_key(address), now) - (self._burst - 1)
        return math.ceil(over / self._failures_per_second) if over > 0 else 0

    def count_failure(self, address: IPv4Address | IPv6Address | None, now: float) -> None:
        """Spend one failure of the address; no debt is kept beyond an empty budget."""
        if not self._failures_per_second:
            return
        key = _key(address)
        self._spent[key] = min(self._still_spent(key, now) + 1, self._burst), now
        self._spent.move_to_end(key)
        if len(self._spent) > self._addresses_max:
            self._spent.popitem(last=False)

    def _still_spent(self, key: tuple[int, int], now: float) -> float:
        spent, at = self._spent.get(key, (0.0, now))
        return max(0.0, spent - (now - at) * self._failures_per_second)


class Turns:
    """Costly steps one at a time, in the order of asking, for at most ``share`` of the time.

    After each, nobody has a turn for as long as makes its time that share; a step that is asked
    for after a longer pause is taken at once. Belongs to one event loop.
    """

    def __init__(self, share: float) -> None:
        self._pause_per_second = 1 / share - 1
        self._free_at = 0.0
        self._turn = asyncio.Lock()

    async def take(self, step: Callable[[], Result], seconds_max: float) -> Result:
        """What ``step`` gives; raises ``NotCheckedInTime`` when its turn does not come in time."""
        try:
            async with asyncio.timeout(seconds_max), self._turn:
                await asyncio.sleep(self._free_at - time.monotonic())
                begun_at = time.monotonic()
                try:
                    return step()
                finally:
                    ended_at = time.monotonic()
                    self._free_at = ended_at + (ended_at - begun_at) * self._pause_per_second
        except TimeoutError:
            raise NotCheckedInTime from None


def read_failure_limit(environment: Mapping[str, str]) -> FailureLimit:
    """The limit of ``INGRESS_FAILURES_PER_MINUTE``, 0 for none; raises ``InvalidSetting``."""
    per_minute = whole_number(
        environment, "INGRESS_FAILURES_PER_MINUTE", 60, minimum=0, maximum=1_000_000
    )
    return FailureLimit(per_minute, burst=per_minute)


def _key(address: IPv4Address | IPv6Address | None) -> tuple[int, int]:
    if address is None:
        return 0, 0
    if address.version == 6:
        return 6, int(address) >> 64
    return 4, int(address)
