"""The quarantine: nothing believed is lost, whatever it is, and an operator can deal with it."""

import asyncio
import json
import os
import pwd
import re
from typing import NoReturn

import psycopg
import pytest

from ledger.database import Pool, Role
from ledger.operations.quarantine import Difference, compare, look_at
from ledger.quarantine import Kept, Quarantine, Unposted, close, keep, list_kept
from ledger.terminal import operator
from ledger.writing import post
from tests.conftest import Database, Run
from tests.ledger.test_cli import ledger
from tests.rewards import reward

BODY = b'{"rewardId":"r1","rewardAmount":-5}'


def keep_all(database: Database, run: Run, *deliveries: Unposted) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await keep(connection, deliveries)

    run(main())


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff\xfe", b"not json", b'{"a":"\\ud800"}', BODY])
def test_any_bytes_are_kept_as_they_are(body: bytes, database: Database, run: Run) -> None:
    keep_all(database, run, Unposted(body, "not-json"))
    assert database.rows("SELECT believed_bytes, seen FROM quarantine") == [(body, 1)]


def test_a_body_is_kept_once_and_counted(database: Database, run: Run) -> None:
    keep_all(database, run, *[Unposted(BODY, "not-a-reward")] * 3, Unposted(b"other", "not-json"))
    keep_all(database, run, Unposted(BODY, "not-a-reward"))
    assert database.rows(
        "SELECT believed_bytes, seen, last_seen_at > first_seen_at FROM quarantine ORDER BY number"
    ) in (
        [(BODY, 4, True), (b"other", 1, False)],
        [(b"other", 1, False), (BODY, 4, True)],
    )


def test_many_callers_share_a_round_trip_and_overlapping_batches_do_not_deadlock(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            both = [Quarantine(pool), Quarantine(pool)]
            bodies = [b"body %d" % (n % 20) for n in range(400)]
            futures = [
                side.keep(Unposted(body, "not-json"))
                for n, body in enumerate(bodies)
                for side in (both if n % 2 else both[::-1])
            ]
            await asyncio.gather(*futures)
            for side in both:
                await side.drain()

    run(main())
    assert database.rows("SELECT count(*), sum(seen) FROM quarantine") == [(20, 800)]


def test_a_discard_keeps_who_when_and_why(database: Database, run: Run) -> None:
    keep_all(database, run, Unposted(BODY, "not-a-reward"))
    done = ledger(database, "quarantine", "discard", "1", "--by", "Ada", "--why", "a test")
    assert (done.returncode, done.stdout) == (0, "1 is discarded\n")
    assert database.rows(
        "SELECT state, closed_by, closed_why, closed_at IS NOT NULL FROM quarantine"
    ) == [("discarded", "Ada", "a test", True)]
    assert ledger(database, "quarantine", "discard", "1", "--why", "again").returncode == 1
    assert ledger(database, "quarantine", "discard", "2", "--why", "none").returncode == 1
    assert ledger(database, "quarantine", "discard", "1", "--why", " ").returncode == 1


def test_a_discarded_body_that_comes_again_stays_discarded_and_is_counted(
    database: Database, run: Run
) -> None:
    keep_all(database, run, Unposted(BODY, "not-a-reward"))

    async def main() -> None:
        async with database.connected() as connection:
            assert await close(connection, 1, "discarded", "Ada", "a test")
            assert not await close(connection, 1, "posted", "Ada", "again")
            await keep(connection, [Unposted(BODY, "not-a-reward")])
            assert await list_kept(connection) == []

    run(main())
    assert database.rows("SELECT state, seen FROM quarantine") == [("discarded", 2)]


def test_what_was_dealt_with_keeps_its_reason_and_what_is_open_tells_the_newest(
    database: Database, run: Run
) -> None:
    first = Unposted(BODY, "NotAReward", detail="userId is missing")
    later = Unposted(BODY, "IdempotencyConflict", reward_id="reward-1")
    told = "SELECT reason, detail, reward_id, seen FROM quarantine"
    keep_all(database, run, first)
    keep_all(database, run, later)
    assert database.rows(told) == [("IdempotencyConflict", None, "reward-1", 2)]
    # Of one batch too, and never what was mixed from both.
    keep_all(database, run, later, first)
    assert database.rows(told) == [("NotAReward", "userId is missing", None, 4)]
    keep_all(database, run, first, later)
    assert database.rows(told) == [("IdempotencyConflict", None, "reward-1", 6)]

    async def main() -> None:
        async with database.connected() as connection:
            assert await close(connection, 1, "discarded", "Ada", "a test")

    run(main())
    keep_all(database, run, first)
    assert database.rows(told) == [("IdempotencyConflict", None, "reward-1", 7)]


def test_a_conflict_shows_both_bodies_and_what_differs(database: Database, run: Run) -> None:
    credited = b'{"rewardId":"r1","rewardAmount":15,"details":{"currency":"USD"}}'
    other = b'{"rewardId":"r1","rewardAmount":15.0,"details":{"currency":"EUR"},"code":"X"}'

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("r1", amount="15", believed_bytes=credited)])
            await keep(connection, [Unposted(other, "conflict", reward_id="r1")])
            shown = await look_at(connection, 1)
            assert shown is not None
            assert shown.kept.believed_bytes == other
            assert shown.credited_bytes == credited
            assert shown.differences == [
                Difference("code", '"X"', None),
                Difference("details.currency", '"EUR"', '"USD"'),
                Difference("rewardAmount", "15.0", "15"),
            ]

    run(main())
    (shown,) = json.loads(ledger(database, "quarantine", "show", "1", "--json").stdout)
    assert shown["credited_bytes"] == credited.decode()
    assert [row["field"] for row in shown["differences"]] == [
        "code",
        "details.currency",
        "rewardAmount",
    ]
    assert ledger(database, "quarantine", "show", "2").returncode == 1


