"""`ledger serve` as it really runs: what it refuses, its processes, and what they tell together."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme

from ledger.operations.serve import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN, Kept
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.certificates import Files, files, replace
from tests.conftest import Database, Run
from tests.ledger.test_access import caller
from tests.ledger.test_observing import Labels, labelled, samples
from tests.rewards import reward
from tests.serving import connected, free_port, serving

REQUEST = pb.GetBalanceRequest(user_id="user-1", currency="USD")
SECONDS_MAX = 60.0


class Service:
    """A running `ledger serve` of its own processes."""

    def __init__(self, url: str, directory: Path, **changed: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.directory = directory
        ours = ("INGRESS_", "LEDGER_", "DATABASE_URL", "PROMETHEUS_", "OTEL_", "GRPC_")
        inherited = {n: value for n, value in os.environ.items() if not n.startswith(ours)}
        environment = {
            "TMPDIR": str(directory),
            "DATABASE_URL": url,
            "LEDGER_BIND": f"127.0.0.1:{self.port}",
            "LEDGER_METRICS_BIND": f"127.0.0.1:{self.metrics_port}",
        }
        with (directory / "log").open("wb") as log, (directory / "complaints").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ledger", "serve"],
                env=inherited | environment | changed,
                stdout=log,
                stderr=said,
            )

    def ask(self) -> str:
        """The balance, on a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        address = f"127.0.0.1:{self.port}"
        with grpc.insecure_channel(address, options=options) as channel:
            stub: Any = LedgerServiceStub(channel)
            answer = stub.GetBalance(REQUEST, timeout=5, wait_for_ready=True)
            return str(answer.balance.amount.value)

    def scraped(self) -> str:
        """What is exported now."""
        client = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
        with contextlib.closing(client):
            client.request("GET", "/metrics")
            return client.getresponse().read().decode()

    def answered(self) -> float:
        """How many balances were counted."""
        found: dict[Labels, float] = samples(self.scraped(), "ledger_calls_total")
        return found.get(labelled(method="GetBalance", status="OK"), 0)

    def comes_up(self) -> bool:
        """Whether it answers; false when somebody else was given its port meanwhile.

        Fails with what it said when it does neither.
        """
        end = time.monotonic() + SECONDS_MAX
        trouble = ""
        while self.process.poll() is None and time.monotonic() < end:
            try:
                assert self.ask() == "400"
            except grpc.RpcError as error:
                trouble = str(error)
                time.sleep(0.05)
            else:
                return True
        if "cannot be bound" in self.said():
            return False
        pytest.fail(f"status {self.process.poll()}, {trouble}, said: {self.said()}")

    def processes(self) -> list[psutil.Process]:
        """Those that the first one started and that live."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def said(self) -> str:
        """All that was written to standard error."""
        return (self.directory / "complaints").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        return [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        """The status with which it ends by a signal, when all of it is gone."""
        if self.process.poll() is not None:
            return self.process.returncode
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.process.wait(SECONDS_MAX)
        _, alive = psutil.wait_procs(family, timeout=SECONDS_MAX)
        for process in alive:
            process.kill()
        assert not alive, "somebody stayed"
        return status


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns when ``is_so``; fails when it does not come."""
    end = time.monotonic() + SECONDS_MAX
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, psutil.Error, grpc.RpcError):
            if is_so():
                return
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def running(database: Database, **changed: str) -> Iterator[Service]:
    """A service that answers with one reward, ended afterwards."""
    asyncio.run(one_reward(database))
    with tempfile.TemporaryDirectory(prefix="service-") as name:
        service = Service(database.url("ledger_reader"), Path(name), **changed)
        try:
            if not service.comes_up():
                service = Service(database.url("ledger_reader"), Path(name), **changed)
                assert service.comes_up()
            yield service
        finally:
            service.end()


async def one_reward(database: Database) -> None:
    async with database.connected() as connection:
        await post(connection, [reward()])


# What is refused


