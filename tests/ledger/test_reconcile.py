"""Reconciling: every line is of one class, the same file has the same answer, and what is missing
can be posted once."""

import csv
import io
import json
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingress.mapping import Mapping
from ingress.payload import read_reward
from ledger.correcting import reverse
from ledger.correction import Reversal
from ledger.database import Role, conninfo
from ledger.operations.columns import BadColumns, Columns
from ledger.operations.differences import Class, csv_text
from ledger.operations.importing import WEBHOOK_TYPE
from ledger.operations.importing import reward as imported_reward
from ledger.operations.reconcile import Answer, Options
from ledger.operations.report import opened
from ledger.operations.rows import BadReport
from ledger.quarantine import Unposted, close, keep
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt, Status, post
from tests.bench.books import fill
from tests.conftest import SUPERUSER, Database, Run
from tests.ledger.reports import NAMES, compared, csv_of, said
from tests.rewards import reward
from tests.verifying import verify

EVER = Options(first_day=date(2000, 1, 1), last_day=date(2999, 12, 31))


def posted(database: Database, run: Run, *rewards: Reward) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with database.connected() as connection:
            return await post(connection, rewards)

    outcomes: list[Outcome] = run(main())
    return outcomes


def kept(database: Database, run: Run, *deliveries: Unposted) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await keep(connection, deliveries)

    run(main())


def report_of(path: Path, *rows: dict[str, Any]) -> Path:
    file = path / "report.csv"
    file.write_text(csv_of(rows))
    return file


def classes(answer: Answer) -> dict[str, int]:
    return {name.value: n for name, n in answer.counts.by_class.items() if n}


def found(answer: Answer) -> list[tuple[str, int | None, str, str]]:
    return [(d.found.value, d.line, d.reward_id, d.differing) for d in answer.differences]


