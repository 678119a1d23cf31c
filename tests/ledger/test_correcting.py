"""Corrections: what was posted stays, and each mistake is mended once, by another posting."""

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from ledger import correcting
from ledger.correcting import approve, propose, reject, reverse
from ledger.correction import Adjustment, Corrected, CorrectionKind, Reversal
from ledger.database import Role, conninfo
from ledger.errors import (
    BalanceTooLow,
    IdempotencyConflict,
    InvalidAmount,
    NothingToReverse,
    ProposalNotFound,
    Refused,
    RewardNotFound,
    SamePerson,
    TooMuchToReverse,
    UnknownCurrency,
)
from ledger.reading import list_balances, list_currency_totals
from ledger.writing import post
from tests.conftest import Database, Run
from tests.rewards import reward
from tests.verifying import verify

SOON = datetime(2999, 1, 1, tzinfo=UTC)


def reversal(key: str = "key-1", amount: str | None = None, **told: Any) -> Reversal:
    asked = Reversal(
        key, "reward-1", None if amount is None else Decimal(amount), "a mistake", "ann"
    )
    return asked._replace(**told)


def adjustment(key: str = "key-1", amount: str = "25", **told: Any) -> Adjustment:
    asked = Adjustment(key, "user-1", "USD", Decimal(amount), "goodwill", "an apology")
    return asked._replace(**told)