@pytest.fixture
def tls(tmp_path: Path) -> Files:
    authority = trustme.CA()
    found = files(tmp_path)
    found.write(authority.issue_cert("127.0.0.1"), authority)
    return found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"LEDGER_BIND": "0.0.0.0:PORT"}, "LEDGER_BIND is not a loopback address"),
        (
            {"LEDGER_BIND": "0.0.0.0:PORT", "LEDGER_PROCESSES": "2"},
            "LEDGER_BIND is not a loopback address",
        ),
        ({"LEDGER_BIND": "[::]:PORT", "TLS": "1"}, "LEDGER_BIND is not a loopback address"),
        ({"LEDGER_BIND": "0.0.0.0:PORT", "CALLERS": "1"}, "LEDGER_BIND is not a loopback address"),
        ({"LEDGER_TLS_CERTIFICATE": "DIR/certificate"}, "LEDGER_TLS_KEY is required"),
        ({"LEDGER_TLS_KEY": "DIR/key"}, "LEDGER_TLS_CERTIFICATE is required"),
        (
            {"LEDGER_TLS_CLIENT_AUTHORITIES": "DIR/authorities"},
            "LEDGER_TLS_CERTIFICATE is required",
        ),
        (
            {"LEDGER_TLS_CERTIFICATE": "DIR/key", "LEDGER_TLS_KEY": "DIR/key"},
            "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no certificate",
        ),
        ({"LEDGER_CALLERS": "DIR/missing"}, "LEDGER_CALLERS cannot be read: No such file"),
        ({"LEDGER_CALLERS": "DIR"}, "LEDGER_CALLERS cannot be read"),
        ({"LEDGER_CALLERS": "DIR/key"}, "LEDGER_CALLERS is not TOML"),
        ({"LEDGER_LOG": "yes"}, "LEDGER_LOG must be json or off"),
        ({"LEDGER_LOG_KEY": "short"}, "LEDGER_LOG_KEY must have 16 to 64 bytes"),
        ({"LEDGER_CORRECTIONS": "yes"}, "LEDGER_CORRECTIONS must be on or off"),
        ({"LEDGER_CORRECTIONS": "on"}, "LEDGER_CORRECTIONS needs LEDGER_CALLERS"),
        ({"LEDGER_METRICS_BIND": "9465"}, "LEDGER_METRICS_BIND must be host:port"),
        ({"LEDGER_HEALTH_BIND": "health"}, "LEDGER_HEALTH_BIND must be host:port"),
        ({"LEDGER_PROCESSES": "65"}, "LEDGER_PROCESSES must be a whole number from 0 to 64"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    given: dict[str, str], said: str, tmp_path: Path, tls: Files
) -> None:
    callers = tmp_path / "callers.toml"
    replace(callers, caller("app", "balances").encode())
    changed = {}
    for name, value in given.items():
        if name == "TLS":
            changed["LEDGER_TLS_CERTIFICATE"] = str(tls.certificate)
            changed["LEDGER_TLS_KEY"] = str(tls.key)
        elif name == "CALLERS":
            changed["LEDGER_CALLERS"] = str(callers)
        else:
            filled = value.replace("PORT", str(free_port())).replace("DIR", str(tmp_path))
            changed[name] = filled
    service = Service("postgresql://nobody@127.0.0.1:1/none", tmp_path, **changed)
    assert service.process.wait(SECONDS_MAX) == 1
    assert service.said().startswith(said)
    assert len(service.said().splitlines()) == 1
    assert str(tmp_path) not in service.said()


