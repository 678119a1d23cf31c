"""The ingress as it really runs: gunicorn's processes, sockets and signals, and a real Postgres."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from ingress.webhook import READ_SECONDS_MAX
from ledger.embedded import EmbeddedPostgres
from tests.conftest import OWNER, SUPERUSER, Database, throw_away_postgres
from tests.ingress.deliveries import PATH, TOKEN, body, problem, signed
from tests.serving import free_port

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 30.0
ANSWER_SECONDS_MAX = 3.0
"""What is promised while Postgres is away."""
SLACK_SECONDS = 1.5
"""For a machine that is busy with other tests."""


class Answer(NamedTuple):
    status: int
    headers: Any
    content: bytes

    def told(self) -> dict[str, Any]:
        assert self.status == 200, self.content
        told: dict[str, Any] = json.loads(self.content)
        return told

    def problem(self) -> tuple[int, str]:
        return self.status, problem(self.status, self.headers, self.content)


class Gunicorn:
    """A running ingress of its own processes, ended by its own process id."""

    def __init__(self, url: str, *arguments: str, **settings: str) -> None:
        self.port = free_port()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "ingress/gunicorn_conf.py", *arguments],
            cwd=ROOT,
            env=_environment(
                DATABASE_URL=url,
                INGRESS_TOKEN=TOKEN,
                INGRESS_BIND=f"127.0.0.1:{self.port}",
                **settings,
            ),
            stderr=self.errors,
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit status after signal ``number``."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_SECONDS_MAX)
        finally:
            self.process.kill()
            self.process.wait()
            self.errors.close()

    def said(self) -> str:
        """What it wrote to its standard error so far."""
        # Not by reading, which would move the place at which gunicorn writes.
        return os.pread(self.errors.fileno(), 1 << 20, 0).decode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS_MAX)

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS_MAX)

    def deliver(self, text: bytes, headers: dict[str, str] | None = None, **options: Any) -> Answer:
        """The answer to one delivery on a connection of its own."""
        with contextlib.closing(self.client()) as client:
            given = signed(text) if headers is None else headers
            client.request("POST", PATH, options.pop("content", text), given, **options)
            return _answer(client)

    def exchange(self, sent: bytes, *, shut: bool = False) -> bytes:
        """All that comes back for the bytes ``sent``, until the connection is closed."""
        with self.connect() as connection:
            connection.sendall(sent)
            if shut:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    received += piece
            return received


def _answer(client: http.client.HTTPConnection) -> Answer:
    response = client.getresponse()
    return Answer(response.status, response.headers, response.read())


def _environment(**settings: str) -> dict[str, str]:
    ours = ("INGRESS_", "LEDGER_", "DATABASE_URL", "GUNICORN_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    quiet = {"INGRESS_LOG": "off", "INGRESS_METRICS_BIND": ""}
    return inherited | {"PYTHONWARNINGS": "error"} | quiet | settings


def _wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def running(url: str, *arguments: str, **settings: str) -> Iterator[Gunicorn]:
    """A gunicorn that answers, ended afterwards, with nothing to complain about."""
    gunicorn = Gunicorn(url, *arguments, **settings)

    def is_answering() -> bool:
        assert gunicorn.process.poll() is None, gunicorn.said()
        with contextlib.suppress(OSError), contextlib.closing(gunicorn.client()) as client:
            client.request("GET", "/")
            return _answer(client).status == 404
        return False

    try:
        _wait_until(is_answering)
        yield gunicorn
    finally:
        status = gunicorn.end()
    assert status == 0


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """One database for all tests here; each has rewards and users of its own."""
    name = "test_gunicorn"
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER} STRATEGY file_copy"
        )
        yield Database(postgres, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def gunicorn(database: Database) -> Iterator[Gunicorn]:
    """One gunicorn with two workers for all tests that leave it as it was."""
    with running(database.url(), INGRESS_WORKERS="2") as gunicorn:
        yield gunicorn


def credits_of(database: Database, user_id: str) -> list[tuple[Any, ...]]:
    """How many postings the user has, and their sum."""
    return database.rows(
        f"SELECT count(*), coalesce(sum(amount), 0) FROM postings WHERE user_id = '{user_id}'"
    )


# How the bytes arrive


def test_a_delivery_is_credited_and_then_replayed(gunicorn: Gunicorn, database: Database) -> None:
    text = body(rewardId="plain", userId="plain")
    first, again = gunicorn.deliver(text), gunicorn.deliver(text)
    assert first.told()["status"] == "credited"
    assert again.told() == first.told() | {"status": "replayed"}
    assert credits_of(database, "plain") == [(1, 400)]


def test_a_body_in_chunks_is_read(gunicorn: Gunicorn) -> None:
    text = body(rewardId="chunks", userId="chunks")
    pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
    answer = gunicorn.deliver(text, content=iter(pieces), encode_chunked=True)
    assert answer.told()["status"] == "credited"


def test_a_body_that_arrives_byte_by_byte_is_read(gunicorn: Gunicorn) -> None:
    text = body(rewardId="bytes", userId="bytes")
    with contextlib.closing(gunicorn.client()) as client:
        client.putrequest("POST", PATH)
        for name, value in (signed(text) | {"Content-Length": str(len(text))}).items():
            client.putheader(name, value)
        client.endheaders()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(text)):
            client.send(text[place : place + 1])
        assert _answer(client).told()["status"] == "credited"


def test_many_deliveries_share_one_connection(gunicorn: Gunicorn) -> None:
    with contextlib.closing(gunicorn.client()) as client:
        for number in range(20):
            text = body(rewardId=f"kept-{number}", userId="kept")
            client.request("POST", PATH, text, signed(text))
            assert _answer(client).told()["posting"]["version"] == number + 1


def test_a_sender_that_asks_before_it_sends_is_told_to_go_on_or_not(gunicorn: Gunicorn) -> None:
    text = body(rewardId="expect", userId="expect")
    head = _head(signed(text) | {"Content-Length": str(len(text)), "Expect": "100-continue"})
    with gunicorn.connect() as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(text)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    head = _head(signed(text) | {"Content-Length": "70000", "Expect": "100-continue"})
    assert gunicorn.exchange(head).startswith(b"HTTP/1.1 413 ")


def _head(headers: dict[str, str], *more: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: ledger", *more]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("place", [0, 1])
def test_two_signatures_are_not_believed_even_if_one_is_right(
    gunicorn: Gunicorn, place: int
) -> None:
    text = body(rewardId="two signatures")
    signatures = ["X-CG-SIGNATURE: " + "0" * 40] * 2
    signatures[place] = "X-CG-SIGNATURE: " + signed(text)["X-CG-SIGNATURE"]
    headers = {"Content-Length": str(len(text)), "Connection": "close"}
    received = gunicorn.exchange(_head(headers, *signatures) + text)
    assert received.startswith(b"HTTP/1.1 401 ")


def test_a_signature_with_underscores_is_not_looked_at(gunicorn: Gunicorn) -> None:
    text = body(rewardId="underscores")
    answer = gunicorn.deliver(text, {"X_CG_SIGNATURE": signed(text)["X-CG-SIGNATURE"]})
    assert answer.problem() == (401, "not-believed")


def test_a_body_that_ends_too_early_is_not_credited(gunicorn: Gunicorn, database: Database) -> None:
    """The sender says that it is done and could still hear an answer."""
    text = body(rewardId="short", userId="short")
    announced = _head(signed(text) | {"Content-Length": str(len(text) + 1)})
    chunked = _head(signed(text) | {"Transfer-Encoding": "chunked"})
    begun = b"%x\r\n%s" % (len(text), text[:-1])
    for sent in (announced, announced + text, chunked, chunked + begun):
        received = gunicorn.exchange(sent, shut=True)
        assert received == b"" or received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert credits_of(database, "short") == [(0, 0)]


def test_stuck_bodies_are_cut_and_delay_nobody(gunicorn: Gunicorn) -> None:
    """Some have sent nothing of their body, some a part of it."""
    text = body(rewardId="stuck")
    head = _head(signed(text) | {"Content-Length": str(len(text))})
    stuck = [gunicorn.connect() for _ in range(40)]
    try:
        for number, connection in enumerate(stuck):
            connection.sendall(head + text[: 10 * (number % 2)])
        good = body(rewardId="not stuck", userId="not stuck")
        assert gunicorn.deliver(good).told()["status"] == "credited"
        begun = time.monotonic()
        for connection in stuck:
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 400 ")
            assert b"incomplete" in received
        assert time.monotonic() - begun < READ_SECONDS_MAX + SLACK_SECONDS
    finally:
        for connection in stuck:
            connection.close()


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_over_the_limit_is_refused(gunicorn: Gunicorn, is_chunked: bool) -> None:
    text = body(rewardId="large", rewardName="n" * 65_536)[: 64 * 1024 + 1]
    content = iter([text[:40_000], text[40_000:]]) if is_chunked else text
    answer = gunicorn.deliver(text, content=content, encode_chunked=is_chunked)
    assert answer.problem() == (413, "too-large")


def test_a_body_without_end_is_cut_at_the_limit(gunicorn: Gunicorn) -> None:
    with gunicorn.connect() as connection:
        connection.sendall(_head(signed(b"") | {"Transfer-Encoding": "chunked"}))
        received = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            received = connection.recv(65536)
        assert received == b"" or received.startswith(b"HTTP/1.1 413 ")


LENGTH = {"Content-Length": "2"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (_head(LENGTH | {"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", 400),
        (_head(LENGTH, "Content-Length: 3") + b"{}", 400),
        (_head({"Content-Length": "-2"}) + b"{}", 400),
        (_head({"Content-Length": "two"}) + b"{}", 400),
        (_head(LENGTH).replace(b"\r\n", b"\n") + b"{}", 400),
        (_head(LENGTH, "X-Folded: a", " b") + b"{}", 400),
        (_head(LENGTH, "X-Large: " + "x" * 9_000) + b"{}", 431),
        (_head(LENGTH, *["X-Many: x"] * 60) + b"{}", 431),
        (_head(LENGTH).replace(PATH.encode(), b"/" + b"x" * 3_000), 414),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_refused(gunicorn: Gunicorn, sent: bytes, status: int) -> None:
    assert gunicorn.exchange(sent, shut=True).startswith(b"HTTP/1.1 %d " % status)


def test_errors_are_problems_over_the_wire(gunicorn: Gunicorn) -> None:
    with contextlib.closing(gunicorn.client()) as client:
        client.request("GET", PATH)
        answer = _answer(client)
    assert answer.problem() == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"
    text = b"[" * 60_000
    assert gunicorn.deliver(text).problem() == (400, "not-json")
    assert gunicorn.deliver(text, {}).problem() == (401, "not-believed")


def test_who_speaks_cannot_pretend_to_be_another(gunicorn: Gunicorn) -> None:
    text = body(rewardId="forwarded", userId="forwarded")
    headers = signed(text) | {"X-Forwarded-Proto": "https", "X-Forwarded-For": "20.207.108.216"}
    assert gunicorn.deliver(text, headers).told()["status"] == "credited"


# Many at once, over several processes


def _deliver_all(gunicorn: Gunicorn, texts: list[bytes], connections: int) -> list[Answer]:
    """The answers to ``texts``, in their order, sent over so many connections at once."""
    answers: dict[int, Answer] = {}
    numbers = iter(range(len(texts)))
    lock = threading.Lock()
    ready = threading.Barrier(connections)

    def deliver() -> None:
        with contextlib.closing(gunicorn.client()) as client:
            client.connect()
            ready.wait(WAIT_SECONDS_MAX)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                client.request("POST", PATH, texts[number], signed(texts[number]))
                answers[number] = _answer(client)

    with ThreadPoolExecutor(connections) as threads:
        for future in [threads.submit(deliver) for _ in range(connections)]:
            future.result()
    return [answers[number] for number in range(len(texts))]


def test_fifty_deliveries_of_a_reward_at_once_credit_it_once(
    gunicorn: Gunicorn, database: Database
) -> None:
    text = body(rewardId="fifty", userId="fifty")
    answers = [answer.told() for answer in _deliver_all(gunicorn, [text] * 50, 50)]
    credited = [told for told in answers if told["status"] == "credited"]
    assert len(credited) == 1
    assert answers.count(credited[0] | {"status": "replayed"}) == 49
    assert credits_of(database, "fifty") == [(1, 400)]


def test_every_answer_is_that_of_its_own_delivery(database: Database) -> None:
    """The app is loaded before the fork: what it had opened then, all workers would share."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    asked = [(f"own-{number}", f"own-{number % 97}", 1 + number) for number in range(800)]
    sent = asked + generator.sample(asked, 200)
    generator.shuffle(sent)
    texts = [body(rewardId=one, userId=user, rewardAmount=sum_) for one, user, sum_ in sent]
    with running(database.url(), "--preload", INGRESS_WORKERS="3") as gunicorn:
        answers = _deliver_all(gunicorn, texts, 24)
    receipts: dict[str, Any] = {}
    for (reward_id, user_id, _), answer in zip(sent, answers, strict=True):
        told = answer.told()
        assert told["rewardId"] == reward_id
        assert told["posting"]["userId"] == user_id
        # Whichever of two came first: both have the same receipt.
        del told["status"]
        assert receipts.setdefault(reward_id, told) == told
    statuses = [answer.told()["status"] for answer in answers]
    assert (statuses.count("credited"), statuses.count("replayed")) == (800, 200)
    posted = database.rows(
        "SELECT reward_id, user_id, amount::int FROM postings WHERE user_id LIKE 'own-%'"
    )
    assert sorted(posted) == sorted(asked)


