"""What both clients give, asked of the real server over a real socket."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from ledger.client import (
    AccountKind,
    AsyncLedgerClient,
    Balance,
    Correction,
    CurrencyTotals,
    LedgerClient,
    Movement,
    MovementControl,
    Movements,
    Posting,
    Reward,
    RewardPage,
    TrialBalance,
    finance,
    questions,
)
from ledger.v1 import ledger_pb2 as pb
from ledger.writing import Receipt, post
from tests.conftest import Database, Run
from tests.rewards import reward
from tests.serving import free_port, serving

Ask = Callable[..., Awaitable[Any]]
KINDS = pytest.mark.parametrize("kind", [LedgerClient, AsyncLedgerClient])


@asynccontextmanager
async def client(kind: type[Any], address: str, **options: Any) -> AsyncIterator[Ask]:
    """Asks through a client of this kind; whatever it gives one by one comes as a list."""
    if kind is LedgerClient:
        with LedgerClient(address, **options) as blocking:

            def ask_and_wait(name: str, *args: Any, **named: Any) -> Any:
                found = getattr(blocking, name)(*args, **named)
                return list(found) if inspect.isgenerator(found) else found

            yield lambda *args, **named: asyncio.to_thread(ask_and_wait, *args, **named)
    else:
        async with AsyncLedgerClient(address, **options) as awaiting:

            async def ask(name: str, *args: Any, **named: Any) -> Any:
                found = getattr(awaiting, name)(*args, **named)
                return [one async for one in found] if inspect.isasyncgen(found) else await found

            yield ask


@asynccontextmanager
async def asking(kind: type[Any], database: Database, **options: Any) -> AsyncIterator[Ask]:
    """Asks a server of this test's own."""
    port = free_port()
    async with (
        serving(database.url("ledger_reader"), port=port),
        client(kind, f"127.0.0.1:{port}", **options) as ask,
    ):
        yield ask


async def posted(database: Database, *rewards: Any) -> list[datetime]:
    """When these rewards were posted."""
    async with database.connected() as connection:
        receipts = await post(connection, rewards)
    return [receipt.posted_at for receipt in receipts if isinstance(receipt, Receipt)]


