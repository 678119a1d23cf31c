"""Watching rewards, over a real socket from a real Postgres: each once, in commit order."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ledger import commits, page, place, watching
from ledger.config import AccessSettings, ServeSettings
from ledger.database import Connection, Role, conninfo
from ledger.embedded import EmbeddedPostgres
from ledger.errors import InvalidArgument
from ledger.history import RewardFilter
from ledger.operations.migrate import MIGRATIONS, migrate
from ledger.place import BEGINNING, Place
from ledger.seal import Seal
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.conftest import OWNER, Database, Run
from tests.rewards import reward
from tests.serving import Refusal, refusal
from tests.verifying import verify
from tests.watches import NOT_A_PLACE, Watch, posted, watching_books

# Where it begins


def test_from_now_on_a_watcher_is_told_within_a_second_of_the_commit(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await posted(database, reward("before"))
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            for name in ("first", "second", "third"):
                await posted(database, reward(name))
                committed_at = time.monotonic()
                await watch.read()
                assert time.monotonic() - committed_at < 1
                assert watch.names()[-1] == name
            assert watch.names() == ["first", "second", "third"]

    run(main())


def test_what_others_have_not_been_told_yet_is_not_told_to_who_comes_after_it(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 1)

    async def main() -> None:
        async with watching_books(database) as channel:
            first = await Watch(channel).begin()
            await posted(database, reward("a"))
            await first.until(1)
            await posted(database, reward("b"))
            second = await Watch(channel).begin()
            await posted(database, reward("c"))
            assert await first.until(3) == ["a", "b", "c"]
            assert await second.until(1) == ["c"]

    run(main())


def test_from_the_beginning_a_watcher_is_told_everything_and_then_what_comes(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        names = [f"r-{i:04}" for i in range(700)]
        await posted(database, *(reward(name, "1") for name in names[:600]))
        for name in names[600:650]:
            await posted(database, reward(name, "1"))
        async with watching_books(database) as channel:
            watch = await Watch(channel, from_beginning=True).begin()
            assert await watch.until(650) == names[:650]
            await posted(database, *(reward(name, "1") for name in names[650:]))
            assert await watch.until(700) == names

    run(main())


def test_a_reward_is_told_as_it_is_when_asked_for(database: Database, run: Run) -> None:
    async def main() -> None:
        await posted(
            database,
            reward("a", "0.5", details='{"a":  1.0}', status="redeemable"),
            reward("b", None),
        )
        async with watching_books(database) as channel:
            watch = Watch(channel, from_beginning=True)
            await watch.until(2)
            for told in watch.rewards:
                request = pb.GetRewardRequest(reward_id=told.reward_id)
                assert (await LedgerServiceStub(channel).GetReward(request)).reward == told

    run(main())


def test_behind_every_token_a_stream_goes_on_in_whichever_process(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "STRETCH_SIZE_MAX", 3)

    async def main() -> None:
        names = [f"r-{i:02}" for i in range(20)]
        await posted(database, *(reward(name, "1") for name in names[:10]))
        for name in names[10:]:
            await posted(database, reward(name, "1"))
        tokens = {}
        async with watching_books(database) as channel:
            watch = await Watch(channel, from_beginning=True).begin()
            tokens[watch.token] = 0
            while len(watch.rewards) < 20:
                await watch.read()
                tokens[watch.token] = len(watch.rewards)
        assert len(tokens) == 8
        async with watching_books(database) as channel:
            for token, count in tokens.items():
                watch = await Watch(channel, token=token).begin()
                assert watch.token == token
                assert await watch.until(20 - count) == names[count:]
            # All of them have caught up, wherever they began.
            watch = await Watch(channel, token=token).begin()
            await posted(database, reward("last"))
            assert await watch.until(1) == ["last"]

    run(main())


def test_a_token_is_short_and_who_stands_in_one_place_has_the_same(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            first = await Watch(channel).begin()
            assert (await Watch(channel).begin()).token == first.token
            await posted(database, reward("r"))
            await first.until(1)
            assert len(first.token) == 56

    run(main())


SEAL = Seal(bytes(range(32)))


@pytest.mark.parametrize(
    "token",
    [
        *("", "AAAA", "=", "ä", "\0", "A" * 56, "A" * 10_000),
        # Sealed with another key, and for another purpose.
        place.token(SEAL, Place(1, 1, BEGINNING.committed_at)),
        page.token(SEAL, 1, RewardFilter("user-1")),
    ],
)
def test_what_is_no_token_of_these_books_is_refused(
    database: Database, run: Run, token: str
) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            assert await refusal(Watch(channel, token=token).begin()) == NOT_A_PLACE

    run(main())


def test_a_token_with_any_character_changed_is_refused() -> None:
    token = place.token(SEAL, Place(7, 8, BEGINNING.committed_at))
    assert place.place_of(SEAL, token) == Place(7, 8, BEGINNING.committed_at)
    for at, character in enumerate(token):
        other = "B" if character == "A" else "A"
        with pytest.raises(InvalidArgument) as caught:
            place.place_of(SEAL, token[:at] + other + token[at + 1 :])
        assert caught.value.field == "token"


UNDONE = """
ALTER TABLE {table} DISABLE TRIGGER USER;
DELETE FROM {table};
ALTER TABLE {table} ENABLE TRIGGER USER
"""


def test_books_that_were_restored_to_before_a_token_refuse_it(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would give its place to another reward, and the watcher would never hear of that."""
    monkeypatch.setattr(watching, "UNTOLD_SECONDS", 0.1)

    async def main() -> None:
        async with watching_books(database) as channel:
            watch = await Watch(channel).begin()
            await posted(database, reward("undone"))
            await watch.until(1)
            for table in (
                *("commits", "rewards", "postings", "balances", "movements", "period_totals"),
            ):
                database.rows(UNDONE.format(table=table))
            database.rows("ALTER SEQUENCE commits_position_seq RESTART")
            database.rows("ALTER SEQUENCE rewards_number_seq RESTART")
            assert (await watch.end())[0] == NOT_A_PLACE
            assert await refusal(Watch(channel, token=watch.token).begin()) == NOT_A_PLACE
            await posted(database, reward("another"))
            assert await refusal(Watch(channel, token=watch.token).begin()) == NOT_A_PLACE
            beginning = Watch(channel, from_beginning=True)
            assert await beginning.until(1) == ["another"]

    run(main())


