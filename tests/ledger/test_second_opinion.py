"""`ledger second-opinion`: whatever balance is wrong, foreign code comes to another one."""

import shutil

import pytest

from ledger.database import Role
from ledger.operations.manifest import Wanted
from ledger.operations.second_opinion import Opinion, second_opinion
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.test_export import post_all, post_some
from tests.ledger.test_journal import post_hostile
from tests.rewards import reward


def opinions(database: Database, run: Run) -> list[Opinion]:
    async def main() -> list[Opinion]:
        async with database.connected(Role.READER) as connection:
            return await second_opinion(connection, Wanted("beancount"))

    found: list[Opinion] = run(main())
    if shutil.which("hledger") is None:
        assert found.pop() == Opinion("hledger", None, [])
    return found


def test_hostile_names_and_odd_currencies_are_agreed_on(database: Database, run: Run) -> None:
    post_hostile(database, run)
    ((count,),) = database.rows("SELECT count(*) FROM balances")
    for opinion in opinions(database, run):
        assert opinion.differences == []
        assert opinion.balances == count


def test_sums_of_many_digits_are_not_rounded(database: Database, run: Run) -> None:
    database.rows("INSERT INTO currencies VALUES ('BIG', 18, '')")
    amounts = ["9" * 30, "0.000000000000000001", "9" * 30]
    post_all(database, run, [reward(f"r{n}", a, currency="BIG") for n, a in enumerate(amounts)])
    assert [opinion.differences for opinion in opinions(database, run) if opinion.balances] in (
        [[], []],
        [[]],
    )


CORRUPTIONS = {
    "UPDATE balances SET credits = credits + 0.01 WHERE account = 'user:user-1'": [
        ("user:user-1", "KWD"),
        ("user:user-1", "USD"),
    ],
    "UPDATE postings SET amount = amount + 0.01 WHERE reward_id = 'r5'": [
        ("campaign:campaign-2", "USD"),
        ("user:user-5", "USD"),
    ],
    "UPDATE postings SET credit_account = 'user:nobody' WHERE reward_id = 'r5'": [
        ("user:nobody", "USD"),
        ("user:user-5", "USD"),
    ],
    "DELETE FROM postings WHERE reward_id = 'r39'": [
        ("campaign:campaign-0", "USD"),
        ("user:user-4", "USD"),
    ],
    "DELETE FROM balances WHERE account = 'campaign:campaign-0' AND currency = 'KWD'": [
        ("campaign:campaign-0", "KWD")
    ],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_balance_that_differs_is_named(corruption: str, database: Database, run: Run) -> None:
    post_some(database, run)
    if "nobody" in corruption:
        database.rows("ALTER TABLE postings DROP CONSTRAINT posting_user_holds_a_leg", SUPERUSER)
    database.rows(f"SET session_replication_role = replica; {corruption}", SUPERUSER)
    for opinion in opinions(database, run):
        named = {
            (difference.account, difference.currency)
            for difference in opinion.differences
            if difference.books is not None or difference.found is not None
            if difference.account.startswith(("user:", "campaign:"))
            if difference.currency
        }
        assert named == set(CORRUPTIONS[corruption]), opinion.program
