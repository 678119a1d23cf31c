"""Rebuilding: every believed body is posted again, and the books are the same, row by row."""

import json
import random
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

from ingress.mapping import Mapping
from ingress.payload import read_reward
from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, Reversal
from ledger.database import Role, conninfo
from ledger.embedded import EmbeddedPostgres
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run, cloned
from tests.ingress.deliveries import body
from tests.ledger.test_cli import ledger


@pytest.fixture
def empty(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    with cloned(postgres, template) as database:
        yield database


def fill(database: Database, run: Run, chance: random.Random) -> None:
    """Commits of all sizes, few users, and corrections between them."""
    numbers = iter(range(10**6))

    def told() -> bytes:
        return body(
            rewardId=f"r{chance.randrange(10**9)}-{next(numbers)}",
            userId=f"u{chance.randrange(4)}",
            rewardAmount=chance.choice([None, 0, 1, 2.5, 400]),
            details={"currency": chance.choice(["USD", "EUR"])},
        )

    async def main() -> None:
        corrector = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with (
            database.connected() as connection,
            await psycopg.AsyncConnection.connect(corrector, autocommit=True) as correcting,
        ):
            for size in (1, 5, 1, 30, 2, 60):
                rewards = [read_reward(told(), Mapping()) for _ in range(size)]
                await post(connection, [reward for reward in rewards if reward is not None])
            last = read_reward(body(rewardId="last", userId="u1"), Mapping())
            assert last is not None
            await post(connection, [last])
            await reverse(correcting, Reversal("a", "last", Decimal("0.5"), "a mistake", "ann"))
            for key, amount in (("b", "-5000"), ("c", "3")):
                asked = Adjustment(key, "u1", "USD", Decimal(amount), "goodwill", "an apology")
                await propose(correcting, asked, "ann")
                await approve(correcting, key, "bob", may_go_below_zero=True)
            await post(connection, [last._replace(reward_id="later")])
            await reverse(correcting, Reversal("d", "last", None, "the rest", "ann"))

    run(main())


def rebuild(database: Database, into: str, *options: str, **environment: str):  # type: ignore[no-untyped-def]
    return ledger(database, "rebuild", "--into", into, *options, **environment)


def test_rebuilt_books_are_the_same(
    database: Database, empty: Database, run: Run, chance: random.Random
) -> None:
    fill(database, run, chance)
    database.rows("INSERT INTO currencies VALUES ('GEMS', 0, 'Gems')")
    done = rebuild(database, empty.name)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout == "the rebuilt books are the same: 101 rewards\n"
    for table, columns in {
        "postings": "user_id, currency, version, reward_id, correction_key, amount, balance_after",
        "balances": "account, currency, debits, credits, version",
    }.items():
        query = f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3"
        assert empty.rows(query) == database.rows(query)
    assert ledger(empty, "verify").returncode == 0


CHANGED = {
    "UPDATE rewards SET status = 'x' WHERE reward_id = 'last'": [
        ("rewards", "last", "status", "x", None)
    ],
    "UPDATE postings SET balance_after = 9 WHERE user_id = 'u1' AND version = 1"
    " AND currency = 'USD'": [("postings", "u1 USD v1", "balance_after", "9", "15.00")],
    "DELETE FROM postings WHERE reward_id = 'last'": [
        ("postings", "u1 USD v1", "", "missing", "there")
    ],
    "UPDATE balances SET credits = 9 WHERE account = 'user:u1'": [
        ("balances", "user:u1 USD", "credits", "9", "15.00")
    ],
    "INSERT INTO balances VALUES ('user:nobody', 'USD', 0, 1, 1, now())": [
        ("balances", "user:nobody USD", "", "there", "missing")
    ],
    "UPDATE rewards SET believed_bytes = '[]'": [
        ("rewards", "last", "", "posted", "not posted: is not an object"),
        ("rewards", "last", "", "there", "missing"),
        ("postings", "u1 USD v1", "", "there", "missing"),
        ("balances", "campaign:6bab1116-ae8e-4644-9cee-7a3d8ee9aff3 USD", "", "there", "missing"),
        ("balances", "user:u1 USD", "", "there", "missing"),
    ],
}


@pytest.mark.parametrize("change", CHANGED)
def test_each_difference_is_named(
    database: Database, empty: Database, run: Run, change: str
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            told = read_reward(body(rewardId="last", userId="u1"), Mapping())
            assert told is not None
            await post(connection, [told])

    run(main())
    database.rows(f"SET session_replication_role = replica; {change}", SUPERUSER)
    done = rebuild(database, empty.url(), "--json")
    assert done.returncode == 1
    differences = [tuple(difference.values()) for difference in json.loads(done.stdout)]
    assert differences == CHANGED[change]
    assert "differences" in done.stderr


def test_another_mapping_is_shown_in_the_differences(
    database: Database, empty: Database, run: Run
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            told = read_reward(body(rewardId="r1", userId="u1", details={}), Mapping())
            assert told is not None
            await post(connection, [told])

    run(main())
    done = rebuild(database, empty.name, INGRESS_DEFAULT_CURRENCY="EUR")
    assert done.returncode == 1
    assert "rewards\tr1\tcurrency\tPOINTS\tEUR" in done.stdout.splitlines()
    assert "INGRESS_DEFAULT_CURRENCY" in done.stderr


def test_only_empty_books_are_rebuilt_into(database: Database, empty: Database, run: Run) -> None:
    async def main() -> None:
        async with empty.connected() as connection:
            told = read_reward(body(), Mapping())
            assert told is not None
            await post(connection, [told])

    run(main())
    before = empty.rows("SELECT count(*) FROM currencies")
    database.rows("INSERT INTO currencies VALUES ('GEMS', 0, 'Gems')")
    done = rebuild(database, empty.name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "empty" in done.stderr
    assert empty.rows("SELECT count(*) FROM currencies") == before


def test_where_there_are_no_books_it_is_said_what_to_do(
    database: Database, empty: Database
) -> None:
    empty.rows("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    done = rebuild(database, empty.name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ledger migrate" in done.stderr
    assert done.stderr.count("\n") == 1
