"""Crowds of connections that get stuck delay no good delivery, and are closed in time.

A real gunicorn with one worker, a real Postgres, and 300 connections of every kind of stuck.
"""

import contextlib
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import psutil
import psycopg
import pytest

from ingress import connections
from ingress.connections import (
    ANSWER_SECONDS_MAX,
    HEADERS_SECONDS_MAX,
    SWEEP_SECONDS,
    TINY_BYTES,
    TINY_PIECES_MAX,
)
from ingress.webhook import READ_SECONDS_MAX
from ledger.embedded import EmbeddedPostgres
from ledger.quarantine import WAIT_SECONDS_MAX as KEEP_SECONDS_MAX
from ledger.writing import WAIT_SECONDS_MAX as POST_SECONDS_MAX
from tests.conftest import OWNER, SUPERUSER, Database
from tests.ingress.deliveries import PATH, body, signed
from tests.ingress.test_gunicorn import Gunicorn, running

CROWD = 300
DRIP_SECONDS = 0.1
NOT_READ_BYTES = 4096
"""How much may wait in the kernel of who does not read."""
DELAY_SECONDS_MAX = 1.0
"""What is promised: so much longer may a good delivery take beside a crowd, and no more."""
CLOCK_SECONDS = 0.05
"""How far two clocks may differ that are looked at only now and then."""
WAIT_SECONDS_MAX = 60.0
ROUNDS = 3
SLACK_SECONDS = 2.0
"""For a machine that is busy with other tests."""

# The limits are the real ones of the code, made short, so that no test waits for them for long.
HEADERS, READ, ANSWER, KEPT = 2.0, 2.0, 4.0, 5
SHORT = f"""
from ingress.gunicorn_conf import *
from ingress import connections, webhook
connections.HEADERS_SECONDS_MAX = {HEADERS}
connections.ANSWER_SECONDS_MAX = {ANSWER}
webhook.READ_SECONDS_MAX = {READ}
keepalive = {KEPT}
wsgi_app = "tests.ingress.large_answers:app()"
"""


BOUNDED = "worker_connections = 100"


class Kind(NamedTuple):
    """One way to be stuck: what is sent, what comes back, and when it is over."""

    name: str
    sent: bytes = b""
    drip: bytes = b""
    """Sent again and again, with a pause."""
    answer: bytes = b""
    """What the one answer begins with; nothing for none."""
    holds: bytes = b""
    seconds: float = HEADERS
    """How long it is borne with."""
    first: bytes = b""
    """A whole request, whose answer is awaited before ``sent`` goes out."""
    reads: bool = True
    """If not, it is borne with for ANSWER from when no more of the answer can be sent."""


TEXT = body(rewardId="stuck", userId="stuck")


def _head(**headers: str) -> bytes:
    told = {"Host": "ledger"} | signed(TEXT) | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in told.items()]
    return "\r\n".join([f"POST {PATH} HTTP/1.1", *lines, "", ""]).encode()


ANNOUNCED = _head(Content_Length=str(len(TEXT)))
CHUNKED = _head(Transfer_Encoding="chunked")
GET = b"GET / HTTP/1.1\r\nHost: ledger\r\n\r\n"
LARGE = GET.replace(b"/", b"/large", 1)
TOO_SLOW = b"HTTP/1.1 408 "
INCOMPLETE = {"answer": b"HTTP/1.1 400 ", "holds": b":incomplete", "seconds": READ}
REFUSED_AHEAD = {"answer": b"HTTP/1.1 404 ", "holds": b"Connection: close", "seconds": 0.0}
TINY = {"answer": b"HTTP/1.1 400 ", "holds": b"too many pieces", "seconds": 0.0}

