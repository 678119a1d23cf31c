"""Posting: what becomes of rewards, alone, together, again and against each other."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from ledger.correcting import reverse
from ledger.correction import Reversal
from ledger.database import Connection, Pool, Role, conninfo
from ledger.errors import (
    BrokenRule,
    DeadlineExceeded,
    IdempotencyConflict,
    InvalidAmount,
    Overloaded,
    Unavailable,
    UnknownCurrency,
)
from ledger.operations.finding import Finding
from ledger.reward import Reward
from ledger.writing import WAIT_SECONDS_MAX, Outcome, Receipt, Status, Writer, post
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.past import move
from tests.rewards import reward
from tests.verifying import verify


async def post_all(database: Database, *rewards: Reward) -> list[Any]:
    """What becomes of ``rewards``, posted in one batch over a connection of its own."""
    async with database.connected() as connection:
        return list(await post(connection, rewards))


async def findings(database: Database) -> list[Finding]:
    return await verify(database.url())


def balances(database: Database) -> dict[tuple[str, str], tuple[str, int]]:
    """The balance of each user and currency, with its version."""
    rows = database.rows("""
        SELECT account, currency, credits - debits, version FROM balances
        WHERE account LIKE 'user:%'
    """)
    return {
        (account, currency): (str(value), version) for account, currency, value, version in rows
    }


# One reward.


def test_a_reward_is_credited_with_both_legs(database: Database, run: Run) -> None:
    (receipt,) = run(post_all(database, reward(amount="12.5")))
    assert isinstance(receipt, Receipt)
    assert receipt[:5] == (Status.CREDITED, "reward-1", "user-1", "USD", 1)
    assert database.rows(
        "SELECT account, side, currency, amount::text FROM entries ORDER BY side DESC"
    ) == [
        ("campaign:campaign-1", "debit", "USD", "12.50"),
        ("user:user-1", "credit", "USD", "12.50"),
    ]
    assert database.rows(
        "SELECT account, debits::text, credits::text, version FROM balances ORDER BY account"
    ) == [("campaign:campaign-1", "12.50", "0", 1), ("user:user-1", "0", "12.50", 1)]
    assert database.rows("SELECT posted_at FROM postings") == [(receipt.posted_at,)]


@pytest.mark.parametrize("amount", [None, "5"])
def test_a_reward_with_nothing_to_post_is_recorded_and_moves_nothing(
    database: Database, run: Run, amount: str | None
) -> None:
    told = reward(amount=amount)._replace(currency=None, reward_type="noReward")
    (receipt,) = run(post_all(database, told))
    assert receipt[:5] == (Status.RECORDED, "reward-1", "user-1", None, None)
    assert database.rows("SELECT recorded_at FROM rewards") == [(receipt.posted_at,)]
    assert database.rows("SELECT reward_id FROM postings") == []
    assert database.rows("SELECT account FROM balances") == []


@pytest.mark.parametrize(
    ("currency", "amount", "kept"),
    [
        ("USD", "400", "400.00"),
        ("USD", "0.1", "0.10"),
        ("USD", "12.34", "12.34"),
        ("JPY", "7", "7"),
        ("POINTS", "9" * 30, "9" * 30),
        ("KWD", "1.5", "1.500"),
        ("USD", f"{'9' * 28}.99", f"{'9' * 28}.99"),
        ("UYW", f"{'1' * 26}.0001", f"{'1' * 26}.0001"),
    ],
)
def test_an_amount_is_kept_exactly_with_the_decimals_of_its_currency(
    database: Database, run: Run, currency: str, amount: str, kept: str
) -> None:
    (receipt,) = run(post_all(database, reward(amount=amount, currency=currency)))
    assert receipt.status is Status.CREDITED
    assert database.rows("SELECT amount::text, balance_after::text FROM postings") == [(kept, kept)]
    assert database.rows("SELECT debits::text FROM balances WHERE account LIKE 'c%'") == [(kept,)]


def test_sums_of_the_largest_amounts_are_exact(database: Database, run: Run) -> None:
    amount = "9" * 28 + ".99"
    run(post_all(database, *(reward(f"r{n}", amount) for n in range(300))))
    (total,) = balances(database).values()
    assert total == (f"2{'9' * 29}7.00", 300)


AWKWARD = (
    "",
    "NULL",
    'a "quoted" word',
    "back\\slash \\\\ \\n",
    "{braces, and commas}",
    "it's",
    "line\nline\r\n\ttab",
    " padded ",
    "%s %(reward_id)s $1",
    "é 😀 \u202e \u2028",
)


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_is_kept_as_it_was_told(database: Database, run: Run, text: str) -> None:
    named = text or "not empty"
    told = Reward(
        reward_id=named,
        user_id=named,
        campaign_id=named,
        type=text,
        reward_type=text,
        reward_name=text,
        reward_amount=Decimal("1.5"),
        currency="USD",
        code=text,
        status=text,
        transaction_id=text,
        reward_expires_at=datetime(2024, 8, 29, 6, 32, 3, 500, tzinfo=UTC),
        reward_category=text,
        details='{"b": "\\\\ \\" \\u0000 é", "a": [1.10, null], "a": 2}',
        body=text,
        tnc='["one", "two"]',
        webhook_type=text,
        believed_bytes=text.encode() + bytes(range(256)),
    )
    (receipt,) = run(post_all(database, told))
    assert (receipt.reward_id, receipt.user_id) == (named, named)
    columns = [f"{name}::text" if name in {"details", "tnc"} else name for name in Reward._fields]
    assert database.rows(f"SELECT {', '.join(columns)} FROM rewards") == [tuple(told)]
    assert database.rows(
        "SELECT fingerprint, believed_bytes_sha256 = sha256(believed_bytes) FROM rewards"
    ) == [(told.fingerprint(), True)]
    assert database.rows(
        "SELECT user_id, reward_id, debit_account, credit_account FROM postings"
    ) == [(named, named, f"campaign:{named}", f"user:{named}")]


def test_what_was_not_said_is_kept_as_not_said(database: Database, run: Run) -> None:
    told = reward(amount=None, type=None, reward_type=None, reward_name=None)
    run(post_all(database, told))
    assert database.rows(f"SELECT {', '.join(Reward._fields)} FROM rewards") == [tuple(told)]


# The same reward again.


@pytest.mark.parametrize("amount", ["400", None], ids=["credited", "recorded"])
def test_a_reward_sent_again_is_answered_with_its_first_receipt(
    database: Database, run: Run, amount: str | None
) -> None:
    async def main() -> None:
        told = reward(amount=amount)
        first, beside = await post_all(database, told, told)
        between = await post_all(database, reward("other"))
        (later,) = await post_all(database, told._replace(status="seen"))
        assert between[0].status is Status.CREDITED
        assert first.status is (Status.RECORDED if amount is None else Status.CREDITED)
        assert beside == later == first._replace(status=Status.REPLAYED)

    run(main())
    assert database.rows("SELECT status FROM rewards WHERE reward_id = 'reward-1'") == [(None,)]
    expected = "400.00" if amount is None else "800.00"
    assert balances(database)["user:user-1", "USD"][0] == expected


@pytest.mark.parametrize("amount", ["400", None], ids=["credited", "recorded"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", "user-2"),
        ("reward_amount", Decimal("400.01")),
        ("currency", "EUR"),
        ("campaign_id", "campaign-2"),
        ("reward_type", "coins"),
        ("code", "CODE"),
    ],
)
def test_the_same_key_with_other_money_is_a_conflict(
    database: Database, run: Run, amount: str | None, field: str, value: object
) -> None:
    async def main() -> None:
        told = reward(amount=amount)
        if amount is None and field == "currency":
            told = told._replace(reward_amount=Decimal(400))
        other = told._replace(**{field: value, "believed_bytes": b"another text"})
        first, beside = await post_all(database, told, other)
        (later,) = await post_all(database, other)
        (again,) = await post_all(database, told)
        assert isinstance(beside, IdempotencyConflict)
        assert isinstance(later, IdempotencyConflict)
        assert again == first._replace(status=Status.REPLAYED)
        assert await findings(database) == []

    run(main())
    assert len(database.rows("SELECT reward_id FROM rewards")) == 1


def test_the_same_text_is_a_replay_even_when_it_is_read_otherwise_now(
    database: Database, run: Run
) -> None:
    """As after another default currency was set: what was posted stays as it was posted."""

    async def main() -> None:
        text = b'{"rewardId":"reward-1"}'
        (first,) = await post_all(database, reward(currency="POINTS", believed_bytes=text))
        (again,) = await post_all(database, reward(currency="COINS", believed_bytes=text))
        assert again == first._replace(status=Status.REPLAYED)
        (other,) = await post_all(database, reward(currency="COINS", believed_bytes=text + b" "))
        assert isinstance(other, IdempotencyConflict)
        assert await findings(database) == []

    run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "quiz"),
        ("reward_name", "another"),
        ("status", "redeemed"),
        ("transaction_id", "t-2"),
        ("reward_expires_at", datetime(2030, 1, 1, tzinfo=UTC)),
        ("reward_category", "another"),
        ("details", "{}"),
        ("body", "another"),
        ("tnc", "[]"),
        ("webhook_type", "reward"),
        ("believed_bytes", b"{ }"),
    ],
)
def test_the_same_money_with_other_words_is_a_replay(
    database: Database, run: Run, field: str, value: object
) -> None:
    async def main() -> None:
        (first,) = await post_all(database, reward())
        (again,) = await post_all(database, reward()._replace(**{field: value}))
        assert again == first._replace(status=Status.REPLAYED)

    run(main())


# Many rewards in one batch.


def test_what_cannot_be_booked_is_refused_and_its_batch_is_not(
    database: Database, run: Run
) -> None:
    outcomes = run(
        post_all(
            database,
            reward("unknown", currency="NOPE"),
            reward("fine"),
            reward("too-fine", amount="1.234"),
            reward("fine", amount="401"),
            reward("unknown"),
            reward("recorded", amount=None),
            reward("unknown", currency="NOPE"),
            reward("unknown"),
            reward("half-a-yen", amount="0.5", currency="JPY"),
            reward("lower-case", currency="usd"),
        )
    )
    assert [getattr(outcome, "status", type(outcome)) for outcome in outcomes] == [
        UnknownCurrency,
        Status.CREDITED,
        InvalidAmount,
        IdempotencyConflict,
        Status.CREDITED,
        Status.RECORDED,
        IdempotencyConflict,
        Status.REPLAYED,
        InvalidAmount,
        UnknownCurrency,
    ]
    assert [reward_id for (reward_id,) in database.rows("SELECT reward_id FROM rewards")] == [
        "fine",
        "recorded",
        "unknown",
    ]


@pytest.mark.parametrize("amount", [None, Decimal("NaN"), Decimal("Infinity")], ids=str)
def test_a_currency_without_an_amount_that_can_be_booked_is_refused(
    database: Database, run: Run, amount: Decimal | None
) -> None:
    told = reward()._replace(reward_amount=amount)
    refused, fine = run(post_all(database, told, reward("fine")))
    assert isinstance(refused, InvalidAmount)
    assert fine.status is Status.CREDITED


def test_what_was_refused_is_credited_once_its_currency_is_registered(
    database: Database, run: Run
) -> None:
    (refused,) = run(post_all(database, reward(currency="GEMS")))
    assert isinstance(refused, UnknownCurrency)
    database.rows("INSERT INTO currencies (code, scale, name) VALUES ('GEMS', 0, 'Gems')")
    (credited,) = run(post_all(database, reward(currency="GEMS")))
    assert credited.status is Status.CREDITED


def test_a_refused_reward_does_not_hide_what_stands_under_its_key(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await post_all(database, reward())
        conflicts = await post_all(
            database, reward(currency="NOPE"), reward(amount="0.001"), reward(amount=None)
        )
        assert {type(conflict) for conflict in conflicts} == {IdempotencyConflict}

    run(main())


def test_an_empty_batch_is_posted_as_nothing(database: Database, run: Run) -> None:
    assert run(post_all(database)) == []


@pytest.mark.parametrize("size", [1, 2, 3, 17, 256, 500])
def test_the_books_hold_after_batches_of_every_size(
    database: Database, run: Run, chance: random.Random, size: int
) -> None:
    told = [
        reward(
            f"r{number}",
            amount=str(chance.randint(1, 10**6)),
            currency=chance.choice(["USD", "POINTS"]),
            user_id=chance.choice(["a", "B", "é"]),
            campaign_id=chance.choice(["a", "c"]),
        )
        for number in range(size)
    ]
    chance.shuffle(told)

    async def main() -> list[Outcome]:
        async with database.connected() as connection:
            # Twice, so that the second batch stands on balances that exist.
            halves = told[: size // 2], told[size // 2 :]
            return [outcome for half in halves for outcome in await post(connection, half)]

    outcomes = run(main())
    assert [outcome.reward_id for outcome in outcomes] == [each.reward_id for each in told]
    assert {outcome.status for outcome in outcomes} == {Status.CREDITED}

    versions = defaultdict(list)
    sums: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for each, outcome in zip(told, outcomes, strict=True):
        assert (outcome.user_id, outcome.currency) == (each.user_id, each.currency)
        versions[each.user_id, each.currency].append(outcome.version)
        sums[each.user_id, each.currency] += each.reward_amount
    for seen in versions.values():
        assert sorted(seen) == list(range(1, len(seen) + 1))

    chains: defaultdict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for user_id, currency, *step in database.rows("""
        SELECT user_id, currency, version, reward_id, amount, balance_after, posted_at
        FROM postings ORDER BY user_id, currency, version
    """):
        chains[user_id, currency].append(tuple(step))
    by_id = {outcome.reward_id: outcome for outcome in outcomes}
    for key, chain in chains.items():
        balance, before = Decimal(0), None
        for place, (version, reward_id, amount, balance_after, posted_at) in enumerate(chain, 1):
            balance += amount
            assert (version, balance_after) == (place, balance)
            assert (by_id[reward_id].version, by_id[reward_id].posted_at) == (version, posted_at)
            assert before is None or posted_at >= before
            before = posted_at
        assert balance == sums[key]
    assert run(findings(database)) == []


def test_time_does_not_run_backwards_although_the_clock_does(database: Database, run: Run) -> None:
    """The clock of the server is set back: as if the balance were from tomorrow."""

    async def main() -> None:
        (first,) = await post_all(database, reward("first"))
        move(database, "posted_at + interval '1 day'")
        (second,) = await post_all(database, reward("second"))
        assert second.version == 2
        assert second.posted_at > first.posted_at
        assert await findings(database) == []

    run(main())


def test_the_time_is_taken_after_the_balance_is_locked(database: Database, run: Run) -> None:
    """A posting that waits for another's lock must not be earlier than that one."""

    async def main() -> None:
        await post_all(database, reward("first"))
        with psycopg.connect(database.url(SUPERUSER)) as holder:
            holder.execute("SELECT 1 FROM balances WHERE account LIKE 'user:%' FOR UPDATE")
            waiting = asyncio.ensure_future(post_all(database, reward("second")))
            await until_somebody_waits(database)
            let_go = holder.execute("SELECT clock_timestamp()").fetchone()
        (second,) = await waiting
        assert let_go is not None
        assert second.posted_at > let_go[0]

    run(main())


