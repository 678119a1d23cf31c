"""Every believed delivery is counted when it is believed and once at its end, whatever happens."""

import asyncio
import contextlib
import http.client
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from falcon.testing import ASGIConductor

from ingress import tallying
from ingress.app import PROBLEMS, from_environment
from ingress.spool import Delivery, Spool
from ingress.tallying import ABANDONED, COUNTED_AS, Counts, Tallying
from ledger.database import Connection, Pool, Role
from ledger.embedded import EmbeddedPostgres
from ledger.errors import BrokenRule, DatabaseUnavailable
from ledger.operations.finding import Finding
from ledger.tallying import Tally, total
from ledger.writing import Status
from tests.conftest import SUPERUSER, Database, Run, throw_away_postgres
from tests.ingress.deliveries import ABSENT, PATH, TOKEN, body, signed
from tests.ingress.observed import Ingress, Labels, running, wait_until
from tests.ledger.test_cli import ledger
from tests.verifying import verify

BEFORE_BELIEF = {
    *("not-believed", "too-many-failures", "address-not-allowed", "not-json-type", "too-large"),
    *("incomplete", "not-found", "method-not-allowed", "bad-request", "not-checked"),
}
"""The problems of deliveries for which no token has vouched yet."""


def asked(database: Database, run: Run, question: Callable[[Connection], Any]) -> Any:
    async def main() -> Any:
        async with database.connected(Role.READER, is_service=False) as connection:
            return await question(connection)

    return run(main())


def told(database: Database, run: Run) -> Tally:
    tally: Tally = asked(database, run, total)
    return tally


def found(database: Database, run: Run) -> list[Finding]:
    findings: list[Finding] = run(verify(database.url()))
    return findings


def test_every_outcome_of_a_believed_delivery_is_in_one_count() -> None:
    slugs = {row.slug for row in PROBLEMS.values()}
    assert slugs - BEFORE_BELIEF | {*Status, "ignored", "spooled", ABANDONED} == set(COUNTED_AS)
    assert set(COUNTED_AS.values()) == set(Tally().outcomes()) - {"in_flight"}


def test_what_is_under_way_is_part_of_the_sum() -> None:
    counts = Counts()
    for _ in range(3):
        counts.believe()
    counts.end("not-json")
    counts.end("unknown-currency")
    assert counts.tally() == Tally(believed=3, quarantined=2, in_flight=1)


def test_an_outcome_that_nobody_has_thought_of_leaves_a_gap() -> None:
    counts = Counts()
    counts.believe()
    counts.end("something new")
    assert counts.tally() == Tally(believed=1)


# One worker, in this process


@pytest.fixture
def environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DATABASE_URL", database.url())
    monkeypatch.setenv("INGRESS_TOKEN", TOKEN)
    monkeypatch.setenv("INGRESS_LOG", "off")
    return monkeypatch


def within(run: Run, act: Callable[[ASGIConductor], Coroutine[Any, Any, None]]) -> None:
    """Does ``act`` with the whole app, which is started before and stopped after."""

    async def live() -> None:
        async with ASGIConductor(from_environment()) as conductor:
            await act(conductor)

    run(live())


@contextlib.asynccontextmanager
async def locked(database: Database, table: str) -> AsyncIterator[None]:
    """Whoever writes to ``table`` waits meanwhile."""
    async with await psycopg.AsyncConnection.connect(database.url()) as connection:
        await connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
        yield


async def deliver(conductor: ASGIConductor, text: bytes) -> int:
    return int((await conductor.simulate_post(PATH, body=text, headers=signed(text))).status_code)


