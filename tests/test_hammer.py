"""Many processes post the same few rewards in every order; then the books are added up again."""

import asyncio
import multiprocessing
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import NamedTuple

import psycopg
import pytest
import uvloop

from ledger.database import Connection, Pool, Role, conninfo
from ledger.errors import (
    BrokenRule,
    IdempotencyConflict,
    InvalidAmount,
    LedgerError,
    Unavailable,
    UnknownCurrency,
)
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt, Status, Writer, post
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward
from tests.verifying import verify

SECONDS = int(os.environ.get("HAMMER_SECONDS") or 8)
SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
PROCESSES = 3

USERS = 6
VARIANTS = 6
REWARDS_A_ROUND = 200


class Answer(NamedTuple):
    """What one process heard about one telling of a reward."""

    reward_id: str
    variant: int
    outcome: str
    """The status, or the name of the error."""
    user_id: str | None = None
    currency: str | None = None
    version: int | None = None
    posted_at: str | None = None


def told(seed: int, number: int, variant: int) -> Reward:
    """The reward of this number, as every process tells it; variants above 0 are other facts.

    Most amounts are credited; some cannot be booked, some are only recorded, some are poison.
    """
    chance = random.Random(f"{seed} {number} {variant}")
    made = reward(
        f"r{number}",
        user_id=f"u{chance.randrange(USERS)}",
        campaign_id=f"c{chance.randrange(3)}",
        currency=chance.choice(["USD", "JPY", "POINTS"]),
        amount=str(chance.randint(1, 10**9)),
    )
    match chance.randrange(12):
        case 0:
            return made._replace(currency=None, reward_type="noReward")
        case 1:
            return made._replace(currency="NOPE")
        case 2:
            return made._replace(reward_amount=Decimal("0.001"))
        case 3:
            return made._replace(currency="USD", reward_amount=Decimal(chance.randint(1, 99)) / 100)
        case 4 if variant:
            return made._replace(reward_name="poison\0")
    return made


def batches(seed: int, process: int) -> Iterator[list[tuple[int, int]]]:
    """Numbers and variants to tell, without end: all processes go through the same rewards."""
    chance = random.Random(f"{seed} process {process}")
    for round_ in range(10**9):
        first = round_ * REWARDS_A_ROUND
        numbers = [chance.randrange(first, first + REWARDS_A_ROUND) for _ in range(REWARDS_A_ROUND)]
        numbers += range(first, first + REWARDS_A_ROUND)
        chance.shuffle(numbers)
        while numbers:
            size = chance.choice([1, 2, 5, 30, 100])
            batch, numbers = numbers[:size], numbers[size:]
            yield [(number, chance.choice([0, 0, 0, *range(VARIANTS)])) for number in batch]


class Teller:
    """One process's way to the books: in batches of its own, or as many callers of a writer."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._seed = seed
        self._connection: Connection | None = None
        self.answers: list[Answer] = []

    def note(self, number: int, variant: int, outcome: Outcome | BaseException) -> None:
        """Keep what was answered; what is not an answer is the test's end."""
        if isinstance(outcome, Receipt):
            _, reward_id, user_id, currency, version, posted_at = outcome
            answer = Answer(
                reward_id, variant, outcome.status, user_id, currency, version, str(posted_at)
            )
        elif isinstance(outcome, LedgerError):
            answer = Answer(f"r{number}", variant, type(outcome).__name__)
        else:
            raise outcome
        self.answers.append(answer)

    async def tell_in_a_batch(self, batch: list[tuple[int, int]]) -> None:
        """Posts until it is answered, over a connection that is made again when it was lost."""
        rewards = [told(self._seed, *each) for each in batch]
        batch = [each for each, made in zip(batch, rewards, strict=True) if not is_poison(made)]
        rewards = [made for made in rewards if not is_poison(made)]
        while True:
            try:
                if self._connection is None:
                    info = conninfo(self._url, Role.WRITER)
                    self._connection = await psycopg.AsyncConnection.connect(info, autocommit=True)
                outcomes = await post(self._connection, rewards)
            except psycopg.errors.DeadlockDetected:
                raise
            except psycopg.OperationalError:
                await self.close()
            else:
                break
        for each, outcome in zip(batch, outcomes, strict=True):
            self.note(*each, outcome)

    async def tell_one_by_one(self, writer: Writer, batch: list[tuple[int, int]]) -> None:
        """Posts each for a caller of its own, who asks again until there is an answer."""

        async def call(number: int, variant: int) -> None:
            while True:
                try:
                    outcome = await writer.post(told(self._seed, number, variant))
                except Unavailable:
                    continue
                except LedgerError as error:
                    return self.note(number, variant, error)
                return self.note(number, variant, outcome)

        await asyncio.gather(*(call(*each) for each in batch))

    async def close(self) -> None:
        """Gives its connection back."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def is_poison(made: Reward) -> bool:
    return "\0" in (made.reward_name or "")


def hammer(url: str, seed: int, process: int, seconds: float) -> list[Answer]:
    """What one process hears in so many seconds."""

    async def main() -> list[Answer]:
        ends_at = time.monotonic() + seconds
        teller = Teller(url, seed)
        chance = random.Random(f"{seed} way {process}")
        async with Pool(url, Role.WRITER, size_max=2) as pool:
            writer = Writer(pool, batch_size_max=32)
            for batch in batches(seed, process):
                if time.monotonic() > ends_at:
                    break
                if chance.random() < 0.5:
                    await teller.tell_in_a_batch(batch)
                else:
                    await teller.tell_one_by_one(writer, batch)
            await writer.drain()
        await teller.close()
        return teller.answers

    return uvloop.run(main())


def kill_backends(database: Database, seed: int, is_over: Callable[[], bool]) -> int:
    """How many backends of the writers were ended, in the middle of what they did."""
    chance = random.Random(f"{seed} killer")
    killed = 0
    with psycopg.connect(database.postgres.url(SUPERUSER), autocommit=True) as connection:
        while not is_over():
            time.sleep(chance.uniform(0.05, 0.3))
            killed += connection.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = %s AND application_name = 'ledger_writer' AND state = 'active'
                ORDER BY random() LIMIT 1
                """,
                (database.name,),
            ).rowcount
    return killed