async def until_somebody_waits(database: Database) -> None:
    """Returns when a connection of the database waits for a lock."""
    async with asyncio.timeout(10):
        while not database.rows(  # noqa: ASYNC110
            f"""
            SELECT pid FROM pg_stat_activity
            WHERE datname = '{database.name}' AND wait_event_type = 'Lock'
            """,
            SUPERUSER,
        ):
            await asyncio.sleep(0.005)


# Several connections.


def test_a_reward_that_another_connection_is_just_posting_is_a_replay(
    database: Database, run: Run
) -> None:
    """It waits for the other's key, and must then see what the other committed."""

    async def main() -> None:
        async with database.connected() as one, database.connected() as other:
            await one.set_autocommit(False)
            (first,) = await post(one, [reward()])
            waiting = asyncio.ensure_future(
                post(other, [reward(), reward("more"), reward(amount="1")])
            )
            await until_somebody_waits(database)
            await one.commit()
            replay, more, conflict = await waiting
        assert replay == first._replace(status=Status.REPLAYED)
        assert isinstance(more, Receipt)
        assert (more.status, more.version) == (Status.CREDITED, 2)
        assert isinstance(conflict, IdempotencyConflict)
        assert await findings(database) == []

    run(main())


def test_a_reward_whose_first_poster_gave_up_is_credited(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.connected() as one, database.connected() as other:
            await one.set_autocommit(False)
            await post(one, [reward()])
            waiting = asyncio.ensure_future(post(other, [reward(amount="1")]))
            await until_somebody_waits(database)
            await one.rollback()
            (credited,) = await waiting
        assert isinstance(credited, Receipt)
        assert credited.status is Status.CREDITED
        assert balances(database) == {("user:user-1", "USD"): ("1.00", 1)}

    run(main())


@pytest.mark.parametrize("shared", ["rewards", "accounts"])
def test_overlapping_batches_in_opposite_order_never_wait_for_each_other_in_a_ring(
    database: Database, run: Run, chance: random.Random, shared: str
) -> None:
    # Unsorted, they meet in a ring a few times in so many.
    rounds = 500

    async def main() -> None:
        async with database.connected() as one, database.connected() as other:
            for number in range(rounds):
                users = chance.sample(range(40), 12)
                batches = [
                    [
                        reward(
                            f"{number}-{place}" + ("" if shared == "rewards" else f"-{connection}"),
                            user_id=f"{user}",
                            campaign_id=f"{user % 3}",
                        )
                        for place, user in enumerate(users)
                    ]
                    for connection in ("one", "other")
                ]
                batches[1].reverse()
                await asyncio.gather(post(one, batches[0]), post(other, batches[1]))
        assert await findings(database) == []

    run(main())
    copies = 1 if shared == "rewards" else 2
    assert database.rows("SELECT count(*) FROM postings") == [(12 * rounds * copies,)]


def test_a_replay_is_found_by_its_key_and_not_by_reading_every_reward(
    database: Database, run: Run
) -> None:
    """Also by a connection whose plans were made while the books were empty."""

    async def main() -> None:
        async with database.connected() as connection:
            told = [reward(f"r{number}") for number in range(2000)]
            for _ in range(10):
                await post(connection, told[:1])
            await post(connection, told)
            before = await read(connection)
            await post(connection, told[:20])
            assert await read(connection) - before < 200

    async def read(connection: Connection) -> int:
        """How many rows were read so far, in whatever way."""
        await connection.execute("SELECT pg_stat_force_next_flush()")
        await connection.execute("SELECT 1")
        rows = database.rows("""
            SELECT sum(seq_tup_read + idx_tup_fetch)::integer FROM pg_stat_user_tables
            WHERE relname IN ('rewards', 'postings', 'balances')
        """)
        return int(rows[0][0])

    run(main())


# The writer.


@contextmanager
def hanging(database: Database) -> Iterator[None]:
    """Postgres takes connections, and answers nothing about rewards."""
    with psycopg.connect(database.url()) as connection:
        connection.execute("LOCK TABLE rewards IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def away(database: Database) -> Iterator[None]:
    """Nobody can connect to the database, and nobody is."""
    with psycopg.connect(
        database.postgres.url(SUPERUSER, "postgres"), autocommit=True
    ) as connection:
        connection.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")  # type: ignore[arg-type]
        kill(connection, database)
        yield
        connection.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")  # type: ignore[arg-type]


def kill(connection: psycopg.Connection, database: Database, condition: str = "true") -> int:
    """How many of the writers' backends were ended, as by an operator."""
    return connection.execute(
        f"""
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = '{database.name}' AND application_name = 'ledger_writer' AND {condition}
        """  # type: ignore[arg-type]
    ).rowcount


def test_a_writer_answers_each_caller_with_its_own_receipt(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            writer = Writer(pool, batch_size_max=7)
            told = [reward(f"r{number % 60}", user_id=f"u{number % 5}") for number in range(100)]
            outcomes = await asyncio.gather(*(writer.post(each) for each in told))
            for each, outcome in zip(told, outcomes, strict=True):
                assert isinstance(outcome, Receipt)
                assert (outcome.reward_id, outcome.user_id) == (each.reward_id, each.user_id)
            statuses = [outcome.status for outcome in outcomes if isinstance(outcome, Receipt)]
            assert statuses == [Status.CREDITED] * 60 + [Status.REPLAYED] * 40
            await writer.drain()

    run(main())


def test_callers_who_come_together_are_posted_in_one_database_transaction(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            writer = Writer(pool)
            await asyncio.gather(*(writer.post(reward(f"r{number}")) for number in range(50)))

    run(main())
    assert database.rows("SELECT count(DISTINCT xmin::text) FROM rewards") == [(1,)]


POISON = {
    "a rule is broken": (reward("poison", amount="0"), "reward_with_a_currency_has_an_amount"),
    "a negative amount": (reward("poison", amount="-1"), "reward_amount_is_not_negative"),
    "no user": (reward("poison", user_id=""), "reward_user_is_not_empty"),
    "a NUL": (reward("poison", reward_name="a\0b"), "22000"),
    "no JSON": (reward("poison", details="{"), "22P02"),
    "too many digits": (reward("poison", amount="1E+200000", currency="POINTS"), "22003"),
    "too long for an index": (
        reward("poison", user_id="".join(map(chr, range(300, 9000)))),
        "54000",
    ),
}


@pytest.mark.parametrize(("poison", "rule"), POISON.values(), ids=POISON)
def test_a_reward_that_the_database_refuses_fails_alone(
    database: Database, run: Run, poison: Reward, rule: str
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            told = [reward(f"r{number}") for number in range(5)]
            told.insert(3, poison)
            outcomes = await asyncio.gather(
                *(writer.post(each) for each in told), return_exceptions=True
            )
        refused = outcomes.pop(3)
        assert isinstance(refused, BrokenRule)
        assert refused.rule == rule
        assert {getattr(outcome, "status", outcome) for outcome in outcomes} == {Status.CREDITED}
        assert await findings(database) == []

    run(main())
    assert balances(database) == {("user:user-1", "USD"): ("2000.00", 5)}


def test_a_text_that_has_no_encoding_fails_alone(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            told = [reward("r1"), reward("poison", body="\ud800"), reward("r2")]
            before, refused, after = await asyncio.gather(
                *(writer.post(each) for each in told), return_exceptions=True
            )
        assert isinstance(refused, UnicodeEncodeError)
        assert isinstance(before, Receipt)
        assert isinstance(after, Receipt)

    run(main())


def test_an_observer_hears_of_each_batch_that_is_committed(database: Database, run: Run) -> None:
    async def main() -> None:
        heard: list[tuple[list[str], list[str]]] = []

        def observe(rewards: Sequence[Reward], outcomes: Sequence[Outcome]) -> None:
            (count,) = database.rows("SELECT count(*) FROM rewards")
            assert count == (3,)
            told = [one.status if isinstance(one, Receipt) else "refused" for one in outcomes]
            heard.append(([one.reward_id for one in rewards], told))

        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool, observe_batch=observe)
            sent = [reward("a"), reward("b", amount=None), reward("c"), reward("d", currency="NO")]
            await asyncio.gather(*(writer.post(one) for one in sent))
            await writer.post(reward("a"))
            assert isinstance(await writer.post(reward("a", user_id="other")), IdempotencyConflict)
        assert heard == [
            (["a", "b", "c", "d"], ["credited", "recorded", "credited", "refused"]),
            (["a"], ["replayed"]),
            (["a"], ["refused"]),
        ]

    run(main())


def test_a_caller_that_gives_up_does_not_take_its_batch_with_it(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            with hanging(database):
                leaving, staying = writer.post(reward("r1")), writer.post(reward("r2"))
                await until_somebody_waits(database)
                leaving.cancel()
            receipt = await staying
            assert isinstance(receipt, Receipt)
            assert receipt.status is Status.CREDITED
            again = await writer.post(reward("r1"))
            assert isinstance(again, Receipt)
            assert again.status is Status.REPLAYED

    run(main())


def test_no_caller_notices_that_its_connection_is_killed(
    database: Database, run: Run, chance: random.Random
) -> None:
    """Every answered reward stands in the books, once, whenever its backend ended."""

    async def main() -> None:
        stop = asyncio.Event()
        answered: dict[str, Receipt] = {}

        async def call(writer: Writer, caller: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                reward_id = f"{caller}-{number}"
                receipt = await writer.post(reward(reward_id, user_id=f"u{number % 5}"))
                assert isinstance(receipt, Receipt)
                # A replay, when the commit was lost on its way back.
                assert receipt.status in {Status.CREDITED, Status.REPLAYED}
                answered[reward_id] = receipt

        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            writer = Writer(pool)
            with psycopg.connect(database.postgres.url(SUPERUSER), autocommit=True) as killer:
                callers = [asyncio.ensure_future(call(writer, caller)) for caller in range(30)]
                killed = 0
                while killed < 10 and not any(caller.done() for caller in callers):
                    await asyncio.sleep(chance.uniform(0.1, 0.2))
                    killed += await asyncio.to_thread(kill, killer, database, "state = 'active'")
                stop.set()
                await asyncio.gather(*callers)
        booked = database.rows("SELECT reward_id, user_id, version, posted_at FROM postings")
        assert sorted(booked) == sorted(
            (receipt.reward_id, receipt.user_id, receipt.version, receipt.posted_at)
            for receipt in answered.values()
        )
        assert await findings(database) == []

    run(main())


def test_connections_that_died_while_nobody_used_them_are_not_noticed(
    database: Database, run: Run
) -> None:
    """As after a restart of Postgres: every connection of the pool is dead, and looks alive."""

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            async with pool.connection(), pool.connection():
                pass
            with psycopg.connect(database.postgres.url(SUPERUSER), autocommit=True) as killer:
                assert kill(killer, database) == 2
            receipt = await Writer(pool).post(reward())
            assert isinstance(receipt, Receipt)
            assert receipt.status is Status.CREDITED

    run(main())


def test_while_postgres_is_away_callers_hear_so_and_afterwards_nothing_is_missing(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            # So that the pool has given up before it is back, which it does after this time.
            pool._pool.reconnect_timeout = 0.1
            writer = Writer(pool)
            await writer.post(reward("before"))
            with away(database):
                told = [reward(f"r{number}") for number in range(20)]
                outcomes = await asyncio.gather(
                    *(writer.post(each) for each in told), return_exceptions=True
                )
                assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
                await writer.drain()
            again = await asyncio.gather(*(writer.post(each) for each in told))
            assert {getattr(outcome, "status", outcome) for outcome in again} == {Status.CREDITED}
        assert await findings(database) == []

    run(main())
    assert balances(database) == {("user:user-1", "USD"): ("8400.00", 21)}


def test_while_postgres_hangs_nobody_waits_for_ever_and_afterwards_nothing_is_missing(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool, batch_size_max=3)
            with hanging(database):
                told = [reward(f"r{number}") for number in range(7)]
                outcomes = await asyncio.gather(
                    *(writer.post(each) for each in told), return_exceptions=True
                )
                assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
            again = await asyncio.gather(*(writer.post(each) for each in told))
            assert all(isinstance(outcome, Receipt) for outcome in again)
        assert await findings(database) == []

    run(main())
    assert balances(database) == {("user:user-1", "USD"): ("2800.00", 7)}


def test_the_sender_s_three_seconds_are_longer_than_a_caller_waits() -> None:
    assert WAIT_SECONDS_MAX < 3


def test_what_is_too_much_is_turned_away_at_once_and_nothing_of_it_is_done(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            writer._coalescer._waiting_max = 3
            futures = [writer.post(reward(f"r{number}")) for number in range(3)]
            with pytest.raises(Overloaded):
                writer.post(reward("too-much"))
            await asyncio.gather(*futures)
            await writer.drain()

    run(main())
    assert len(database.rows("SELECT reward_id FROM rewards")) == 3


def test_whatever_the_clock_says_nothing_is_posted_into_a_month_that_is_closed(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("before")])
            # As if the clock had been set back by a month since.
            database.rows(
                """
                ALTER TABLE statements DISABLE TRIGGER USER;
                INSERT INTO statements (month, text, sha256, position, closed_by, seal)
                SELECT date_trunc('month', now() AT TIME ZONE 'UTC'), '', sha256(''), 1, 'ann', 0
                """
            )
            ((opened,),) = database.rows(
                "SELECT (max(month) + interval '1 month') AT TIME ZONE 'UTC' FROM statements"
            )
            told = [reward("known user"), reward("new user", user_id="user-2")]
            assert [outcome.posted_at for outcome in await post(connection, told)] == [opened] * 2  # type: ignore[union-attr]
            reversing = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with await psycopg.AsyncConnection.connect(reversing, autocommit=True) as connection:
            asked = Reversal("key", "before", None, "a mistake", "ann")
            assert (await reverse(connection, asked)).posted_at == opened

    run(main())


def outlined(outcome: Any) -> tuple[Any, ...]:
    """What an outcome says, without what is another one each time."""
    if isinstance(outcome, Receipt):
        return outcome.status, outcome.user_id[1:], outcome.currency, outcome.version
    return (type(outcome),)


def test_whoever_expects_replays_is_told_the_same(
    database: Database, run: Run, chance: random.Random
) -> None:
    def told(prefix: str, number: int, what: int) -> Reward:
        facts: dict[str, Any] = {"user_id": f"{prefix}user-{number % 3}"}
        facts |= ({}, {"amount": None}, {"currency": "NOPE"}, {"amount": "0.001"}, {"code": "X"})[
            what
        ]
        return reward(f"{prefix}{number}", **facts)

    async def main() -> None:
        for _ in range(20):
            batch = [
                (chance.randrange(40), chance.choice([0, 0, 0, 1, 2, 3, 4])) for _ in range(15)
            ]
            async with database.connected() as connection:
                plain, expecting = [
                    await post(
                        connection,
                        [told(prefix, *facts) for facts in batch],
                        expects_replays=prefix == "b",
                    )
                    for prefix in "ab"
                ]
            assert [*map(outlined, plain)] == [*map(outlined, expecting)]
        assert await findings(database) == []

    run(main())


def test_a_storm_of_replays_is_only_looked_up_and_what_is_new_in_it_is_posted(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        rewards = [reward(f"r-{n}") for n in range(20)]
        async with Pool(database.url(Role.WRITER), Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            await asyncio.gather(*map(writer.post, rewards))
            await asyncio.gather(*map(writer.post, rewards))
            database.rows("REVOKE INSERT ON rewards FROM ledger_writer")
            again = await asyncio.gather(*map(writer.post, rewards))
            assert {outcome.status for outcome in again} == {Status.REPLAYED}
            database.rows("GRANT INSERT ON rewards TO ledger_writer")
            *storm, new = await asyncio.gather(*map(writer.post, [*rewards, reward("new")]))
            assert {outcome.status for outcome in storm} == {Status.REPLAYED}
            assert (new.status, new.version) == (Status.CREDITED, 21)
        assert await findings(database) == []

    run(main())
