"""``ledger reconcile``, as a process: what it prints, and how it ends."""

import csv
import gzip
import json
from pathlib import Path

import psycopg
import pytest

from tests.conftest import OWNER, SUPERUSER, Database, Run
from tests.ledger.reports import csv_of, said
from tests.ledger.test_cli import ledger
from tests.ledger.test_reconcile import posted, report_of
from tests.rewards import reward

PERIOD = ("--from", "2000-01-01", "--to", "2999-12-31")


def test_it_ends_with_0_when_all_is_matched_and_with_1_when_anything_differs(
    database: Database, run: Run, tmp_path: Path
) -> None:
    posted(database, run, reward("r1"), reward("r2"))
    file = report_of(tmp_path, said("r1"), said("r2"))
    agreeing = ledger(database, "reconcile", str(file), *PERIOD)
    assert (agreeing.returncode, agreeing.stderr) == (0, "")
    assert "matched\t2" in agreeing.stdout
    assert agreeing.stdout.endswith("report and books agree\n")

    packed = tmp_path / "report.csv.gz"
    packed.write_bytes(gzip.compress(csv_of([said("r1", userId="=x"), said("m")]).encode()))
    out = tmp_path / "differences.csv"
    differing = ledger(database, "reconcile", str(packed), *PERIOD, "--out", str(out))
    assert (differing.returncode, differing.stderr) == (1, "")
    assert "  user\t1" in differing.stdout
    assert "=x ≠ user-1" in differing.stdout
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["class"], row["reward_id"], row["reported_user"]) for row in rows] == [
        ("differs", "r1", "'=x"),
        ("missing here", "m", "user-1"),
        ("missing there", "r2", ""),
    ]
    assert out.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "differences.csv",
        "report.csv",
        "report.csv.gz",
    ]


def test_programs_are_told_in_json(database: Database, run: Run, tmp_path: Path) -> None:
    posted(database, run, reward("r1"))
    file = report_of(tmp_path, said("r1", rewardAmount="1"), said("m1"), said("m2"))
    done = ledger(database, "reconcile", str(file), *PERIOD, "--json", "--limit", "2", "--import")
    assert done.returncode == 1
    (told,) = json.loads(done.stdout)
    assert told["agrees"] is False
    assert told["counts"]["missing here"] == 2
    assert told["differing"] == {"amount": 1, "currency": 0, "user": 0, "campaign": 0}
    assert [row["reward_id"] for row in told["differences"]] == ["r1", "m1"]
    assert told["imported"]["credited"] == 2
    again = ledger(database, "reconcile", str(file), *PERIOD, "--now")
    assert "missing here" not in again.stdout
    assert "lines\t3\nmatched\t2\ndiffers\t1\n" in again.stdout
    repeated = ledger(database, "reconcile", str(file), *PERIOD)
    assert "as they were for run 2" in repeated.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.csv", *PERIOD], "No such file"),
        (["report.csv"], "say --from and --to"),
        (["report.csv", "--from", "2026-01-01"], "needs both"),
        (["report.csv", "--from", "2026-02-01", "--to", "2026-01-01"], "the first day not after"),
        (["report.csv", *PERIOD, "--out", "report.csv"], "--out is the report itself"),
        (["report.csv", *PERIOD, "--out", "none/out.csv"], "cannot be written"),
        (["report.csv", *PERIOD, "--columns", "none.toml"], "cannot be read"),
        (["bad.csv", *PERIOD], "line 2 has an amount"),
    ],
)
def test_what_goes_wrong_is_one_sentence_without_what_the_report_holds(
    arguments: list[str],
    sentence: str,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report_of(tmp_path, said("r1"))
    (tmp_path / "bad.csv").write_text(csv_of([said("r1", rewardAmount="x", userId="ada@home")]))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    told = ledger(database, "reconcile", *arguments)
    assert told.returncode == 1
    assert sentence in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert "ada@home" not in told.stderr
    assert told.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "report.csv"]


def test_a_login_that_may_make_no_temporary_tables_is_told_what_it_lacks(
    database: Database, tmp_path: Path
) -> None:
    database.rows(
        f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC;"
        f" GRANT CONNECT ON DATABASE {database.name} TO ledger_writer",
    )
    file = str(report_of(tmp_path, said("r1")))
    url = database.url("ledger_writer")
    assert "GRANT TEMPORARY" in ledger(None, "reconcile", file, *PERIOD, DATABASE_URL=url).stderr
    # As the migration does it.
    database.rows(f"GRANT TEMPORARY ON DATABASE {database.name} TO ledger_writer")
    done = ledger(None, "reconcile", file, *PERIOD, DATABASE_URL=url)
    assert "missing here\t1" in done.stdout


def test_help_has_an_example(database: Database) -> None:
    assert "Example:" in ledger(None, "reconcile", "--help").stdout


RULES = {
    "UPDATE reconciliations SET run_by = 'x'": "books_are_append_only",
    "DELETE FROM reconciliations": "books_are_append_only",
    "TRUNCATE reconciliations": "books_are_append_only",
}
ROW = {
    "file_sha256": "sha256('')",
    "options": "'{}'",
    "starts_at": "'2026-10-01Z'",
    "ends_at": "'2026-11-01Z'",
    "position": "1",
    "read_at": "now()",
    "lines": "7",
    **dict.fromkeys(
        ("matched", "missing_here", "missing_there", "differs", "duplicate", "conflict"), "1"
    ),
    "quarantined": "1",
    "reversed": "1",
    "answer_sha256": "sha256('')",
    "run_by": "'Ada'",
}


def insert(**changed: str) -> str:
    row = ROW | changed
    return f"INSERT INTO reconciliations ({', '.join(row)}) VALUES ({', '.join(row.values())})"


RULES |= {
    insert(number="1").replace("VALUES", "OVERRIDING SYSTEM VALUE VALUES"): (
        "reconciliation_number_is_used_once"
    ),
    insert(file_sha256="'x'"): "reconciliation_file_is_named_by_sha256",
    insert(answer_sha256="'x'"): "reconciliation_answer_is_named_by_sha256",
    insert(options="'[]'"): "reconciliation_has_options",
    insert(ends_at="'2026-10-01Z'"): "reconciliation_period_is_in_order",
    insert(position="-1"): "reconciliation_position_is_not_negative",
    insert(missing_there="-1"): "reconciliation_holds_no_negative_count",
    insert(lines="8"): "reconciliation_holds_each_line_once",
    insert(repeats="99"): "reconciliation_repeated_is_recorded",
    insert(run_by="''"): "reconciliation_is_run_by_somebody",
}


@pytest.mark.parametrize("statement", RULES)
def test_a_record_that_breaks_a_rule_is_refused_even_to_the_owner(
    statement: str, database: Database
) -> None:
    database.rows(insert(), "ledger_writer")
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        database.rows(statement, OWNER)
    assert refused.value.diag.constraint_name == RULES[statement]
    assert database.rows("SELECT run_by FROM reconciliations") == [("Ada",)]


def test_the_writer_adds_records_and_nobody_else_does(database: Database) -> None:
    assert database.rows("""
        SELECT granted.grantee::regrole::text, granted.privilege_type
        FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS granted
        WHERE relname = 'reconciliations' AND granted.grantee <> relowner ORDER BY 1, 2
    """, SUPERUSER) == [
        ("ledger_reader", "SELECT"),
        ("ledger_writer", "INSERT"),
        ("ledger_writer", "SELECT"),
    ]  # fmt: skip
