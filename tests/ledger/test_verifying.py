"""Verifying in parts: side by side, taken up again, and only what came since."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest

from ledger.correcting import reverse
from ledger.correction import Reversal
from ledger.database import Role, conninfo
from ledger.operations import verifying
from ledger.operations.finding import Finding
from ledger.operations.verified import UnusableState, Verified, read_verified, write_verified
from ledger.operations.verifying import Outcome, verify_in_parts
from ledger.writing import post
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.test_cli import ledger
from tests.ledger.test_serve import wait_until
from tests.rewards import reward

OF_A_COMMIT = 3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that a few rewards are many of them, and each is kept at once."""
    monkeypatch.setattr(verifying, "STRETCH_REWARDS", 4)
    monkeypatch.setattr(verifying, "SLICE_REWARDS", 8)
    monkeypatch.setattr(verifying, "USERS_MAX", 2)
    monkeypatch.setattr(verifying, "KEPT_SECONDS", -1.0)


def fill(database: Database, run: Run, first: int = 0, last: int = 10) -> None:
    """Commits of a few rewards each, of users who come again."""

    async def main() -> None:
        async with database.connected() as connection:
            for number in range(first, last):
                await post(
                    connection,
                    [
                        reward(f"r{number}-{i}", user_id=f"u{number % 4 + i}", amount=f"{i + 1}")
                        for i in range(OF_A_COMMIT)
                    ],
                )

    run(main())


def take_back(database: Database, run: Run, reward_id: str) -> None:
    """A reversal, which is a commit of its own."""

    async def main() -> None:
        async with database.connected(Role.CORRECTOR) as connection:
            await reverse(connection, Reversal("back", reward_id, None, "a mistake", "ann"))

    run(main())


def verify(
    database: Database,
    run: Run,
    before: Verified | None = None,
    workers: int = 2,
    keep: Callable[[Verified], None] = lambda _: None,
    report: Callable[[int, int], None] = lambda _, __: None,
) -> Outcome:
    info = conninfo(database.url(), Role.READER, is_service=False)
    outcome = run(verify_in_parts(info, workers=workers, before=before, keep=keep, report=report))
    assert isinstance(outcome, Outcome)
    return outcome


def corrupt(database: Database, change: str) -> None:
    database.rows(f"SET session_replication_role = replica; {change}", SUPERUSER)


def rules(outcome: Outcome) -> set[str]:
    return {finding.rule for finding in outcome.findings}


@pytest.mark.parametrize("workers", [1, 3])
def test_books_that_hold_hold_in_all_parts(database: Database, run: Run, workers: int) -> None:
    assert verify(database, run, workers=workers).findings == []
    fill(database, run)
    reports: list[tuple[int, int]] = []
    outcome = verify(
        database, run, workers=workers, report=lambda done, of: reports.append((done, of))
    )
    assert outcome.findings == []
    assert outcome.verified is not None
    assert outcome.verified.brought == (30, 30)
    assert len(reports) > 10
    assert reports[-1] == (reports[-1][1],) * 2


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("UPDATE rewards SET status = 'x' WHERE reward_id = 'r7-1'", "sealed"),
        ("UPDATE postings SET balance_after = 9 WHERE reward_id = 'r0-2'", "each balance after"),
        ("UPDATE balances SET credits = 9 WHERE account = 'user:u3'", "a balance is the sum"),
        ("UPDATE balances SET debits = 9 WHERE account LIKE 'campaign:%'", "a balance is the sum"),
        ("DELETE FROM commits WHERE position = 4", "each reward has one place"),
        ("DELETE FROM rewards WHERE reward_id = 'r9-0'", "what was told"),
        ("UPDATE postings SET reward_id = 'other' WHERE reward_id = 'r5-1'", "what was told"),
    ],
)
def test_whichever_part_it_is_in_a_corruption_is_named(
    database: Database, run: Run, change: str, rule: str
) -> None:
    fill(database, run)
    corrupt(database, change)
    outcome = verify(database, run)
    assert any(rule in each for each in rules(outcome)), outcome.findings
    assert outcome.verified is None


class Killed(Exception):
    pass


def killed_after(
    database: Database, run: Run, parts: int, before: Verified | None = None
) -> Verified:
    """What was kept by a run that ended in the middle."""
    kept: list[Verified] = []

    def report(done: int, _: int) -> None:
        if done == parts:
            raise Killed

    with pytest.raises(ExceptionGroup) as raised:
        verify(database, run, before, workers=1, keep=kept.append, report=report)
    assert raised.group_contains(Killed)
    return kept[-1]


