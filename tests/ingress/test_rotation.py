"""A token is rotated by SIGHUP, under load and in a real gunicorn, and nothing is lost."""

import hashlib
import hmac
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from ingress.app import PATH
from tests.serving import free_port

WORKERS = 2
OLD, NEW = "the old token", "the new token"
STARTED = Callable[..., "Ingress"]


class Ingress:
    """Gunicorn with the project's configuration and two token files."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, errors: Path) -> None:
        self.process = process
        self.port = port
        self.errors = errors

    def post(self, token: str, reward_id: str) -> int:
        """What a delivery on a connection of its own is answered."""
        with closing(self.connection()) as connection:
            return deliver(connection, token, reward_id)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def reload(self) -> None:
        """SIGHUP, and until every worker is a new one."""
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_workers(before)

    def wait_for_workers(self, before: set[int]) -> None:
        """Until there are as many as there should be, and none of ``before``."""
        while len(workers := self.workers()) != WORKERS or before & workers:
            assert self.process.poll() is None
            time.sleep(0.05)

    def wait_until_it_answers(self) -> None:
        """Until all workers are there, and one of them takes requests."""
        self.wait_for_workers(set())
        while True:
            try:
                self.post("nobody's", "none")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)

    def said(self) -> str:
        return self.errors.read_text()


def deliver(connection: http.client.HTTPConnection, token: str, reward_id: str) -> int:
    told = {"campaignId": "c", "type": "direct", "userId": "u", "rewardId": reward_id}
    body = json.dumps({**told, "rewardName": "r", "rewardAmount": 1}).encode()
    signature = hmac.new(token.encode(), body, hashlib.sha1).hexdigest()
    connection.request("POST", PATH, body, {"X-CG-SIGNATURE": signature})
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.fixture
def start(database, tmp_path) -> Iterator[STARTED]:
    started: list[subprocess.Popen[bytes]] = []
    for name, content in (("current", f"{OLD}\n"), ("previous", "")):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(content)
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("INGRESS")}

    def start_(*arguments: str) -> Ingress:
        port = free_port()
        environment = {
            **kept,
            "DATABASE_URL": database.url("ledger_writer"),
            "INGRESS_BIND": f"127.0.0.1:{port}",
            "INGRESS_WORKERS": str(WORKERS),
            "INGRESS_METRICS_BIND": "",
            "INGRESS_LOG": "off",
            "INGRESS_TOKEN_FILE": str(tmp_path / "current"),
            "INGRESS_TOKEN_PREVIOUS_FILE": str(tmp_path / "previous"),
        }
        command = [sys.executable, "-m", "gunicorn", "-c", "python:ingress.gunicorn_conf"]
        with (tmp_path / "errors").open("wb") as errors:
            process = subprocess.Popen([*command, *arguments], env=environment, stderr=errors)
        started.append(process)
        return Ingress(process, port, tmp_path / "errors")

    yield start_
    for process in started:
        process.terminate()
        process.wait()


def rotate(tmp_path) -> None:
    (tmp_path / "previous").write_text(f"{OLD}\n2999-01-01T00:00:00Z\n")
    (tmp_path / "current").write_text(f"{NEW}\n")


@contextmanager
def traffic(ingress: Ingress, *, keeps_connections: bool) -> Iterator[Counter[int | str]]:
    """Deliveries under the old token from several senders, for as long as the block runs."""
    answers: Counter[int | str] = Counter()
    numbers = itertools.count()
    is_over = threading.Event()

    def send() -> None:
        with closing(ingress.connection()) as connection:
            # New workers need a share of the machine to start.
            while not is_over.wait(0.005):
                if not keeps_connections:
                    connection.close()
                try:
                    answers[deliver(connection, OLD, f"traffic-{next(numbers)}")] += 1
                except (OSError, http.client.HTTPException) as error:
                    answers[repr(error)] += 1
                    connection.close()

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        yield answers
    finally:
        is_over.set()
        for sender in senders:
            sender.join()


@pytest.mark.parametrize("keeps_connections", [True, False])
@pytest.mark.parametrize("arguments", [[], ["--preload"]])
def test_a_rotation_under_load_loses_nothing(
    start, database, tmp_path, arguments, keeps_connections
):
    ingress = start(*arguments)
    ingress.wait_until_it_answers()
    assert (ingress.post(OLD, "a"), ingress.post(NEW, "b")) == (200, 401)
    with traffic(ingress, keeps_connections=keeps_connections) as answers:
        rotate(tmp_path)
        ingress.reload()
        assert (ingress.post(OLD, "c"), ingress.post(NEW, "d")) == (200, 200)
        ingress.reload()
    assert set(answers) == {200}
    (tmp_path / "previous").write_text("")
    ingress.reload()
    assert (ingress.post(OLD, "e"), ingress.post(NEW, "f")) == (401, 200)
    assert database.rows("SELECT count(*) FROM rewards") == [(answers[200] + 4,)]


def test_a_bad_file_leaves_the_door_open_under_the_tokens_from_before(start, tmp_path):
    ingress = start()
    ingress.wait_until_it_answers()
    (tmp_path / "current").unlink()
    (tmp_path / "previous").write_text(NEW)
    ingress.reload()
    assert (ingress.post(OLD, "a"), ingress.post(NEW, "b")) == (200, 401)
    assert "INGRESS_TOKEN_FILE cannot be read" in ingress.said()
    # Also a worker that dies is replaced by one that knows them.
    died = min(ingress.workers())
    psutil.Process(died).kill()
    ingress.wait_for_workers({died})
    assert (ingress.post(OLD, "c"), ingress.post(NEW, "d")) == (200, 401)
    rotate(tmp_path)
    (tmp_path / "current").chmod(0o600)
    ingress.reload()
    assert (ingress.post(OLD, "e"), ingress.post(NEW, "f")) == (200, 200)


def test_a_bad_file_at_the_start_is_one_sentence(start, tmp_path):
    (tmp_path / "current").write_text(f"{OLD}\n{NEW}\n")
    ingress = start()
    assert ingress.process.wait() != 0
    said = ingress.said()
    assert "INGRESS_TOKEN_FILE must hold the token as its one line" in said
    assert "Traceback" not in said
    assert OLD not in said
    assert NEW not in said
