"""The spool's file: real disks, real processes, real kills."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import ingress
from ingress.spool import Delivery, Spool, Waiting
from ingress.spool_file import (
    FILE_NAME,
    SpoolFull,
    SpoolUnavailable,
    UnusableSpool,
    UnwritableSpool,
    lease,
)
from ledger.database import WrongProcess

REPOSITORY = Path(ingress.__file__).resolve().parents[1]
MEBIBYTE = 2**20

# Puts numbered texts, a few at a time, and says of each put that returned how far it came.
PUTTER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ingress.spool import Delivery, Spool
directory, name, count, together = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
with Spool(directory, 2**30) as spool:
    for first in range(0, count, together):
        numbers = range(first, first + together)
        texts = [f"{name} {number} ".encode() + b"x" * (number % 9000) for number in numbers]
        spool.put([Delivery(text, None, None, datetime.now(UTC)) for text in texts])
        print(first + together, flush=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from ingress.spool_file import lease
with lease(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a spool may be made."""
    return tmp_path / "spool"


@pytest.fixture
def spool(directory: Path) -> Iterator[Spool]:
    """An open spool with much room."""
    with Spool(directory, 2**30) as opened:
        yield opened


def delivery(text: bytes | str) -> Delivery:
    told = text if isinstance(text, bytes) else text.encode()
    return Delivery(told, "current", "raw", datetime(2026, 11, 5, 12, 30, 0, 250, tzinfo=UTC))


def waiting(spool: Spool) -> list[Waiting]:
    found: list[Waiting] = []
    while page := spool.oldest(1000, after=found[-1].number if found else 0):
        found += page
    return found