@pytest.mark.parametrize("parts", [1, 5, 9, 12])
def test_a_run_that_was_killed_is_taken_up_where_it_was(
    database: Database, run: Run, parts: int
) -> None:
    fill(database, run)
    reports: list[tuple[int, int]] = []

    def report(done: int, of: int) -> None:
        reports.append((done, of))

    assert verify(database, run, report=report).findings == []
    whole = reports[-1][1]
    kept = killed_after(database, run, parts)
    assert not kept.is_whole
    # The first three cannot be divided, and are done again.
    assert len(kept.done) == max(0, parts - 3)
    again = verify(database, run, kept, report=report)
    assert again.findings == []
    assert again.verified is not None
    assert again.verified.brought == (30, 30)
    assert reports[-1][1] == whole - len(kept.done)


def test_what_was_committed_while_a_run_was_down_is_looked_at_when_it_is_taken_up(
    database: Database, run: Run
) -> None:
    fill(database, run)
    whole = verify(database, run, workers=1)
    assert whole.verified is not None
    # All but the last part: every user has been looked at.
    kept = killed_after(database, run, 3 + 8)
    fill(database, run, 10, 14)
    again = verify(database, run, kept)
    assert again.findings == []
    assert again.verified is not None
    assert again.verified.brought == (42, 42)
    corrupt(database, "UPDATE postings SET balance_after = 77 WHERE reward_id = 'r13-1'")
    assert "each balance after is the one before and its posting" in rules(
        verify(database, run, kept)
    )


IN_SMALL_PARTS = """
from ledger.cli import main
from ledger.operations import verifying
verifying.STRETCH_REWARDS, verifying.KEPT_SECONDS = 4, -1.0
main()
"""