@pytest.mark.parametrize("name", ["LEDGER_BIND", "LEDGER_METRICS_BIND", "LEDGER_HEALTH_BIND"])
def test_an_address_that_is_taken_is_one_sentence(name: str, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        url = "postgresql://nobody@127.0.0.1:1/none"
        service = Service(url, tmp_path, **{name: address})
        assert service.process.wait(SECONDS_MAX) == 1
    assert service.said() == f"{address} cannot be bound: something else listens there\n"


# One process


def test_on_loopback_it_says_that_everybody_there_may_ask(database: Database) -> None:
    with running(database) as service:
        assert "for everybody who reaches it" in service.said()
        assert "on loopback only" in service.said()
        wait_until(lambda: service.answered() == 1)
        (line,) = service.lines()
        assert (line["method"], line["status"], line["caller"]) == ("GetBalance", "OK", "anybody")
        assert service.processes() == []
        assert not list(service.directory.glob("reward-ledger-metrics-*"))
        assert service.end() == 0


def test_a_call_is_a_span_of_the_trace_that_caused_it(database: Database) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with running(database, OTEL_TRACES_EXPORTER="console", LEDGER_LOG="off") as service:
        with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:
            stub: Any = LedgerServiceStub(channel)
            caused = (("traceparent", f"00-{trace}-{span}-01"),)
            stub.GetBalance(REQUEST, timeout=5, metadata=caused)
            unwanted = (("traceparent", f"00-{'1' * 32}-{span}-00"),)
            stub.GetBalance(REQUEST, timeout=5, metadata=unwanted)
            with pytest.raises(grpc.RpcError):
                stub.GetReward(pb.GetRewardRequest(reward_id="x"), timeout=5, metadata=caused)
        assert service.end() == 0
        printed = (service.directory / "log").read_text()
    spans = []
    while printed := printed.lstrip():
        told, length = json.JSONDecoder().raw_decode(printed)
        spans.append(told)
        printed = printed[length:]
    assert "1" * 32 not in str(spans)
    assert "user-1" not in str(spans)
    ours = [told for told in spans if told["context"]["trace_id"] == f"0x{trace}"]
    assert [told["parent_id"] for told in ours] == [f"0x{span}"] * 2
    assert [told["kind"] for told in ours] == ["SpanKind.SERVER"] * 2
    found = [(told["name"], told["attributes"]["status"]) for told in ours]
    assert found == [("GetBalance", "OK"), ("GetReward", "NOT_FOUND")]


def test_with_nothing_to_tell_it_tells_nothing(database: Database) -> None:
    with running(database, LEDGER_METRICS_BIND="", LEDGER_LOG="off") as service:
        with pytest.raises(ConnectionRefusedError):
            service.scraped()
        service.end()
        assert service.lines() == []


def test_others_counts_are_left_alone(database: Database, tmp_path: Path) -> None:
    """The ingress may share its environment with us, and empties that directory at its start."""
    with running(database, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as service:
        wait_until(lambda: service.answered() == 1)
        assert not list(tmp_path.iterdir())


def test_whoever_breaks_off_writes_nothing_into_our_log(database: Database, tls: Files) -> None:
    import socket

    chosen = {"LEDGER_TLS_CERTIFICATE": str(tls.certificate), "LEDGER_TLS_KEY": str(tls.key)}
    with tempfile.TemporaryDirectory(prefix="service-") as name:
        service = Service(database.url("ledger_reader"), Path(name), **chosen)
        try:
            wait_until(lambda: "serving on" in service.said())
            before = service.said()
            for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
                with socket.create_connection(("127.0.0.1", service.port), timeout=5) as stranger:
                    stranger.sendall(sent)
            time.sleep(0.5)
            assert service.said() == before
        finally:
            service.end()


# Several processes


def test_several_processes_tell_one_sum_that_a_killed_one_does_not_take_along(
    database: Database,
) -> None:
    with running(database, LEDGER_PROCESSES="2") as service:
        wait_until(lambda: len(service.processes()) == 2)
        for _ in range(30):
            service.ask()
        wait_until(lambda: service.answered() == 31 == len(service.lines()))
        killed, survivor = service.processes()
        killed.kill()
        wait_until(lambda: len({*service.processes()} - {killed}) == 2)
        assert survivor in service.processes()
        assert "ended with status -9" in service.said()
        assert service.answered() == 31
        for _ in range(10):
            service.ask()
        wait_until(lambda: service.answered() == 41)
        # A user is the same in all of them.
        wait_until(lambda: len(service.lines()) == 41)
        assert len({line["user_hash"] for line in service.lines()}) == 1
        (directory,) = service.directory.glob("reward-ledger-metrics-*")
        assert service.end() == 0
        assert not directory.exists()


def test_connections_are_spread_over_the_processes(database: Database) -> None:
    def connections(process: psutil.Process) -> int:
        return sum(
            each.laddr.port == service.port and each.status == psutil.CONN_ESTABLISHED
            for each in process.net_connections(kind="tcp")
        )

    async def spread() -> list[int]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(40):
                await stack.enter_async_context(connected(service.port))
            return sorted(map(connections, service.processes()))

    with running(database, LEDGER_PROCESSES="2", LEDGER_METRICS_BIND="") as service:
        # Until both listen, one gets them all.
        wait_until(lambda: min(asyncio.run(spread())) >= 8)


def test_zero_processes_are_one_for_each_core(database: Database) -> None:
    cores = len(os.sched_getaffinity(0))
    with running(database, LEDGER_PROCESSES="0") as service:
        wait_until(lambda: len(service.processes()) == (cores if cores > 1 else 0))


def test_whoever_watched_is_killed_and_nobody_stays(database: Database) -> None:
    with running(database, LEDGER_PROCESSES="2") as service:
        assert service.end(signal.SIGKILL) == -signal.SIGKILL


class Dying:
    """Children that end when they are told, and the time that goes by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.starts: list[float] = []
        self.ended: list[int] = []
        self.status: int | None = None
        self.kept = Kept(self.start, self.ended.append, lambda: self.now)

    def start(self) -> Any:
        self.starts.append(self.now)
        self.status = None
        return self

    process: Any = property(lambda self: self)
    pid = 7

    def poll(self) -> int | None:
        return self.status

    def live(self, seconds: float) -> None:
        """Look at it for so long."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.kept.look()


def test_a_process_that_dies_again_and_again_is_started_after_ever_longer_pauses() -> None:
    dying = Dying()
    for _ in range(10):
        started = len(dying.starts)
        while len(dying.starts) == started:
            dying.live(0.1)
        dying.status = 1
    steps = zip(dying.starts, dying.starts[1:], strict=False)
    pauses = [round(after - before, 1) for before, after in steps]
    assert pauses[0] == pytest.approx(PAUSE_SECONDS_MIN, abs=0.3)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(PAUSE_SECONDS_MAX, abs=0.3)
    assert dying.ended == [7] * 9


def test_a_process_that_lived_for_long_is_started_again_soon() -> None:
    dying = Dying()
    for _ in range(6):
        dying.live(PAUSE_SECONDS_MAX)
        dying.status = 1
    dying.live(PAUSE_SECONDS_MAX * 3)
    dying.status = 1
    before = len(dying.starts)
    dying.live(PAUSE_SECONDS_MIN + 0.3)
    assert len(dying.starts) == before + 1


def test_what_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def start() -> Any:
        tries.append(1)
        raise OSError(12, "Cannot allocate memory")

    now = 0.0
    kept = Kept(start, tries.append, lambda: now)
    for _ in range(100):
        kept.look()
        now += 0.1
    # In ten seconds: at once, and after 0.5, 1, 2 and 4.
    assert tries == [1] * 5
    assert "could not be started: Cannot allocate memory" in caplog.text


# A connection's age


def test_an_old_connection_is_closed_and_its_calls_go_on_over_the_next(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.listening.CONNECTION_AGE_MAX_SECONDS", 1)
    monkeypatch.setattr("ledger.listening.CONNECTION_AGE_GRACE_SECONDS", 1)

    async def main() -> None:
        await one_reward(database)
        port = free_port()
        async with serving(database.url("ledger_reader"), port=port) as channel:
            ask = LedgerServiceStub(channel).GetBalance
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            closed = asyncio.create_task(reader.read(-1))
            async with asyncio.timeout(20):
                while not closed.done():
                    assert (await ask(REQUEST, timeout=5)).balance.version == 1
            writer.close()

    run(main())