# The end of the process


def test_requests_in_flight_are_finished_before_the_end(database: Database) -> None:
    texts = [body(rewardId=f"end-{number}", userId="end") for number in range(20)]
    arguments = ("--log-level", "info")
    with (
        running(database.url(), *arguments, INGRESS_WORKERS="2") as gunicorn,
        contextlib.ExitStack() as open_,
    ):
        _wait_until(lambda: gunicorn.said().count("server listening") == 2)
        idle = open_.enter_context(gunicorn.connect())
        idle.sendall(b"GET / HTTP/1.1\r\nHost: ledger\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 404 ")
        sending = [(open_.enter_context(gunicorn.connect()), text) for text in texts]
        for connection, text in sending:
            head = _head(signed(text) | {"Content-Length": str(len(text))})
            connection.sendall(head + text[:-1])
        # Half of them have begun to post when the end begins, the others are still arriving.
        for connection, text in sending[::2]:
            connection.sendall(text[-1:])
        gunicorn.process.terminate()
        # A worker looks once a second whether it shall end.
        time.sleep(1.5)
        for connection, text in sending[1::2]:
            connection.sendall(text[-1:])
        for connection, _ in sending:
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 "), received
            connection.close()
        # The idle connection is still open. It must not cost a worker its orderly end.
        assert gunicorn.process.wait(WAIT_SECONDS_MAX) == 0
        assert gunicorn.said().count("Worker exiting") == 2
        assert "Traceback" not in gunicorn.said()
    assert credits_of(database, "end") == [(20, 8_000)]


