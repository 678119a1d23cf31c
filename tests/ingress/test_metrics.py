"""What is counted is counted once, under names of ours, and outlives the worker that counted it."""

import asyncio
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from ingress import exporting, metrics
from ingress.exporting import Exporter
from ingress.metrics import Metrics
from ledger.config import InvalidSetting
from ledger.errors import DatabaseUnavailable
from ledger.exporting import registry_of
from ledger.writing import Status
from tests.conftest import Database, Run
from tests.ingress.deliveries import TOKEN, body
from tests.ingress.observed import KEY, ROOT, Ingress, Labels, running, wait_until
from tests.serving import free_port


def series(counted: Metrics, name: str) -> dict[Labels, float]:
    """The series of this name that are not zero."""
    counted.publish()
    return {
        frozenset(sample.labels.items()): sample.value
        for family in counted.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


def labelled(**labels: str) -> Labels:
    return frozenset(labels.items())


@pytest.mark.parametrize("outcome", [*Status, "ignored", "spooled", "abandoned", "not-believed"])
def test_an_outcome_is_counted_once_however_often_it_is_published(outcome: str) -> None:
    counted = Metrics(["not-believed"])
    counted.delivery(outcome, 0.01, is_believed=False)
    for _ in range(3):
        counts = series(counted, "ingress_deliveries_total")
        assert counts == {labelled(outcome=outcome, believed="no"): 1}


def test_what_is_in_no_closed_set_becomes_no_label() -> None:
    counted = Metrics(["not-believed"])
    counted.believed("what it signed", "what it signed with")
    counted.delivery("what a sender wrote", 0.01, is_believed=True)
    assert series(counted, "ingress_deliveries_total") == {
        labelled(outcome="other", believed="yes"): 1
    }
    assert series(counted, "ingress_believed_deliveries_total") == {
        labelled(form="unsigned", token="other"): 1
    }


def test_the_believed_are_the_same_number_by_token_and_by_outcome() -> None:
    counted = Metrics(["conflict", "not-believed"])

    def answered() -> float:
        by_outcome = series(counted, "ingress_deliveries_total")
        unanswered = series(counted, "ingress_unanswered_deliveries")
        return sum(
            count for labels, count in by_outcome.items() if ("believed", "yes") in labels
        ) + sum(unanswered.values())

    for form, token in (("raw", "current"), ("canonical", "previous"), ("raw", "current")):
        counted.believed(form, token)
    counted.believed("unsigned", "unsigned")
    # Before there is any answer.
    assert series(counted, "ingress_believed_deliveries_total") == {
        labelled(form="raw", token="current"): 2,
        labelled(form="canonical", token="previous"): 1,
        labelled(form="unsigned", token="unsigned"): 1,
    }
    assert answered() == 4
    for outcome in (Status.CREDITED, "conflict", "ignored"):
        counted.delivery(outcome, 0.01, is_believed=True)
    counted.delivery("not-believed", 0.01, is_believed=False)
    assert answered() == 4
    assert list(series(counted, "ingress_unanswered_deliveries").values()) == [1]
    assert sum(series(counted, "ingress_believed_deliveries_total").values()) == 4


def test_the_time_of_the_last_credit_never_goes_back() -> None:
    counted = Metrics([])
    assert series(counted, "ingress_last_credited_timestamp_seconds") == {}
    for at in (1_700_000_002.5, 1_700_000_001.5):
        counted.credited(at)
        (told,) = series(counted, "ingress_last_credited_timestamp_seconds").values()
        assert told == 1_700_000_002.5


def test_a_delay_and_a_batch_are_counted_in_the_bucket_that_ends_at_them() -> None:
    counted = Metrics([])
    for seconds in (0.0001, 0.001, 0.0011, 60.0):
        counted.delivery("ignored", seconds, is_believed=False)
    counted.batch(256)
    counted.publish()
    value = counted.registry.get_sample_value
    seconds_up_to = [
        value("ingress_delivery_seconds_bucket", {"le": end}) for end in ("0.001", "5.0", "+Inf")
    ]
    assert seconds_up_to == [2, 3, 4]
    assert value("ingress_delivery_seconds_sum") == pytest.approx(60.0022)
    assert value("ingress_batch_size_bucket", {"le": "128.0"}) == 0
    assert value("ingress_batch_size_bucket", {"le": "256.0"}) == 1


def test_gauges_say_what_they_were_last_told() -> None:
    told = Metrics([])
    told.set_pool(size=2, idle=1, waiting=3)
    told.set_quarantine(4)
    told.set_spool(5, 6, 1_700_000_000.0)
    told.shared_transaction()
    told.dropped_line()
    told.peer(is_expected=False)
    for name, value in (
        ("pool_connections", 2),
        ("pool_idle_connections", 1),
        ("pool_waiting", 3),
        ("quarantine_open", 4),
        ("spool_depth", 5),
        ("spool_set_aside", 6),
        ("spool_oldest_timestamp_seconds", 1_700_000_000),
        ("shared_transactions_total", 1),
        ("dropped_log_lines_total", 1),
    ):
        assert list(series(told, f"ingress_{name}").values()) == [value]
    assert series(told, "ingress_peers_total") == {labelled(expected="no"): 1}
    told.set_spool(0, 0, None)
    assert series(told, "ingress_spool_oldest_timestamp_seconds") == {}


@pytest.mark.parametrize("trouble", [DatabaseUnavailable, KeyError, None])
def test_whoever_cannot_look_or_looks_for_long_does_not_stop_the_counting(
    trouble: type[Exception] | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PUBLISH_EVERY_SECONDS", 0.0)

    async def look() -> None:
        if trouble is None:
            await asyncio.sleep(60)
        else:
            raise trouble

    async def live(counted: Metrics) -> None:
        await counted.process_startup({}, {})
        counted.delivery("ignored", 0.01, is_believed=False)
        for _ in range(5):
            await asyncio.sleep(0.001)
        labels = {"outcome": "ignored", "believed": "no"}
        assert counted.registry.get_sample_value("ingress_deliveries_total", labels) == 1
        await counted.process_shutdown({}, {})

    counted = Metrics([])
    counted.watch(look)
    run(live(counted))


def test_a_look_that_fails_is_taken_again_and_complained_about_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    async def look() -> None:
        looks.append(1)
        if len(looks) < 4:
            raise KeyError

    async def live(counted: Metrics) -> None:
        await counted.process_startup({}, {})
        while len(looks) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await counted.process_shutdown({}, {})

    counted = Metrics([])
    counted.watch(look, every_seconds=0.0)
    run(live(counted))
    assert len([record for record in caplog.records if record.name == "ingress"]) == 1


@pytest.mark.parametrize(
    ("given", "bind"),
    [
        ({}, "127.0.0.1:9464"),
        ({"INGRESS_METRICS_BIND": ""}, None),
        ({"INGRESS_METRICS_BIND": "[::1]:80"}, "[::1]:80"),
    ],
)
def test_metrics_are_on_loopback_unless_said_otherwise(
    given: dict[str, str], bind: str | None
) -> None:
    assert exporting.read_metrics_bind(given) == bind


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="INGRESS_METRICS_BIND"):
        exporting.read_metrics_bind({"INGRESS_METRICS_BIND": "localhost"})


def test_what_ended_workers_counted_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(exporting.ENVIRONMENT_NAME, str(tmp_path))
    untyped: Any = MmapedDict
    for process_id, count, at in ((101, 3.0, 50.0), (102, 4.0, 40.0)):
        values = {"counter": count, "gauge_max": at, "gauge_sum": 1.0, "gauge_livesum": 1.0}
        for kind, value in values.items():
            file = untyped(str(tmp_path / f"{kind}_{process_id}.db"))
            file.write_value("key", value, 0.0)
            file.close()
        exporting.worker_ended(process_id)
    left = {path.name: path for path in tmp_path.glob("*.db")}
    assert left.keys() == {"counter_0.db", "gauge_max_0.db", "gauge_sum_0.db"}
    read = untyped.read_all_values_from_file
    assert [value for _, value, _, _ in read(left["counter_0.db"])] == [7.0]
    assert [value for _, value, _, _ in read(left["gauge_max_0.db"])] == [50.0]
    assert [value for _, value, _, _ in read(left["gauge_sum_0.db"])] == [2.0]


def test_a_file_that_cannot_be_read_neither_ends_the_master_nor_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(exporting.ENVIRONMENT_NAME, str(tmp_path))
    (tmp_path / "counter_7.db").write_bytes(b"\x40\0\0\0torn")
    exporting.worker_ended(7)
    assert not list(tmp_path.glob("*.db"))


def test_a_worker_that_is_just_opening_its_files_spoils_no_scrape(tmp_path: Path) -> None:
    untyped: Any = MmapedDict
    file = untyped(str(tmp_path / "counter_7.db"))
    file.write_value('["a", "a_total", {}, ""]', 3.0, 0.0)
    file.close()
    (tmp_path / "counter_8.db").touch()
    assert registry_of(tmp_path).get_sample_value("a_total") == 3


def test_two_workers_are_one_sum_that_a_killed_one_does_not_take_along(database: Database) -> None:
    with running(database.url(), INGRESS_WORKERS="2") as ingress:
        credited = labelled(outcome="credited", believed="yes")

        def is_credited(count: int) -> bool:
            return ingress.samples("ingress_deliveries_total").get(credited) == count

        for number in range(24):
            ingress.deliver(body(rewardId=f"reward-{number}"))
        wait_until(lambda: is_credited(24))
        killed, survivor = ingress.workers()
        killed.kill()
        wait_until(lambda: killed not in ingress.workers() and len(ingress.workers()) == 2)
        assert survivor in ingress.workers()
        assert is_credited(24)
        for number in range(24, 36):
            ingress.deliver(body(rewardId=f"reward-{number}"))
        wait_until(lambda: is_credited(36))
        (directory,) = ingress.directory.glob("reward-ingress-metrics-*")
        ingress.end()
        assert not directory.exists()


def exporters(ingress: Ingress) -> list[psutil.Process]:
    """The processes that serve ``/metrics``."""
    children = psutil.Process(ingress.process.pid).children()
    return [child for child in children if "ingress.exporting" in child.cmdline()]


def test_what_serves_the_metrics_is_started_again_when_it_is_killed(database: Database) -> None:
    with running(database.url()) as ingress:
        for number in range(2):
            ingress.deliver(body(rewardId=f"reward-{number}"))
            (killed,) = exporters(ingress)
            killed.kill()
            wait_until(lambda killed=killed: exporters(ingress) not in ([], [killed]))  # type: ignore[misc]
            count = number + 1
            wait_until(lambda count=count: ingress.answered() == count)  # type: ignore[misc]
        assert ingress.complaints().count("what serves /metrics has ended") == 2
        assert "Traceback" not in ingress.complaints()
        # And after a reload, which replaces the workers and not the master.
        ingress.process.send_signal(signal.SIGHUP)
        (killed,) = exporters(ingress)
        killed.kill()
        wait_until(lambda: exporters(ingress) not in ([], [killed]))
        wait_until(lambda: ingress.answered() == 2)
        ingress.end()
        assert not list(ingress.directory.glob("reward-ingress-metrics-*"))


def test_what_serves_the_metrics_knows_no_secret_and_no_command_line_holds_one(
    database: Database,
) -> None:
    secrets = {"INGRESS_TOKEN_PREVIOUS": "the one before", "PGPASSWORD": "open sesame"}
    end = {"INGRESS_TOKEN_PREVIOUS_NOT_AFTER": "9999-01-01T00:00:00Z"}
    with running(database.url(), INGRESS_WORKERS="2", **secrets, **end) as ingress:
        master = psutil.Process(ingress.process.pid)
        family = [master, *master.children(recursive=True)]
        (exporter,) = [each for each in family if "ingress.exporting" in each.cmdline()]
        assert len(family) == 4
        told = "\n".join(exporter.environ().values())
        assert "PATH" in exporter.environ()
        for secret in (TOKEN, database.url(), KEY, *secrets.values()):
            assert secret not in told
            assert not [each for each in family if secret in "\n".join(each.cmdline())]


def test_it_is_started_again_ever_more_rarely_when_it_does_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Python that ends at once: a start each second would be a burden of its own."""
    now = 1000.0
    starts = []
    really = os.posix_spawn

    def spawn(*arguments: Any) -> int:
        starts.append(now)
        return really(*arguments)

    monkeypatch.setattr(os, "posix_spawn", spawn)
    exporter = Exporter(["-c", ""], clock=lambda: now)
    for _ in range(400):
        exporter.look()
        if exporter._process_id is not None:
            os.waitid(os.P_PID, exporter._process_id, os.WEXITED | os.WNOWAIT)
        now += 1.0
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert pauses == [2.0, 3.0, 5.0, 9.0, 17.0, 33.0, *[61.0] * (len(pauses) - 6)]
    assert len(pauses) > 8
    exporter.end()


def test_one_that_has_lived_long_is_started_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    exporter = Exporter(["-c", "import time; time.sleep(600)"], clock=lambda: now)
    for _ in range(4):
        exporter.look()
        process_id = exporter._process_id
        assert process_id is not None
        now += exporting.PAUSE_SECONDS_MAX + 1
        exporter.look()
        assert exporter._process_id == process_id
        os.kill(process_id, signal.SIGKILL)
        # As gunicorn does, which clears away whatever child has ended.
        os.waitpid(process_id, 0)
        exporter.look()
        assert exporter._process_id is None
        now += exporting.PAUSE_SECONDS_MIN
    exporter.end()


def test_a_machine_that_can_start_no_process_does_not_end_the_master(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    now = 1000.0
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", refuse)
        exporter = Exporter(["-c", ""], clock=lambda: now)
        for _ in range(3):
            exporter.look()
    assert [record.getMessage() for record in caplog.records] == [
        "what serves /metrics cannot be started: no more processes"
    ]
    now += exporting.PAUSE_SECONDS_MIN
    exporter.look()
    assert exporter._process_id is not None
    exporter.end()


def test_a_killed_master_leaves_nothing_of_the_metrics_behind(database: Database) -> None:
    with running(database.url()) as ingress:
        ingress.end(signal.SIGKILL)
        assert not list(ingress.directory.glob("reward-ingress-metrics-*"))
        with pytest.raises(ConnectionRefusedError):
            ingress.scraped()


def test_a_port_that_is_taken_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as taken:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ingress.exporting", str(tmp_path)),
                *(f"127.0.0.1:{port}", str(os.getpid()), "keep"),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            assert b"waits for" in process.stderr.readline()
            taken.close()
            wait_until(lambda: bool(psutil.Process(process.pid).net_connections()))
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
