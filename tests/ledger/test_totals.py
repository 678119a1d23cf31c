"""Totals of a period and trial balances: exactly the sums of the postings, whatever is asked."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import uvloop

from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, Reversal
from ledger.database import Role
from ledger.operations.totals import Group, list_movements, list_trial_balance
from ledger.operations.verify_finance import MOVED, MOVEMENTS, RULES
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.past import move
from tests.rewards import reward

LONG = "ü" * 5000
"""Longer than an entry of an index can be."""


async def fill(database: Database, chance: random.Random) -> None:
    """Rewards of every shape, and corrections of some of them."""
    rewards = [
        reward(
            f"r-{n}",
            f"{chance.randrange(1, 500)}.25",
            user_id=f"u-{n % 7}",
            currency=chance.choice(["USD", "EUR"]),
            campaign_id=chance.choice(["c-1", "c-2", "ü" * 200]),
            type=chance.choice([None, "", "quiz", LONG]),
            reward_type=chance.choice([None, "points", LONG + "x"]),
            reward_category=chance.choice([None, "gifts", LONG + "y"]),
        )
        for n in range(150)
    ]
    async with database.connected() as connection:
        await post(connection, [*rewards, reward("nothing", amount=None)])
    async with database.connected(Role.CORRECTOR) as connection:
        for n in range(20):
            asked = Reversal(f"back-{n}", f"r-{n}", chance.choice([None, Decimal(1)]), "why", "ann")
            await reverse(connection, asked, may_go_below_zero=True)
        for n, amount in enumerate([Decimal(5), Decimal(-3), Decimal("0.5")]):
            key = f"adjustment-{n}"
            await propose(connection, Adjustment(key, "u-1", "USD", amount, "g", "why"), "ann")
            await approve(connection, key, "bob", may_go_below_zero=True)


POSTINGS = """
SELECT
    postings.currency, postings.posted_at, postings.amount, coalesce(kind, 'reward'),
    split_part(postings.debit_account, ':', 1), split_part(postings.credit_account, ':', 1),
    left(coalesce(campaign_id, ''), 200), left(coalesce(type, ''), 100),
    left(coalesce(reward_type, ''), 100), left(coalesce(reward_category, ''), 100)