# A setting that cannot be used


@pytest.mark.parametrize("arguments", [(), ("--preload",)])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"INGRESS_TOKEN": ""}, "INGRESS_TOKEN is required."),
        ({"INGRESS_WORKERS": "many"}, "INGRESS_WORKERS must be a whole number from 1 to 64."),
        (
            {"DATABASE_URL": "postgresql://u:p4ssw%zzrd@db/ledger"},
            "DATABASE_URL is not a libpq URI or conninfo.",
        ),
    ],
)
def test_it_does_not_start_with_a_bad_setting_and_says_so_in_one_line(
    settings: dict[str, str], sentence: str, arguments: tuple[str, ...]
) -> None:
    good = {"DATABASE_URL": "dbname=ledger", "INGRESS_TOKEN": "t0ken"}
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "ingress/gunicorn_conf.py", *arguments],
        cwd=ROOT,
        env=_environment(INGRESS_BIND=f"127.0.0.1:{free_port()}", **(good | settings)),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == f"The ingress cannot start: {sentence}\n"


# While Postgres is away


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of these tests' own, which they stop, kill and start again."""
    with throw_away_postgres() as server:
        yield server


def _kill(server: EmbeddedPostgres) -> None:
    postmaster = int((server.data_directory / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)


def test_without_postgres_the_sender_is_soon_asked_to_send_again(
    own_postgres: EmbeddedPostgres,
) -> None:
    texts = [body(rewardId=f"away-{number}", userId="away") for number in range(8)]
    own = Database(own_postgres, "ledger")

    def answers() -> list[Answer]:
        return _deliver_all(gunicorn, texts, len(texts))

    with running(own.url(), INGRESS_WORKERS="2") as gunicorn:
        assert gunicorn.deliver(texts[0]).told()["status"] == "credited"
        for end in (_kill, EmbeddedPostgres.stop):
            end(own_postgres)
            begun = time.monotonic()
            for answer in answers():
                assert answer.problem() == (503, "unavailable")
            assert time.monotonic() - begun < ANSWER_SECONDS_MAX + SLACK_SECONDS
            # What can be answered without Postgres still is.
            assert gunicorn.deliver(texts[0], {}).problem() == (401, "not-believed")
            # What is believed and no reward has to be kept first.
            assert gunicorn.deliver(b"[]").problem() == (503, "unavailable")
            own_postgres.stop()
            own_postgres.start()
            _wait_until(lambda: {answer.status for answer in answers()} == {200})
            assert {answer.told()["status"] for answer in answers()} == {"replayed"}
            assert credits_of(own, "away") == [(8, 3_200)]
        assert "Traceback" not in gunicorn.said()


def test_a_postgres_that_takes_no_more_connections_is_away_until_it_does(
    own_postgres: EmbeddedPostgres,
) -> None:
    own = Database(own_postgres, "ledger")
    texts = [body(rewardId=f"exhausted-{number}", userId="exhausted") for number in range(8)]
    with running(own.url(), INGRESS_WORKERS="2") as gunicorn:
        own.rows("ALTER DATABASE ledger CONNECTION LIMIT 0", SUPERUSER)
        try:
            own.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'ledger_writer'",
                SUPERUSER,
            )
            begun = time.monotonic()
            for answer in _deliver_all(gunicorn, texts, len(texts)):
                assert answer.problem() == (503, "unavailable")
            assert time.monotonic() - begun < ANSWER_SECONDS_MAX + SLACK_SECONDS
        finally:
            own.rows("ALTER DATABASE ledger CONNECTION LIMIT -1", SUPERUSER)
        assert credits_of(own, "exhausted") == [(0, 0)]
        _wait_until(lambda: {gunicorn.deliver(text).status for text in texts} == {200})
        assert credits_of(own, "exhausted") == [(8, 3_200)]