# What is asked for


def test_a_filter_keeps_only_what_it_names(database: Database, run: Run) -> None:
    told = [
        reward("usual"),
        reward("euro", currency="EUR"),
        reward("campaign", campaign_id="campaign-2"),
        reward("quiz", type="quiz"),
        reward("nothing", None, type="quiz"),
        reward("other", user_id="user-2"),
    ]

    async def main() -> None:
        async with watching_books(database) as channel:
            choices: list[tuple[dict[str, str], set[str]]] = [
                ({"user_id": "user-1"}, {"usual", "euro", "campaign", "quiz", "nothing"}),
                ({"user_id": "user-2"}, {"other"}),
                ({"currency": "eur"}, {"euro"}),
                ({"currency": "USD"}, {"usual", "campaign", "quiz", "other"}),
                ({"campaign_id": "campaign-2"}, {"campaign"}),
                ({"type": "quiz"}, {"quiz", "nothing"}),
                ({"type": "quiz", "currency": "USD"}, {"quiz"}),
                ({"type": "Quiz"}, set()),
            ]
            live = [await Watch(channel, **chosen).begin() for chosen, _ in choices]
            everything = await Watch(channel).begin()
            await posted(database, *told)
            await everything.until(len(told))
            for (chosen, expected), watch in zip(choices, live, strict=True):
                behind = Watch(channel, from_beginning=True, **chosen)
                for each in (watch, behind):
                    assert set(await each.until(len(expected))) == expected, chosen
            # Nothing more comes, however long one waits: the next that comes is the next.
            await posted(database, reward("later", campaign_id="campaign-2"))
            for (chosen, expected), watch in zip(choices, live, strict=True):
                is_chosen = chosen.get("campaign_id") or chosen in (
                    {"user_id": "user-1"},
                    {"currency": "USD"},
                )
                if is_chosen:
                    assert set(await watch.until(len(expected) + 1)) == expected | {"later"}

    run(main())


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"user_id": "u" * 201}, "user_id"),
        ({"user_id": "\0"}, "user_id"),
        ({"currency": "U SD"}, "currency"),
        ({"campaign_id": "c" * 201}, "campaign_id"),
        ({"type": "\0"}, "type"),
    ],
)
def test_a_malformed_filter_is_refused(
    database: Database, run: Run, asked: dict[str, str], field: str
) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            expected = Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", field)
            assert await refusal(Watch(channel, **asked).begin()) == expected

    run(main())


