"""The spool of the ingress as it really runs: full, on a bad disk, of a machine that died."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ingress.spooling import SpoolSettings, status
from ledger.database import Role
from ledger.embedded import EmbeddedPostgres
from tests.conftest import Database, throw_away_postgres
from tests.ingress.deliveries import body
from tests.ingress.observed import Ingress, running, wait_until

ANSWER_SECONDS_MAX = 3.0
SLACK_SECONDS = 1.5
"""For a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of these tests' own, which they stop and start."""
    with throw_away_postgres() as server:
        yield server


@pytest.fixture
def away(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """The same one, stopped."""
    postgres.stop()
    return postgres


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four mebibytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by a root that may mount")
    yield path
    subprocess.run(["umount", path], check=True)


def settings(postgres: EmbeddedPostgres, spool: Path, **more: str) -> dict[str, Any]:
    """How two workers are started that spool there."""
    return {
        "url": postgres.url(Role.WRITER),
        "INGRESS_SPOOL": str(spool),
        "INGRESS_WORKERS": "2",
        "INGRESS_LOG": "off",
        **more,
    }


def told(prefix: str, number: int, size: int = 0) -> bytes:
    return body(rewardId=f"{prefix}-{number}", userId=prefix, rewardName="n" * size, rewardAmount=1)


def deliver(ingress: Ingress, text: bytes) -> tuple[int, Any]:
    """The status, and what became of it or what problem there is, told in time."""
    begun = time.monotonic()
    status_, answer = ingress.deliver(text)
    assert time.monotonic() - begun < ANSWER_SECONDS_MAX + SLACK_SECONDS
    return status_, answer["status"] if status_ == 200 else answer["type"].rpartition(":")[2]


def assert_asked_for_again(ingress: Ingress, text: bytes) -> None:
    assert deliver(ingress, text) == (503, "unavailable")


def depth(spool: Path) -> int:
    found = status(SpoolSettings(spool, 2**30))
    assert found.set_aside == 0
    return found.depth


def posted(postgres: EmbeddedPostgres, prefix: str) -> set[str]:
    rows = Database(postgres, "ledger").rows(
        f"SELECT reward_id FROM postings WHERE user_id = '{prefix}'"
    )
    assert len(set(rows)) == len(rows)
    return {reward_id for (reward_id,) in rows}


def kill_the_machine(ingress: Ingress, postgres: EmbeddedPostgres) -> None:
    """Nothing of it does anything any more, all at one moment."""
    postmaster = int((postgres.data_directory / "postmaster.pid").read_text().split()[0])
    victims = [psutil.Process(ingress.process.pid), psutil.Process(postmaster)]
    victims += [child for victim in victims for child in victim.children(recursive=True)]
    for victim in victims:
        victim.suspend()
    for victim in victims:
        victim.kill()
    ingress.process.wait()
    postgres.stop()


def test_what_a_dead_machine_had_spooled_is_posted_after_the_next_start_without_being_asked(
    away: EmbeddedPostgres, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with running(**settings(away, spool)) as ingress:
        for number in range(40):
            assert deliver(ingress, told("died", number)) == (200, "spooled")
        assert deliver(ingress, b"[]") == (422, "not-a-reward")
        away.start()
        # In the middle of draining, or before, or after it.
        kill_the_machine(ingress, away)
    left = depth(spool)
    print(f"{left} of 41 were left")
    with running(**settings(away, spool)) as ingress:
        # The machine's ingress may be up before its Postgres is.
        assert deliver(ingress, told("died", 40)) == (200, "spooled")
        away.start()
        wait_until(lambda: depth(spool) == 0)
    assert posted(away, "died") == {f"died-{number}" for number in range(41)}
    kept = Database(away, "ledger").rows("SELECT reason, token, form FROM quarantine")
    assert kept == [("NotAReward", "current", "raw")]


def test_a_full_spool_is_answered_503_and_what_was_promised_is_posted(
    away: EmbeddedPostgres, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    bound = str(2**24)
    with running(**settings(away, spool, INGRESS_SPOOL_SIZE_MAX_BYTES=bound)) as ingress:
        promised: list[str] = []
        while deliver(ingress, told("full", len(promised), 60_000)) == (200, "spooled"):
            promised.append(f"full-{len(promised)}")
        assert len(promised) > 50
        assert sum(path.stat().st_size for path in spool.iterdir()) <= 2**24
        assert_asked_for_again(ingress, told("full", len(promised), 60_000))
        away.start()
        wait_until(lambda: depth(spool) == 0)
        wait_until(lambda: deliver(ingress, told("full", len(promised)))[1] == "credited")
    assert posted(away, "full") == {*promised, f"full-{len(promised)}"}


def test_a_full_disk_is_answered_503_until_it_has_room(
    away: EmbeddedPostgres, small_disk: Path
) -> None:
    spool = small_disk / "spool"
    with running(**settings(away, spool)) as ingress:
        assert deliver(ingress, told("disk", 0)) == (200, "spooled")
        filler = small_disk / "filler"
        fill(filler)
        # What still found room in the files as they are is promised, too.
        promised = ["disk-0"]
        while (answer := deliver(ingress, told("disk", len(promised), 20_000)))[0] == 200:
            promised.append(f"disk-{len(promised)}")
        assert answer == (503, "unavailable")
        wait_until(lambda: ingress.ask("GET", "/readyz")[0] == 503)
        filler.unlink()
        wait_until(lambda: ingress.ask("GET", "/readyz")[0] == 200)
        assert deliver(ingress, told("disk", len(promised), 20_000)) == (200, "spooled")
        promised.append(f"disk-{len(promised)}")
        away.start()
        wait_until(lambda: depth(spool) == 0)
    assert posted(away, "disk") == set(promised)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def test_a_disk_that_takes_no_writes_is_answered_503_and_costs_no_200_before_or_after(
    away: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The system refuses every write of the workers into a file, as a broken disk does."""
    spool = tmp_path / "spool"
    with running(**settings(away, spool)) as ingress:
        assert deliver(ingress, told("broken", 0)) == (200, "spooled")
        limit(ingress, 0)
        for number in range(1, 9):
            assert_asked_for_again(ingress, told("broken", number))
        assert_asked_for_again(ingress, b"[]")
        limit(ingress, resource.RLIM_INFINITY)
        assert deliver(ingress, told("broken", 9)) == (200, "spooled")
        away.start()
        wait_until(lambda: depth(spool) == 0)
        # With Postgres there, nobody needs the disk.
        wait_until(lambda: deliver(ingress, told("broken", 10))[1] == "credited")
        limit(ingress, 0)
        # The other worker may not have seen yet that it is back.
        wait_until(lambda: deliver(ingress, told("broken", 11)) == (200, "credited"))
        limit(ingress, resource.RLIM_INFINITY)
    found = posted(away, "broken")
    assert found >= {f"broken-{number}" for number in (0, 9, 10, 11)}
    assert found <= {f"broken-{number}" for number in range(12)}


def limit(ingress: Ingress, file_bytes_max: int) -> None:
    for worker in ingress.workers():
        worker.rlimit(resource.RLIMIT_FSIZE, (file_bytes_max, resource.RLIM_INFINITY))


def kill_worker(ingress: Ingress, meanwhile: Callable[[], object]) -> None:
    """Kill the one worker, and do ``meanwhile`` before the next is started."""
    (worker,) = ingress.workers()
    # Nobody starts while the master is stopped.
    ingress.process.send_signal(signal.SIGSTOP)
    try:
        master = psutil.Process(ingress.process.pid)
        wait_until(lambda: master.status() == psutil.STATUS_STOPPED)
        worker.kill()
        wait_until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
        meanwhile()
    finally:
        ingress.process.send_signal(signal.SIGCONT)


def replace(file: Path) -> None:
    # Not written over: threads of the killed worker may write for a moment longer.
    file.unlink()
    file.write_bytes(b"a letter")


def test_a_worker_that_finds_a_damaged_spool_goes_on_without_it(
    away: EmbeddedPostgres, tmp_path: Path
) -> None:
    away.start()
    spool = tmp_path / "spool"
    damaged = spool / "spool.sqlite3"
    with running(**settings(away, spool, INGRESS_WORKERS="1")) as ingress:
        kill_worker(ingress, lambda: replace(damaged))
        wait_until(lambda: deliver(ingress, told("damaged", 0)) == (200, "credited"))
        away.stop()
        assert_asked_for_again(ingress, told("damaged", 1))
        wait_until(lambda: ingress.ask("GET", "/readyz")[0] == 503)
        assert f"{damaged} is damaged" in ingress.complaints()
        assert damaged.read_bytes() == b"a letter"


def test_a_worker_that_is_killed_on_a_disk_that_cannot_be_written_comes_back(
    away: EmbeddedPostgres, small_disk: Path
) -> None:
    """Its books can be reached: the spool is no reason to end everything."""

    def is_remounted(mode: str) -> bool:
        mount = ["mount", "-o", f"remount,{mode}", str(small_disk)]
        return subprocess.run(mount, check=False, capture_output=True).returncode == 0

    away.start()
    spool = small_disk / "spool"
    with running(**settings(away, spool, INGRESS_WORKERS="1")) as ingress:
        # Threads of the killed one may write for a moment longer.
        kill_worker(ingress, lambda: wait_until(lambda: is_remounted("ro")))
        try:
            wait_until(lambda: deliver(ingress, told("back", 0)) == (200, "credited"))
        finally:
            assert is_remounted("rw")
        away.stop()
        wait_until(lambda: deliver(ingress, told("back", 1)) == (200, "spooled"))