def test_it_starts_without_postgres_and_works_when_postgres_comes(
    own_postgres: EmbeddedPostgres,
) -> None:
    own = Database(own_postgres, "ledger")
    own_postgres.stop()
    text = body(rewardId="late", userId="late")
    with running(own.url()) as gunicorn:
        assert gunicorn.deliver(text).problem() == (503, "unavailable")
        own_postgres.start()
        _wait_until(lambda: gunicorn.deliver(text).status == 200)
        assert credits_of(own, "late") == [(1, 400)]


def test_killed_backends_cost_no_reward(own_postgres: EmbeddedPostgres) -> None:
    """Every connection of the writer is killed again and again while rewards come in."""
    own = Database(own_postgres, "ledger")
    texts = [body(rewardId=f"killed-{number}", userId="killed") for number in range(300)]
    is_over = threading.Event()

    def kill() -> None:
        with psycopg.connect(own.url(SUPERUSER), autocommit=True) as connection:
            while not is_over.wait(0.03):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'ledger_writer'"
                )

    with running(own.url(), INGRESS_WORKERS="2") as gunicorn, ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill)
        try:
            answers = _deliver_all(gunicorn, texts, 16)
        finally:
            is_over.set()
        killing.result()
        assert {answer.status for answer in answers} <= {200, 503}
        answered = sum(answer.status == 200 for answer in answers)
        assert credits_of(own, "killed")[0][0] >= answered
        _wait_until(
            lambda: {answer.status for answer in _deliver_all(gunicorn, texts, 16)} == {200}
        )
    assert credits_of(own, "killed") == [(300, 120_000)]
