"""Failures are limited, address by address; time gives them back."""

import asyncio
import itertools
import random
import time
import tracemalloc
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ingress.errors import NotBelieved, NotCheckedInTime
from ingress.limiting import FailureLimit, Turns, read_failure_limit
from ledger.config import InvalidSetting
from tests.conftest import Run

HERE = IPv4Address("203.0.113.7")
NOW = 86_400.0


def failed(limit: FailureLimit, address: IPv4Address | IPv6Address | None, times: int) -> None:
    for _ in range(times):
        limit.count_failure(address, NOW)


def test_an_address_may_fail_as_often_as_the_burst_and_not_once_more():
    limit = FailureLimit(per_minute=6, burst=3)
    for _ in range(3):
        assert not limit.wait_seconds(HERE, NOW)
        limit.count_failure(HERE, NOW)
    assert limit.wait_seconds(HERE, NOW)


def test_asking_spends_nothing():
    limit = FailureLimit(per_minute=6, burst=1)
    for _ in range(100):
        assert not limit.wait_seconds(HERE, NOW)


@pytest.mark.parametrize("per_minute", [1, 6, 7, 60, 1000])
def test_after_the_told_wait_the_address_may_fail_again_and_only_once(per_minute):
    limit = FailureLimit(per_minute, burst=5)
    failed(limit, HERE, 5)
    wait = limit.wait_seconds(HERE, NOW)
    assert wait == -(-60 // per_minute)
    assert limit.wait_seconds(HERE, NOW + 60 / per_minute - 0.001)
    assert not limit.wait_seconds(HERE, NOW + wait)
    limit.count_failure(HERE, NOW + 60 / per_minute + 0.001)
    assert limit.wait_seconds(HERE, NOW + 60 / per_minute + 0.001)


def test_time_gives_back_the_burst_and_never_more():
    limit = FailureLimit(per_minute=60, burst=5)
    failed(limit, HERE, 5)
    later = NOW + 1_000_000
    for _ in range(5):
        assert not limit.wait_seconds(HERE, later)
        limit.count_failure(HERE, later)
    assert limit.wait_seconds(HERE, later)


def test_no_debt_is_kept_beyond_an_empty_budget():
    limit = FailureLimit(per_minute=60, burst=5)
    failed(limit, HERE, 500)
    assert limit.wait_seconds(HERE, NOW) == 1


def test_in_the_long_run_no_more_failures_pass_than_the_rate_and_the_burst():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    limit, now, passed = FailureLimit(per_minute=30, burst=10), NOW, 0
    while now < NOW + 3600:
        now += choice.expovariate(5)
        if not limit.wait_seconds(HERE, now):
            limit.count_failure(HERE, now)
            passed += 1
    assert 30 * 60 * 0.99 <= passed <= 30 * 60 + 10 + 1


@pytest.mark.parametrize(
    ("one", "other", "is_shared"),
    [
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        # As numbers, these two are the same.
        ("0.0.0.1", "0:0:0:1::", False),
        (None, None, True),
        (None, "0.0.0.0", False),
        (None, "::", False),
    ],
)
def test_a_budget_belongs_to_one_address_or_one_network_of_version_six(one, other, is_shared):
    limit = FailureLimit(per_minute=60, burst=2)
    failed(limit, ip_address(one) if one else None, 2)
    assert (limit.wait_seconds(ip_address(other) if other else None, NOW) > 0) is is_shared


def test_of_too_many_addresses_the_one_that_failed_longest_ago_is_forgotten():
    limit = FailureLimit(per_minute=60, burst=1, addresses_max=3)
    first, second, third, fourth = (IPv4Address(number) for number in range(4))
    for address in (first, second, third, first, fourth):
        limit.count_failure(address, NOW)
    assert not limit.wait_seconds(second, NOW)
    assert all(limit.wait_seconds(address, NOW) for address in (first, third, fourth))


def test_a_flood_of_addresses_takes_no_more_memory_than_the_bound():
    limit = FailureLimit(per_minute=60, burst=60, addresses_max=1000)
    tracemalloc.start()
    try:
        for number in range(20_000):
            limit.count_failure(IPv6Address(number << 64), NOW + number)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size_bytes < 500 * 1000


def test_nothing_is_limited_or_remembered_without_a_rate():
    limit = read_failure_limit({"INGRESS_FAILURES_PER_MINUTE": "0"})
    failed(limit, HERE, 10_000)
    assert not limit.wait_seconds(HERE, NOW)
    assert not limit._spent


@pytest.mark.parametrize(("value", "failures"), [("", 60), ("5", 5)])
def test_the_setting_is_the_rate_and_the_burst(value, failures):
    limit = read_failure_limit({"INGRESS_FAILURES_PER_MINUTE": value})
    failed(limit, HERE, failures - 1)
    assert not limit.wait_seconds(HERE, NOW)
    failed(limit, HERE, 1)
    assert limit.wait_seconds(HERE, NOW)


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "1000001"])
def test_a_rate_that_is_no_whole_number_is_refused(value):
    with pytest.raises(InvalidSetting, match="INGRESS_FAILURES_PER_MINUTE"):
        read_failure_limit({"INGRESS_FAILURES_PER_MINUTE": value})


def burn(seconds: float) -> float:
    """Keep the processor busy; when that was over."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        pass
    return now


def test_turns_are_taken_in_order_and_leave_the_others_their_share(run: Run) -> None:
    async def main() -> list[float]:
        turns = Turns(share=0.25)
        return await asyncio.gather(*(turns.take(partial(burn, 0.01), 60) for _ in range(6)))

    ended = run(main())
    pauses = [later - earlier for earlier, later in itertools.pairwise(ended)]
    # A quarter of the time is 10 ms in each 40, of which timers may take a millisecond off.
    assert min(pauses) > 0.037


def test_a_turn_after_a_long_pause_comes_at_once(run: Run) -> None:
    async def main() -> None:
        turns = Turns(share=0.001)
        for _ in range(2):
            turns._free_at = 0.0
            await turns.take(partial(burn, 0.001), 0.5)

    run(main())


def test_whose_turn_does_not_come_in_time_is_told_and_holds_up_nobody(run: Run) -> None:
    async def main() -> None:
        turns = Turns(share=0.1)
        await turns.take(partial(burn, 0.02), 60)
        with pytest.raises(NotCheckedInTime):
            await turns.take(partial(pytest.fail, "it was not its turn"), 0.01)
        await turns.take(lambda: None, 60)

    run(main())


def test_a_step_that_fails_takes_its_turn_and_tells_why(run: Run) -> None:
    def fail() -> None:
        burn(0.01)
        raise NotBelieved

    async def main() -> None:
        turns = Turns(share=0.1)
        with pytest.raises(NotBelieved):
            await turns.take(fail, 60)
        with pytest.raises(NotCheckedInTime):
            await turns.take(lambda: None, 0.01)

    run(main())