def command(database: Database, file: Path) -> subprocess.Popen[str]:
    """``ledger verify --state``, on its way."""
    return subprocess.Popen(
        [sys.executable, "-c", IN_SMALL_PARTS, "verify", "--state", str(file), "--json"],
        env={**os.environ, "DATABASE_URL": database.url()},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_killed_is_taken_up_and_finds_the_same(
    database: Database, run: Run, tmp_path: Path
) -> None:
    fill(database, run)
    corrupt(
        database,
        "UPDATE rewards SET status = 'x' WHERE reward_id IN ('r0-1', 'r9-1');"
        " UPDATE balances SET credits = 90000 WHERE account = 'user:u1'",
    )
    whole = command(database, tmp_path / "another.json")
    found = json.loads(whole.communicate()[0])
    assert (whole.returncode, len(found)) == (1, 4)

    file = tmp_path / "verified.json"
    with psycopg.connect(database.url()) as blocking:
        # All that reads balances waits for us; what reads only rewards is done and kept.
        blocking.execute("LOCK TABLE balances")
        killed = command(database, file)
        wait_until(lambda: (before := read_verified(file)) is not None and len(before.done) > 1)
        killed.kill()
        assert killed.communicate()[0] == ""
    before = read_verified(file)
    assert before is not None
    assert [finding.subject for finding in before.findings][:1] == ["r0-1"]

    again = command(database, file)
    assert sorted(json.loads(again.communicate()[0]), key=str) == sorted(found, key=str)
    assert again.returncode == 1


def test_what_a_killed_run_found_is_not_forgotten(database: Database, run: Run) -> None:
    fill(database, run)
    corrupt(database, "UPDATE rewards SET fingerprint = sha256('') WHERE reward_id = 'r0-0'")
    kept = killed_after(database, run, 6)
    assert kept.findings
    again = verify(database, run, kept)
    assert len([f for f in again.findings if f.rule.startswith("the fingerprint")]) == 1


def verified(database: Database, run: Run) -> Verified:
    outcome = verify(database, run)
    assert outcome.verified is not None
    return outcome.verified


def test_what_came_since_is_verified_and_the_file_moves_on(database: Database, run: Run) -> None:
    fill(database, run)
    first = verified(database, run)
    nothing = verify(database, run, first)
    assert nothing.verified == first
    fill(database, run, 10, 13)
    second = verify(database, run, first)
    assert (second.findings, second.since) == ([], first.end.position)
    assert second.verified is not None
    assert second.verified.end.position == second.end.position > first.end.position
    assert second.verified.brought == (39, 39)


SEEN_SINCE = {
    "of what came": "UPDATE rewards SET body = 'x' WHERE reward_id = 'r10-0'",
    "of an account that was touched": "UPDATE postings SET amount = 9 WHERE reward_id = 'r2-0'",
    "of a balance that was touched": "UPDATE balances SET credits = 9 WHERE account = 'user:u2'",
    "of a balance that was not": "UPDATE balances SET credits = 9 WHERE account = 'user:u0'",
    "of a house account": "UPDATE balances SET debits = 9 WHERE account LIKE 'campaign:%'",
    "of this day's totals": "UPDATE period_totals SET amount = 9 WHERE period = 'day'",
    "of a small table": "UPDATE currencies SET name = 'x' WHERE code = 'CHF'",
    "a reward from before is gone": "DELETE FROM rewards WHERE reward_id = 'r0-0'",
    "the commit of a reversal from before is gone": "DELETE FROM commits WHERE written_by ="
    " (SELECT written_by FROM corrections)",
    "a posting from before is gone": "DELETE FROM postings WHERE reward_id = 'r0-0'",
    "a reward came in by the back door": "INSERT INTO rewards (reward_id, user_id, campaign_id,"
    " believed_bytes, fingerprint) VALUES ('z', 'u', 'c', '', sha256(''))",
    "the commit where it began": "UPDATE commits SET seal = seal + 1 WHERE position > 11",
}
NOT_SEEN_SINCE = {
    "of a document from before": "UPDATE rewards SET body = 'x' WHERE reward_id = 'r0-0'",
    "of another user": "UPDATE postings SET balance_after = 9 WHERE reward_id = 'r0-0'",
}


@pytest.mark.parametrize("change", [*SEEN_SINCE.values(), *NOT_SEEN_SINCE.values()])
def test_a_run_since_another_sees_what_it_says_it_sees(
    database: Database, run: Run, change: str
) -> None:
    fill(database, run, 0, 1)
    take_back(database, run, "r0-2")
    fill(database, run, 1, 10)
    first = verified(database, run)
    fill(database, run, 10, 12)
    corrupt(database, change)
    found = verify(database, run, first)
    assert bool(found.findings) == (change in SEEN_SINCE.values()), found.findings
    assert (found.verified is None) == bool(found.findings)
    assert verify(database, run).findings


def test_a_file_of_other_books_is_refused(database: Database, run: Run) -> None:
    fill(database, run)
    first = verified(database, run)
    other = msgspec.structs.replace(first, end=first.end._replace(seal=1))
    with pytest.raises(UnusableState, match="other books"):
        verify(database, run, other)


def test_a_run_that_reads_documents_does_not_go_on_from_one_that_did_not(
    database: Database, run: Run
) -> None:
    fill(database, run)
    first = msgspec.structs.replace(verified(database, run), reads_again=True)
    with pytest.raises(UnusableState, match="--documents"):
        verify(database, run, first)


def test_verifying_never_writes(database: Database, run: Run) -> None:
    fill(database, run)
    before = database.rows(
        "SELECT xact_commit >= 0, pg_current_xact_id()::text FROM pg_database, "
        "pg_stat_database WHERE pg_database.oid = datid AND "
        "pg_database.datname = current_database()"
    )
    first = int(before[0][1])
    verify(database, run)
    after = database.rows("SELECT pg_current_xact_id()::text")
    # Each of these two looks takes an id itself; nothing in between did.
    assert int(after[0][0]) == first + 1


def test_the_file_is_read_as_it_was_written(tmp_path: Path, database: Database, run: Run) -> None:
    fill(database, run)
    file = tmp_path / "verified.json"
    assert read_verified(file) is None
    kept = msgspec.structs.replace(
        verified(database, run),
        done=frozenset({"users 1"}),
        findings=(Finding("a", "b", None, "c"),),
    )
    write_verified(file, kept)
    assert read_verified(file) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["verified.json"]
    write_verified(file, None)
    assert read_verified(file) is None


def test_a_file_that_cannot_be_written_is_told_before_anything_is_done(
    database: Database, tmp_path: Path
) -> None:
    told = ledger(database, "verify", "--state", str(tmp_path / "no" / "verified.json"))
    assert (told.returncode, told.stdout) == (1, "")
    assert "verified.json cannot be written: No such file or directory" in told.stderr
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"end": [1, 2]}', b"\xff"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "verified.json"
    file.write_bytes(text)
    with pytest.raises(UnusableState):
        read_verified(file)
    assert file.read_bytes() == text