@KINDS
def test_a_balance_is_exact_and_its_time_knows_its_zone(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        (first,) = await posted(database, reward("first", "12"))
        (second,) = await posted(database, reward("second", "0.5"))
        async with asking(kind, database) as ask:
            now = await ask("get_balance", "user-1", "usd")
            past = await ask("get_balance", user_id="user-1", currency="USD", as_of=first)
            before = await ask(
                "get_balance", "user-1", "USD", as_of=first - timedelta(microseconds=1)
            )
        assert now == Balance("user-1", "USD", Decimal("12.50"), 2, second)
        assert str(now.amount) == "12.50"
        assert now.posted_at.tzinfo is UTC
        assert past == Balance("user-1", "USD", Decimal(12), 1, first)
        assert before == Balance("user-1", "USD", Decimal(0), 0, None)

    run(main())


@KINDS
def test_an_amount_of_any_length_comes_exactly(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward(amount="9" * 28 + ".99"))
        async with asking(kind, database) as ask:
            balance = await ask("get_balance", "user-1", "USD")
        assert balance.amount == Decimal("9" * 28 + ".99")

    run(main())


@KINDS
def test_a_time_of_any_zone_is_asked_for_as_the_same_instant(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        (at,) = await posted(database, reward(amount="1"))
        async with asking(kind, database) as ask:
            for hours in (-11, 0, 14):
                there = at.astimezone(timezone(timedelta(hours=hours)))
                found = await ask("get_balance", "user-1", "USD", as_of=there)
                assert found.amount == 1

    run(main())


@KINDS
def test_all_balances_and_many_balances_come_in_order(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        (at,) = await posted(database, reward("a", "7", currency="POINTS"))
        (later,) = await posted(database, reward("b", "1.5", currency="EUR"))
        async with asking(kind, database) as ask:
            euros = Balance("user-1", "EUR", Decimal("1.50"), 1, later)
            points = Balance("user-1", "POINTS", Decimal(7), 1, at)
            nothing = Balance("user-2", "EUR", Decimal(0), 0, None)
            assert await ask("list_balances", "user-1") == (euros, points)
            assert await ask("list_balances", "user-2") == ()
            assert await ask("list_balances", "user-1", as_of=at) == (points,)
            just_before = at - timedelta(microseconds=1)
            assert await ask("list_balances", "user-1", as_of=just_before) == ()
            keys = [("user-1", "POINTS"), ("user-2", "EUR"), ("user-1", "EUR")]
            assert await ask("batch_get_balances", iter(keys)) == (points, nothing, euros)
            past = await ask("batch_get_balances", keys, as_of=at)
            assert past == (points, nothing, Balance("user-1", "EUR", Decimal(0), 0, None))

    run(main())


@KINDS
def test_a_reward_comes_whole(database: Database, run: Run, kind: type[Any]) -> None:
    expires_at = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    told = reward(
        "whole",
        "0.5",
        reward_type="cash",
        reward_name="Half a dollar",
        status="redeemable",
        transaction_id="transaction-1",
        reward_category="RM",
        details='{"rewardCategory": "RM", "a":  1.0}',
        reward_expires_at=expires_at,
        code="SECRET-CODE",
    )

    async def main() -> None:
        (at,) = await posted(database, told)
        await posted(database, reward("bare", None, type=None, reward_type=None, reward_name=None))
        recorded = dict(database.rows("SELECT reward_id, recorded_at FROM rewards"))
        async with asking(kind, database) as ask:
            whole = await ask("get_reward", "whole")
            bare = await ask("get_reward", "bare")
            assert await ask("list_rewards", "user-1") == [bare, whole]
        assert whole == Reward(
            reward_id="whole",
            user_id="user-1",
            campaign_id="campaign-1",
            type="scratchcard",
            reward_type="cash",
            reward_name="Half a dollar",
            status="redeemable",
            transaction_id="transaction-1",
            category="RM",
            details_json='{"rewardCategory": "RM", "a":  1.0}',
            expires_at=expires_at,
            recorded_at=recorded["whole"],
            posting=Posting(
                debit_account="campaign:campaign-1",
                credit_account="user:user-1",
                currency="USD",
                amount=Decimal("0.50"),
                version=1,
                balance_after=Decimal("0.50"),
                posted_at=at,
            ),
            code="SECRET-CODE",
        )
        assert "SECRET" not in repr(whole)
        assert whole.recorded_at.tzinfo is whole.expires_at.tzinfo is UTC
        assert bare == Reward(
            "bare", "user-1", "campaign-1", *[""] * 7, None, recorded["bare"], None
        )

    run(main())


@KINDS
def test_rewards_come_one_by_one_over_all_pages(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        newest_first = [f"r-{i:03}" for i in reversed(range(107))]
        await posted(database, *(reward(name, "1") for name in reversed(newest_first)))
        async with asking(kind, database) as ask:
            for size in (0, 1, 106, 107, 1000):
                found = await ask("list_rewards", "user-1", page_size=size)
                assert [one.reward_id for one in found] == newest_first
            assert await ask("list_rewards", "nobody") == []
            page = await ask("list_rewards_page", "user-1", page_size=100)
            assert isinstance(page, RewardPage)
            assert len(page.rewards) == 100
            rest = await ask("list_rewards", "user-1", page_token=page.next_page_token)
            assert [one.reward_id for one in [*page.rewards, *rest]] == newest_first
            last = await ask("list_rewards_page", "user-1", page_token=page.next_page_token)
            assert last.next_page_token == ""

    run(main())


@KINDS
def test_rewards_are_kept_by_every_filter_on_every_page(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward("early"))
        await posted(
            database,
            *(reward(f"euro-{i}", currency="EUR") for i in range(3)),
            *(reward(f"other-{i}", campaign_id="campaign-2") for i in range(3)),
            *(reward(f"quiz-{i}", type="quiz") for i in range(3)),
        )
        await posted(database, reward("late"))
        times = dict(database.rows("SELECT reward_id, recorded_at FROM rewards"))
        async with asking(kind, database) as ask:
            for chosen, expected in (
                ({"currency": "EUR"}, {"euro"}),
                ({"campaign_id": "campaign-2"}, {"other"}),
                ({"type": "quiz"}, {"quiz"}),
                ({"start_time": times["late"]}, {"late"}),
                ({"end_time": times["euro-0"]}, {"early"}),
            ):
                found = await ask("list_rewards", "user-1", page_size=2, **chosen)
                assert {one.reward_id.partition("-")[0] for one in found} == expected

    run(main())


def test_the_next_page_is_asked_for_when_it_is_needed_and_not_before(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await posted(database, *(reward(f"r-{i}", "1") for i in range(4)))
        port = free_port()
        async with AsyncLedgerClient(f"127.0.0.1:{port}") as ledger:
            async with serving(database.url("ledger_reader"), port=port):
                rewards = ledger.list_rewards("user-1", page_size=2)
                assert (await anext(rewards)).reward_id == "r-3"
            # The server is gone; what was read is there.
            assert (await anext(rewards)).reward_id == "r-2"
            async with serving(database.url("ledger_reader"), port=port):
                assert [one.reward_id async for one in rewards] == ["r-1", "r-0"]

    run(main())


@KINDS
def test_totals_are_exact(database: Database, run: Run, kind: type[Any]) -> None:
    async def main() -> None:
        (at,) = await posted(database, reward("a", "1.5"))
        await posted(database, reward("b", "2", user_id="user-2"))
        async with asking(kind, database) as ask:
            assert await ask("list_currency_totals") == (
                CurrencyTotals("USD", Decimal("3.50"), Decimal("3.50"), Decimal(0), 2, 2),
            )
            assert await ask("list_currency_totals", as_of=at) == (
                CurrencyTotals("USD", Decimal("1.50"), Decimal("1.50"), Decimal(0), 1, 1),
            )
            day = at.date()
            nothing, three = Decimal(0), Decimal("3.50")
            moved = (nothing, three, nothing, nothing, three, 2, 0, 0)
            control = MovementControl("USD", three, three, nothing, 2)
            period = (day, day + timedelta(days=2))
            assert await ask("list_movements", *period) == Movements(
                (Movement("USD", "", *moved),), (control,)
            )
            for group, name in (
                ("campaign", "campaign-1"),
                ("type", "scratchcard"),
                ("reward-type", "points"),
                ("category", ""),
            ):
                found = await ask("list_movements", *period, group=group)
                assert found.movements == (Movement("USD", name, *moved),)
            user = AccountKind("user", nothing, three, three, 2)
            campaign = AccountKind("campaign", three, nothing, three, 2)
            assert await ask("get_trial_balance") == (
                TrialBalance("USD", (user, campaign), three, three, nothing, 2),
            )
            (past,) = await ask("get_trial_balance", as_of=at)
            assert past.postings == 1

    run(main())


@KINDS
def test_many_may_ask_through_one_client_at_once(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(
            database, *(reward(f"r-{i}", str(i + 1), user_id=f"user-{i}") for i in range(50))
        )
        async with asking(kind, database) as ask:
            found = await asyncio.gather(
                *(ask("get_balance", f"user-{i}", "USD") for i in range(50))
            )
        assert [balance.amount for balance in found] == list(range(1, 51))

    run(main())


@pytest.mark.parametrize("kind", [LedgerClient, AsyncLedgerClient])
def test_a_time_without_a_zone_is_refused_before_anything_is_asked(kind: type[Any]) -> None:
    ledger = kind("127.0.0.1:1")
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - it is the point
    for ask in (
        lambda: ledger.get_balance("user-1", "USD", as_of=naive),
        lambda: ledger.list_balances("user-1", as_of=naive),
        lambda: ledger.batch_get_balances([], as_of=naive),
        lambda: ledger.list_rewards("user-1", start_time=naive),
        lambda: ledger.list_rewards("user-1", end_time=naive),
        lambda: ledger.list_rewards_page("user-1", end_time=naive),
        lambda: ledger.list_currency_totals(as_of=naive),
        lambda: ledger.get_trial_balance(as_of=naive),
    ):
        with pytest.raises(ValueError, match="has no time zone"):
            ask()


def question(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(finance if hasattr(finance, name) else questions, name)
    return found


def test_both_clients_answer_the_same_questions_and_say_so() -> None:
    names = [name for name in vars(LedgerClient) if not name.startswith("_") and name != "close"]
    assert names == [
        name for name in vars(AsyncLedgerClient) if not name.startswith("_") and name != "close"
    ]
    for name in names:
        described = question(name.removesuffix("_page"))
        for kind in (LedgerClient, AsyncLedgerClient):
            method = getattr(kind("127.0.0.1:1"), name)
            assert method.__doc__ == described.__doc__
            shown = inspect.signature(method).parameters
            assert list(shown.values()) == list(inspect.signature(described).parameters.values())


def test_every_call_of_the_service_can_be_asked() -> None:
    for method in pb.DESCRIPTOR.services_by_name["LedgerService"].methods:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name).lstrip("_")
        for kind in (LedgerClient, AsyncLedgerClient):
            assert hasattr(kind, name), method.name
        fields = [field.name for field in method.input_type.fields]
        taken = list(inspect.signature(question(name)).parameters)
        # What is watched has no end.
        assert taken == [*fields, *([] if method.server_streaming else ["timeout_seconds"])]


@pytest.mark.parametrize("value", [Balance, Posting, Reward, Correction, CurrencyTotals])
def test_every_field_that_is_told_is_in_the_answer(value: type[Any]) -> None:
    told = {field.name for field in pb.DESCRIPTOR.message_types_by_name[value.__name__].fields}
    given = set(inspect.signature(value).parameters)
    # Where it stands among the rewards is told by the order of the lines.
    assert given - {"currency"} == told - {"rewards_before"}


NEEDED = """
import sys, grpc
before = set(sys.modules)
import ledger.client
print(*sorted(sys.modules.keys() - before))
"""


def test_the_client_needs_nothing_of_the_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEEDED], capture_output=True, text=True, check=True
    )
    needed = done.stdout.split()
    foreign = {name.partition(".")[0] for name in needed} - sys.stdlib_module_names
    assert foreign == {"ledger", "grpc", "google"}
    ours = {name for name in needed if name.startswith("ledger")}
    kept = ("ledger.client", "ledger.v1")
    assert {name for name in ours if not name.startswith(kept)} == {"ledger"}


BORN_BEFORE = """
import os, sys
from ledger.client import LedgerClient
ledger = LedgerClient(sys.argv[1])
if os.fork() == 0:
    print(ledger.get_balance("user-1", "USD").amount, flush=True)
    os._exit(0)
os.wait()
print(ledger.get_balance("user-1", "USD").amount)
"""


def test_a_client_may_be_made_before_a_fork(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(database, reward(amount="1"))
        port = free_port()
        async with serving(database.url("ledger_reader"), port=port):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BORN_BEFORE, f"127.0.0.1:{port}", stdout=subprocess.PIPE
            )
            printed, _ = await asyncio.wait_for(process.communicate(), 20)
        assert printed == b"1\n1\n"

    run(main())


def test_a_client_may_be_made_before_the_event_loop_runs(database: Database, run: Run) -> None:
    port = free_port()
    ledger = AsyncLedgerClient(f"127.0.0.1:{port}")

    async def main() -> None:
        await posted(database, reward(amount="1"))
        async with serving(database.url("ledger_reader"), port=port), ledger:
            assert (await ledger.get_balance("user-1", "USD")).amount == 1

    run(main())
