"""`ledger run`: everything up with one command, and down again whatever happens."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from ledger.client import LedgerClient
from ledger.operations.welcome import PATH, REWARD, compact, sign
from tests.conftest import initialise
from tests.serving import free_port

LEDGER = [sys.executable, "-m", "ledger"]


class Place(NamedTuple):
    """A data directory and free addresses of this test's own."""

    environment: dict[str, str]
    started: list[subprocess.Popen[str]]
    said: list[str]
    """The lines that the last start read."""

    @property
    def directory(self) -> Path:
        return Path(self.environment["LEDGER_DATA"])

    def start(self, **changed: str) -> subprocess.Popen[str]:
        """`ledger run`, when it has said that it is up."""
        process = subprocess.Popen(
            [*LEDGER, "run"],
            env={**self.environment, **changed},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        self.said.clear()
        for line in process.stdout:
            self.said.append(line)
            if "ledger verify" in line:
                return process
        raise AssertionError(f"ended with {process.wait()}")

    def command(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LEDGER, *arguments],
            env={**self.environment, **changed},
            capture_output=True,
            text=True,
            check=False,
        )

    def post(self, token: str | None = None) -> dict[str, object]:
        """What the ingress answers to the documented example."""
        body = compact(REWARD)
        token = token or (self.directory / "development-token").read_text()
        connection = http.client.HTTPConnection(self.environment["INGRESS_BIND"], timeout=10)
        connection.request("POST", PATH, body, {"X-CG-SIGNATURE": sign(body, token)})
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        connection.close()
        return answer


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


@contextmanager
def made() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="ledger-run-") as name:
        Path(name).chmod(0o711)
        (Path(name) / "postgres").mkdir()
        initialise(Path(name) / "postgres")
        kept = {n: os.environ[n] for n in os.environ if not n.startswith(("LEDGER", "INGRESS"))}
        kept.pop("DATABASE_URL", None)
        place = Place(
            {
                **kept,
                "LEDGER_DATA": name,
                "INGRESS_BIND": free_address(),
                "LEDGER_BIND": free_address(),
                "INGRESS_METRICS_BIND": "",
                "INGRESS_LOG": "off",
                "LEDGER_METRICS_BIND": "",
                "LEDGER_LOG": "off",
            },
            [],
            [],
        )
        before = ours(place)
        try:
            yield place
        finally:
            for process in place.started:
                process.terminate()
                ended(process)
            # A worker needs a moment to see that its killed parent is gone.
            _, left = psutil.wait_procs([p for p in ours(place) if p not in before], timeout=10)
            for process in left:
                process.kill()
        assert left == []


@pytest.fixture
def place() -> Iterator[Place]:
    with made() as place:
        yield place


@pytest.fixture(scope="module")
def running() -> Iterator[Place]:
    """Where everything is up, with a made up token, though an earlier run was killed while it
    wrote one."""
    with made() as place:
        (place.directory / "development-token.unfinished").write_text("hal")
        (place.directory / "children.json.unfinished").write_text("[{")
        place.start()
        yield place


@pytest.fixture(scope="module")
def running_with_a_token() -> Iterator[Place]:
    """Where everything is up, with a given token."""
    with made() as place:
        callers = place.directory / "callers.toml"
        digest = hashlib.sha256(b"secret").hexdigest()
        callers.write_text(f'[ann]\ntoken_sha256 = "{digest}"\nscopes = ["reverse"]\n')
        corrects = {"LEDGER_CALLERS": str(callers), "LEDGER_CORRECTIONS": "on"}
        place.start(INGRESS_TOKEN="given", **corrects)
        yield place


