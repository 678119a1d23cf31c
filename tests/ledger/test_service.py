"""What the service answers, asked over a real socket from a real Postgres."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ledger import reading
from ledger import service as answering
from ledger.reward import Reward
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import Outcome, Receipt, post
from tests.conftest import Database, Run
from tests.rewards import reward
from tests.serving import Refusal, refusal, serving

MICROSECOND = timedelta(microseconds=1)


@asynccontextmanager
async def asking(database: Database) -> AsyncIterator[Any]:
    async with serving(database.url("ledger_reader")) as channel:
        yield LedgerServiceStub(channel)


async def posted(database: Database, *rewards: Reward) -> list[Outcome]:
    async with database.connected() as connection:
        return await post(connection, rewards)


async def posted_at(database: Database, told: Reward) -> datetime:
    (receipt,) = await posted(database, told)
    assert isinstance(receipt, Receipt)
    return receipt.posted_at


def timestamp(at: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(at)
    return result


def values(balances: Sequence[pb.Balance]) -> list[tuple[str, str, str, int]]:
    return [(b.user_id, b.amount.currency, b.amount.value, b.version) for b in balances]


def test_a_balance_comes_with_its_count_and_the_time_of_its_last_posting(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await posted(database, reward("first", "12"))
        at = await posted_at(database, reward("second", "0.5"))
        async with asking(database) as service:
            request = pb.GetBalanceRequest(user_id="user-1", currency="USD")
            balance = (await service.GetBalance(request)).balance
        assert values([balance]) == [("user-1", "USD", "12.50", 2)]
        assert balance.posted_at.ToDatetime(UTC) == at

    run(main())


@pytest.mark.parametrize(
    ("currency", "amounts", "value"),
    [
        ("USD", ["400"], "400"),
        ("USD", ["12.5"], "12.50"),
        ("USD", ["0.01"], "0.01"),
        ("USD", ["0.25", "0.75"], "1"),
        ("USD", ["100"], "100"),
        ("POINTS", ["250"], "250"),
        ("BHD", ["1.5"], "1.500"),
        ("USD", ["9" * 28 + ".99"], "9" * 28 + ".99"),
    ],
)
def test_a_value_is_whole_or_has_all_decimals_of_its_currency(
    database: Database, run: Run, currency: str, amounts: list[str], value: str
) -> None:
    async def main() -> None:
        await posted(
            database,
            *(reward(f"r-{i}", amount, currency=currency) for i, amount in enumerate(amounts)),
        )
        async with asking(database) as service:
            request = pb.GetBalanceRequest(user_id="user-1", currency=currency)
            assert (await service.GetBalance(request)).balance.amount.value == value

    run(main())


def test_what_was_never_credited_has_a_balance_of_zero(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward())
        async with asking(database) as service:
            for user_id, currency in (
                ("user-1", "EUR"),
                ("never-seen", "USD"),
                ("user-1", "NOSUCHCURRENCY"),
                ("user-1' OR 'a'='a", "USD"),
                ('{"a",\\', "USD"),
                ("ü" * 200, "USD"),
            ):
                request = pb.GetBalanceRequest(user_id=user_id, currency=currency)
                balance = (await service.GetBalance(request)).balance
                assert values([balance]) == [(user_id, currency, "0", 0)]
                assert not balance.HasField("posted_at")
            request = pb.ListBalancesRequest(user_id="never-seen")
            assert not (await service.ListBalances(request)).balances

    run(main())


def test_a_currency_in_lower_case_is_accepted(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward())
        async with asking(database) as service:
            one = await service.GetBalance(pb.GetBalanceRequest(user_id="user-1", currency="usd"))
            assert values([one.balance]) == [("user-1", "USD", "400", 1)]
            keys = [pb.BalanceKey(user_id="user-1", currency="uSd")]
            many = await service.BatchGetBalances(pb.BatchGetBalancesRequest(keys=keys))
            assert values(many.balances) == [("user-1", "USD", "400", 1)]
            page = await service.ListRewards(
                pb.ListRewardsRequest(user_id="user-1", currency="usd")
            )
            assert [found.reward_id for found in page.rewards] == ["reward-1"]

    run(main())


def test_balances_can_be_asked_as_of_a_time(database: Database, run: Run) -> None:
    async def main() -> None:
        first = await posted_at(database, reward("first", "1"))
        second = await posted_at(database, reward("second", "2.5"))
        assert first + MICROSECOND < second
        async with asking(database) as service:
            for as_of, value, version, at in (
                (first - MICROSECOND, "0", 0, None),
                (first, "1", 1, first),
                (second - MICROSECOND, "1", 1, first),
                (second, "3.50", 2, second),
                (datetime(9999, 12, 31, tzinfo=UTC), "3.50", 2, second),
                (datetime(1, 1, 1, tzinfo=UTC), "0", 0, None),
            ):
                asked = pb.GetBalanceRequest(
                    user_id="user-1", currency="USD", as_of=timestamp(as_of)
                )
                one = (await service.GetBalance(asked)).balance
                assert values([one]) == [("user-1", "USD", value, version)]
                assert (one.posted_at.ToDatetime(UTC) if one.HasField("posted_at") else None) == at
                keys = [pb.BalanceKey(user_id=user, currency="USD") for user in ("user-1", "no")]
                many = await service.BatchGetBalances(
                    pb.BatchGetBalancesRequest(keys=keys, as_of=timestamp(as_of))
                )
                assert list(many.balances)[:1] == [one]
                assert many.balances[1].amount.value == "0"
                all_of_user = await service.ListBalances(
                    pb.ListBalancesRequest(user_id="user-1", as_of=timestamp(as_of))
                )
                assert list(all_of_user.balances) == ([one] if version else [])
                totals = await service.ListCurrencyTotals(
                    pb.ListCurrencyTotalsRequest(as_of=timestamp(as_of))
                )
                assert [
                    (t.debits.value, t.credits.value, t.difference.value, t.rewards, t.users)
                    for t in totals.totals
                ] == ([(value, value, "0", version, 1)] if version else [])

    run(main())


def test_rewards_of_one_time_are_all_in_the_balance_of_that_time(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        first, second = await posted(database, reward("first", "1"), reward("second", "2"))
        assert isinstance(first, Receipt)
        assert isinstance(second, Receipt)
        assert first.posted_at == second.posted_at
        async with asking(database) as service:
            request = pb.GetBalanceRequest(
                user_id="user-1", currency="USD", as_of=timestamp(first.posted_at)
            )
            balance = (await service.GetBalance(request)).balance
        assert values([balance]) == [("user-1", "USD", "3", 2)]

    run(main())


def test_a_time_between_two_microseconds_belongs_to_the_earlier(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        at = await posted_at(database, reward())
        before, within = timestamp(at - MICROSECOND), timestamp(at)
        before.nanos += 999
        within.nanos += 999
        async with asking(database) as service:
            for as_of, value in ((before, "0"), (within, "400")):
                request = pb.GetBalanceRequest(user_id="user-1", currency="USD", as_of=as_of)
                assert (await service.GetBalance(request)).balance.amount.value == value

    run(main())


def test_concurrent_questions_are_each_answered_with_their_own_balance(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        at = await posted_at(database, reward("r-0", "1", user_id="user-0"))
        await posted(
            database, *(reward(f"r-{i}", str(i + 1), user_id=f"user-{i}") for i in range(1, 50))
        )
        async with asking(database) as service:
            calls = [
                service.GetBalance(
                    pb.GetBalanceRequest(
                        user_id=f"user-{i}",
                        currency="USD",
                        as_of=timestamp(at) if is_past else None,
                    )
                )
                for i in range(50)
                for is_past in (False, True)
            ]
            answers = [answer.balance.amount.value for answer in await asyncio.gather(*calls)]
        assert answers[0::2] == [str(i + 1) for i in range(50)]
        assert answers[1::2] == ["1"] + ["0"] * 49

    run(main())


def test_all_balances_of_a_user_come_by_currency(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(
            database,
            reward("a", "7", currency="POINTS"),
            reward("b", "1.5", currency="EUR"),
            reward("c", "2", currency="USD"),
            reward("d", "9", user_id="user-2", currency="GBP"),
            reward("e", None),
        )
        async with asking(database) as service:
            found = await service.ListBalances(pb.ListBalancesRequest(user_id="user-1"))
        assert values(found.balances) == [
            ("user-1", "EUR", "1.50", 1),
            ("user-1", "POINTS", "7", 1),
            ("user-1", "USD", "2", 1),
        ]
        assert all(balance.HasField("posted_at") for balance in found.balances)

    run(main())


def test_all_balances_as_of_a_time_leave_out_what_was_credited_later(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        first = await posted_at(database, reward("a", "1", currency="USD"))
        second = await posted_at(database, reward("b", "2", currency="EUR"))
        third = await posted_at(database, reward("c", "4", currency="USD"))
        await posted_at(database, reward("d", "8", user_id="user-2", currency="GBP"))
        async with asking(database) as service:
            for as_of, expected in (
                (first, [("USD", "1", 1)]),
                (second, [("EUR", "2", 1), ("USD", "1", 1)]),
                (third, [("EUR", "2", 1), ("USD", "5", 2)]),
            ):
                found = await service.ListBalances(
                    pb.ListBalancesRequest(user_id="user-1", as_of=timestamp(as_of))
                )
                assert values(found.balances) == [("user-1", *each) for each in expected]

    run(main())


def test_a_batch_is_answered_in_the_order_of_its_keys(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward("a", "1"), reward("b", "2", user_id="user-2"))
        async with asking(database) as service:
            keys = [
                pb.BalanceKey(user_id=user, currency=currency)
                for user, currency in (
                    ("user-2", "USD"),
                    ("user-1", "USD"),
                    ("user-2", "EUR"),
                    ("user-2", "USD"),
                )
            ]
            found = await service.BatchGetBalances(pb.BatchGetBalancesRequest(keys=keys))
            assert values(found.balances) == [
                ("user-2", "USD", "2", 1),
                ("user-1", "USD", "1", 1),
                ("user-2", "EUR", "0", 0),
                ("user-2", "USD", "2", 1),
            ]
            found = await service.BatchGetBalances(pb.BatchGetBalancesRequest(keys=keys[:1] * 500))
            assert values(found.balances) == [("user-2", "USD", "2", 1)] * 500

    run(main())


def test_a_batch_is_of_one_snapshot(database: Database, run: Run) -> None:
    """Each commit moves both balances, so nobody ever sees one of them ahead of the other."""

    async def write() -> None:
        async with database.connected() as connection:
            for i in itertools.count():
                await post(
                    connection,
                    [reward(f"a-{i}", "1", user_id="a"), reward(f"b-{i}", "1", user_id="b")],
                )

    async def main() -> None:
        keys = [pb.BalanceKey(user_id=user, currency="USD") for user in ("a", "b")] * 50
        seen = set()
        async with asking(database) as service, asyncio.timeout(60):
            writing = asyncio.create_task(write())
            while len(seen) < 20:
                found = await service.BatchGetBalances(pb.BatchGetBalancesRequest(keys=keys))
                (version,) = {balance.version for balance in found.balances}
                seen.add(version)
            writing.cancel()

    run(main())


NOT_A_TIME = Timestamp(nanos=1_000_000_000)
KEY = pb.BalanceKey(user_id="user-1", currency="USD")
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GetBalance", {"user_id": "user-1"}, "currency"),
    ("GetBalance", {"currency": "USD"}, "user_id"),
    ("GetBalance", {"user_id": "u" * 201, "currency": "USD"}, "user_id"),
    ("GetBalance", {"user_id": "u\0", "currency": "USD"}, "user_id"),
    ("GetBalance", {"user_id": "user-1", "currency": "U SD"}, "currency"),
    ("GetBalance", {"user_id": "user-1", "currency": "USD\n"}, "currency"),
    ("GetBalance", {"user_id": "user-1", "currency": "U" * 21}, "currency"),
    # Upper case of these is ASCII; they are no codes all the same.
    ("GetBalance", {"user_id": "user-1", "currency": "u\ufb01"}, "currency"),
    ("GetBalance", {"user_id": "user-1", "currency": "\u0131"}, "currency"),
    ("GetBalance", {"user_id": "user-1", "currency": "USD", "as_of": NOT_A_TIME}, "as_of"),
    (
        "GetBalance",
        {"user_id": "user-1", "currency": "USD", "as_of": Timestamp(nanos=-1)},
        "as_of",
    ),
    (
        "GetBalance",
        {"user_id": "user-1", "currency": "USD", "as_of": Timestamp(seconds=2**63 - 1)},
        "as_of",
    ),
    (
        "GetBalance",
        {"user_id": "user-1", "currency": "USD", "as_of": Timestamp(seconds=253402300800)},
        "as_of",
    ),
    ("ListBalances", {}, "user_id"),
    ("ListBalances", {"user_id": "\0"}, "user_id"),
    ("ListBalances", {"user_id": "user-1", "as_of": NOT_A_TIME}, "as_of"),
    ("BatchGetBalances", {}, "keys"),
    ("BatchGetBalances", {"keys": [KEY] * 501}, "keys"),
    ("BatchGetBalances", {"keys": [KEY, pb.BalanceKey(user_id="u")]}, "keys[1].currency"),
    ("BatchGetBalances", {"keys": [pb.BalanceKey(currency="USD")]}, "keys[0].user_id"),
    ("BatchGetBalances", {"keys": [KEY], "as_of": NOT_A_TIME}, "as_of"),
    ("ListRewards", {}, "user_id"),
    ("ListRewards", {"user_id": "user-1", "page_size": -1}, "page_size"),
    ("ListRewards", {"user_id": "user-1", "page_token": "AAAA"}, "page_token"),
    ("ListRewards", {"user_id": "user-1", "currency": "?"}, "currency"),
    ("ListRewards", {"user_id": "user-1", "campaign_id": "\0"}, "campaign_id"),
    ("ListRewards", {"user_id": "user-1", "type": "\0"}, "type"),
    ("ListRewards", {"user_id": "user-1", "start_time": NOT_A_TIME}, "start_time"),
    ("ListRewards", {"user_id": "user-1", "end_time": NOT_A_TIME}, "end_time"),
    (
        "ListRewards",
        {"user_id": "user-1", "start_time": Timestamp(seconds=2), "end_time": Timestamp(seconds=1)},
        "end_time",
    ),
    ("GetReward", {}, "reward_id"),
    ("GetReward", {"reward_id": "r" * 201}, "reward_id"),
    ("GetReward", {"reward_id": "\0"}, "reward_id"),
    ("ListCurrencyTotals", {"as_of": NOT_A_TIME}, "as_of"),
    ("ListMovements", {"end_day": "2026-11-01"}, "start_day"),
    ("ListMovements", {"start_day": "2026-10-01", "end_day": "2026-11-31"}, "end_day"),
    ("ListMovements", {"start_day": "2026-10-01", "end_day": "2026-10-01"}, "end_day"),
    (
        "ListMovements",
        {"start_day": "2026-10-01", "end_day": "2026-11-01", "group": 99},
        "group",
    ),
    ("GetTrialBalance", {"as_of": NOT_A_TIME}, "as_of"),
]


def test_a_malformed_question_is_refused_with_its_field(database: Database, run: Run) -> None:
    async def main() -> None:
        async with asking(database) as service:
            for method, fields, field in REFUSED:
                request = getattr(pb, f"{method}Request")(**fields)
                expected = Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", field)
                assert await refusal(getattr(service, method)(request)) == expected, fields

    run(main())


def names(page: pb.ListRewardsResponse) -> list[str]:
    return [found.reward_id for found in page.rewards]


async def pages(service: Any, page_size: int, **chosen: Any) -> AsyncIterator[list[str]]:
    """The names on each page, to the last."""
    page_token = ""
    while True:
        page = await service.ListRewards(
            pb.ListRewardsRequest(page_size=page_size, page_token=page_token, **chosen)
        )
        yield names(page)
        page_token = page.next_page_token
        if not page_token:
            return


def test_a_page_holds_fifty_rewards_newest_first_and_never_over_a_thousand(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        newest_first = [f"r-{i:04}" for i in reversed(range(1001))]
        await posted(database, *(reward(name, "1") for name in reversed(newest_first)))
        async with asking(database) as service:
            asked = pb.ListRewardsRequest(user_id="user-1")
            first = await service.ListRewards(asked)
            assert names(first) == newest_first[:50]
            asked.page_token = first.next_page_token
            asked.page_size = 3
            second = await service.ListRewards(asked)
            assert names(second) == newest_first[50:53]
            asked.page_token = second.next_page_token
            asked.page_size = 2**31 - 1
            last = await service.ListRewards(asked)
            assert names(last) == newest_first[53:]
            assert not last.next_page_token
            asked.page_token = ""
            largest = await service.ListRewards(asked)
            assert names(largest) == newest_first[:1000]
            asked.page_token = largest.next_page_token
            assert names(await service.ListRewards(asked)) == newest_first[1000:]

    run(main())


def test_a_full_last_page_says_that_it_is_the_last(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, *(reward(f"r-{i}", "1") for i in range(4)))
        async with asking(database) as service:
            found = [names async for names in pages(service, 2, user_id="user-1")]
            assert found == [["r-3", "r-2"], ["r-1", "r-0"]]
            assert [names async for names in pages(service, 2, user_id="nobody")] == [[]]

    run(main())


def test_rewards_that_arrive_while_pages_are_read_make_no_gap_and_no_repeat(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        there = [f"r-{i:02}" for i in range(25)]
        await posted(database, *(reward(name, "1") for name in there))
        read: list[str] = []
        async with asking(database) as service:
            async for page in pages(service, 10, user_id="user-1"):
                read += page
                await posted(database, reward(f"new-{len(read)}"), reward(f"more-{len(read)}"))
        assert read == there[::-1]

    run(main())


def test_a_page_of_large_rewards_ends_before_a_caller_would_refuse_it(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        details = '{"note": "' + "x" * 1_000_000 + '"}'
        there = [f"r-{i}" for i in range(7)]
        await posted(database, *(reward(name, "1", details=details) for name in there))
        async with asking(database) as service:
            found = [page async for page in pages(service, 1000, user_id="user-1")]
        assert found == [["r-6", "r-5"], ["r-4", "r-3"], ["r-2", "r-1"], ["r-0"]]

    run(main())


def test_a_reward_larger_than_a_page_comes_alone(database: Database, run: Run) -> None:
    async def main() -> None:
        details = '"' + "x" * 2_500_000 + '"'
        await posted(database, *(reward(f"r-{i}", "1", details=details) for i in range(2)))
        async with asking(database) as service:
            found = [page async for page in pages(service, 1000, user_id="user-1")]
        assert found == [["r-1"], ["r-0"]]

    run(main())


def test_a_filter_keeps_only_what_it_names(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward("early"))
        await posted(
            database,
            reward("euro", currency="EUR"),
            reward("campaign", campaign_id="campaign-2"),
            reward("quiz", type="quiz"),
            reward("nothing", None, type="quiz"),
            reward("other", user_id="user-2"),
        )
        await posted(database, reward("late"))
        times = dict(database.rows("SELECT reward_id, recorded_at FROM rewards"))
        early, late = timestamp(times["early"]), timestamp(times["late"])
        after_early = timestamp(times["early"] + MICROSECOND)
        everything = {"early", "euro", "campaign", "quiz", "nothing", "late"}
        async with asking(database) as service:
            for chosen, expected in (
                ({}, everything),
                ({"currency": "EUR"}, {"euro"}),
                ({"campaign_id": "campaign-2"}, {"campaign"}),
                ({"type": "quiz"}, {"quiz", "nothing"}),
                ({"type": "quiz", "currency": "USD"}, {"quiz"}),
                ({"type": "Quiz"}, set()),
                ({"start_time": early}, everything),
                ({"start_time": after_early}, everything - {"early"}),
                ({"end_time": late}, everything - {"late"}),
                ({"start_time": after_early, "end_time": late}, everything - {"early", "late"}),
                ({"start_time": late, "end_time": late}, set()),
            ):
                found = [
                    name
                    async for page in pages(service, 2, user_id="user-1", **chosen)
                    for name in page
                ]
                assert set(found) == expected, chosen
                assert len(found) == len(expected)

    run(main())


def test_a_page_looks_at_no_more_than_its_bound_and_the_next_one_goes_on(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LOOKED_AT_MAX", 40)

    async def main() -> None:
        await posted(
            database,
            reward("a", type="quiz"),
            *(reward(f"r-{i}", "1") for i in range(98)),
            reward("z", type="quiz"),
        )
        async with asking(database) as service:
            found = [page async for page in pages(service, 10, user_id="user-1", type="quiz")]
            assert found == [["z"], [], ["a"]]
            none = [page async for page in pages(service, 10, user_id="user-1", type="none")]
            assert none == [[], [], []]
            page = await service.ListRewards(pb.ListRewardsRequest(user_id="user-1", page_size=45))
            assert len(page.rewards) == 40

    run(main())


def test_pages_hold_each_chosen_reward_once_whatever_ends_them(
    database: Database, run: Run, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        reward(
            f"r-{i:03}",
            "1",
            type=chance.choice(["quiz", "spin"]),
            currency=chance.choice(["USD", "EUR"]),
            details='"' + "x" * chance.choice([0, 0, 300, 3000]) + '"',
            # What it came in may be much larger than what is told of it, or smaller.
            believed_bytes=chance.choice([b"", b"y" * 5000]) + str(i).encode(),
        )
        for i in range(60)
    ]

    async def main() -> None:
        await posted(database, *made)
        async with asking(database) as service:
            for _ in range(12):
                looked_at_max = chance.choice([5, 17, 59, 60, 61, 5000])
                monkeypatch.setattr(reading, "LOOKED_AT_MAX", looked_at_max)
                monkeypatch.setattr(answering, "PAGE_SIZE_MAX_BYTES", chance.choice([500, 9000]))
                chosen = chance.choice([{}, {"type": "quiz"}, {"type": "spin", "currency": "EUR"}])
                size = chance.choice([3, 20, 1000])
                found = [page async for page in pages(service, size, user_id="user-1", **chosen)]
                assert [name for page in found for name in page] == [
                    told.reward_id
                    for told in reversed(made)
                    if chosen.items() <= told._asdict().items()
                ], (looked_at_max, chosen, size)
                assert max(map(len, found)) <= size

    run(main())


def test_a_page_token_of_another_filter_is_refused(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, *(reward(f"r-{i}", "1") for i in range(2)))
        async with asking(database) as service:
            first = await service.ListRewards(pb.ListRewardsRequest(user_id="user-1", page_size=1))
            for other in ({"user_id": "user-2"}, {"user_id": "user-1", "currency": "USD"}):
                request = pb.ListRewardsRequest(page_token=first.next_page_token, **other)
                expected = Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", "page_token")
                assert await refusal(service.ListRewards(request)) == expected

    run(main())


def test_a_reward_is_told_whole_but_for_its_bytes(database: Database, run: Run) -> None:
    expires_at = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    told = reward(
        "second",
        "0.5",
        type="scratchcard",
        reward_type="cash",
        reward_name="Half a dollar",
        status="redeemable",
        transaction_id="transaction-1",
        reward_category="RM",
        details='{"rewardCategory": "RM", "a":  1.0}',
        code="CODE123",
        reward_expires_at=expires_at,
        believed_bytes=b"SECRET-BYTES",
    )

    async def main() -> None:
        await posted(database, reward("first", "1"))
        at = await posted_at(database, told)
        async with asking(database) as service:
            found = (await service.GetReward(pb.GetRewardRequest(reward_id="second"))).reward
            (newest, _) = (
                await service.ListRewards(pb.ListRewardsRequest(user_id="user-1"))
            ).rewards
        assert newest == found
        assert abs(found.recorded_at.ToDatetime(UTC) - at) < timedelta(minutes=1)
        found.ClearField("recorded_at")
        assert found == pb.Reward(
            reward_id="second",
            user_id="user-1",
            campaign_id="campaign-1",
            type="scratchcard",
            reward_type="cash",
            reward_name="Half a dollar",
            status="redeemable",
            transaction_id="transaction-1",
            category="RM",
            details_json='{"rewardCategory": "RM", "a":  1.0}',
            expires_at=timestamp(expires_at),
            code="CODE123",
            posting=pb.Posting(
                debit_account="campaign:campaign-1",
                credit_account="user:user-1",
                amount=pb.Amount(currency="USD", value="0.50"),
                version=2,
                balance_after=pb.Amount(currency="USD", value="1.50"),
                posted_at=timestamp(at),
            ),
        )
        assert b"SECRET" not in found.SerializeToString()

    run(main())


def test_a_reward_that_posted_nothing_has_no_posting(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward("nothing", None, type=None, reward_type=None))
        async with asking(database) as service:
            found = (await service.GetReward(pb.GetRewardRequest(reward_id="nothing"))).reward
        assert not found.HasField("posting")
        assert not found.HasField("expires_at")
        assert found.HasField("recorded_at")
        assert (found.type, found.reward_type, found.status) == ("", "", "")

    run(main())


def test_an_unknown_reward_is_not_found(database: Database, run: Run) -> None:
    async def main() -> None:
        async with asking(database) as service:
            call = service.GetReward(pb.GetRewardRequest(reward_id="unknown"))
            assert await refusal(call) == Refusal("NOT_FOUND", "REWARD_NOT_FOUND")

    run(main())


def test_totals_count_each_currency_by_itself(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(
            database,
            reward("a", "1.5"),
            reward("b", "2"),
            reward("c", "3", user_id="user-2", campaign_id="campaign-2"),
            reward("d", "10", currency="POINTS"),
            reward("e", None),
        )
        async with asking(database) as service:
            now = await service.ListCurrencyTotals(pb.ListCurrencyTotalsRequest())
            past = await service.ListCurrencyTotals(
                pb.ListCurrencyTotalsRequest(as_of=Timestamp(seconds=253402300799))
            )
        assert now == past
        assert list(now.totals) == [
            pb.CurrencyTotals(
                debits=pb.Amount(currency=currency, value=value),
                credits=pb.Amount(currency=currency, value=value),
                difference=pb.Amount(currency=currency, value="0"),
                rewards=rewards,
                users=users,
            )
            for currency, value, rewards, users in (("POINTS", "10", 1, 1), ("USD", "6.50", 3, 2))
        ]

    run(main())


def test_totals_show_the_difference_of_broken_books(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward(amount="1"))
        database.rows("UPDATE balances SET debits = 0.25 WHERE account = 'campaign:campaign-1'")
        async with asking(database) as service:
            (totals,) = (await service.ListCurrencyTotals(pb.ListCurrencyTotalsRequest())).totals
        found = [Decimal(a.value) for a in (totals.debits, totals.credits, totals.difference)]
        assert found == [Decimal("0.25"), Decimal(1), Decimal("-0.75")]

    run(main())


def test_empty_books_have_no_totals(database: Database, run: Run) -> None:
    async def main() -> None:
        async with asking(database) as service:
            assert not (await service.ListCurrencyTotals(pb.ListCurrencyTotalsRequest())).totals

    run(main())
