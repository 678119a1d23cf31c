"""Failures are limited, address by address; time gives them back."""

import random
import tracemalloc
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ingress.limiting import FailureLimit, read_failure_limit
from ledger.config import InvalidSetting

HERE = IPv4Address("203.0.113.7")
NOW = 86_400.0


def failed(limit: FailureLimit, address: IPv4Address | IPv6Address | None, times: int) -> None:
    for _ in range(times):
        limit.count_failure(address, NOW)


def test_an_address_may_fail_as_often_as_the_burst_and_not_once_more():
    limit = FailureLimit(per_minute=6, burst=3)
    for _ in range(3):
        assert not limit.is_exhausted(HERE, NOW)
        limit.count_failure(HERE, NOW)
    assert limit.is_exhausted(HERE, NOW)


def test_asking_spends_nothing():
    limit = FailureLimit(per_minute=6, burst=1)
    for _ in range(100):
        assert not limit.is_exhausted(HERE, NOW)


@pytest.mark.parametrize("per_minute", [1, 6, 7, 60, 1000])
def test_after_the_told_wait_the_address_may_fail_again_and_only_once(per_minute):
    limit = FailureLimit(per_minute, burst=5)
    failed(limit, HERE, 5)
    wait = limit.wait_seconds(HERE, NOW)
    assert wait == -(-60 // per_minute)
    assert limit.is_exhausted(HERE, NOW + 60 / per_minute - 0.001)
    assert not limit.is_exhausted(HERE, NOW + wait)
    limit.count_failure(HERE, NOW + 60 / per_minute + 0.001)
    assert limit.is_exhausted(HERE, NOW + 60 / per_minute + 0.001)


def test_time_gives_back_the_burst_and_never_more():
    limit = FailureLimit(per_minute=60, burst=5)
    failed(limit, HERE, 5)
    later = NOW + 1_000_000
    for _ in range(5):
        assert not limit.is_exhausted(HERE, later)
        limit.count_failure(HERE, later)
    assert limit.is_exhausted(HERE, later)


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
        if not limit.is_exhausted(HERE, now):
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
    assert limit.is_exhausted(ip_address(other) if other else None, NOW) is is_shared


def test_of_too_many_addresses_the_one_that_failed_longest_ago_is_forgotten():
    limit = FailureLimit(per_minute=60, burst=1, addresses_max=3)
    first, second, third, fourth = (IPv4Address(number) for number in range(4))
    for address in (first, second, third, first, fourth):
        limit.count_failure(address, NOW)
    assert not limit.is_exhausted(second, NOW)
    assert all(limit.is_exhausted(address, NOW) for address in (first, third, fourth))


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
    assert not limit.is_exhausted(HERE, NOW)
    assert not limit._spent


@pytest.mark.parametrize(("value", "failures"), [("", 60), ("5", 5)])
def test_the_setting_is_the_rate_and_the_burst(value, failures):
    limit = read_failure_limit({"INGRESS_FAILURES_PER_MINUTE": value})
    failed(limit, HERE, failures - 1)
    assert not limit.is_exhausted(HERE, NOW)
    failed(limit, HERE, 1)
    assert limit.is_exhausted(HERE, NOW)


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "1000001"])
def test_a_rate_that_is_no_whole_number_is_refused(value):
    with pytest.raises(InvalidSetting, match="INGRESS_FAILURES_PER_MINUTE"):
        read_failure_limit({"INGRESS_FAILURES_PER_MINUTE": value})
