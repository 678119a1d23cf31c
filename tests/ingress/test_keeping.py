"""What is believed and refused is kept before it is answered: in the quarantine, or on disk."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from falcon.testing import ASGIConductor
from psycopg.conninfo import conninfo_to_dict

from ingress import webhook
from ingress.app import create_app, from_environment
from ingress.config import read_settings
from ingress.spool import Delivery, Spool
from ingress.spool_file import SpoolFull
from ingress.spooling import SpoolSettings, status
from ledger.database import Role
from ledger.errors import UnknownCurrency
from ledger.quarantine import Unposted
from ledger.reward import Reward
from ledger.writing import Outcome
from tests.conftest import SUPERUSER, Database, Run
from tests.ingress.deliveries import (
    ABSENT,
    PATH,
    PREVIOUS_TOKEN,
    TOKEN,
    body,
    problem,
    signed,
)
from tests.wire import Wire

ANSWER_SECONDS_MAX = 3.0
SPOOL_BYTES_MAX = 2**24

REFUSED = {
    "cut": (body()[:-1], (400, "not-json"), "NotJson"),
    "an array": (b"[1,2]", (422, "not-a-reward"), "NotAReward"),
    "no user": (body(userId=ABSENT), (422, "not-a-reward"), "NotAReward"),
}


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    given = conninfo_to_dict(database.url(SUPERUSER))
    with Wire(Path(str(given["host"])) / f".s.PGSQL.{given['port']}") as wire:
        yield wire


class Door:
    """The app as gunicorn builds it, with a spool, and Postgres behind a wire that can be cut."""

    def __init__(self, database: Database, wire: Wire, spool: SpoolSettings, run: Run) -> None:
        self.database = database
        self.wire = wire
        self.spool = spool
        self._run = run

    def within(self, act: Callable[[ASGIConductor], Any]) -> Any:
        """What ``act`` gives for the app, which is started before and stopped after."""

        async def live() -> Any:
            async with ASGIConductor(from_environment()) as conductor:
                # The first connection is there: what fails later was cut.
                assert (await deliver(conductor, body(rewardId="first")))[0] == 200
                return await act(conductor)

        return self._run(live())

    async def until_it_is_empty(self) -> None:
        async with asyncio.timeout(30):
            while status(self.spool).depth:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert status(self.spool).set_aside == 0

    def kept(self) -> list[tuple[Any, ...]]:
        return self.database.rows(
            "SELECT believed_bytes, reason, reward_id, token, form, seen FROM quarantine"
        )


@pytest.fixture
def door(
    database: Database, wire: Wire, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Door:
    spool = SpoolSettings(tmp_path / "spool", SPOOL_BYTES_MAX)
    url = f"postgresql://{Role.WRITER}@127.0.0.1:{wire.port}/{database.name}"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("INGRESS_TOKEN", TOKEN)
    monkeypatch.setenv("INGRESS_TOKEN_PREVIOUS", PREVIOUS_TOKEN)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setenv("INGRESS_TOKEN_PREVIOUS_NOT_AFTER", in_an_hour.isoformat())
    monkeypatch.setenv("INGRESS_SPOOL", str(spool.directory))
    monkeypatch.setenv("INGRESS_SPOOL_SIZE_MAX_BYTES", str(spool.size_max_bytes))
    monkeypatch.setenv("INGRESS_LOG", "off")
    return Door(database, wire, spool, run)


async def deliver(
    conductor: ASGIConductor, text: bytes, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """The status of the answer, and what it calls what became of the delivery."""
    begun = time.monotonic()
    result = await conductor.simulate_post(PATH, body=text, headers=headers or signed(text))
    assert time.monotonic() - begun < ANSWER_SECONDS_MAX
    if result.status_code == 200:
        return 200, json.loads(result.content)["status"]
    return result.status_code, problem(result.status_code, result.headers, result.content)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_on_disk_before_it_is_refused_while_postgres_is_away(
    door: Door, name: str
) -> None:
    text, answer, reason = REFUSED[name]

    async def act(conductor: ASGIConductor) -> None:
        door.wire.hold()
        assert await deliver(conductor, text) == answer
        assert status(door.spool)[:2] == (1, 0)
        # However often it is sent, it is there once.
        assert await deliver(conductor, text) == answer
        assert status(door.spool)[:2] == (1, 0)
        door.wire.reset(both_ends=True)
        door.wire.flow()
        await door.until_it_is_empty()

    door.within(act)
    ((*kept, seen),) = door.kept()
    assert kept == [text, reason, None, "current", "raw"]
    # The connection that was held may have brought it, too.
    assert seen >= 1
    assert door.database.rows("SELECT reward_id FROM rewards") == [("first",)]


def test_what_the_books_refuse_later_is_kept_with_who_vouched_for_it(door: Door) -> None:
    """Of a spooled reward the token and the form are known that it was believed under."""
    compact = body(rewardId="later", details={"currency": "GEMS"})
    pretty = json.dumps(json.loads(compact), indent=1).encode()

    async def act(conductor: ASGIConductor) -> None:
        door.wire.hold()
        headers = signed(compact, PREVIOUS_TOKEN)
        assert await deliver(conductor, pretty, headers) == (200, "spooled")
        door.wire.flow()
        await door.until_it_is_empty()

    door.within(act)
    ((*kept, _),) = door.kept()
    assert kept == [compact, "UnknownCurrency", None, "previous", "canonical"]


def test_what_the_books_refuse_is_on_disk_before_that_is_told_while_the_quarantine_is_shut(
    door: Door,
) -> None:
    first, other = body(rewardAmount=400), body(rewardAmount=401)
    unregistered = body(rewardId="gems", details={"currency": "GEMS"})

    async def act(conductor: ASGIConductor) -> None:
        assert await deliver(conductor, first) == (200, "credited")
        with psycopg.connect(door.database.url()) as blocker:
            blocker.execute("LOCK TABLE quarantine")
            assert await deliver(conductor, other) == (409, "conflict")
            assert await deliver(conductor, unregistered) == (422, "unknown-currency")
            assert status(door.spool)[:2] == (2, 0)
        await door.until_it_is_empty()

    door.within(act)
    assert {tuple(kept) for *kept, _ in door.kept()} == {
        (other, "IdempotencyConflict", "xyzbb3ca-093f-43f2-84ba-8d5ed0d6c1b4", "current", "raw"),
        (unregistered, "UnknownCurrency", None, "current", "raw"),
    }


def test_nothing_is_spooled_of_what_the_quarantine_keeps(door: Door) -> None:
    async def act(conductor: ASGIConductor) -> None:
        for text, answer, _ in REFUSED.values():
            assert await deliver(conductor, text) == answer
        assert status(door.spool)[:2] == (0, 0)

    door.within(act)
    assert {tuple(kept) for *kept, _ in door.kept()} == {
        (text, reason, None, "current", "raw") for text, _, reason in REFUSED.values()
    }


def test_what_can_be_kept_nowhere_is_not_refused_but_asked_for_again(door: Door) -> None:
    async def act(conductor: ASGIConductor) -> None:
        door.wire.hold()
        with Spool(door.spool.directory, SPOOL_BYTES_MAX) as spool:
            fill(spool)
        for text in (b"[1,2]", body()[:-1], body()):
            assert await deliver(conductor, text) == (503, "unavailable")
        door.wire.flow()

    door.within(act)


def fill(spool: Spool) -> None:
    """Until nothing more goes in, however small."""
    for length in (500_000, 9_000, 900, 9):
        with contextlib.suppress(SpoolFull):
            for number in range(SPOOL_BYTES_MAX // length):
                text = b"%8d " % number * (length // 9)
                spool.put([Delivery(text, None, None, datetime.now(UTC))])
            pytest.fail("it is never full")


def test_a_nudge_is_ignored_and_needs_no_room(door: Door) -> None:
    async def act(conductor: ASGIConductor) -> None:
        door.wire.hold()
        assert await deliver(conductor, body(webhookType="nudge")) == (200, "ignored")
        assert status(door.spool)[:2] == (0, 0)
        door.wire.flow()

    door.within(act)


class SlowBooks:
    """Books that take long to refuse."""

    async def post(self, reward: Reward) -> Outcome:
        await asyncio.sleep(0.2)
        return UnknownCurrency()


class NoQuarantine:
    """A quarantine that never says anything."""

    async def keep(self, delivery: Unposted) -> None:
        await asyncio.Event().wait()


def test_books_and_quarantine_that_are_both_slow_share_the_time_for_an_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhook.ANSWER_SECONDS_MAX < ANSWER_SECONDS_MAX
    monkeypatch.setattr(webhook, "ANSWER_SECONDS_MAX", 0.3)

    async def main() -> None:
        settings = read_settings({"DATABASE_URL": "dbname=none", "INGRESS_TOKEN": TOKEN})
        async with ASGIConductor(create_app(settings, SlowBooks(), NoQuarantine())) as conductor:
            begun = time.monotonic()
            assert await deliver(conductor, body()) == (503, "unavailable")
            assert 0.25 < time.monotonic() - begun < 2

    run(main())
