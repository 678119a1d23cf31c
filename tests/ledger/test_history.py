"""Rewards and corrections in one history: in pages, and as they are committed."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pytest

from ledger import commits
from ledger.client import AsyncLedgerClient, Correction, LedgerClient, Reward
from ledger.database import Role
from ledger.history import RewardFilter, list_history
from ledger.place import BEGINNING
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from tests.conftest import Database, Run
from tests.corrections import adjusted, taken_back
from tests.ledger.test_client import KINDS, asking
from tests.ledger.test_reading import blocks
from tests.rewards import reward
from tests.serving import free_port, serving
from tests.watches import Watch, lines, posted, watching_books

HISTORY = """
SELECT name FROM (
    SELECT number, reward_id AS name, user_id, currency, campaign_id, type FROM rewards
    UNION ALL
    SELECT c.number, correction_key, c.user_id, c.currency, campaign_id, type
    FROM corrections AS c LEFT JOIN rewards USING (reward_id)
) AS lines
WHERE {}
ORDER BY number
"""


def kept(database: Database, condition: str = "true") -> list[str]:
    """The names of what stands in the books, in the order of arrival."""
    return [name for (name,) in database.rows(HISTORY.format(condition))]


class Mixing:
    """Posts rewards and corrections, in an order that chance says."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self._database = database
        self._chance = chance
        self._rewards: list[str] = []
        self._count = 0

    async def add(self, user_id: str = "") -> None:
        """One more: a reward, a part of one that is taken back, or an adjustment."""
        chance, self._count = self._chance, self._count + 1
        kind = chance.choice(("reward", "reward", "reversal", "adjustment"))
        user_id = user_id or chance.choice(("user-1", "user-2"))
        currency = chance.choice(("USD", "EUR"))
        if kind == "adjustment":
            amount = chance.choice(("5", "-5"))
            told = {"user_id": user_id, "currency": currency}
            await adjusted(self._database, f"a-{self._count}", amount, **told)
        elif kind == "reversal" and self._rewards:
            name, key = chance.choice(self._rewards), f"c-{self._count}"
            await taken_back(self._database, name, "1", key=key)
        else:
            names = [f"r-{self._count}-{n}" for n in range(chance.choice((1, 1, 3)))]
            campaign_id, type_ = chance.choice("xy"), chance.choice(("quiz", "direct"))
            told = {"currency": currency, "campaign_id": campaign_id, "type": type_}
            await posted(self._database, *(reward(name, user_id=user_id, **told) for name in names))
            self._rewards += names


async def pages(service: Any, size: int, **asked: Any) -> list[list[str]]:
    found, token = [], ""
    while True:
        request = pb.ListRewardsRequest(page_size=size, page_token=token, **asked)
        page = await service.ListRewards(request)
        found.append(lines(page))
        if not (token := page.next_page_token):
            return found


FILTERS: list[tuple[dict[str, str], str]] = [
    ({}, "true"),
    ({"currency": "EUR"}, "currency = 'EUR'"),
    ({"campaign_id": "x"}, "campaign_id = 'x'"),
    ({"type": "quiz", "currency": "USD"}, "type = 'quiz' AND currency = 'USD'"),
]


def test_pages_hold_each_reward_and_each_correction_once_whatever_arrives_meanwhile(
    database: Database, run: Run, chance: random.Random
) -> None:
    async def main() -> None:
        mixing = Mixing(database, chance)
        for _ in range(60):
            await mixing.add()
        async with watching_books(database) as channel:
            service = LedgerServiceStub(channel)
            for asked, condition in FILTERS:
                for user_id in ("user-1", "user-2"):
                    chosen = kept(database, f"{condition} AND user_id = '{user_id}'")
                    for size in (1, 3, 1000):
                        found = await pages(service, size, user_id=user_id, **asked)
                        assert list(chain(*found)) == chosen[::-1], (asked, size)
                        assert all(len(page) <= size for page in found)
            before, told, token = kept(database, "user_id = 'user-1'"), [], ""
            while True:
                request = pb.ListRewardsRequest(user_id="user-1", page_size=4, page_token=token)
                page = await service.ListRewards(request)
                told += lines(page)
                if not (token := page.next_page_token):
                    break
                await mixing.add("user-1")
            assert told == before[::-1]

    run(main())


