"""The gauges say what is so, also where several workers look at the same."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingress.spool import Delivery, Spool
from ledger.embedded import EmbeddedPostgres
from tests.conftest import Database, throw_away_postgres
from tests.ingress.deliveries import ABSENT, body
from tests.ingress.observed import Ingress, running, wait_until

LAST_CREDIT = "SELECT extract(epoch FROM max(posted_at))::float8 FROM postings"


def gauge(ingress: Ingress, name: str) -> float:
    """The one value of this name; none that is exported is zero."""
    values = list(ingress.samples(f"ingress_{name}").values())
    assert len(values) <= 1
    return values[0] if values else 0.0


@pytest.fixture
def stoppable() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of the test's own, which it stops and starts."""
    with throw_away_postgres() as server:
        yield server


def test_two_workers_who_see_the_same_quarantine_do_not_count_it_twice(
    database: Database,
) -> None:
    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        for text in (b"[]", b"{", body(rewardId=ABSENT), b"[]"):
            ingress.deliver(text)
        wait_until(lambda: gauge(ingress, "quarantine_open") == 3)
        database.rows(
            "UPDATE quarantine SET state = 'discarded', closed_at = now(), closed_by = 'me',"
            " closed_why = 'a test' WHERE number <> (SELECT min(number) FROM quarantine)"
        )
        wait_until(lambda: gauge(ingress, "quarantine_open") == 1)
        # Nor does it vanish with a worker.
        killed, _ = ingress.workers()
        killed.kill()
        wait_until(lambda: killed not in ingress.workers() and len(ingress.workers()) == 2)
        assert gauge(ingress, "quarantine_open") == 1


def test_connections_are_those_of_all_workers_that_live(database: Database) -> None:
    def held() -> int:
        (row,) = database.rows(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'ledger_writer' AND datname = current_database()"
        )
        return int(row[0])

    def are_told() -> bool:
        return gauge(ingress, "pool_connections") == held() >= 2

    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        wait_until(are_told)
        for killed in ingress.workers():
            killed.kill()
        wait_until(lambda: len(ingress.workers()) == 2)
        wait_until(are_told)
        assert gauge(ingress, "pool_idle_connections") <= gauge(ingress, "pool_connections")
        assert gauge(ingress, "pool_waiting") == 0


def test_batches_and_their_sizes_are_counted(database: Database) -> None:
    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        for number in range(7):
            ingress.deliver(body(rewardId=f"reward-{number % 5}"))
        ingress.deliver(b"[]")
        # Sent one after the other, each is a batch of its own; no reward, no batch.
        wait_until(lambda: gauge(ingress, "batch_size_count") == 7)
        assert gauge(ingress, "batch_size_sum") == 7


def test_the_last_credit_is_known_from_the_start_and_is_that_of_all_workers(
    database: Database,
) -> None:
    def is_told() -> bool:
        (row,) = database.rows(LAST_CREDIT)
        return gauge(ingress, "last_credited_timestamp_seconds") == pytest.approx(row[0], abs=0.1)

    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        assert gauge(ingress, "last_credited_timestamp_seconds") == 0
        for number in range(6):
            ingress.deliver(body(rewardId=f"reward-{number}"))
        wait_until(is_told)
        time.sleep(1)
        (before,) = database.rows(LAST_CREDIT)
        # What credits nothing does not move it.
        ingress.deliver(body(rewardId="reward-1"))
        ingress.deliver(body(rewardId="recorded", rewardAmount=0))
        wait_until(lambda: ingress.answered() == 8)
        assert is_told()
        assert database.rows(LAST_CREDIT) == [before]
    with running(database.url()) as ingress:
        wait_until(is_told)


def test_what_is_set_aside_in_the_spool_is_told_until_somebody_has_dealt_with_it(
    database: Database, tmp_path: Path
) -> None:
    with Spool(tmp_path / "spool", 2**30) as spool:
        spool.put([Delivery(body(), "current", "raw", datetime.now(UTC))])
        spool.set_aside(1, "Damaged")
        with running(database.url(), INGRESS_SPOOL=str(tmp_path / "spool")) as ingress:
            wait_until(lambda: gauge(ingress, "spool_set_aside") == 1)
            assert gauge(ingress, "spool_depth") == 0
            spool.recall()
            wait_until(lambda: gauge(ingress, "spool_set_aside") == 0)


def test_a_spool_is_told_by_how_much_waits_and_since_when(
    stoppable: EmbeddedPostgres, tmp_path: Path
) -> None:
    own = Database(stoppable, "ledger")
    settings = {"INGRESS_WORKERS": "2", "INGRESS_SPOOL": str(tmp_path / "spool")}
    with running(own.url(), **settings) as ingress:
        wait_until(lambda: ingress.samples("ingress_spool_depth") == {})
        stoppable.stop()
        before = time.time()
        for number in range(3):
            assert ingress.deliver(body(rewardId=f"reward-{number}"))[1]["status"] == "spooled"
        wait_until(lambda: gauge(ingress, "spool_depth") == 3)
        oldest_at = gauge(ingress, "spool_oldest_timestamp_seconds")
        assert before - 1 < oldest_at < time.time()
        # It stays the same moment, however long it waits, and whoever has looked meanwhile.
        time.sleep(6)
        assert gauge(ingress, "spool_depth") == 3
        assert gauge(ingress, "spool_oldest_timestamp_seconds") == pytest.approx(oldest_at, abs=1)
        stoppable.start()
        wait_until(lambda: gauge(ingress, "spool_depth") == 0)
        wait_until(lambda: gauge(ingress, "spool_oldest_timestamp_seconds") == 0)
        # What was credited from the spool is a credit and a batch as every other.
        (row,) = own.rows(LAST_CREDIT)
        wait_until(
            lambda: (
                gauge(ingress, "last_credited_timestamp_seconds") == pytest.approx(row[0], abs=0.1)
            )
        )
        wait_until(lambda: gauge(ingress, "batch_size_sum") == 3)