def ours(place: Place) -> list[psutil.Process]:
    """The processes that work for this place."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LEDGER_DATA") == str(place.directory) or str(
                place.directory
            ) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> int:
    process.send_signal(number)
    return ended(process)


def ended(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(30)
    finally:
        # Else one that stays would keep the whole run waiting.
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everything_starts_answers_and_stops_cleanly(place: Place, number: int) -> None:
    """In a directory where nothing was before."""
    shutil.rmtree(place.directory / "postgres")
    process = place.start()
    assert place.post()["status"] == "credited"
    assert json.loads(place.command("balance", "testuser1", "--json").stdout)[0]["balance"] == "400"
    assert end(process, number) == 0
    assert ours(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_ended_while_it_starts_leaves_nothing_running(place: Place, number: int) -> None:
    process = subprocess.Popen([*LEDGER, "run"], env=place.environment, stderr=subprocess.PIPE)
    pid_file = place.directory / "postgres" / "data" / "postmaster.pid"
    while process.poll() is None and not pid_file.exists():
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert ours(place) == []


def line_on_the_token(place: Place) -> str:
    (line,) = [line for line in place.said if line.strip().startswith("token")]
    return line


def test_a_made_up_token_is_kept_for_its_owner_only_and_not_told(running: Place) -> None:
    path = running.directory / "development-token"
    assert f"made up, kept in {path}" in line_on_the_token(running)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) >= 32
    assert path.read_text() not in "".join(running.said)
    assert running.post()["status"] in {"credited", "replayed"}


def test_a_second_run_says_that_one_is_running(running: Place) -> None:
    second = running.command("run")
    assert second.returncode == 1
    assert f"running already (process {running.started[0].pid})" in second.stderr
    assert running.post()["status"] in {"credited", "replayed"}


def test_a_given_token_is_used_and_not_told_and_none_is_made_up(
    running_with_a_token: Place,
) -> None:
    assert "the one of INGRESS_TOKEN" in line_on_the_token(running_with_a_token)
    assert "given" not in "".join(running_with_a_token.said)
    assert running_with_a_token.post("given")["status"] in {"credited", "replayed"}
    assert not (running_with_a_token.directory / "development-token").exists()


def test_the_secrets_of_the_door_are_the_doors_alone(running_with_a_token: Place) -> None:
    process = running_with_a_token.started[0]
    found = {
        "serve" in member.cmdline(): member.environ()
        for member in psutil.Process(process.pid).children(recursive=True)
        if {"serve", "ingress"} & set(member.cmdline()) or "gunicorn" in str(member.cmdline())
    }
    assert found[False]["INGRESS_TOKEN"] == "given"
    assert not [name for name in found[True] if name.startswith("INGRESS_")]


def test_the_service_takes_back_where_that_is_asked_for(running_with_a_token: Place) -> None:
    running_with_a_token.post("given")
    with LedgerClient(running_with_a_token.environment["LEDGER_BIND"], token="secret") as ledger:
        taken = ledger.reverse_reward(str(REWARD["rewardId"]), key="key", reason="a mistake")
    assert (taken.actor, taken.posting.balance_after) == ("ann", 0)


def test_that_anybody_may_post_is_told(place: Place) -> None:
    place.start(INGRESS_ALLOW_UNSIGNED="yes, anybody may post rewards")
    assert "none: anybody" in line_on_the_token(place)
    assert not (place.directory / "development-token").exists()


def test_the_next_run_has_the_token_and_the_books_of_the_one_before(place: Place) -> None:
    process = place.start()
    token = (place.directory / "development-token").read_text()
    assert place.post(token)["status"] == "credited"
    end(process)
    place.start()
    assert place.post(token)["status"] == "replayed"


def test_a_taken_address_is_named(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name in ("INGRESS_BIND", "LEDGER_BIND"):
            refused = place.command("run", **{name: address})
            assert refused.returncode == 1
            assert address in refused.stderr
            assert "Traceback" not in refused.stderr


def test_killing_everything_loses_nothing_and_the_next_run_works(place: Place) -> None:
    process = place.start()
    assert place.post()["status"] == "credited"
    for member in ours(place):
        member.kill()
    ended(process)
    process = place.start()
    assert place.post()["status"] == "replayed"
    assert place.command("verify").returncode == 0
    end(process)


def test_the_next_run_ends_what_a_killed_one_left_behind(place: Place) -> None:
    process = place.start()
    left = [member for member in ours(place) if member.pid != process.pid]
    process.kill()
    ended(process)
    assert any(member.is_running() for member in left)
    process = place.start()
    assert [m for m in left if m.is_running() and m.status() != psutil.STATUS_ZOMBIE] == []
    assert place.post()["status"] == "credited"
    end(process)


def test_a_part_that_ends_by_itself_ends_the_run(place: Place) -> None:
    process = place.start()
    (ingress,) = (
        child
        for child in psutil.Process(process.pid).children()
        if "gunicorn" in str(child.cmdline())
    )
    ingress.kill()
    assert ended(process) == 1


def test_several_processes_serve_one_port_and_a_died_one_comes_back(place: Place) -> None:
    process = place.start(LEDGER_PROCESSES="2")
    (watcher,) = (
        child for child in psutil.Process(process.pid).children() if child.cmdline()[-1] == "serve"
    )
    first = watcher.children()
    assert len(first) == 2
    first[0].kill()
    while len(alive := [c for c in watcher.children() if c.status() != psutil.STATUS_ZOMBIE]) < 2:
        assert watcher.is_running()
    assert first[1] in alive
    end(process)