@pytest.mark.parametrize("is_calm", [True, False], ids=["calm", "backends are killed"])
def test_however_it_is_hammered_every_reward_is_credited_once(
    database: Database, run: Run, is_calm: bool
) -> None:
    print(f"SEED={SEED} HAMMER_SECONDS={SECONDS}")
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as processes:
        hearing = processes.starmap_async(
            hammer, [(database.url(), SEED, process, SECONDS / 2) for process in range(PROCESSES)]
        )
        killed = 0 if is_calm else kill_backends(database, SEED, hearing.ready)
        answers = [answer for heard in hearing.get(SECONDS + 60) for answer in heard]
    print(f"{len(answers)} answers, {killed} backends killed")
    assert len(answers) > REWARDS_A_ROUND
    assert is_calm or killed

    first = check_answers(answers)
    check_books(database, first)

    assert run(verify(database.url())) == []


def check_answers(answers: list[Answer]) -> dict[str, Answer]:
    """Each reward's one receipt, after everything that was said about it has been compared."""
    by_reward: defaultdict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_reward[answer.reward_id].append(answer)
    first = {}
    for reward_id, said in by_reward.items():
        number = int(reward_id[1:])
        receipts = [answer for answer in said if answer.outcome in set(Status)]
        # Everybody who was answered with a receipt was told the same one, for the same facts.
        assert len({answer[3:] for answer in receipts}) <= 1, said
        facts = {told(SEED, number, answer.variant).fingerprint() for answer in receipts}
        assert len(facts) <= 1, said
        news = [answer for answer in receipts if answer.outcome != Status.REPLAYED]
        # The news of a credit can be lost with its connection; the sender then hears of a replay.
        assert len(news) <= 1, said
        if receipts:
            first[reward_id] = (news or receipts)[0]
        for answer in said:
            made = told(SEED, number, answer.variant)
            if answer.outcome == IdempotencyConflict.__name__:
                assert facts
                assert made.fingerprint() not in facts
            elif answer.outcome == UnknownCurrency.__name__:
                assert made.currency == "NOPE"
            elif answer.outcome == InvalidAmount.__name__:
                assert made.reward_amount == Decimal("0.001")
            elif answer.outcome == BrokenRule.__name__:
                assert is_poison(made)
            else:
                assert answer in receipts, answer
    return first


def check_books(database: Database, first: dict[str, Answer]) -> None:
    """Compares every table with what was answered, added up here."""
    credits_: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    debits: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    versions: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for reward_id, answer in first.items():
        made = told(SEED, int(reward_id[1:]), answer.variant)
        assert (answer.user_id, answer.currency) == (made.user_id, made.currency)
        if made.currency is not None and answer.version is not None:
            assert made.reward_amount is not None
            credits_[f"user:{made.user_id}", made.currency] += made.reward_amount
            debits[f"campaign:{made.campaign_id}", made.currency] += made.reward_amount
            versions[f"user:{made.user_id}", made.currency].append(answer.version)
        else:
            assert made.currency is None
            assert answer.version is None

    for seen in versions.values():
        assert sorted(seen) == list(range(1, len(seen) + 1))
    assert {reward_id for (reward_id,) in database.rows("SELECT reward_id FROM rewards")} == set(
        first
    )
    rows = database.rows("SELECT account, currency, debits, credits, version FROM balances")
    held = {(account, currency): tuple(sums) for account, currency, *sums in rows}
    for key in held.keys() | credits_.keys() | debits.keys():
        debit, credit, version = held[key]
        assert (debit, credit) == (debits[key], credits_[key])
        if key in versions:
            assert version == len(versions[key])

    # In the database's own words, without `verify`.
    assert (
        database.rows("""
        SELECT account, currency, sum(amount) FILTER (WHERE side = 'debit'),
               sum(amount) FILTER (WHERE side = 'credit'), count(*)
        FROM entries GROUP BY account, currency
        EXCEPT
        SELECT account, currency, nullif(debits, 0), nullif(credits, 0), version FROM balances
    """)
        == []
    )
    assert (
        database.rows("""
        SELECT reward_id FROM postings GROUP BY reward_id HAVING count(*) > 1
        UNION ALL
        (SELECT reward_id FROM rewards WHERE currency IS NOT NULL
         EXCEPT SELECT reward_id FROM postings)
        UNION ALL
        (SELECT reward_id FROM postings
         EXCEPT SELECT reward_id FROM rewards WHERE currency IS NOT NULL)
    """)
        == []
    )