KINDS = [
    Kind("connected and silent"),
    Kind("half a request line", ANNOUNCED[:12], answer=TOO_SLOW),
    Kind("half the headers", ANNOUNCED[:60], answer=TOO_SLOW),
    Kind("headers byte by byte", ANNOUNCED[:-4] + b"\r\nX: ", b"x", answer=TOO_SLOW),
    Kind("no body", ANNOUNCED, **INCOMPLETE),
    Kind("half a body", ANNOUNCED + TEXT[: len(TEXT) // 2], **INCOMPLETE),
    Kind("a body byte by byte", ANNOUNCED, b"{", **INCOMPLETE),
    Kind("chunks without end", CHUNKED, b"1\r\n{\r\n", **INCOMPLETE),
    Kind("a body in tiny chunks", CHUNKED + b"1\r\n{\r\n" * (TINY_PIECES_MAX + 1), **TINY),
    Kind("half a chunk", CHUNKED + b"10\r\n{", **INCOMPLETE),
    Kind("kept without a request", first=GET, seconds=KEPT),
    Kind("kept, then half the headers", ANNOUNCED[:60], first=GET, answer=TOO_SLOW),
    Kind("a request, and at once half of the next", GET + ANNOUNCED[:60], **REFUSED_AHEAD),
    Kind("all requests at once", GET * 600, **REFUSED_AHEAD),
    Kind("an answer never taken", LARGE, reads=False),
]


class Crowd:
    """So many connections that are stuck in one way, watched by a thread."""

    def __init__(self, gunicorn: Gunicorn, kind: Kind, count: int = CROWD) -> None:
        self._address = ("127.0.0.1", gunicorn.port)
        self._kind = kind
        self._count = count
        self.opened_at: dict[socket.socket, float] = {}
        self.closed_at: dict[socket.socket, float] = {}
        self.received: dict[socket.socket, bytes] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for connection in self.opened_at:
            connection.close()

    def is_open(self) -> bool:
        """Whether all have come and got stuck."""
        return len(self.opened_at) == self._count

    def check(self) -> None:
        """Fails unless each was closed in its time, and answered as it should."""
        kind = self._kind
        if not kind.reads:
            return
        _wait_until(lambda: len(self.closed_at) == self._count)
        lived = [self.closed_at[one] - self.opened_at[one] for one in self.opened_at]
        assert min(lived) > kind.seconds - CLOCK_SECONDS
        assert max(lived) < kind.seconds + SWEEP_SECONDS + SLACK_SECONDS
        answers = list(self.received.values())
        if kind.drip and kind.answer:
            # What is sent to a closed connection has the kernel throw away what was not read yet.
            answers = [received for received in answers if received]
            assert len(answers) > self._count / 2
        for received in answers:
            assert received.startswith(kind.answer)
            assert kind.holds in received
            assert received.count(b"HTTP/1.1 ") == bool(kind.answer)

    def _live(self) -> None:
        with selectors.DefaultSelector() as selector:
            for _ in range(self._count):
                connection = self._open()
                if self._kind.reads:
                    selector.register(connection, selectors.EVENT_READ)
            drip_at = time.monotonic()
            while not self._is_over.is_set():
                for key, _ in selector.select(0.02):
                    self._read(selector, key.fileobj)
                if self._kind.drip and time.monotonic() > drip_at:
                    for connection in self.opened_at.keys() - self.closed_at.keys():
                        with contextlib.suppress(OSError):
                            connection.send(self._kind.drip)
                    drip_at = time.monotonic() + DRIP_SECONDS

    def _open(self) -> socket.socket:
        connection, opened_at = socket.socket(), time.monotonic()
        connection.settimeout(WAIT_SECONDS_MAX)
        if not self._kind.reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NOT_READ_BYTES)
        # Each drip is a packet of its own: requests that come together are refused.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Where there is no room for all, some are cut before they come so far.
        with contextlib.suppress(OSError):
            connection.connect(self._address)
            if self._kind.first:
                connection.sendall(self._kind.first)
                connection.recv(65536)
            connection.sendall(self._kind.sent)
        connection.setblocking(False)
        self.received[connection] = b""
        self.opened_at[connection] = opened_at
        return connection

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        try:
            piece = connection.recv(65536)
        except OSError:
            piece = b""
        self.received[connection] += piece
        if not piece:
            self.closed_at[connection] = time.monotonic()
            selector.unregister(connection)


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    name = "test_stuck_clients"
    with psycopg.connect(postgres.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER} STRATEGY file_copy"
        )
        yield Database(postgres, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _configured(directory: Path, more: str = "") -> tuple[str, str]:
    file = directory / "short.py"
    file.write_text(SHORT + more)
    return "-c", str(file)


@pytest.fixture(scope="module")
def gunicorn(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One gunicorn with one worker and short limits."""
    arguments = _configured(tmp_path_factory.mktemp("gunicorn"))
    with running(database.url(), *arguments) as gunicorn:
        yield gunicorn


def _worker(gunicorn: Gunicorn) -> psutil.Process:
    (worker,) = psutil.Process(gunicorn.process.pid).children()
    return worker


def _held(gunicorn: Gunicorn) -> int:
    """How many connections the worker has open."""
    told = _worker(gunicorn).net_connections("tcp")
    return sum(one.status != "LISTEN" and one.laddr.port == gunicorn.port for one in told)


_numbers = iter(range(1_000_000))


def _deliver(gunicorn: Gunicorn) -> float:
    """How long a good delivery takes, on a connection of its own, that is credited."""
    number = next(_numbers)
    text = body(rewardId=f"good-{number}", userId=f"good-{number % 7}")
    begun = time.monotonic()
    told = gunicorn.deliver(text).told()
    seconds = time.monotonic() - begun
    assert told["status"] == "credited"
    return seconds


def _wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _wait_until_free(gunicorn: Gunicorn) -> None:
    _wait_until(lambda: _held(gunicorn) == 0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_stuck_crowd_delays_no_good_delivery_and_is_closed_in_time(
    gunicorn: Gunicorn, database: Database, kind: Kind
) -> None:
    # What else this machine does delays a delivery now and then; a crowd would do so each time.
    for _ in range(ROUNDS):
        _wait_until_free(gunicorn)
        alone = max(_deliver(gunicorn) for _ in range(10))
        with Crowd(gunicorn, kind) as crowd:
            beside = max(_deliver_beside(gunicorn, crowd))
            crowd.check()
        if beside < alone + DELAY_SECONDS_MAX:
            break
    assert beside < alone + DELAY_SECONDS_MAX
    assert database.rows("SELECT FROM rewards WHERE user_id = 'stuck'") == []
    assert database.rows("SELECT FROM quarantine") == []
    assert gunicorn.said() == ""


def _deliver_beside(gunicorn: Gunicorn, crowd: Crowd) -> Iterator[float]:
    """How long each good delivery takes from when the first comes until the last is closed."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    for _ in range(5):
        yield _deliver(gunicorn)
    while not crowd.is_open() or _held(gunicorn):
        assert time.monotonic() < end, f"{_held(gunicorn)} are still open"
        yield _deliver(gunicorn)
        time.sleep(0.02)


def test_answers_that_are_never_taken_are_given_up_however_many_they_are(
    gunicorn: Gunicorn,
) -> None:
    """Some are all in the kernel when the connection is closed, some wait in the worker."""
    _wait_until_free(gunicorn)
    kind = Kind("", reads=False)
    with Crowd(gunicorn, kind, 100) as crowd:
        _wait_until(crowd.is_open)
        waiting = list(crowd.opened_at)
        while waiting:
            for connection in waiting:
                with contextlib.suppress(OSError):
                    connection.send(GET)
            waiting.pop()
            time.sleep(0.03)
        _wait_until_free(gunicorn)


def test_a_body_may_come_in_many_pieces_but_not_in_any_number(gunicorn: Gunicorn) -> None:
    _wait_until_free(gunicorn)

    def answer(text: bytes, size: int) -> int:
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        return gunicorn.deliver(text, content=iter(pieces), encode_chunked=True).status

    text = body(rewardId="pieces", userId="pieces")
    text += b" " * (TINY_PIECES_MAX - len(text))
    assert answer(text, 1) == 200
    assert answer(text + b" ", 1) == 400
    largest = text + b" " * (64 * 1024 - len(text))
    assert answer(largest, TINY_BYTES) == 200


def test_the_limits_leave_each_other_room() -> None:
    """Whoever is answered at all has the answer before the connection is cut."""
    needed = READ_SECONDS_MAX + max(POST_SECONDS_MAX + KEEP_SECONDS_MAX, 3.0)
    assert needed + 2 * SWEEP_SECONDS < ANSWER_SECONDS_MAX
    assert HEADERS_SECONDS_MAX > READ_SECONDS_MAX


@pytest.mark.parametrize(
    "more",
    [
        BOUNDED,
        # The same bound, because a process may have only so many files.
        f"""
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100 + {connections.FILES_RESERVED}, most))
""",
    ],
    ids=["connections", "files"],
)
def test_where_more_get_stuck_than_there_is_room_for_the_oldest_make_room(
    database: Database, tmp_path: Path, more: str
) -> None:
    kinds = [kind for kind in KINDS if kind.reads]
    with running(database.url(), *_configured(tmp_path, more)) as gunicorn:
        alone = max(_deliver(gunicorn) for _ in range(10))
        beside, held = [], []
        with contextlib.ExitStack() as open_:
            crowds = [open_.enter_context(Crowd(gunicorn, kind, CROWD // 5)) for kind in kinds]
            end = time.monotonic() + HEADERS / 2
            while time.monotonic() < end or not all(crowd.is_open() for crowd in crowds):
                assert time.monotonic() < end + WAIT_SECONDS_MAX
                beside.append(_deliver(gunicorn))
                held.append(_held(gunicorn))
        assert max(beside) < alone + DELAY_SECONDS_MAX
        assert 50 < max(held) <= 100
        time.sleep(2 * SWEEP_SECONDS)
        assert "more than 100 connections: " in gunicorn.said()
        assert "Traceback" not in gunicorn.said()


def test_a_delivery_that_waits_for_postgres_makes_no_room(
    database: Database, tmp_path: Path
) -> None:
    text = body(rewardId="waits", userId="waits")
    with (
        running(database.url(), *_configured(tmp_path, BOUNDED)) as gunicorn,
        psycopg.connect(database.url()) as blocker,
        ThreadPoolExecutor(1) as thread,
    ):
        blocker.execute("LOCK TABLE rewards")
        delivery = thread.submit(gunicorn.deliver, text)
        _wait_until(lambda: _held(gunicorn) == 1)
        time.sleep(0.2)
        with Crowd(gunicorn, KINDS[0]) as crowd:
            _wait_until(crowd.is_open)
            assert not delivery.done()
            blocker.rollback()
            assert delivery.result().told()["status"] == "credited"


def test_only_so_many_answers_wait_for_who_does_not_take_them(gunicorn: Gunicorn) -> None:
    """The kernel would keep thousands, and so would the worker."""
    _wait_until_free(gunicorn)
    count = 160
    with Crowd(gunicorn, Kind("", reads=False), 1) as crowd:
        _wait_until(crowd.is_open)
        (connection,) = crowd.opened_at
        for _ in range(count):
            connection.send(GET)
            time.sleep(0.02)
        connection.settimeout(WAIT_SECONDS_MAX)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                received += piece
    assert 10 < received.count(b"HTTP/1.1 404 ") < count * 3 / 4


def test_those_who_never_take_their_answer_make_room_first(
    database: Database, tmp_path: Path
) -> None:
    (kind,) = (kind for kind in KINDS if not kind.reads)
    with (
        running(database.url(), *_configured(tmp_path, BOUNDED)) as gunicorn,
        contextlib.closing(gunicorn.client()) as slow,
        Crowd(gunicorn, kind, 100) as crowd,
    ):
        _wait_until(crowd.is_open)
        _wait_until(lambda: _held(gunicorn) == 100)
        # They have asked for all that they want, and it has yet to.
        slow.connect()
        for _ in range(10):
            _deliver(gunicorn)
        slow.request("GET", "/")
        assert slow.getresponse().status == 404


def test_a_burst_of_connections_finds_room_to_wait_in(gunicorn: Gunicorn) -> None:
    """Else who comes with it is heard only when the kernel knocks again, a second later."""
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < CROWD:
        pytest.skip("this kernel lets fewer wait")
    _wait_until_free(gunicorn)
    worker = _worker(gunicorn)
    worker.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as open_:
        try:
            for _ in range(CROWD):
                connection = socket.create_connection(("127.0.0.1", gunicorn.port), 5)
                open_.enter_context(connection)
        finally:
            worker.send_signal(signal.SIGCONT)
        assert _deliver(gunicorn) < 5


def test_the_files_that_a_worker_needs_fit_into_what_is_reserved(gunicorn: Gunicorn) -> None:
    _deliver(gunicorn)
    assert _worker(gunicorn).num_fds() < connections.FILES_RESERVED