class Books:
    """Books with connections of both roles that write."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def fill(self, *rewards: Any) -> None:
        async with self.database.connected() as connection:
            await post(connection, list(rewards) or [reward()])

    async def correct(self, act: Any, *arguments: Any, **options: Any) -> Any:
        info = conninfo(self.database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            return await act(connection, *arguments, **options)

    async def read(self, question: Any, *arguments: Any) -> Any:
        async with self.database.connected(Role.READER, is_service=False) as connection:
            return await question(connection, *arguments)

    async def balance(self, user_id: str = "user-1") -> str:
        found = await self.read(list_balances, user_id, None)
        return str(found[0].value) if found else "none"

    async def hold(self) -> None:
        assert await verify(self.database.url()) == []


def test_a_whole_reversal_is_the_opposite_posting_and_leaves_nothing(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        found = await books.correct(reverse, reversal())
        assert isinstance(found, Corrected)
        assert found.kind is CorrectionKind.REVERSAL
        assert (found.debit_account, found.credit_account) == (
            "user:user-1",
            "campaign:campaign-1",
        )
        assert (found.amount, found.version, found.balance_after) == ("400", 2, "0")
        assert await books.balance() == "0"
        await books.hold()

    run(main())
    assert database.rows("SELECT actor, reason, login FROM corrections") == [
        ("ann", "a mistake", "ledger_corrector")
    ]


def test_the_same_key_posts_once_and_gives_what_stands_there(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        first = await books.correct(reverse, reversal(amount="100"))
        assert await books.correct(reverse, reversal(amount="100.00")) == first
        assert await books.balance() == "300"
        rest = await books.correct(reverse, reversal("key-2"))
        assert (rest.amount, await books.balance()) == ("300", "0")
        assert await books.correct(reverse, reversal("key-2")) == rest
        assert await books.correct(reverse, reversal("key-2", "300")) == rest
        assert await books.correct(reverse, reversal()) == first

    run(main())


@pytest.mark.parametrize(
    "other",
    # The last: a part has the key, and all that is left would stay.
    [{"amount": Decimal(99)}, {"reward_id": "reward-2"}, {"amount": None}],
)
def test_the_same_key_for_something_else_is_a_conflict(
    database: Database, run: Run, other: dict[str, Any]
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill(reward(), reward("reward-2"))
        await books.correct(reverse, reversal(amount="100"))
        with pytest.raises(IdempotencyConflict):
            await books.correct(reverse, reversal(**other))
        await books.hold()

    run(main())


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (reversal(reward_id="unknown"), RewardNotFound),
        (reversal(reward_id="recorded"), NothingToReverse),
        (reversal(amount="400.01"), TooMuchToReverse),
        (reversal(amount="0"), InvalidAmount),
        (reversal(amount="-1"), InvalidAmount),
        (reversal(amount="1.001"), InvalidAmount),
    ],
)
def test_what_cannot_be_reversed_posts_nothing(
    database: Database, run: Run, asked: Reversal, refused: type[Refused]
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill(reward(), reward("recorded", amount=None))
        with pytest.raises(refused):
            await books.correct(reverse, asked)
        assert await books.balance() == "400"
        await books.hold()

    run(main())
    assert database.rows("SELECT count(*) FROM corrections") == [(0,)]


def test_parts_are_reversed_until_nothing_is_left(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        await books.correct(reverse, reversal("a", "150"))
        with pytest.raises(TooMuchToReverse) as caught:
            await books.correct(reverse, reversal("b", "250.01"))
        assert caught.value.left == "250"
        assert (await books.correct(reverse, reversal("c"))).amount == "250"
        with pytest.raises(NothingToReverse):
            await books.correct(reverse, reversal("d"))
        await books.hold()

    run(main())


def test_a_balance_goes_below_zero_only_where_that_is_allowed(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        await books.correct(propose, adjustment("spent", "-300"), "ann")
        await books.correct(approve, "spent", "bob")
        with pytest.raises(BalanceTooLow) as caught:
            await books.correct(reverse, reversal())
        assert caught.value.balance == "-300"
        assert await books.balance() == "100"
        await books.correct(reverse, reversal(), may_go_below_zero=True)
        assert await books.balance() == "-300"
        await books.hold()

    run(main())


def test_what_is_credited_to_a_balance_below_zero_needs_no_leave(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        await books.correct(propose, adjustment("taken", "-500"), "ann")
        await books.correct(approve, "taken", "bob", may_go_below_zero=True)
        await books.correct(propose, adjustment("given", "25"), "ann")
        assert (await books.correct(approve, "given", "bob")).balance_after == "-75"
        await books.hold()

    run(main())


def test_a_key_that_a_reversal_took_approves_nothing(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        await books.correct(propose, adjustment("key"), "ann")
        await books.correct(reverse, reversal("key", "1"))
        with pytest.raises(IdempotencyConflict):
            await books.correct(approve, "key", "bob")
        assert [each.state for each in await books.correct(correcting.list_proposals)] == ["open"]
        assert await books.balance() == "399"
        await books.hold()

    run(main())


def test_a_correction_has_a_place_in_commit_order(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        await books.correct(reverse, reversal())

    run(main())
    assert database.rows("""
        SELECT corrections.number BETWEEN first_number AND last_number
        FROM corrections JOIN commits ON commits.written_by = corrections.written_by
    """) == [(True,)]


def test_an_adjustment_needs_two_persons(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        assert await books.correct(propose, adjustment(), "ann")
        assert not await books.correct(propose, adjustment(), "ann")
        assert await books.balance() == "none"
        with pytest.raises(SamePerson):
            await books.correct(approve, "key-1", "ann")
        found = await books.correct(approve, "key-1", "bob")
        assert (found.debit_account, found.credit_account) == ("adjustment:goodwill", "user:user-1")
        assert (found.actor, found.approver, found.balance_after) == ("ann", "bob", "25")
        assert await books.correct(approve, "key-1", "cleo") == found
        with pytest.raises(ProposalNotFound):
            await books.correct(reject, "key-1", "bob")
        assert await books.balance() == "25"
        await books.hold()

    run(main())


def test_what_was_rejected_is_never_posted(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.correct(propose, adjustment(), "ann")
        assert [each.key for each in await books.correct(correcting.list_proposals)] == ["key-1"]
        await books.correct(reject, "key-1", "ann")
        for key in ("key-1", "unknown"):
            with pytest.raises(ProposalNotFound):
                await books.correct(approve, key, "bob")
        assert await books.correct(correcting.list_proposals) == []
        assert await books.balance() == "none"

    run(main())


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (adjustment(currency="NOPE"), UnknownCurrency),
        (adjustment(amount="0"), InvalidAmount),
        (adjustment(amount="0.001"), InvalidAmount),
        (adjustment("taken", "26"), IdempotencyConflict),
    ],
)
def test_what_cannot_be_proposed_is_refused(
    database: Database, run: Run, asked: Adjustment, refused: type[Refused]
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.correct(propose, adjustment("taken"), "ann")
        with pytest.raises(refused):
            await books.correct(propose, asked, "ann")

    run(main())


def test_totals_count_corrections_but_not_as_rewards(database: Database, run: Run) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill(reward(), reward("reward-2", "100", user_id="user-2"))
        await books.correct(reverse, reversal(amount="150"))
        now = await books.read(list_currency_totals, None)
        assert now == await books.read(list_currency_totals, SOON)
        (usd,) = now
        assert (usd.debits, usd.credits, usd.difference) == ("650", "650", "0")
        assert (usd.rewards, usd.users) == (2, 2)

    run(main())


def test_however_many_reverse_at_once_no_more_is_taken_back_than_was_credited(
    database: Database, run: Run, chance: random.Random
) -> None:
    async def main() -> None:
        books = Books(database)
        await books.fill()
        asked = [reversal(f"key-{n % 12}", f"{60 + n % 12}") for n in range(24)]
        chance.shuffle(asked)
        answers = await asyncio.gather(
            *(books.correct(reverse, each) for each in asked), return_exceptions=True
        )
        posted = {each.key: Decimal(each.amount) for each in answers if isinstance(each, Corrected)}
        assert all(isinstance(each, Corrected | TooMuchToReverse) for each in answers)
        assert 400 - 72 < sum(posted.values()) <= 400
        assert await books.balance() == str(400 - sum(posted.values()))
        await books.hold()

    run(main())


def test_corrections_and_rewards_of_one_user_never_wait_for_each_other_in_a_ring(
    database: Database, run: Run, chance: random.Random
) -> None:
    rounds = 60

    async def main() -> None:
        books = Books(database)
        users = [f"user-{n}" for n in range(4)]
        await books.fill(*(reward(f"first-{user}", "9999", user_id=user) for user in users))

        async def credit() -> None:
            for number in range(rounds):
                batch = [
                    reward(f"{number}-{user}", user_id=user, campaign_id=chance.choice("ab"))
                    for user in users
                ]
                await books.fill(*batch)

        async def take_back(who: str) -> None:
            for number in range(rounds):
                which = f"first-{chance.choice(users)}"
                asked = reversal(f"{who}-{number}", "1", reward_id=which)
                await books.correct(reverse, asked)

        await asyncio.gather(credit(), take_back("ann"), take_back("bob"))
        await books.hold()

    run(main())