FROM postings
LEFT JOIN corrections USING (correction_key)
LEFT JOIN rewards ON rewards.reward_id = coalesce(postings.reward_id, corrections.reward_id)
"""


def movements(rows: list[Any], start: date, end: date, group: Group | None) -> list[Any]:
    """What the totals of a period must be: added up one by one."""
    sums: dict[tuple[str, Any], Counter[str]] = {}
    for currency, posted_at, amount, kind, debit, _, *names in rows:
        day = posted_at.date()
        if day >= end:
            continue
        name = None if group is None else names[list(Group).index(group)]
        signed = -amount if debit == "user" else amount
        counted = sums.setdefault((currency, name), Counter())
        counted["closing"] += signed
        if day < start:
            counted["opening"] += signed
        else:
            counted[kind] += signed
            counted[f"{kind}s"] += 1
    names_ = ("opening", "reward", "reversal", "adjustment", "closing")
    counts = ("rewards", "reversals", "adjustments")
    return [
        (*key, *(Decimal(of[name]) for name in names_), *(of[count] for count in counts))
        for key, of in sorted(sums.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    ]


def kinds(rows: list[Any], as_of: datetime) -> dict[tuple[str, str], list[Any]]:
    """Debits, credits and postings of each kind of account, added up one by one."""
    sums: dict[tuple[str, str], list[Any]] = {}
    for currency, posted_at, amount, _, debit, credit, *_ in rows:
        if posted_at <= as_of:
            for side, kind in enumerate((debit, credit)):
                of = sums.setdefault((currency, kind), [Decimal(0), Decimal(0), 0])
                of[side] += amount
                of[2] += 1
    return sums


def test_any_period_and_any_moment_are_the_sums_of_their_postings(
    database: Database, run: Run, chance: random.Random
) -> None:
    """By the roll-ups as the statements that post keep them, and as the migration fills them."""

    async def compare() -> None:
        rows = database.rows(POSTINGS)
        async with database.connected(Role.READER) as connection:
            for _ in range(25):
                start = chance.choice(rows)[1].date() + timedelta(days=chance.randrange(-2, 3))
                end = start + timedelta(days=chance.choice([1, 2, 30, 31, 100]))
                group = chance.choice([None, *Group])
                found = await list_movements(connection, start, end, group)
                told = [
                    (m.currency, m.group, *map(Decimal, m[2:7]), *m[7:]) for m in found.movements
                ]
                assert told == movements(rows, start, end, group), (start, end, group)
                amounts: Counter[str] = Counter()
                for currency, posted_at, amount, *_ in rows:
                    amounts[currency] += amount if start <= posted_at.date() < end else 0
                for control in found.controls:
                    assert Decimal(control.debits) == amounts[control.currency]
                    assert (control.debits, control.difference) == (control.credits, "0")

                at = chance.choice(rows)[1]
                as_of = chance.choice([at, at - timedelta(microseconds=1), at.replace(second=0)])
                balances = await list_trial_balance(connection, as_of)
                expected = kinds(rows, as_of)
                assert {
                    (each.currency, kind.kind): [
                        Decimal(kind.debits), Decimal(kind.credits), kind.postings
                    ]
                    for each in balances
                    for kind in each.accounts
                } == expected  # fmt: skip
                assert all(each.debits == each.credits for each in balances)
                assert all(each.difference == "0" for each in balances)

    run(fill(database, chance))
    run(compare())
    move(
        database,
        # Some on the very edge of a month, a day or a minute, the others anywhere in 100 days.
        "timestamptz '2026-02-27Z' + CASE version % 5"
        " WHEN 0 THEN interval '2 days' WHEN 1 THEN interval '33 days 12:34:00'"
        " ELSE interval '1 s' * (abs(hashtext(user_id || version)) % 8640000 + 0.5) END",
    )
    run(compare())
    with psycopg.connect(database.url(SUPERUSER)) as superuser:
        assert broken_rules(superuser) == set()


def test_a_balance_is_on_the_normal_side_of_its_kind(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward(amount="400")])
        async with database.connected(Role.CORRECTOR) as connection:
            await reverse(connection, Reversal("back", "reward-1", Decimal("0.5"), "why", "ann"))
            await propose(connection, Adjustment("k", "u", "USD", Decimal(3), "g", "why"), "ann")
            await approve(connection, "k", "bob")
        async with database.connected(Role.READER) as connection:
            (balance,) = await list_trial_balance(connection)
            assert balance.accounts == [
                ("user", "0.50", "403", "402.50", 3),
                ("campaign", "400", "0.50", "399.50", 2),
                ("adjustment", "3", "0", "3", 1),
            ]
            assert balance[2:] == ("403.50", "403.50", "0", 3)

    run(main())


def test_empty_books_have_no_totals(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected(Role.READER) as connection:
            found = await list_movements(connection, date(2026, 10, 1), date(2026, 11, 1))
            assert found == ([], [])
            assert await list_trial_balance(connection, datetime.now(UTC)) == []

    run(main())


PARTS = "what a period's totals tell apart is the sum of its corrections"

CORRUPTIONS = {
    **{
        f"UPDATE movements SET {change} WHERE kind = 'reward'": {MOVED}
        for change in (
            "day = day - 1", "currency = currency || 'X'", "kind = 'another'",
            "campaign_id = campaign_id || 'x'", "type = type || 'x'",
            "reward_type = reward_type || 'x'", "reward_category = reward_category || 'x'",
            "debits = 1", "credits = credits + 1", "postings = postings + 1",
        )
    },
    "DELETE FROM movements WHERE kind = 'adjustment'": {MOVED},
    "INSERT INTO movements VALUES ('2026-01-01', 'USD', 'reward', 'c', '', '', '', 0, 1, 1)":
        {MOVED},
    "UPDATE rewards SET type = 'another' WHERE reward_id = 'r-1'": {MOVED},
    "UPDATE rewards SET reward_category = 'another' WHERE reward_id = 'r-1'": {MOVED},
    **{
        f"UPDATE period_totals SET {column} = {column} + 1 WHERE period = '{period}'": {PARTS}
        for column in ("reversals", "reversed", "granted", "taken")
        for period in ("day", "minute")
    },
    "DELETE FROM corrections WHERE correction_key = 'adjustment-1'": {MOVED, PARTS},
    "UPDATE corrections SET reward_id = 'r-30' WHERE correction_key = 'back-1'": {MOVED},
}  # fmt: skip


def broken_rules(connection: psycopg.Connection) -> set[str]:
    rules = {MOVED: MOVEMENTS, **RULES}
    return {
        rule
        for rule, query in rules.items()
        if connection.execute(query, {"since": None}).fetchall()  # type: ignore[call-overload]
    }


@pytest.fixture(scope="module")
def superuser(postgres: Any, template: str) -> Iterator[psycopg.Connection]:
    """Who may corrupt books, in a database transaction that is undone after each test."""
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE corrupted TEMPLATE {template} OWNER ledger_owner")
        database = Database(postgres, "corrupted")
        uvloop.run(fill(database, random.Random(1)))
        with psycopg.connect(database.url(SUPERUSER)) as corrupting:
            yield corrupting
        connection.execute("DROP DATABASE corrupted WITH (FORCE)")


@pytest.mark.parametrize("corruption", ["SELECT 1", *CORRUPTIONS])
def test_a_corruption_of_a_roll_up_is_named(superuser: psycopg.Connection, corruption: str) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute("SET LOCAL session_replication_role = replica")
        assert superuser.execute(corruption).rowcount  # type: ignore[call-overload]
        broken = broken_rules(superuser)
    assert broken == CORRUPTIONS.get(corruption, set())