def test_the_list_tells_of_a_delivery_and_not_what_it_holds(database: Database, run: Run) -> None:
    keep_all(database, run, Unposted(BODY, "not-a-reward", "rewardAmount is negative"))
    (row,) = json.loads(ledger(database, "quarantine", "list", "--json").stdout)
    assert (row["number"], row["state"], row["seen"]) == (1, "open", 1)
    assert "believed_bytes" not in row


@pytest.mark.parametrize(
    ("kept", "credited", "differing"),
    [
        (b"{}", b"{}", []),
        (b"not json", b"{}", [""]),
        (b'{"a":[1,2]}', b'{"a":[1,3]}', ["a"]),
        (b'{"a":{"b":1}}', b'{"a":1}', ["a", "a.b"]),
        (b'{"details":{}}', b"{}", ["", "details"]),
        (b'{"a":1,"details":{}}', b'{"a":1}', ["details"]),
        (b'{"a":1,"details":{}}', b'{"a":1,"details":{"b":2}}', ["details", "details.b"]),
        (b'{"a.b":1}', b'{"a":{"b":1}}', ['"a.b"', "a.b"]),
        (b'{"a b":1,"":2}', b'{"a b":2,"":1}', ['""', '"a b"']),
        (b'{"a":[1,{"b":1}]}', b'{"a":["1",{"b":1.0}]}', ["a"]),
        (b'{"a":[1]}', b'{"a":["1"]}', ["a"]),
        (b'{"a":"1"}', b'{"a":1}', ["a"]),
    ],
)
def test_texts_are_compared_field_by_field(
    kept: bytes, credited: bytes, differing: list[str]
) -> None:
    assert [difference.field for difference in compare(kept, credited)] == differing


HOSTILE = (
    b'{"rewardId":"r1","[/x]":"[bold]:smile:[/x]","e":"\\u001b[2J\\ud800","\\ud800":1}'
    b"\n\x1b]0;x\x07\xff"
)


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1"}])
def test_what_a_sender_wrote_is_shown_and_neither_obeyed_nor_lost(
    database: Database, run: Run, terminal: dict[str, str]
) -> None:
    credited, other = HOSTILE.partition(b"\n")[0], b'{"rewardId":"[/r]"}'

    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward("[/r]", believed_bytes=credited)])
            await keep(connection, [Unposted(other, "conflict", reward_id="[/r]")])
            await keep(connection, [Unposted(HOSTILE, "NotJson", "[/d]", "\x1b\t")])

    run(main())
    for arguments in (("show", "1"), ("show", "2"), ("list",)):
        shown = ledger(database, "quarantine", *arguments, COLUMNS="300", **terminal)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "[/" in shown.stdout
        # The table's own colours are all that a terminal is told.
        plain = re.sub("\x1b\\[[0-9;]*m", "", shown.stdout)
        assert all(each.isprintable() or each in "\n\t" for each in plain)
        as_json = ledger(database, "quarantine", *arguments, "--json", **terminal)
        assert json.loads(as_json.stdout)
    conflict = ledger(database, "quarantine", "show", "1", COLUMNS="300", **terminal).stdout
    for told in ("[/x]", "[bold]:smile:[/x]", r"\u001b[2J\ud800"):
        assert told in conflict
    # As a value and as a key, in the credited text and in what differs.
    assert conflict.count(r"\ud800") == 4
    unreadable = ledger(database, "quarantine", "show", "2").stdout
    assert r"}\n\x1b]0;x\x07\xff" in unreadable
    # No line that the sender made up stands among them.
    assert {line.partition("\t")[0] for line in unreadable.splitlines()} < set(Kept._fields)


def test_who_discards_is_told_by_number_where_the_system_has_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(number: int) -> NoReturn:
        raise KeyError(number)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert operator() == f"uid {os.getuid()}"


RULES = {
    "DELETE FROM quarantine": "books_are_append_only",
    "TRUNCATE quarantine": "books_are_append_only",
    "UPDATE quarantine SET believed_bytes = 'x'": "quarantine_digest_is_of_its_body",
    "UPDATE quarantine SET state = 'gone', closed_at = now()": "quarantine_state_is_known",
    "UPDATE quarantine SET state = 'discarded', closed_at = now()": (
        "quarantine_is_closed_by_somebody"
    ),
    "UPDATE quarantine SET state = 'posted'": "quarantine_is_closed_by_somebody",
    "UPDATE quarantine SET seen = 0": "quarantine_was_seen",
}


@pytest.mark.parametrize("attack", RULES)
def test_what_is_kept_cannot_be_lost_even_by_the_owner(
    attack: str, database: Database, run: Run
) -> None:
    keep_all(database, run, Unposted(BODY, "not-a-reward"))
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        database.rows(attack)
    assert refused.value.diag.constraint_name == RULES[attack]


@pytest.mark.parametrize("role", list(Role))
def test_no_service_can_change_the_bytes_that_are_kept(
    role: Role, database: Database, run: Run
) -> None:
    keep_all(database, run, Unposted(BODY, "not-a-reward"))
    for attack in ("UPDATE quarantine SET believed_bytes = 'x'", "DELETE FROM quarantine"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.rows(attack, role)