def test_a_correction_is_told_whole_and_by_the_time_it_was_recorded(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        await posted(database, reward())
        mended = await taken_back(database, "reward-1", "100")
        granted = await adjusted(database, "sorry", "-500.5")
        async with watching_books(database) as channel:
            service = LedgerServiceStub(channel)
            page = await service.ListRewards(pb.ListRewardsRequest(user_id="user-1"))
            (one,) = page.rewards
            assert one.reversed.value == "100"
            adjustment, reversal = page.corrections
            assert (reversal.key, reversal.kind) == (mended.key, pb.CORRECTION_KIND_REVERSAL)
            assert (reversal.reward_id, reversal.user_id) == ("reward-1", "user-1")
            assert (reversal.reason, reversal.actor, reversal.approver) == ("a mistake", "ann", "")
            assert (adjustment.key, adjustment.kind) == ("sorry", pb.CORRECTION_KIND_ADJUSTMENT)
            assert (adjustment.reward_id, adjustment.approver) == ("", "bob")
            booked = adjustment.posting
            assert booked.debit_account == "user:user-1"
            assert booked.credit_account == "adjustment:goodwill"
            assert (booked.amount.value, booked.balance_after.value) == ("500.50", "-200.50")
            assert (booked.version, booked.posted_at.ToDatetime(UTC)) == (3, granted.posted_at)
            ((recorded_at,),) = database.rows("SELECT max(recorded_at) FROM corrections")
            for asked, expected in (
                ({"start_time": recorded_at}, ["sorry"]),
                ({"end_time": recorded_at}, [mended.key, "reward-1"]),
            ):
                request = pb.ListRewardsRequest(user_id="user-1", **asked)
                assert lines(await service.ListRewards(request)) == expected
            watch = Watch(channel, from_beginning=True)
            assert await watch.until_line(3) == ["reward-1", mended.key, "sorry"]
            request = pb.GetRewardRequest(reward_id="reward-1")
            assert watch.rewards == [(await service.GetReward(request)).reward]

    run(main())


def test_everything_is_watched_once_in_commit_order_from_the_beginning_and_from_every_token(
    database: Database, run: Run, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "STRETCH_SIZE_MAX", 3)

    async def main() -> None:
        mixing = Mixing(database, chance)
        async with watching_books(database) as channel:
            live = await Watch(channel).begin()
            some = [await Watch(channel, **asked).begin() for asked, _ in FILTERS]
            for _ in range(30):
                await mixing.add()
            # One after another: the order of arrival is that of the commits.
            order = kept(database)
            assert await live.until_line(len(order)) == order
            beginning = await Watch(channel, from_beginning=True).begin()
            tokens = {beginning.token: 0}
            while len(beginning.lines) < len(order):
                await beginning.read()
                tokens[beginning.token] = len(beginning.lines)
            assert beginning.lines == order
            for token in chance.sample(sorted(tokens), 5):
                again = Watch(channel, token=token)
                rest = order[tokens[token] :]
                assert await again.until_line(len(rest)) == rest
            for (asked, condition), filtered in zip(FILTERS, some, strict=True):
                chosen = kept(database, condition)
                assert await filtered.until_line(len(chosen)) == chosen
                behind = Watch(channel, from_beginning=True, **asked)
                assert await behind.until_line(len(chosen)) == chosen

    run(main())


MANY = """
BEGIN;
INSERT INTO corrections (
    correction_key, kind, reward_id, user_id, currency, debit_account, credit_account, amount,
    reason, actor
)
SELECT 'c-' || i, 'reversal', 'r-' || i, 'user-1', 'USD', 'user:user-1', 'campaign:campaign-1',
    0.5, 'a mistake', 'ann'
FROM generate_series({start}, {start} + 99) AS i;
INSERT INTO postings (
    user_id, currency, version, correction_key, debit_account, credit_account, amount,
    balance_after, posted_at, seal
)
SELECT
    'user-1', 'USD', 10000 + i, 'c-' || i, 'user:user-1', 'campaign:campaign-1', 0.5, 0, now(), 0
FROM generate_series({start}, {start} + 99) AS i;
COMMIT
"""


def test_lines_are_found_by_index_however_many_corrections_there_are(
    database: Database, run: Run
) -> None:
    """Also by a plan that was made while Postgres knew that there were none."""

    async def main() -> None:
        # Whatever touches a table's settings later has the plans made anew.
        for table in ("rewards", "corrections", "postings", "commits"):
            database.rows(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        for batch in "abcdefghij":
            names = [f"{batch}-{i}" for i in range(100)]
            await posted(database, *(reward(name, "1", user_id="user-2") for name in names))
        database.rows("ANALYZE")
        async with database.connected(Role.READER) as connection:
            for _ in range(6):
                await list_history(connection, RewardFilter("user-1"), 2**62, 50)
                await commits.list_committed(connection, BEGINNING)
            for start in range(0, 3000, 100):
                await posted(database, *(reward(f"r-{start + i}", "1") for i in range(100)))
                database.rows(MANY.format(start=start))
            after = BEGINNING
            for before in (2**62, 3000):
                looked_before = await blocks(connection)
                page = await list_history(
                    connection, RewardFilter("user-1"), before, 150, looked_at_max=250
                )
                assert len(page.lines) == 150
                found = await commits.list_committed(connection, after)
                assert len(found.lines) == 256
                assert await blocks(connection) - looked_before < 6000
                after = found.through

    run(main())


def names(found: Sequence[Any]) -> list[str]:
    return [line.key if isinstance(line, Correction) else line.reward_id for line in found]


@KINDS
def test_a_client_gives_corrections_between_rewards_to_who_asks_for_both(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward("a"), reward("b"))
        await taken_back(database, "a", key="first")
        await adjusted(database, "second", "3")
        await posted(database, reward("c"))
        async with asking(kind, database) as ask:
            for size in (1, 2, 50):
                both = await ask("list_history", "user-1", page_size=size)
                assert names(both) == ["c", "second", "first", "b", "a"]
                alone = await ask("list_rewards", "user-1", page_size=size)
                assert names(alone) == ["c", "b", "a"]
                assert all(isinstance(line, Reward) for line in alone)
            page = await ask("list_rewards_page", "user-1")
            assert (names(page.rewards), page.lines) == (["c", "b", "a"], tuple(both))
            (again,) = [line for line in both if isinstance(line, Reward) and line.reversed]
            assert (again.reward_id, again.reversed) == ("a", 400)
            (given,) = [line for line in both if names([line]) == ["second"]]
            assert (given.kind, given.reward_id, given.approver) == ("adjustment", "", "bob")
            assert isinstance(given.posting.posted_at, datetime)

    run(main())


def test_a_client_watches_both_or_rewards_alone_and_their_tokens_are_the_same(
    database: Database, run: Run
) -> None:
    def watch_and_wait(address: str) -> tuple[list[Any], list[Any]]:
        with LedgerClient(address) as ledger:
            both = ledger.watch_history(from_beginning=True)
            alone = ledger.watch_rewards(from_beginning=True)
            return [next(both) for _ in range(4)], [next(alone) for _ in range(2)]

    async def main() -> None:
        await posted(database, reward("a"))
        await taken_back(database, "a", key="first")
        port = free_port()
        async with serving(database.url("ledger_reader"), port=port):
            async with AsyncLedgerClient(f"127.0.0.1:{port}") as ledger:
                watch = ledger.watch_history(from_beginning=True)
                assert names([await anext(watch) for _ in range(2)]) == ["a", "first"]
                await adjusted(database, "second", "3")
                assert names([await anext(watch)]) == ["second"]
                token = watch.token
                await posted(database, reward("b"))
                assert names([await anext(watch)]) == ["b"]
                alone = ledger.watch_rewards(token=token)
                assert names([await anext(alone)]) == ["b"]
            both, rewards = await asyncio.to_thread(watch_and_wait, f"127.0.0.1:{port}")
            assert (names(both), names(rewards)) == (["a", "first", "second", "b"], ["a", "b"])

    run(main())
