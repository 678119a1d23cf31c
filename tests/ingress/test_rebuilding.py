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
            later = read_reward(body(rewardId="later", userId="u1"), Mapping())
            assert last is not None
            assert later is not None
            await post(connection, [last])
            await reverse(
                correcting,
                Reversal("a", "last", Decimal("0.5"), "a mistake", "ann"),
                may_go_below_zero=True,
            )
            for key, amount in (("b", "-5000"), ("c", "3")):
                asked = Adjustment(key, "u1", "USD", Decimal(amount), "goodwill", "an apology")
                await propose(correcting, asked, "ann")
                await approve(correcting, key, "bob", may_go_below_zero=True)
            await post(connection, [later])
            await reverse(
                correcting, Reversal("d", "last", None, "the rest", "ann"), may_go_below_zero=True
            )

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
    "UPDATE rewards SET status = 'x' WHERE reward_id = 'r1'": [
        ("rewards", "r1", "status", "x", None)
    ],
    "UPDATE postings SET balance_after = 9 WHERE user_id = 'u2'": [
        ("postings", "u2 USD v1", "balance_after", "9", "400.00")
    ],
    "DELETE FROM postings WHERE reward_id = 'r3'": [
        ("postings", "u3 USD v1", "", "missing", "there")
    ],
    "UPDATE balances SET credits = 9 WHERE account = 'user:u4'": [
        ("balances", "user:u4 USD", "credits", "9", "400.00")
    ],
    "INSERT INTO balances VALUES ('user:nobody', 'USD', 0, 1, 1, now())": [
        ("balances", "user:nobody USD", "", "there", "missing")
    ],
    "UPDATE rewards SET believed_bytes = '[]' WHERE reward_id = 'r5'": [
        ("rewards", "r5", "", "posted", "not posted: is not an object"),
        ("rewards", "r5", "", "there", "missing"),
        ("postings", "u5 USD v1", "", "there", "missing"),
        ("balances", "campaign:c5 USD", "", "there", "missing"),
        ("balances", "user:u5 USD", "", "there", "missing"),
    ],
    # Whoever reads what is printed could redeem a code.
    "UPDATE rewards SET code = 'SECRET' WHERE reward_id = 'r6'": [
        ("rewards", "r6", "code", None, None)
    ],
}


def test_each_difference_is_named(database: Database, empty: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            for i in range(1, 7):
                text = body(rewardId=f"r{i}", userId=f"u{i}", campaignId=f"c{i}")
                told = read_reward(text, Mapping())
                assert told is not None
                await post(connection, [told])

    run(main())
    changes = ";".join(CHANGED)
    database.rows(f"SET session_replication_role = replica; {changes}", SUPERUSER)
    done = rebuild(database, empty.url(), "--json")
    assert done.returncode == 1
    differences = [tuple(difference.values()) for difference in json.loads(done.stdout)]
    expected = [difference for named in CHANGED.values() for difference in named]
    assert sorted(differences, key=str) == sorted(expected, key=str)
    assert f"{len(expected)} differences" in done.stderr


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
    done = rebuild(database, "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "create the database" in done.stderr
    assert done.stderr.count("\n") == 1