def test_one_of_each_is_counted_as_what_it_was(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    async def act(conductor: ASGIConductor) -> None:
        for text in (
            body(),
            body(),
            body(rewardAmount=1),
            body(rewardId="a", rewardAmount=0),
            body(webhookType="nudge"),
            body(rewardId=ABSENT),
            body(rewardId="b", details={"currency": "NOBODY"}),
            body(rewardId="c", rewardAmount=0.001),
            b"{",
        ):
            await deliver(conductor, text)
        # Nobody vouches for these, and they are in no sum.
        await conductor.simulate_post(PATH, body=body())
        await conductor.simulate_get(PATH)

    within(run, act)
    assert told(database, run) == Tally(
        believed=9,
        credited=1,
        replayed=1,
        conflicts=1,
        recorded=1,
        ignored=1,
        quarantined=4,
        kept=5,
    )
    assert found(database, run) == []


def drained_by_a_worker(database: Database, run: Run, directory: Path) -> None:
    async def act(_: ASGIConductor) -> None:
        async with asyncio.timeout(60):
            with Spool(directory, 2**30) as spool:
                while spool.status().depth:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            # What was removed last is counted a moment later.
            async with database.connected(Role.READER, is_service=False) as connection:
                while (await total(connection)).drained_kept < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    within(run, act)


def drained_by_the_command(database: Database, run: Run, directory: Path) -> None:
    done = ledger(database, "spool", "drain", INGRESS_SPOOL=str(directory))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("drain", [drained_by_a_worker, drained_by_the_command])
def test_what_leaves_the_spool_is_counted_as_what_became_of_it_and_held_against_the_books(
    database: Database, run: Run, environment: pytest.MonkeyPatch, tmp_path: Path, drain: Any
) -> None:
    environment.setenv("INGRESS_SPOOL", str(tmp_path / "spool"))
    texts = [
        body(rewardId="first"),
        # The same reward, which says something else that decides nothing.
        body(rewardId="first", status="seen"),
        body(rewardId="second"),
        body(rewardId="nothing", rewardAmount=0),
        body(webhookType="nudge"),
        body(rewardId="third", details={"currency": "NOBODY"}),
        b"{",
    ]
    with Spool(tmp_path / "spool", 2**30) as spool:
        spool.put([Delivery(text, "current", "raw", datetime.now(UTC)) for text in texts])
    drain(database, run, tmp_path / "spool")
    assert told(database, run) == Tally(
        drained_credited=2,
        drained_replayed=1,
        drained_recorded=1,
        drained_ignored=1,
        drained_kept=2,
        kept=2,
    )
    assert found(database, run) == []
    # As after a failover to a server that had not heard of it.
    gone = "DELETE FROM postings WHERE reward_id = 'second'"
    database.rows(f"SET session_replication_role = replica; {gone}", SUPERUSER)
    lost = [one for one in found(database, run) if one.subject == "postings"]
    assert [(one.expected, one.found) for one in lost] == [("at least 2", "1")]


def test_what_is_unsigned_where_that_is_allowed_is_believed_too(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("INGRESS_TOKEN")
    environment.setenv("INGRESS_ALLOW_UNSIGNED", "yes, anybody may post rewards")

    async def act(conductor: ASGIConductor) -> None:
        await conductor.simulate_post(PATH, body=body())

    within(run, act)
    assert told(database, run) == Tally(believed=1, credited=1)


def test_a_delivery_is_counted_when_it_is_believed_and_not_when_it_is_answered(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    """While its posting waits for a lock, it is in flight; when it is cancelled, abandoned."""
    environment.setattr(tallying, "WRITE_EVERY_SECONDS", 0.05)
    environment.setattr("ingress.app.WRITE_EVERY_SECONDS", 0.05)

    async def act(conductor: ASGIConductor) -> None:
        async with locked(database, "rewards"):
            posting = asyncio.create_task(deliver(conductor, body()))
            async with asyncio.timeout(20), database.connected() as looker:
                while await total(looker) != Tally(believed=1, in_flight=1):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            posting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await posting

    within(run, act)
    assert told(database, run) == Tally(believed=1, abandoned=1)
    # It was posted nevertheless: who gives up takes back its own wait only.
    assert database.rows("SELECT count(*) FROM postings") == [(1,)]
    assert found(database, run) == []


def test_a_refused_delivery_that_is_cancelled_while_it_is_kept_is_abandoned(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    async def act(conductor: ASGIConductor) -> None:
        async with locked(database, "quarantine"):
            keeping = asyncio.create_task(deliver(conductor, b"[]"))
            await asyncio.sleep(0.3)
            keeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await keeping

    within(run, act)
    assert told(database, run) == Tally(believed=1, abandoned=1)
    assert database.rows("SELECT seen FROM quarantine") == [(1,)]
    assert found(database, run) == []


def test_what_is_answered_503_is_counted_so(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    async def act(conductor: ASGIConductor) -> None:
        database.rows("ALTER TABLE rewards RENAME TO rewards_of_before")
        assert await deliver(conductor, body()) == 503
        database.rows("ALTER TABLE rewards_of_before RENAME TO rewards")
        assert await deliver(conductor, body()) == 200

    within(run, act)
    assert told(database, run) == Tally(believed=2, unavailable=1, credited=1)


def test_no_delivery_suffers_when_the_counts_cannot_be_written(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr("ingress.app.WRITE_EVERY_SECONDS", 0.02)
    database.rows("ALTER TABLE tallies RENAME TO tallies_of_before")

    async def act(conductor: ASGIConductor) -> None:
        for _ in range(5):
            assert await deliver(conductor, body()) == 200
            await asyncio.sleep(0.05)
        database.rows("ALTER TABLE tallies_of_before RENAME TO tallies")

    within(run, act)
    assert told(database, run) == Tally(believed=5, credited=1, replayed=4)


def test_workers_that_come_and_go_leave_one_row(
    database: Database, run: Run, environment: pytest.MonkeyPatch
) -> None:
    async def act(conductor: ASGIConductor) -> None:
        await deliver(conductor, body())

    for _ in range(4):
        within(run, act)
    assert told(database, run) == Tally(believed=4, credited=1, replayed=3)
    assert database.rows("SELECT count(*) FROM tallies") == [(1,)]


# What may happen to a writing


def count(counts: Counts, outcome: str, times: int = 1) -> None:
    for _ in range(times):
        counts.believe()
        counts.end(outcome)


def test_a_worker_that_has_counted_nothing_has_no_row(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            idle = Tallying(pool, Counts())
            await idle.write()
            await idle.end()

    run(main())
    assert database.rows("SELECT count(*) FROM tallies") == [(0,)]


def test_what_has_not_changed_is_not_written_again_until_it_would_look_dead(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes() -> Any:
        return database.rows("SELECT xmin::text, written_at FROM tallies")

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            counts = Counts()
            worker = Tallying(pool, counts)
            count(counts, "ignored")
            await worker.write()
            before = changes()
            await worker.write()
            assert changes() == before
            monkeypatch.setattr(tallying, "STILL_HERE_SECONDS", 0.0)
            await worker.write()
            assert changes() != before

    run(main())


def test_counting_goes_on_while_postgres_is_away(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            counts = Counts()
            worker = Tallying(pool, counts)
            for number in range(3):
                database.rows("ALTER TABLE tallies RENAME TO away")
                count(counts, Status.REPLAYED)
                with pytest.raises(DatabaseUnavailable):
                    await worker.write()
                database.rows("ALTER TABLE away RENAME TO tallies")
                if number:
                    await worker.write()
            await worker.end()

    run(main())
    assert told(database, run) == Tally(believed=3, replayed=3)


def test_that_nothing_can_be_written_for_long_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tallying, "COMPLAIN_SECONDS", 0.0)

    async def main() -> None:
        async with Pool("host=/nowhere", Role.WRITER, size_max=1) as pool:
            counts = Counts()
            worker = Tallying(pool, counts)
            count(counts, "ignored")
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable):
                    await worker.write()

    run(main())
    said = [record.getMessage() for record in caplog.records if record.name == "ingress"]
    assert len(said) == 1
    assert said[0].startswith("what was counted cannot be written: DatabaseUnavailable")


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("fails", ["take_row", "write"])
def test_an_answer_that_is_lost_changes_no_count(
    database: Database,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arrives: bool,
    fails: str,
) -> None:
    """The statement was carried out or not; the worker hears the same."""
    really = getattr(tallying, fails)
    lost = iter([True, False, True, False, False, False, False])

    async def ask(*arguments: Any, **options: Any) -> Any:
        is_lost = next(lost)
        answer = await really(*arguments, **options) if arrives or not is_lost else None
        if is_lost:
            raise DatabaseUnavailable
        return answer

    monkeypatch.setattr(tallying, fails, ask)

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            counts = Counts()
            worker = Tallying(pool, counts)
            for _ in range(5):
                count(counts, Status.REPLAYED)
                with contextlib.suppress(DatabaseUnavailable):
                    await worker.write()
            await worker.end()

    run(main())
    assert told(database, run) == Tally(believed=5, replayed=5)
    assert database.rows("SELECT count(*) FROM tallies") == [(1,)]


@pytest.mark.parametrize("last_is_lost", [True, False])
def test_a_worker_that_was_taken_for_killed_goes_on_in_another_row(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch, last_is_lost: bool
) -> None:
    async def lose(*_: Any, **__: Any) -> bool:
        raise DatabaseUnavailable

    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            counts, others = Counts(), Counts()
            late, next_ = Tallying(pool, counts), Tallying(pool, others)
            count(counts, Status.REPLAYED, 4)
            counts.believe()
            counts.believe()
            await late.write()
            if last_is_lost:
                count(counts, Status.REPLAYED)
                with monkeypatch.context() as patch:
                    patch.setattr(tallying, "write", lose)
                    with pytest.raises(DatabaseUnavailable):
                        await late.write()
            database.rows("UPDATE tallies SET written_at = now() - interval '1 h'")
            count(others, "ignored")
            await next_.write()
            # Nobody was dead: what had been under way is answered, and counted here.
            counts.end(Status.REPLAYED)
            counts.believe()
            for worker in (late, next_, late, next_):
                await worker.write()
            counts.end("ignored")
            counts.end("ignored")
            await late.end()
            await next_.end()

    run(main())
    # The two that were under way are believed twice: once as abandoned. What was in the lost
    # writing is in none, because it could be in the other row.
    assert told(database, run) == Tally(
        believed=10, replayed=5, abandoned=2, ignored=3, in_flight=0
    )
    assert found(database, run) == []


def test_after_the_end_nothing_is_written(database: Database, run: Run) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            counts = Counts()
            worker = Tallying(pool, counts)
            count(counts, "ignored")
            await worker.end()
            count(counts, "ignored")
            await worker.write()

    run(main())
    assert database.rows("SELECT believed, has_ended FROM tallies") == [(1, True)]


def test_the_end_does_not_wait_long_for_postgres(run: Run) -> None:
    async def main() -> None:
        async with Pool("host=/nowhere", Role.WRITER, size_max=1) as pool:
            counts = Counts()
            count(counts, "ignored")
            begun = time.monotonic()
            await Tallying(pool, counts).end()
            assert time.monotonic() - begun < tallying.END_SECONDS_MAX + 1

    run(main())


def test_a_count_that_the_database_refuses_is_no_trouble_that_passes(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=1) as pool:
            counts = Counts()
            counts.end("ignored")
            worker = Tallying(pool, counts)
            with pytest.raises(BrokenRule):
                await worker.write()
            await worker.end()

    run(main())


# As it really runs: processes, signals, and a Postgres that is killed


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of these tests' own, which they kill and start again."""
    with throw_away_postgres() as server:
        yield server


def revive(server: EmbeddedPostgres, is_long_enough: Callable[[], bool]) -> None:
    """Kills it, and starts it again when it was away for long enough."""
    postmaster = int((server.data_directory / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    try:
        wait_until(is_long_enough)
    finally:
        server.stop()
        server.start()


class Senders:
    """Threads that deliver all kinds of bodies until they are told to stop."""

    COUNT = 4

    def __init__(self, ingress: Ingress, chance: random.Random) -> None:
        self._ingress = ingress
        self._chance = chance
        self._numbers = itertools.count()
        self._is_over = threading.Event()
        self.answered = 0
        self.has_spooled = False
        self.was_asked_for_more = False
        """Whether an answer was 503."""
        self._threads = ThreadPoolExecutor(self.COUNT)
        self._sending = [self._threads.submit(self._send) for _ in range(self.COUNT)]

    def stop(self) -> None:
        self._is_over.set()
        for sending in self._sending:
            sending.result()
        self._threads.shutdown()

    def _send(self) -> None:
        # New workers and servers need a share of the machine to start.
        while not self._is_over.wait(0.01):
            number = next(self._numbers)
            text = self._chance.choice(
                [
                    body(rewardId=f"reward-{number}"),
                    body(rewardId=f"reward-{number}", rewardAmount=0),
                    body(rewardId=f"reward-{self._chance.randrange(number + 1)}"),
                    body(rewardId=f"reward-{self._chance.randrange(number + 1)}", userId="x"),
                    body(webhookType="nudge"),
                    b"[%d]" % self._chance.randrange(20),
                ]
            )
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                _, answer = self._ingress.deliver(text)
                self.answered += 1
                self.has_spooled |= answer["status"] == "spooled"
                self.was_asked_for_more |= answer["status"] == 503


def believed(ingress: Ingress) -> float:
    return sum(ingress.samples("ingress_believed_deliveries_total").values())


def accounted(ingress: Ingress) -> float:
    ended: dict[Labels, float] = ingress.samples("ingress_deliveries_total")
    answered = sum(count for labels, count in ended.items() if ("believed", "yes") in labels)
    return answered + sum(ingress.samples("ingress_unanswered_deliveries").values())


@pytest.mark.parametrize("has_spool", [False, True])
def test_whatever_is_killed_the_sum_holds_and_nothing_false_is_found(
    mortal: EmbeddedPostgres, run: Run, has_spool: bool, tmp_path: Path
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    chance = random.Random(seed)
    own = Database(mortal, "ledger")
    settings = {"INGRESS_WORKERS": "2"}
    if has_spool:
        settings["INGRESS_SPOOL"] = str(tmp_path / "spool")
    before = told(own, run)
    with running(own.url(), **settings) as ingress:
        senders = Senders(ingress, chance)
        try:

            def is_counted_more(than: int) -> bool:
                return told(own, run).believed > than

            for strike in ("worker", "reload", "postgres", "worker", "postgres"):
                time.sleep(chance.uniform(0.5, 1.5))
                if strike == "worker":
                    wait_until(lambda: bool(ingress.workers()))
                    with contextlib.suppress(psutil.NoSuchProcess):
                        chance.choice(ingress.workers()).kill()
                elif strike == "reload":
                    ingress.process.send_signal(signal.SIGHUP)
                else:
                    revive(
                        mortal,
                        lambda: senders.has_spooled if has_spool else senders.was_asked_for_more,
                    )
                assert found(own, run) == []
                so_far = told(own, run).believed
                wait_until(lambda so_far=so_far: is_counted_more(so_far))  # type: ignore[misc]
                assert found(own, run) == []
        finally:
            senders.stop()
        wait_until(lambda: accounted(ingress) == believed(ingress) > 0)
        answered = senders.answered
        ingress.end()
    after = told(own, run).minus(before)
    assert found(own, run) == []
    # Two killed workers took a second each along, and what the sender had no answer to is here too.
    assert after.believed > answered / 3
    assert sum(after.outcomes().values()) == after.believed
    assert after.credited > 0
    assert after.kept > 0
    assert (after.spooled > 0) == has_spool
    assert after.unavailable > 0 or has_spool


def test_what_an_orderly_end_leaves_is_complete(database: Database, run: Run) -> None:
    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        for number in range(30):
            ingress.deliver(body(rewardId=f"reward-{number % 20}"))
            if number == 15:
                ingress.process.send_signal(signal.SIGHUP)
        ingress.end()
    assert told(database, run) == Tally(believed=30, credited=20, replayed=10)
    assert database.rows("SELECT DISTINCT has_ended FROM tallies") == [(True,)]


def test_a_sender_that_leaves_while_its_reward_is_posted_is_abandoned(
    database: Database, run: Run
) -> None:
    environment = {"GUNICORN_CMD_ARGS": "--asgi-disconnect-grace-period 0"}
    with (
        running(database.url(), **environment) as ingress,
        psycopg.connect(database.url()) as other,
    ):
        other.execute("LOCK TABLE rewards IN SHARE ROW EXCLUSIVE MODE")
        text = body()
        headers = {**signed(text), "Content-Length": str(len(text)), "Host": "ledger"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", ingress.port)) as connection:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + text)
            wait_until(lambda: told(database, run) == Tally(believed=1, in_flight=1))
        wait_until(lambda: told(database, run) == Tally(believed=1, abandoned=1))
        other.rollback()
        labels = frozenset({("outcome", "abandoned"), ("believed", "yes")})
        wait_until(lambda: ingress.samples("ingress_deliveries_total") == {labels: 1})
        assert believed(ingress) == accounted(ingress) == 1
        wait_until(lambda: len(ingress.lines()) == 1)
        (line,) = ingress.lines()
        assert line["outcome"] == "abandoned"
        assert line["reward_id"]
        assert "status_code" not in line
    assert found(database, run) == []