def texts(spool: Spool) -> list[bytes]:
    return [one.delivery.text for one in waiting(spool)]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def put_until_full(spool: Spool, length: int, together: int = 1) -> int:
    """How many deliveries of about ``length`` bytes were put until the spool was full."""
    for put in range(0, 64 * MEBIBYTE // length, together):
        try:
            spool.put([delivery(b"%9d" % (put + i) * (length // 9)) for i in range(together)])
        except SpoolFull:
            return put
    pytest.fail("it is never full")


def fill(disk: Path) -> Path:
    """A file that takes all the room which ``disk`` has left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


# What is put is there.


def test_what_is_put_comes_back_whole_and_in_its_order(spool: Spool) -> None:
    put = [delivery(b"\0\xff one"), delivery("two")._replace(token=None, form=None)]
    spool.put(put[:1])
    spool.put(put[1:])
    found = spool.oldest(10)
    assert [waiting.delivery for waiting in found] == put
    assert [waiting.number for waiting in found] == [1, 2]
    assert all(waiting.is_whole and waiting.tries == 0 for waiting in found)
    assert [waiting.number for waiting in spool.oldest(1)] == [1]
    assert [waiting.number for waiting in spool.oldest(10, after=1)] == [2]


def test_what_is_put_is_there_after_closing_and_opening(directory: Path) -> None:
    for text in ("one", "two"):
        with Spool(directory, 2**30) as spool:
            spool.put([delivery(text)])
    with Spool(directory, 2**30) as spool:
        assert texts(spool) == [b"one", b"two"]


def test_a_text_that_is_put_again_is_kept_once(spool: Spool) -> None:
    spool.put([delivery("one"), delivery("one"), delivery("two")])
    spool.put([delivery("two")])
    assert texts(spool) == [b"one", b"two"]


def test_what_was_set_aside_and_comes_again_waits_again_in_its_old_place(spool: Spool) -> None:
    spool.put([delivery("one"), delivery("two")])
    spool.note_tries([1])
    spool.set_aside(1, "UnknownCurrency")
    spool.put([delivery("one")._replace(token="previous")])
    assert texts(spool) == [b"one", b"two"]
    first = waiting(spool)[0]
    assert (first.number, first.tries, first.delivery.token) == (1, 0, "previous")
    assert spool.status()[:2] == (2, 0)


@pytest.mark.parametrize("is_set_aside", [False, True])
def test_what_was_damaged_and_comes_again_is_whole_again(
    directory: Path, spool: Spool, is_set_aside: bool
) -> None:
    spool.put([delivery("amount 10"), delivery("amount 20")])
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.execute("UPDATE deliveries SET text = CAST('amount 90' AS BLOB) WHERE number=1")
        connection.commit()
    if is_set_aside:
        spool.set_aside(1, "Damaged")
    spool.put([delivery("amount 10")])
    assert texts(spool) == [b"amount 10", b"amount 20"]
    assert all(one.is_whole for one in waiting(spool))


@pytest.mark.parametrize(
    ("damage", "is_whole"),
    [
        ("received_at = 'yesterday'", True),
        ("received_at = '2026-11-01T10:00:00'", True),
        ("received_at = x'ff'", True),
        ("token = CAST(x'ff' AS TEXT)", True),
        ("form = 7", True),
        ("tries = 'many'", True),
        ("text = 'one'", True),
        ("text = 7", False),
        ("text = ''", False),
        ("digest = 'd'", False),
    ],
)
def test_a_damaged_column_keeps_nothing_back(
    directory: Path, spool: Spool, damage: str, is_whole: bool
) -> None:
    spool.put([delivery("one"), delivery("two")])
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.execute(f"UPDATE deliveries SET {damage} WHERE number = 1")
        connection.commit()
    damaged, whole = waiting(spool)
    assert (damaged.is_whole, whole.is_whole, whole.delivery.text) == (is_whole, True, b"two")
    assert damaged.delivery.received_at.tzinfo is not None
    assert isinstance(damaged.delivery.token, str)
    assert isinstance(damaged.delivery.form, str)
    assert isinstance(damaged.tries, int)
    assert spool.status()[:2] == (2, 0)
    spool.note_tries([1])
    spool.remove([1, 2])


def test_what_waits_and_comes_again_stays_as_it_is(spool: Spool) -> None:
    spool.put([delivery("one")])
    spool.note_tries([1])
    before = waiting(spool)
    spool.put([delivery("one")._replace(token="previous", received_at=datetime.now(UTC))])
    assert waiting(spool) == before


def test_a_number_is_never_used_again(spool: Spool) -> None:
    spool.put([delivery("one"), delivery("two")])
    spool.remove([1, 2])
    spool.put([delivery("three")])
    assert [waiting.number for waiting in spool.oldest(10)] == [3]


def test_the_oldest_are_no_more_than_memory_bears_and_never_none(spool: Spool) -> None:
    for number in range(4):
        spool.put([delivery(b"%d" % number * 700_000)])
    assert [waiting.number for waiting in spool.oldest(10)] == [1, 2]
    assert [waiting.number for waiting in spool.oldest(10, after=3)] == [4]


def test_what_is_set_aside_waits_no_longer_until_it_is_recalled(spool: Spool) -> None:
    spool.put([delivery("one"), delivery("two")])
    spool.set_aside(1, "UnknownCurrency")
    assert texts(spool) == [b"two"]
    assert spool.status()[:2] == (1, 1)
    spool.recall()
    assert texts(spool) == [b"one", b"two"]
    assert spool.status()[:2] == (2, 0)


def test_tries_are_counted(spool: Spool) -> None:
    spool.put([delivery("one"), delivery("two")])
    spool.note_tries([2])
    spool.note_tries([2])
    assert [waiting.tries for waiting in spool.oldest(10)] == [0, 2]


def test_the_status_says_how_many_how_large_and_how_old(spool: Spool, directory: Path) -> None:
    assert spool.status() == (0, 0, size(directory), None)
    spool.put([delivery("x" * 100_000)])
    found = spool.status()
    assert (found.depth, found.size_bytes) == (1, size(directory))
    assert found.size_bytes > 100_000
    assert found.oldest_age_seconds is not None
    began = datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
    assert found.oldest_age_seconds <= max(0, (datetime.now(UTC) - began).total_seconds())


def test_an_open_spool_syncs_every_commit(spool: Spool) -> None:
    connection = spool._connection
    assert connection is not None
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_new_spool_is_in_its_place_on_disk_before_anything_is_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()

    def fsync(descriptor: int, sync: Any = os.fsync) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Spool(tmp_path / "new" / "spool", 2**30):
        assert synced == {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "spool")}
        synced.clear()
    with Spool(tmp_path / "new" / "spool", 2**30):
        assert synced == set()


def test_every_put_that_returned_survives_kill_9(directory: Path, chance: random.Random) -> None:
    promised = 0
    for round_ in range(6):
        together = chance.choice([1, 7, 50])
        with start(PUTTER, directory, round_, 10_000_000, together) as putter:
            assert putter.stdout is not None
            assert putter.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
            putter.kill()
            returned = int(([str(together), *putter.stdout.read().split()])[-1])
        promised += returned
        with Spool(directory, 2**30) as spool:
            found = [text for text in texts(spool) if text.startswith(b"%d " % round_)]
            # One put more may have come to disk than could say so.
            assert len(found) in {returned, returned + together}
            assert [int(text.split()[1]) for text in found] == list(range(len(found)))
            assert all(one.is_whole for one in waiting(spool))
            assert spool.status().depth >= promised


def test_two_processes_put_while_a_third_removes_and_each_delivery_is_taken_once(
    directory: Path,
) -> None:
    taken: list[bytes] = []
    with (
        Spool(directory, 2**30) as spool,
        start(PUTTER, directory, "a", 400, 2) as first,
        start(PUTTER, directory, "b", 400, 2) as second,
    ):
        while first.poll() is None or second.poll() is None or spool.oldest(1):
            page = spool.oldest(16)
            taken += [waiting.delivery.text for waiting in page]
            spool.remove([waiting.number for waiting in page])
        assert (first.returncode, second.returncode) == (0, 0)
    assert len(taken) == len(set(taken)) == 800
    for name in (b"a", b"b"):
        numbers = [int(text.split()[1]) for text in taken if text.startswith(name)]
        assert numbers == list(range(400))


# The bound, and the disk's end.


@pytest.mark.parametrize(("length", "together"), [(1800, 20), (9000, 20), (200_000, 1)])
def test_a_spool_is_full_before_it_is_larger_than_its_bound(
    directory: Path, length: int, together: int
) -> None:
    bound = 16 * MEBIBYTE
    largest = 0
    with Spool(directory, bound) as spool:
        for round_ in range(3):
            assert spool.has_room()
            put = put_until_full(spool, length - 9 * round_, together)
            assert put * length > bound / 16
            largest = max(largest, size(directory))
            # Half of it goes, and its room is used again.
            for _ in range(put // 2):
                spool.remove([waiting.number for waiting in spool.oldest(1)])
        assert max(largest, size(directory)) <= bound
        put_until_full(spool, length + 9)
        put_until_full(spool, 900)
        assert not spool.has_room()
        assert size(directory) <= bound


def test_an_emptied_spool_is_small_again_and_holds_nothing_of_what_it_held(
    directory: Path, spool: Spool
) -> None:
    spool.put([delivery(f"secret-{number} " * 500) for number in range(500)])
    assert size(directory) > 2 * MEBIBYTE
    spool.remove([one.number for one in waiting(spool)])
    assert size(directory) < MEBIBYTE / 8
    assert not any(b"secret" in content for content in files(directory).values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by a root that may mount")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_refuses_a_put_and_loses_none(small_disk: Path) -> None:
    with Spool(small_disk / "spool", 2**30) as spool:
        put = put_until_full(spool, 9000)
        assert put > 20
        assert len(texts(spool)) == put
    with Spool(small_disk / "spool", 2**30) as spool:
        assert len(texts(spool)) == put
        assert all(one.is_whole for one in waiting(spool))


def test_a_disk_that_has_room_again_is_used_again(small_disk: Path) -> None:
    with Spool(small_disk / "spool", 2**30) as spool:
        spool.put([delivery("before")])
        filler = fill(small_disk)
        assert not spool.has_room()
        put_until_full(spool, 9000)
        filler.unlink()
        assert spool.has_room()
        spool.put([delivery("afterwards")])
        assert texts(spool)[0] == b"before"
        assert texts(spool)[-1] == b"afterwards"


def test_a_full_disk_at_the_start_is_trouble_that_may_pass(small_disk: Path) -> None:
    filler = fill(small_disk)
    spool = Spool(small_disk / "spool", 2**30)
    with pytest.raises(SpoolUnavailable):
        spool.open()
    with pytest.raises(SpoolUnavailable):
        spool.put([delivery("one")])
    filler.unlink()
    with spool:
        spool.put([delivery("one")])
    assert [path.name for path in (small_disk / "spool").iterdir()] == [FILE_NAME]


# What cannot be a spool.


def garbled(path: Path) -> None:
    path.write_bytes(b"a letter, not a database " * 1000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def written_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(8 * 4096))


def replaced_by_another_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE deliveries (text)")
        connection.commit()


def made_by_another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def taken_away_from_its_log(path: Path) -> None:
    path.rename(path.with_name(f"{FILE_NAME}-wal"))


@pytest.mark.parametrize(
    "damage",
    [
        garbled,
        emptied,
        cut,
        written_over,
        replaced_by_another_database,
        made_by_another_version,
        taken_away_from_its_log,
    ],
)
def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(directory: Path, damage: Any) -> None:
    with Spool(directory, 2**30) as spool:
        spool.put([delivery(f"{number}" * 2000) for number in range(100)])
    damage(directory / FILE_NAME)
    before = files(directory)
    for _ in range(2):
        with pytest.raises(UnusableSpool, match=FILE_NAME):
            Spool(directory, 2**30).open()
    after = files(directory)
    assert {name: after.get(name) for name in before} == before


def test_a_text_that_changed_on_disk_is_not_whole(directory: Path, spool: Spool) -> None:
    spool.put([delivery("amount 10"), delivery("amount 20")])
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.execute("UPDATE deliveries SET text = CAST('amount 90' AS BLOB) WHERE number=1")
        connection.commit()
    assert [waiting.is_whole for waiting in spool.oldest(10)] == [False, True]


def test_nobody_else_may_look_into_a_spool_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Spool(tmp_path / "spool", 2**30) as spool:
            spool.put([delivery("one")])
            paths = list((tmp_path / "spool").iterdir())
            modes = {stat.S_IMODE(path.stat().st_mode) for path in paths}
            assert (len(paths), modes) == (3, {0o600})
        assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_directory_that_others_may_enter_is_refused_and_not_changed(directory: Path) -> None:
    directory.mkdir(mode=0o750)
    with pytest.raises(UnusableSpool, match="chmod 700"):
        Spool(directory, 2**30).open()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert not files(directory)


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear reader")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnusableSpool):
            Spool(path, 2**30).open()


def as_nobody(act: Any) -> int:
    """The exit status of a child that is a user without rights and does ``act``."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            act()
            status = 0
        except UnwritableSpool:
            status = 42
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_place_that_this_user_cannot_write_is_refused_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert as_nobody(Spool(tmp_path / "spool", 2**30).open) == 42
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_can_only_be_read_is_refused_at_the_start(small_disk: Path) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=True)

    with Spool(small_disk / "before", 2**30):
        pass
    for name in ("before", "new"):
        remount("ro")
        try:
            with pytest.raises(UnwritableSpool, match=name):
                Spool(small_disk / name, 2**30).open()
        finally:
            remount("rw")
        with Spool(small_disk / name, 2**30) as spool:
            spool.put([delivery("one")])


def removed(directory: Path) -> None:
    shutil.rmtree(directory)


def moved(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def made_anew(directory: Path) -> None:
    moved(directory)
    with Spool(directory, 2**30) as spool:
        spool.put([delivery("another")])


@pytest.mark.parametrize("take_away", [removed, moved, made_anew])
def test_what_nobody_would_find_again_is_not_promised(
    directory: Path, spool: Spool, take_away: Any
) -> None:
    spool.put([delivery("one")])
    take_away(directory)
    for ask in (spool.has_room, spool.status, lambda: spool.put([delivery("two")])):
        with pytest.raises(SpoolUnavailable):
            ask()
    spool.close()
    if take_away is not removed:
        with Spool(directory.with_name("moved"), 2**30) as found:
            assert texts(found) == [b"one"]
    if take_away is made_anew:
        with Spool(directory, 2**30) as found:
            assert texts(found) == [b"another"]


def moved_with_its_logs(directory: Path) -> None:
    directory.with_name("moved").mkdir(mode=0o700)
    for path in directory.iterdir():
        path.rename(directory.with_name("moved") / path.name)


@pytest.mark.parametrize("take_away", [moved, moved_with_its_logs, made_anew])
def test_a_spool_that_was_moved_away_can_be_opened_in_its_place_and_loses_nothing(
    directory: Path, spool: Spool, take_away: Any
) -> None:
    spool.put([delivery("one")])
    take_away(directory)
    with Spool(directory, 2**30) as other:
        other.put([delivery("two")])
        logged = (directory / f"{FILE_NAME}-wal").stat().st_size
        spool.open()
        # What the other one has written into its log is not taken from it.
        assert (directory / f"{FILE_NAME}-wal").stat().st_size == logged > 0
        spool.put([delivery("three")])
        assert texts(other) == texts(spool)
        assert texts(spool)[-2:] == [b"two", b"three"]
    with Spool(directory.with_name("moved"), 2**30) as found:
        assert texts(found) == [b"one"]


def test_a_spool_whose_log_was_left_behind_is_not_begun_anew(directory: Path, spool: Spool) -> None:
    spool.put([delivery("one")])
    (directory / FILE_NAME).rename(directory / "elsewhere")
    for _ in range(2):
        with pytest.raises(UnusableSpool, match="its log"):
            spool.open()
        assert not spool.is_open


# Processes.


def test_a_spool_that_is_not_open_takes_and_gives_nothing(directory: Path) -> None:
    spool = Spool(directory, 2**30)
    assert not spool.exists()
    with pytest.raises(SpoolUnavailable):
        spool.put([delivery("one")])
    with spool:
        spool.open()
        assert spool.exists()
    spool.close()
    with pytest.raises(SpoolUnavailable):
        spool.oldest(1)


def test_a_spool_is_refused_in_a_process_that_did_not_open_it(spool: Spool) -> None:
    child = os.fork()
    if child == 0:
        status = 3
        try:
            spool.put([delivery("one")])
        except WrongProcess:
            status = 42
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    spool.put([delivery("two")])
    assert texts(spool) == [b"two"]


def test_many_workers_that_start_at_once_make_one_spool(directory: Path) -> None:
    putters = [start(PUTTER, directory, number, 1, 1) for number in range(4)]
    for putter in putters:
        with putter:
            assert putter.stdout is not None
            assert putter.stdout.read() == "1\n"
    with Spool(directory, 2**30) as spool:
        assert len(texts(spool)) == 4
    assert [path.name for path in directory.iterdir()] == [FILE_NAME]


def test_a_lease_has_one_holder_and_vanishes_with_it(directory: Path, spool: Spool) -> None:
    with start(HOLDER, directory) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with lease(directory) as is_ours:
            assert not is_ours
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lease(directory) as is_ours, lease(directory) as is_ours_twice:
            assert (is_ours, is_ours_twice) == (True, False)
        with lease(directory) as is_ours:
            assert is_ours
