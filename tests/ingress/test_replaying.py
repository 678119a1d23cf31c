"""What was refused is kept before it is answered, and posted once when it can be."""

import asyncio
import json
import tracemalloc

import falcon.testing
import pytest

from ingress.app import create_app
from ingress.config import read_settings
from ingress.mapping import Mapping
from ingress.replaying import Replayed, replay
from ledger.database import Pool, Role
from ledger.quarantine import Quarantine, Unposted, keep, list_kept
from ledger.writing import Writer
from tests.conftest import Database, Run
from tests.ingress.deliveries import ABSENT, PATH, TOKEN, body, signed
from tests.ledger.test_cli import ledger


def deliver(database: Database, run: Run, *texts: bytes, **environment: str) -> list[int]:
    """The statuses of the answers to signed deliveries of `texts`, one after the other."""

    async def main() -> list[int]:
        given = {"DATABASE_URL": database.url(), "INGRESS_TOKEN": TOKEN}
        settings = read_settings(given | environment)
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


def unposted(text: bytes, mapping: Mapping = Mapping()) -> Unposted:  # noqa: B008 - immutable
    """What the quarantine is told of ``text`` by an ingress that reads by ``mapping``."""
    return Unposted(text, "UnknownCurrency", read_under=mapping.digest)


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
            await keep(one, [unposted(text) for text in texts])
            both = await asyncio.gather(
                *[
                    replay(connection, Mapping(), number=None, by="Ada")
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
            await keep(connection, [unposted(text)])
            replayed = await replay(connection, Mapping(), number=1, by="Ada")
            assert replayed == [Replayed(1, "replayed", is_posted=True)]

    run(main())
    assert database.rows("SELECT sum(credits) FROM balances WHERE account LIKE 'user:%'") == [(7,)]


DOLLARS = {"INGRESS_DEFAULT_CURRENCY": "USD"}


def test_a_replay_books_no_other_currency_than_the_ingress_unless_it_is_told_to(
    database: Database, run: Run
) -> None:
    """The ingress counts in dollars, and whoever replays has not said so."""
    text = body(rewardAmount=1.234, details=ABSENT)
    assert deliver(database, run, text, **DOLLARS) == [422]
    by_others = ledger(database, "quarantine", "replay")
    assert (by_others.returncode, by_others.stdout) == (1, "1\twas read by another mapping\n")
    assert "INGRESS_DEFAULT_CURRENCY" in by_others.stderr
    by_the_same = ledger(database, "quarantine", "replay", "1", **DOLLARS)
    assert (by_the_same.returncode, by_the_same.stdout) == (1, "1\tInvalidAmount\n")
    assert database.rows("SELECT count(*) FROM rewards") == [(0,)]
    mended = {"INGRESS_DEFAULT_CURRENCY": "BHD"}
    replayed = ledger(
        database, "quarantine", "replay", "--under-this-mapping", "--by", "Ada", **mended
    )
    assert (replayed.returncode, replayed.stdout) == (0, "1\tcredited\n"), replayed.stderr
    assert database.rows("SELECT currency FROM postings") == [("BHD",)]
    assert database.rows("SELECT closed_by FROM quarantine") == [("Ada",)]


def test_what_comes_again_is_replayed_by_the_mapping_that_read_it_last(
    database: Database, run: Run
) -> None:
    """The ingress was started anew with a mapping that somebody had mended."""
    text = body(rewardAmount=1.234, details=ABSENT)
    assert deliver(database, run, text) == [422]
    assert deliver(database, run, text, **DOLLARS) == [422]
    replayed = ledger(database, "quarantine", "replay", **DOLLARS)
    assert replayed.stdout == "1\tInvalidAmount\n"


def test_what_was_kept_before_anybody_noted_its_mapping_is_not_taken_for_the_same(
    database: Database, run: Run
) -> None:
    async def main() -> list[Replayed]:
        async with database.connected() as connection:
            await keep(connection, [Unposted(body(), "UnknownCurrency")])
            first = await replay(connection, Mapping(), number=None, by="Ada")
            return first + await replay(
                connection, Mapping(), number=None, by="Ada", may_differ=True
            )

    assert [one.outcome for one in run(main())] == ["was read by another mapping", "credited"]


def test_a_replay_says_why_it_is_refused_by_now_and_counts_nothing(
    database: Database, run: Run
) -> None:
    """Its currency was registered, and meanwhile another body was credited."""
    gems = {"currency": "GEMS"}
    assert deliver(database, run, body(rewardAmount=7, details=gems)) == [422]
    told = "SELECT reason, detail, reward_id, seen, last_seen_at FROM quarantine"
    ((*_, seen, last_seen_at),) = database.rows(told)
    assert ledger(database, "currency", "add", "GEMS", "--scale", "0").returncode == 0
    assert deliver(database, run, body(rewardAmount=8, details=gems)) == [200]
    refused = ledger(database, "quarantine", "replay")
    assert refused.stdout == "1\tIdempotencyConflict\n"
    reward_id = json.loads(body())["rewardId"]
    assert database.rows(told) == [("IdempotencyConflict", None, reward_id, seen, last_seen_at)]
    (shown,) = json.loads(ledger(database, "quarantine", "show", "1", "--json").stdout)
    assert shown["differences"] == [{"field": "rewardAmount", "kept": "7", "credited": "8"}]


def test_many_large_bodies_are_listed_and_replayed_in_little_memory(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.replaying.PAGE_SIZE", 7)

    async def main() -> None:
        async with database.connected() as connection:
            for number in range(30):
                await keep(connection, [unposted(b"%d" % number + b"x" * 200_000)])
            tracemalloc.start()
            try:
                assert len(await list_kept(connection)) == 30
                replayed = await replay(connection, Mapping(), number=None, by="Ada")
                _, most_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert [one.number for one in replayed] == list(range(1, 31))
        assert most_bytes < 2_000_000

    run(main())
