"""What was refused is kept before it is answered, and posted once when it can be."""

import asyncio
import json
import os
import subprocess
import sys

import falcon.testing
import pytest

from ingress.app import create_app
from ingress.config import read_settings
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ingress.replaying import Replayed, replay
from ledger.database import Pool, Role
from ledger.quarantine import Quarantine, Unposted, keep
from ledger.writing import Writer
from tests.conftest import Database, Run
from tests.ingress.deliveries import ABSENT, PATH, TOKEN, body, signed


def deliver(database: Database, run: Run, *texts: bytes) -> list[int]:
    """The statuses of the answers to signed deliveries of `texts`, one after the other."""

    async def main() -> list[int]:
        settings = read_settings({"DATABASE_URL": database.url(), "INGRESS_TOKEN": TOKEN})
        async with Pool(database.url(), Role.WRITER, size_max=3) as pool:
            app = create_app(settings, Writer(pool), Quarantine(pool))
            async with falcon.testing.ASGIConductor(app) as client:
                answers = [
                    await client.simulate_post(PATH, body=text, headers=signed(text))
                    for text in texts
                ]
        return [answer.status_code for answer in answers]

    statuses: list[int] = run(main())
    return statuses


def ledger(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments],
        env={**os.environ, "DATABASE_URL": database.url()},
        capture_output=True,
        text=True,
        check=False,
    )


REFUSED = {
    "cut": (body()[:-1], 400, "NotJson"),
    "empty": (b"", 400, "NotJson"),
    "an array": (b"[1,2]", 422, "NotAReward"),
    "no user": (body(userId=ABSENT), 422, "NotAReward"),
    "negative": (body(rewardAmount=-5), 422, "NotAReward"),
    "unregistered": (body(details={"currency": "GEMS"}), 422, "UnknownCurrency"),
    "too fine": (body(rewardAmount=1.234), 422, "InvalidAmount"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_believed_and_refused_is_kept_once_however_often_it_is_sent(
    name: str, database: Database, run: Run
) -> None:
    text, status, reason = REFUSED[name]
    assert deliver(database, run, text, text, text) == [status] * 3
    assert database.rows(
        "SELECT believed_bytes, reason, seen, token, form, content_type, state FROM quarantine"
    ) == [(text, reason, 3, "current", "raw", "application/json", "open")]
    assert database.rows("SELECT count(*) FROM rewards") == [(0,)]


def test_what_is_not_believed_is_not_kept(database: Database, run: Run) -> None:
    async def main() -> None:
        settings = read_settings({"DATABASE_URL": database.url(), "INGRESS_TOKEN": TOKEN})
        async with Pool(database.url(), Role.WRITER, size_max=3) as pool:
            app = create_app(settings, Writer(pool), Quarantine(pool))
            async with falcon.testing.ASGIConductor(app) as client:
                answer = await client.simulate_post(PATH, body=b"[]", headers=signed(b"[ ]"))
        assert answer.status_code == 401

    run(main())
    assert database.rows("SELECT count(*) FROM quarantine") == [(0,)]


def test_a_conflict_keeps_both_bodies_and_names_the_credited_one(
    database: Database, run: Run
) -> None:
    first, other = body(rewardAmount=400), body(rewardAmount=401)
    assert deliver(database, run, first, other, other, first) == [200, 409, 409, 200]
    assert database.rows(
        "SELECT kept.believed_bytes, kept.seen, rewards.believed_bytes "
        "FROM quarantine AS kept JOIN rewards ON rewards.reward_id = kept.reward_id"
    ) == [(other, 2, first)]
    (shown,) = json.loads(ledger(database, "quarantine", "show", "1", "--json").stdout)
    assert shown["differences"] == [{"field": "rewardAmount", "kept": "401", "credited": "400"}]


def test_once_its_currency_is_registered_a_replay_credits_it_and_only_once(
    database: Database, run: Run
) -> None:
    text = body(rewardAmount=7, details={"currency": "GEMS"})
    assert deliver(database, run, text) == [422]
    refused = ledger(database, "quarantine", "replay")
    assert (refused.returncode, refused.stdout) == (1, "1\tUnknownCurrency\n")
    assert ledger(database, "currency", "add", "GEMS", "--scale", "0").returncode == 0
    replayed = ledger(database, "quarantine", "replay", "1")
    assert (replayed.returncode, replayed.stdout) == (0, "1\tcredited\n"), replayed.stderr
    assert ledger(database, "quarantine", "replay", "1").returncode == 1
    assert ledger(database, "quarantine", "replay").returncode == 0
    assert deliver(database, run, text) == [200]
    assert database.rows("SELECT state, closed_why FROM quarantine") == [("posted", "credited")]
    assert database.rows("SELECT credits FROM balances WHERE account = 'user:testuser1'") == [(7,)]
    assert ledger(database, "verify").returncode == 0


def test_two_replays_at_once_credit_once(database: Database, run: Run) -> None:
    texts = [body(rewardId=f"r{n}", rewardAmount=1) for n in range(20)]

    async def main() -> None:
        async with (
            database.connected() as one,
            database.connected() as other,
        ):
            await keep(one, [Unposted(text, "UnknownCurrency") for text in texts])

            def read(text: bytes) -> object:
                return read_reward(text, Mapping())

            both = await asyncio.gather(
                *[
                    replay(connection, read, number=None, by="Ada")  # type: ignore[arg-type]
                    for connection in (one, other)
                ]
            )
            outcomes = [one.outcome for replayed in both for one in replayed]
            assert outcomes.count("credited") == len(texts)

    run(main())
    assert database.rows("SELECT count(*), sum(amount) FROM postings") == [(20, 20)]
    assert database.rows("SELECT DISTINCT state FROM quarantine") == [("posted",)]


def test_a_replay_that_was_cut_off_before_it_closed_closes_the_next_time(
    database: Database, run: Run
) -> None:
    text = body(rewardAmount=7)
    assert deliver(database, run, text) == [200]

    async def main() -> None:
        async with database.connected() as connection:
            await keep(connection, [Unposted(text, "UnknownCurrency")])
            replayed = await replay(
                connection, lambda kept: read_reward(kept, Mapping()), number=1, by="Ada"
            )
            assert replayed == [Replayed(1, "replayed", is_posted=True)]

    run(main())
    assert database.rows("SELECT sum(credits) FROM balances WHERE account LIKE 'user:%'") == [(7,)]