def test_a_report_that_says_what_the_books_say_is_matched(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"), reward("r2", amount="12.5", user_id="user-2"))
    file = report_of(tmp_path, said("r1"), said("r2", rewardAmount="12.50", userId="user-2"))
    answer = compared(database, run, file, EVER)
    assert answer.agrees()
    assert classes(answer) == {"matched": 2}
    assert answer.compared == ("amount", "currency", "user_id", "campaign_id")


def test_every_line_is_of_one_class(database: Database, run: Run, tmp_path: Path) -> None:
    posted(database, run, *[reward(f"r{n}") for n in range(1, 9)])
    kept(
        database,
        run,
        Unposted(b'{"rewardId":"r8","userId":"other"}', "IdempotencyConflict", reward_id="r8"),
        Unposted(b'{"rewardId":"q1","rewardAmount":-1}', "NotAReward"),
        Unposted(b'{"rewardId":"\\ud800"}', "NotAReward"),
        Unposted(b'{"rewardId":"a\\u0000"}', "NotAReward"),
        Unposted(b"\xff not json", "NotJson"),
    )
    file = report_of(
        tmp_path,
        said("r1"),
        said("r2", rewardAmount="401"),
        said("r3", currency="EUR"),
        said("r4", userId="user-2"),
        said("r5", campaignId="campaign-2"),
        said("r6", rewardAmount="4", currency="EUR", userId="x", campaignId="y"),
        said("r1"),
        said("r8"),
        said("q1"),
        said("m1"),
        said("m1"),
    )
    answer = compared(database, run, file, EVER)
    assert found(answer) == [
        ("differs", 3, "r2", "amount"),
        ("differs", 4, "r3", "currency"),
        ("differs", 5, "r4", "user"),
        ("differs", 6, "r5", "campaign"),
        ("differs", 7, "r6", "amount, currency, user, campaign"),
        ("duplicate", 8, "r1", ""),
        ("conflict", 9, "r8", ""),
        ("quarantined", 10, "q1", ""),
        ("missing here", 11, "m1", ""),
        ("duplicate", 12, "m1", ""),
        ("missing there", None, "r7", ""),
    ]
    assert answer.counts.by_class[Class.MATCHED] == 1
    assert answer.counts.differing == {"amount": 2, "currency": 2, "user": 2, "campaign": 2}
    assert sum(answer.counts.by_class.values()) == answer.lines + 1
    assert not answer.agrees()
    differs = answer.differences[4]
    assert (differs.reported_amount, differs.booked_amount) == ("4", "400")
    assert (differs.reported_user, differs.booked_user) == ("x", "user-1")


def test_a_reward_that_was_taken_back_is_reversed(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"), reward("r2"), reward("r3"))

    async def take_back() -> None:
        info = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            for key, reward_id, amount in (("a", "r1", None), ("b", "r3", 1), ("c", "r3", 2)):
                part = None if amount is None else Decimal(amount)
                await reverse(connection, Reversal(key, reward_id, part, "a mistake", "ann"))

    run(take_back())
    file = report_of(tmp_path, said("r1"), said("r2"), said("r3", userId="user-2"))
    answer = compared(database, run, file, EVER)
    assert found(answer) == [("reversed", 2, "r1", ""), ("differs", 4, "r3", "user")]


def test_what_moves_no_money_agrees_with_a_report_of_nothing(
    database: Database, run: Run, tmp_path: Path
) -> None:
    nothing = {"reward_type": "noReward", "currency": None}
    posted(database, run, reward("r1", amount=None), reward("r2", amount="5", **nothing))
    posted(database, run, reward("r3", amount="5", **nothing), reward("r4", amount=None))
    agreeing = [
        said("r1", rewardAmount="", currency=""),
        said("r2", rewardType="noReward", rewardAmount="5"),
    ]
    # The books credited nobody for the third, and the fourth is in no report: it is of nothing.
    answer = compared(
        database, run, report_of(tmp_path, *agreeing, said("r3", rewardAmount="5")), EVER
    )
    assert found(answer) == [("differs", 4, "r3", "amount")]


def test_only_what_a_report_says_is_compared(database: Database, run: Run, tmp_path: Path) -> None:
    posted(database, run, reward("r1"))
    file = tmp_path / "report.csv"
    file.write_text("rewardId,amount\nr1,400\n")
    answer = compared(database, run, file, EVER)
    assert answer.agrees()
    assert answer.compared == ("amount",)
    columns = Columns(constants={"currency": "EUR"})
    assert found(compared(database, run, file, EVER._replace(columns=columns))) == [
        ("differs", 2, "r1", "currency")
    ]


def test_missing_there_is_what_was_posted_in_the_period_and_campaigns(
    database: Database, run: Run, tmp_path: Path
) -> None:
    fill(database.url(), 40)
    july = Options(first_day=date(2025, 7, 1), last_day=date(2025, 7, 31))
    of_july = database.rows("""
        SELECT reward_id, campaign_id FROM rewards
        WHERE recorded_at >= '2025-07-01Z' AND recorded_at < '2025-08-01Z' ORDER BY 1
    """)
    assert len(of_july) > 2
    one = of_july[0]
    line = "rewardId,campaignId,amount\n{},{},{}\n"
    ((amount,),) = database.rows(
        f"SELECT reward_amount::text FROM rewards WHERE reward_id = '{one[0]}'"
    )
    file = tmp_path / "report.csv"
    file.write_text(line.format(*one, amount))

    def missing(options: Options) -> list[str]:
        answer = compared(database, run, file, options)
        assert {d.found for d in answer.differences} <= {Class.MISSING_THERE}
        return [d.reward_id for d in answer.differences]

    campaign = one[1]
    others = [reward_id for reward_id, of in of_july[1:] if of == campaign]
    assert missing(july) == others
    every = tuple(f"campaign-{n}" for n in range(5))
    assert missing(july._replace(campaigns=every)) == [reward_id for reward_id, _ in of_july[1:]]
    assert missing(july._replace(campaigns=("none",))) == []


def test_the_period_is_the_days_that_the_lines_say(
    database: Database, run: Run, tmp_path: Path
) -> None:
    fill(database.url(), 40)
    file = tmp_path / "report.csv"
    file.write_text("rewardId,amount,issuedAt\nx,1,2025-07-01T10:00:00Z\ny,1,2025-07-31\n")
    answer = compared(database, run, file, Options())
    assert (answer.first_day, answer.last_day) == (date(2025, 7, 1), date(2025, 7, 31))
    ((of_july,),) = database.rows("""
        SELECT count(*) FROM postings
        WHERE posted_at >= '2025-07-01Z' AND posted_at < '2025-08-01Z'
    """)
    assert answer.counts.by_class[Class.MISSING_THERE] == of_july > 2


def test_a_report_of_no_period_is_refused_and_nothing_is_recorded(
    database: Database, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(BadReport, match="say --from and --to"):
        compared(database, run, report_of(tmp_path, said("r1")), Options())
    with pytest.raises(BadReport, match="line 3"):
        compared(database, run, report_of(tmp_path, said("r1"), said("")), EVER)
    assert database.rows("SELECT count(*) FROM reconciliations") == [(0,)]


def test_the_same_file_has_the_same_answer_whatever_came_since(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"), reward("r2"))
    kept(
        database,
        run,
        Unposted(b'{"rewardId":"q1"}', "NotAReward"),
        Unposted(b'{"rewardId":"r2"}', "IdempotencyConflict", reward_id="r2"),
    )
    file = report_of(tmp_path, *map(said, ("r1", "r2", "q1", "m1", "m2")))
    first = compared(database, run, file, EVER)
    assert classes(first) == {"matched": 1, "conflict": 1, "quarantined": 1, "missing here": 2}
    assert first.repeats is None

    posted(database, run, reward("m1"), reward("extra"))
    kept(database, run, Unposted(b'{"rewardId":"m2"}', "NotAReward"))

    async def deal() -> None:
        async with database.connected() as connection:
            assert await close(connection, 1, "discarded", "Ada", "a test")
            assert await close(connection, 2, "discarded", "Ada", "a test")

    run(deal())
    again = compared(database, run, file, EVER)
    assert (again.repeats, again.is_as_recorded) == (first.run, True)
    assert again.as_of == first.as_of
    assert (again.counts, again.differences) == (first.counts, first.differences)

    as_it_is = compared(database, run, file, EVER._replace(reads_anew=True))
    assert as_it_is.repeats is None
    assert classes(as_it_is) == {
        "matched": 3,
        "missing here": 1,
        "quarantined": 1,
        "missing there": 1,
    }
    # From now on that is the answer.
    assert compared(database, run, file, EVER).counts == as_it_is.counts


def test_another_file_or_another_option_is_another_question(
    database: Database, run: Run, tmp_path: Path
) -> None:
    file = report_of(tmp_path, said("r1"))
    compared(database, run, file, EVER)
    posted(database, run, reward("r1"))
    for options in (
        EVER._replace(last_day=date(2998, 1, 1)),
        EVER._replace(campaigns=("campaign-1",)),
        EVER._replace(columns=Columns(quarantined_reward_id="id")),
    ):
        assert compared(database, run, file, options).agrees()
    assert not compared(database, run, file, EVER).agrees()
    file.write_text(file.read_text() + "\r\n")
    assert compared(database, run, file, EVER).agrees()


def test_an_answer_that_is_not_the_recorded_one_is_told(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"))
    file = report_of(tmp_path, said("r1"))
    assert compared(database, run, file, EVER).agrees()
    database.rows(
        "SET session_replication_role = replica; UPDATE rewards SET reward_amount = 401", SUPERUSER
    )
    again = compared(database, run, file, EVER)
    assert (again.is_as_recorded, again.agrees()) == (False, False)


def test_every_run_is_recorded(database: Database, run: Run, tmp_path: Path) -> None:
    posted(database, run, reward("r1"))
    file = report_of(tmp_path, said("r1"), said("m1"))
    compared(database, run, file, EVER._replace(campaigns=("b", "a")))
    compared(database, run, file, EVER._replace(campaigns=("a", "b")), run_by="Bob")
    recorded = database.rows("""
        SELECT number, encode(file_sha256, 'hex'), options->'campaigns', starts_at::date::text,
               ends_at::date::text, position = (SELECT max(position) FROM commits), repeats, lines,
               matched, missing_here, run_by
        FROM reconciliations ORDER BY number
    """)
    digest = database.rows(f"SELECT encode(sha256('\\x{file.read_bytes().hex()}'), 'hex')")[0][0]
    same = (digest, ["a", "b"], "2000-01-01", "3000-01-01", True)
    assert recorded == [(1, *same, None, 2, 1, 1, "Ada"), (2, *same, 1, 2, 1, 1, "Bob")]


def test_what_is_missing_is_imported_once_and_told_from_what_came_by_webhook(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"))
    file = report_of(
        tmp_path,
        said("r1"),
        said("m1", rewardAmount="12.50", userId="user-2"),
        said("m2", rewardType="noReward", rewardAmount=""),
        said("bad1", currency="NOPE"),
        said("bad2", rewardAmount="1.234"),
        said("bad3", currency=""),
        said("bad4", rewardAmount="-1"),
        said("bad5", userId=""),
        said("bad6", campaignId=""),
        said("twice"),
        said("twice", rewardAmount="5"),
    )
    importing = EVER._replace(imports=True)
    first = compared(database, run, file, importing)
    assert first.imported is not None
    assert first.imported.counts == {Status.CREDITED: 1, Status.RECORDED: 1, Status.REPLAYED: 0}
    assert [(line.line, line.reward_id) for line in first.imported.refused] == [
        (7, "bad3"),
        (8, "bad4"),
        (9, "bad5"),
        (10, "bad6"),
        (5, "bad1"),
        (6, "bad2"),
    ]
    assert first.not_imported == 7
    stands = "SELECT reward_id, user_id, webhook_type FROM rewards ORDER BY 1"
    assert database.rows(stands) == [
        ("m1", "user-2", WEBHOOK_TYPE),
        ("m2", "user-1", WEBHOOK_TYPE),
        ("r1", "user-1", None),
    ]
    again = compared(database, run, file, importing)
    assert again.imported is not None
    assert sum(again.imported.counts.values()) == 0
    assert again.counts.by_class[Class.MATCHED] == 3
    assert database.rows("SELECT count(*) FROM postings") == [(2,)]

    assert run(verify(database.url())) == []


def test_a_webhook_after_an_import_is_a_replay_if_it_says_the_same(
    database: Database, run: Run, tmp_path: Path
) -> None:
    file = report_of(tmp_path, said("m1", code="SECRET"), said("m2"))
    compared(database, run, file, EVER._replace(imports=True))
    same = reward("m1", code="SECRET", reward_name="another", status="seen", webhook_type="reward")
    (replayed,) = posted(database, run, same)
    assert isinstance(replayed, Receipt)
    assert replayed.status is Status.REPLAYED
    for other in (reward("m2", reward_type="coins"), reward("m2", code="X"), reward("m2", "1")):
        (conflict,) = posted(database, run, other)
        assert type(conflict).__name__ == "IdempotencyConflict"
    assert database.rows("SELECT count(*) FROM postings") == [(2,)]


def test_the_kept_text_of_an_import_reads_as_the_reward_that_was_posted(tmp_path: Path) -> None:
    file = tmp_path / "report.ndjson"
    whole = said("m1", rewardAmount=12.5, code="C", type="quiz", rewardName="ü €")
    rows = [
        whole,
        said("m2", rewardAmount=None, currency=None, details={"deep": {"a": [1, 2.50]}}),
        said("m3", rewardType="noReward"),
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened(file, Columns()) as report:
        for line in report.lines():
            told = imported_reward(line, b"\x01" * 32)
            assert read_reward(told.believed_bytes, Mapping()) == told
            kept_line = json.loads(told.believed_bytes, parse_float=Decimal)["report"]
            assert (kept_line["line"], kept_line["sha256"]) == (line.number, "01" * 32)
            assert kept_line["told"]["rewardId"] == line.reward_id


@pytest.mark.parametrize("column", ["userId", "campaignId", "currency", "rewardType", "code"])
def test_a_report_without_all_that_the_fingerprint_covers_is_not_imported(
    column: str, database: Database, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "report.csv"
    file.write_text(csv_of([said("m1")], [name for name in NAMES if name != column]))
    importing = EVER._replace(imports=True)
    with pytest.raises(BadColumns, match="has no column for"):
        compared(database, run, file, importing)
    assert database.rows("SELECT count(*) FROM rewards") == [(0,)]
    field = {"userId": "user_id", "campaignId": "campaign_id", "rewardType": "reward_type"}
    columns = Columns(constants={field.get(column, column): said("m1")[column]})
    answer = compared(database, run, file, importing._replace(columns=columns))
    assert answer.not_imported == 0
    (replayed,) = posted(database, run, reward("m1"))
    assert isinstance(replayed, Receipt)


# Its own peak, and not, as the system counts a child's, that of the one who started it.
PEAK = """
import re, sys
from pathlib import Path
from ledger.cli import app
try:
    app()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_a_comparison_holds_no_more_memory_for_more_lines(
    database: Database, tmp_path: Path
) -> None:
    file, out = tmp_path / "report.csv", tmp_path / "out.csv"

    def peak_kilobytes(lines: int) -> int:
        rows = (f"x{n},user-{n},campaign-1,1,USD,points,{'x' * 200}\r\n" for n in range(lines))
        file.write_text(",".join(NAMES) + "\r\n" + "".join(rows))
        arguments = ["reconcile", str(file), "--from", "2000-01-01", "--to", "2000-01-01"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments, "--out", str(out), "--limit", "1"],
            env={**os.environ, "DATABASE_URL": database.url()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert out.read_text().count("\n") == lines + 1
        return int(done.stdout.splitlines()[-1])

    few = peak_kilobytes(5_000)
    assert peak_kilobytes(50_000) < few + 8_000


def test_no_cell_of_a_report_is_a_formula_in_a_spreadsheet(
    database: Database, run: Run, tmp_path: Path
) -> None:
    cells = ("=1+1", "+1", "-1", "@x", "\tx", "plain", "-")
    file = report_of(tmp_path, *[said(f"{c}{n}", userId=c) for n, c in enumerate(cells)])
    with (tmp_path / "out.csv").open("w", newline="") as out:
        answer = compared(database, run, file, EVER, out=out, limit=3)
    assert len(answer.differences) == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_bytes().decode())))
    assert [row["reported_user"] for row in rows] == [
        *(f"'{cell}" for cell in cells[:5]),
        "plain",
        "'-",
    ]
    assert rows[0]["reward_id"] == "'=1+10"
    assert csv_text(answer.differences).count("missing here") == 3