def test_a_watcher_of_what_never_comes_does_not_grow_old(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would look through everything again when it comes back."""
    monkeypatch.setattr("ledger.service.HEARTBEAT_SECONDS", 0)

    async def main() -> None:
        await posted(database, *(reward(f"before-{i}") for i in range(600)))
        async with watching_books(database) as channel:
            everything = await Watch(channel).begin()
            for asked in ({}, {"from_beginning": True}, {"token": everything.token}):
                watch = await Watch(channel, user_id="nobody", **asked).begin()
                before = everything.token
                await posted(database, reward(f"r-{asked}"))
                await everything.read()
                assert everything.token != before
                while watch.token != everything.token:
                    await watch.read()
                assert watch.rewards == []

    run(main())


def test_while_nothing_comes_a_watcher_hears_where_it_stands(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT_SECONDS", 0.3)

    async def main() -> None:
        await posted(database, reward("before"))
        async with watching_books(database) as channel:
            all_, one = await Watch(channel).begin(), await Watch(channel, user_id="x").begin()
            token = all_.token
            for _ in range(3):
                await all_.read()
                await one.read()
                assert all_.token == one.token == token
            await posted(database, reward("r"))
            await all_.until(1)
            assert all_.token != token

    run(main())


def test_only_those_who_may_see_codes_are_told_them(
    database: Database, run: Run, tmp_path: Path
) -> None:
    def caller(name: str, scopes: str) -> str:
        return f'[{name}]\ntoken_sha256 = "{sha256(name.encode()).hexdigest()}"\n{scopes}\n'

    path = tmp_path / "callers.toml"
    path.write_text(
        caller("plain", 'scopes = ["watch"]')
        + caller("coupons", 'scopes = ["watch", "codes"]')
        + caller("history", 'scopes = ["history"]')
    )
    settings = ServeSettings(AccessSettings(None, str(path)))

    async def main() -> None:
        async with watching_books(database, settings=settings) as channel:
            told = Refusal("PERMISSION_DENIED", "PERMISSION_DENIED")
            assert await refusal(Watch(channel, caller="history").begin()) == told
            told = Refusal("UNAUTHENTICATED", "UNAUTHENTICATED")
            assert await refusal(Watch(channel).begin()) == told
            names = ("plain", "coupons", "plain", "coupons")
            live = [await Watch(channel, caller=name).begin() for name in names]
            await posted(database, reward("r", code="SECRET"))
            behind = [Watch(channel, caller=name, from_beginning=True) for name in names]
            for watches in (live, behind):
                codes = []
                for watch in watches:
                    await watch.until(1)
                    codes.append(watch.rewards[0].code)
                assert codes == ["", "SECRET", "", "SECRET"]

    run(main())


# Commit order


Step = Callable[[Connection], Awaitable[object]]


def posting(name: str, currency: str = "USD", **told: Any) -> Step:
    """Posts a reward of this name and currency, for a campaign of its own."""
    made = reward(name, "1", currency=currency, campaign_id=currency, **told)
    return lambda connection: post(connection, [made])


async def with_an_id(connection: Connection) -> None:
    """Gives the database transaction its id, as if it had written something already."""
    await connection.execute("SELECT pg_current_xact_id()")


@asynccontextmanager
async def several(database: Database, count: int) -> AsyncIterator[list[Connection]]:
    """Connections that commit when they are told to."""
    opened = []
    try:
        for _ in range(count):
            info = conninfo(database.url(), Role.WRITER)
            opened.append(await psycopg.AsyncConnection.connect(info))
        yield opened
    finally:
        for connection in opened:
            await connection.close()


def test_whoever_commits_first_comes_first_whoever_began_first(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with (
            watching_books(database) as channel,
            several(database, 3) as (first, second, third),
        ):
            live = await Watch(channel).begin()
            began = [Watch(channel, token=live.token)]
            await posting("1-usd", "USD")(first)
            await posting("2-eur", "EUR")(second)
            await posting("3-jpy", "JPY")(third)
            # What is not committed holds up nobody, and is not told.
            await third.commit()
            assert await live.until(1) == ["3-jpy"]
            began.append(Watch(channel, token=live.token))
            await posting("4-gbp", "GBP")(third)
            await first.commit()
            await third.commit()
            assert await live.until(3) == ["3-jpy", "1-usd", "4-gbp"]
            began.append(Watch(channel, token=live.token))
            await second.commit()
            order = ["3-jpy", "1-usd", "4-gbp", "2-eur"]
            assert await live.until(4) == order
            # It is the same order for whoever comes later.
            began.append(Watch(channel, from_beginning=True))
            for watch, count in zip(began, (4, 3, 1, 4), strict=True):
                assert await watch.until(count) == order[-count:]

    run(main())


def test_while_one_commits_the_next_waits_until_that_can_be_seen(
    database: Database, run: Run
) -> None:
    """Else a reader that has seen the later position would never see the earlier one."""

    async def main() -> None:
        async with watching_books(database) as channel, several(database, 2) as (first, second):
            live = await Watch(channel).begin()
            await first.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await posting("first", "EUR")(first)
            await posting("second", "USD")(second)
            committing = asyncio.create_task(second.commit())
            done, _ = await asyncio.wait({committing}, timeout=0.5)
            assert not done
            await first.commit()
            await committing
            assert await live.until(2) == ["first", "second"]

    run(main())


def test_along_an_account_versions_ascend_whoever_wrote_first(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel, several(database, 2) as (first, second):
            live = await Watch(channel).begin()
            await with_an_id(first)
            await posting("second")(second)
            await second.commit()
            await posting("first")(first)
            await first.commit()
            behind = Watch(channel, from_beginning=True)
            for watch in (live, behind):
                await watch.until(2)
                told = [(each.reward_id, each.posting.version) for each in watch.rewards]
                assert told == [("second", 1), ("first", 2)]

    run(main())


def test_of_one_batch_versions_ascend_too(database: Database, run: Run) -> None:
    async def main() -> None:
        names = ["b", "A", "a", "Z", "_", "é", "10", "9"]
        await posted(database, *(reward(name, "1") for name in names))
        async with watching_books(database) as channel:
            watch = Watch(channel, from_beginning=True)
            assert sorted(await watch.until(8)) == sorted(names)
            assert [each.posting.version for each in watch.rewards] == list(range(1, 9))

    run(main())


def test_a_database_transaction_of_several_statements_is_told_whole_or_not(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with watching_books(database) as channel, several(database, 2) as (one, other):
            live = await Watch(channel).begin()
            await posting("first")(one)
            with suppress(ZeroDivisionError):
                async with one.transaction():
                    await posting("undone")(one)
                    raise ZeroDivisionError
            await posting("between", "EUR")(other)
            await other.commit()
            await posting("second")(one)
            await one.commit()
            await posting("never")(one)
            await one.rollback()
            with suppress(ZeroDivisionError):
                async with one.transaction():
                    await posting("never")(one)
                    raise ZeroDivisionError
            await posting("third")(one)
            await one.commit()
            # The same, with its constraints checked at once.
            await one.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await posting("fourth")(one)
            await posting("fifth")(one)
            await one.commit()
            order = ["between", "first", "second", "third", "fourth", "fifth"]
            assert await live.until(6) == order
            assert await Watch(channel, from_beginning=True).until(6) == order

    run(main())


def test_rewards_that_nobody_posted_are_told_too(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel, several(database, 1) as (connection,):
            live = await Watch(channel).begin()
            await connection.execute(
                "INSERT INTO rewards"
                " (reward_id, user_id, campaign_id, believed_bytes, fingerprint, seal)"
                " SELECT 'r-' || i, 'user-1', 'campaign-1', '', sha256(''), 0"
                " FROM generate_series(1, 3) AS i"
            )
            await connection.commit()
            assert await live.until(3) == ["r-1", "r-2", "r-3"]

    run(main())


def test_a_replay_is_not_told_again(database: Database, run: Run) -> None:
    async def main() -> None:
        async with watching_books(database) as channel:
            live = await Watch(channel).begin()
            await posted(database, reward("a"))
            await posted(database, reward("a"))
            await posted(database, reward("a"), reward("b"))
            await posted(database, reward("c"))
            assert await live.until(3) == ["a", "b", "c"]

    run(main())


def test_the_same_id_of_a_transaction_in_a_restored_cluster_is_another(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        for name in ("a", "b", "c"):
            await posted(database, reward(name), reward(name * 2))
        for table in ("rewards", "commits"):
            database.rows(
                f"ALTER TABLE {table} DISABLE TRIGGER USER; UPDATE {table} SET written_by = '9'"
            )
        async with watching_books(database) as channel:
            watch = Watch(channel, from_beginning=True)
            assert await watch.until(6) == ["a", "aa", "b", "bb", "c", "cc"]

    run(main())


AFTERWARDS = [
    *("0004_watching", "0007_notifying", "0008_corrections", "0011_movements", "0012_statements"),
    *("0013_seals", "0014_sealed_statements", "0015_closing"),
]


def test_books_from_before_are_told_in_the_order_of_their_versions(
    postgres: EmbeddedPostgres, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards that were numbered in another order than they were posted in."""
    name = "before_watching"
    with psycopg.connect(postgres.url(OWNER, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database = Database(postgres, name)
    for path in MIGRATIONS.glob("*.sql"):
        if path.stem not in AFTERWARDS:
            shutil.copy(path, tmp_path)
    monkeypatch.setattr("ledger.operations.migrate.MIGRATIONS", tmp_path)
    migrate(database.url())
    # The writer of today seals, tells movements, and looks at what is closed, too.
    database.rows("ALTER TABLE rewards ADD seal bigint; ALTER TABLE postings ADD seal bigint")
    migration = (MIGRATIONS / "0011_movements.sql").read_text()
    (table,) = re.findall(r"^CREATE TABLE movements .*?;\n", migration, re.DOTALL | re.MULTILINE)
    database.rows(f"{table} GRANT ALL ON movements TO ledger_writer")
    database.rows("CREATE TABLE statements (month date); GRANT ALL ON statements TO ledger_writer")
    names = [f"r-{i}" for i in range(6)]

    async def main() -> None:
        for each in names:
            await posted(database, reward(each))
        database.rows(
            "ALTER TABLE rewards DISABLE TRIGGER USER;"
            " ALTER TABLE rewards ALTER number SET GENERATED BY DEFAULT;"
            " UPDATE rewards SET number = 7 - number;"
            " ALTER TABLE rewards ALTER number SET GENERATED ALWAYS;"
            " ALTER TABLE rewards ENABLE TRIGGER USER"
        )
        database.rows("ALTER TABLE rewards DROP seal; ALTER TABLE postings DROP seal")
        database.rows("DROP TABLE movements, statements")
        monkeypatch.setattr("ledger.operations.migrate.MIGRATIONS", MIGRATIONS)
        assert migrate(database.url()).migrations == AFTERWARDS
        await posted(database, reward("later"))
        async with watching_books(database) as channel:
            watch = Watch(channel, from_beginning=True)
            assert await watch.until(7) == [*names, "later"]
            assert [each.posting.version for each in watch.rewards] == list(range(1, 8))
        # What was there was sealed as it stood.
        assert await verify(database.url()) == []

    run(main())
