"""`ledger export`: one snapshot as files, read back by others, the same after an interruption."""

import csv
import gc
import hashlib
import json
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet
import pytest

from ledger.correcting import approve, propose, reverse
from ledger.correction import Adjustment, Reversal
from ledger.database import Role, conninfo
from ledger.operations import cut, exported, formats
from ledger.operations.export import export
from ledger.operations.export_state import ExportRefused
from ledger.operations.formats import FORMATS
from ledger.operations.manifest import Manifest, Wanted
from ledger.operations.sheets import DoesNotFit, decimal_type
from ledger.writing import post
from tests.bench.books import fill
from tests.conftest import SUPERUSER, Database, Run
from tests.rewards import reward

HOSTILE = [
    "a b",
    'quote " and \\ backslash',
    "line\n2026-01-01 open Assets:Injected\n",
    "carriage\rreturn\ttab",
    "comma, semicolon; tag:value  two spaces",
    "=cmd|' /C calc'!A0",
    "Ünïcode 😀\u2028\x85",
    "X41",
    "X-",
    "-",
    "A",
    "\x01\x7f",
    "\n" * 200,
]


def post_some(database: Database, run: Run, *, prefix: str = "r", count: int = 40) -> None:
    """Rewards of several users, campaigns and currencies."""
    told = [
        reward(
            f"{prefix}{number}",
            amount=str(Decimal(number + 1) / 4),
            user_id=f"user-{number % 7}",
            campaign_id=f"campaign-{number % 3}",
            currency="USD" if number % 4 else "KWD",
        )
        for number in range(count)
    ]
    post_all(database, run, told)


def post_all(database: Database, run: Run, rewards: list[Any]) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            for outcome in await post(connection, rewards):
                assert not isinstance(outcome, Exception), outcome

    run(main())


def correct_some(database: Database, run: Run) -> None:
    """A reward of ``post_some`` reversed, another in part, and a user given something."""

    async def main() -> None:
        info = conninfo(database.url(Role.CORRECTOR), Role.CORRECTOR)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            await reverse(connection, Reversal("key\n1", "r1", None, "a mistake", "ann"))
            await reverse(connection, Reversal("key-2", "r39", Decimal(2), "in part", "ann"))
            gift = Adjustment("key-3", "user-4", "USD", Decimal("0.50"), "good\nwill", "sorry")
            await propose(connection, gift, "ann")
            await approve(connection, "key-3", "bob")

    run(main())


def export_to(
    database: Database, run: Run, directory: Path, format_: str = "csv", **options: Any
) -> Manifest:
    report: Callable[[int, int], None] = options.pop("report", lambda _done, _of: None)
    period = {"start": options.pop("from_", None), "end": options.pop("to", None)}
    wanted = Wanted(format_, **period, **options)

    async def main() -> Manifest:
        async with database.connected(Role.READER) as connection:
            return await export(connection, directory, wanted, report)

    written: Manifest = run(main())
    return written


Rows = list[dict[str, Any]]


def read_csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value or None for name, value in row.items()} for row in csv.DictReader(file)
        ]


def read_ndjson(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("ascii").split("\n")[:-1]]


def read_parquet(path: Path) -> Rows:
    rows: Rows = pyarrow.parquet.read_table(path).to_pylist()
    return rows


READ = {"csv": read_csv, "ndjson": read_ndjson, "parquet": read_parquet}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as all formats agree on it: amounts by their value, times and numbers as text."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name in {"amount", "balance_after"} or name.endswith(("debits", "credits")):
            shown[name] = Decimal(value)
        elif name == "posted_at" and not isinstance(value, str):
            shown[name] = value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        else:
            shown[name] = None if value is None else str(value)
    return shown


def in_the_books(database: Database) -> Rows:
    names = [column.name for column in formats.POSTING_COLUMNS]
    rows = database.rows(
        "SELECT postings.user_id, postings.currency, version, postings.reward_id, correction_key,"
        " corrections.reward_id, postings.debit_account, postings.credit_account, postings.amount,"
        " balance_after, posted_at AT TIME ZONE 'UTC'"
        " FROM postings LEFT JOIN corrections USING (correction_key) ORDER BY 1, 2, 3"
    )
    return [plain(dict(zip(names, row, strict=True))) for row in rows]


@pytest.mark.parametrize("format_", READ)
def test_a_table_holds_every_posting_and_every_balance_exactly(
    format_: str, database: Database, run: Run, tmp_path: Path
) -> None:
    hostile = [
        reward(f"{text}-{number}", amount="0.25", user_id=text, campaign_id=text[::-1])
        for number, text in enumerate(HOSTILE)
    ]
    post_all(database, run, hostile)
    post_some(database, run)
    correct_some(database, run)
    written = export_to(database, run, tmp_path / "out", format_, part_rows=10)
    names = sorted(path.name for path in (tmp_path / "out").glob("postings-*"))
    assert len(names) == 6
    rows = [plain(row) for name in names for row in READ[format_](tmp_path / "out" / name)]
    assert rows == in_the_books(database)
    assert written.postings == len(rows) == 56
    balances = READ[format_](tmp_path / "out" / f"balances.{format_}")
    found = {
        (row["account"], row["currency"]): (row["closing_debits"], row["closing_credits"])
        for row in map(plain, balances)
    }
    held = database.rows("SELECT account, currency, debits, credits FROM balances")
    assert found == {
        (account, code): (debits, credits_) for account, code, debits, credits_ in held
    }
    assert written.balances == len(held)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_manifest_tells_every_file_by_its_digest_and_the_totals_of_the_books(
    format_: str, database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    export_to(database, run, tmp_path / "out", format_, part_rows=15)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    told = {file["name"]: file["sha256"] for file in manifest["files"]}
    assert told == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out").iterdir()
        if path.name != "manifest.json"
    }
    parts = [file["rows"] for file in manifest["files"] if file["name"].startswith("postings")]
    assert parts == [15, 15, 10]
    assert manifest["agrees"] is True
    totals = database.rows(
        "SELECT currency, count(*), sum(amount)::text, sum(amount)::text FROM postings"
        " GROUP BY currency ORDER BY currency"
    )
    assert [
        (total["currency"], total["postings"], total["debits"], total["credits"])
        for total in manifest["totals"]
    ] == totals
    ((position, number),) = database.rows("SELECT max(position), max(last_number) FROM commits")
    assert manifest["snapshot"]["last_commit_position"] == position
    assert manifest["snapshot"]["last_reward_number"] == number
    assert manifest["amounts"] == ("decimal128(38, 3)" if format_ == "parquet" else "text")


@pytest.mark.parametrize(
    ("scale", "whole_digits", "expected"),
    [
        (0, 38, "decimal128(38, 0)"),
        (18, 20, "decimal128(38, 18)"),
        (18, 21, "text"),
        (0, 39, "text"),
    ],
)
def test_amounts_are_decimals_where_a_decimal_holds_them_all(
    scale: int, whole_digits: int, expected: str
) -> None:
    assert decimal_type(scale, whole_digits) == expected


def test_parquet_holds_amounts_as_text_when_no_decimal_could(
    database: Database, run: Run, tmp_path: Path
) -> None:
    database.rows("INSERT INTO currencies VALUES ('WEI', 18, 'Wei'), ('BIG', 0, 'Big')")
    amounts = {"WEI": "0.000000000000000001", "BIG": "9" * 30}
    post_all(database, run, [reward(code, amounts[code], currency=code) for code in amounts])
    assert export_to(database, run, tmp_path / "out", "parquet").amounts == "text"
    rows = read_parquet(tmp_path / "out" / "postings-000001.parquet")
    assert {row["currency"]: row["amount"] for row in rows} == amounts


def test_empty_books_are_exported_too(database: Database, run: Run, tmp_path: Path) -> None:
    for format_ in FORMATS:
        written = export_to(database, run, tmp_path / format_, format_)
        assert (written.postings, written.balances, written.agrees) == (0, 0, True)
    assert read_parquet(tmp_path / "parquet" / "postings-000001.parquet") == []
    assert (tmp_path / "csv" / "postings-000001.csv").read_text().startswith("user_id,currency,")


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import psycopg
from ledger.database import Role, conninfo
from ledger.operations.export import export
from ledger.operations.manifest import Wanted

def report(done, of):
    if done > int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    info = conninfo(sys.argv[1], Role.READER)
    async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
        await export(connection, Path(sys.argv[2]), Wanted(sys.argv[3], part_rows=10), report)

asyncio.run(main())
"""


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("format_", "killed_after"), [("csv", 25), ("parquet", 0), ("hledger", 39)]
)
def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(
    format_: str, killed_after: int, database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    export_to(database, run, tmp_path / "whole", format_, part_rows=10)
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            database.url(),
            tmp_path / "out",
            format_,
            str(killed_after),
        ],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    # For users, currencies and campaigns that the export knows, and for new ones before and after.
    post_some(database, run, prefix="later-")
    post_all(database, run, [reward(f"new-{name}", user_id=name) for name in ("a", "user-3x", "z")])
    seen: list[int] = []
    export_to(
        database,
        run,
        tmp_path / "out",
        format_,
        part_rows=10,
        report=lambda done, _of: seen.append(done),
    )
    assert seen[0] == killed_after // 10 * 10, "whole parts are not written again"
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "out")
    manifests = [json.loads(each.pop("manifest.json")) for each in (whole, resumed)]
    assert resumed == whole
    for manifest in manifests:
        del manifest["snapshot"]["taken_at"]
    assert manifests[0] == manifests[1]


def test_what_is_posted_meanwhile_is_not_in_it(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    before = in_the_books(database)
    ((position,),) = database.rows("SELECT max(position) FROM commits")

    def report(done: int, _of: int) -> None:
        if not done:
            thread = threading.Thread(
                target=post_some, args=(database, run), kwargs={"prefix": "l"}
            )
            thread.start()
            thread.join()

    written = export_to(database, run, tmp_path / "out", part_rows=100, report=report)
    assert len(in_the_books(database)) == 2 * len(before)
    rows = read_csv(tmp_path / "out" / "postings-000001.csv")
    assert list(map(plain, rows)) == before
    assert written.snapshot.last_commit_position == position
    assert written.agrees


def test_the_position_it_tells_and_the_balances_are_of_one_moment(
    database: Database, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is posted after the position was read, and before the balances are, is not in it."""
    post_some(database, run)
    get_days = cut.get_days

    async def get_days_later(*asked: Any) -> Any:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(post_some, database, run, prefix="l").result()
        return await get_days(*asked)

    monkeypatch.setattr(cut, "get_days", get_days_later)
    written = export_to(database, run, tmp_path / "out")
    assert len(in_the_books(database)) == 80
    ((count,),) = database.rows(
        "SELECT count(*) FROM rewards JOIN commits USING (written_by)"
        f" WHERE position <= {written.snapshot.last_commit_position}"
    )
    assert written.postings == count == 40
    assert written.agrees


def test_a_period_is_its_postings_between_an_opening_and_a_closing_balance(
    database: Database, run: Run, tmp_path: Path
) -> None:
    fill(database.url(), 1000)
    start, end = "2025-03-01T00:00:00.000000Z", "2025-04-01T00:00:00.000000Z"
    written = export_to(database, run, tmp_path / "out", from_=start, to=end)
    rows = read_csv(tmp_path / "out" / "postings-000001.csv")
    assert {row["posted_at"][:7] for row in rows} == {"2025-03"}
    ((count, amount),) = database.rows(
        "SELECT count(*), sum(amount)::text FROM postings"
        f" WHERE posted_at >= '{start}' AND posted_at < '{end}'"
    )
    (total,) = written.totals
    assert (len(rows), total.postings, total.debits) == (count, count, amount)
    assert written.agrees
    for name, until in (("opening", start), ("closing", end)):
        held = database.rows(
            "SELECT account, sum(amount) FILTER (WHERE side = 'credit') FROM entries"
            f" WHERE posted_at < '{until}' GROUP BY account"
        )
        balances = read_csv(tmp_path / "out" / "balances.csv")
        found = {row["account"]: Decimal(row[f"{name}_credits"]) for row in balances}
        assert {account: found[account] for account, _ in held} == {
            account: credits_ or 0 for account, credits_ in held
        }


def test_books_that_do_not_hold_are_exported_as_not_agreeing(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    database.rows(
        "UPDATE balances SET credits = credits + 1 WHERE account = 'user:user-1'", SUPERUSER
    )
    written = export_to(database, run, tmp_path / "out")
    assert not written.agrees
    assert [total.currency for total in written.totals if not total.agrees()] == ["KWD", "USD"]


def interrupted(database: Database, run: Run, directory: Path) -> None:
    """An export of which two parts are whole."""

    def report(done: int, _of: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_to(database, run, directory, part_rows=10, report=report)


def test_a_whole_export_is_never_written_over(database: Database, run: Run, tmp_path: Path) -> None:
    post_some(database, run)
    export_to(database, run, tmp_path)
    before = files(tmp_path)
    with pytest.raises(ExportRefused, match="holds a whole export"):
        export_to(database, run, tmp_path)
    assert files(tmp_path) == before


def test_a_directory_with_other_files_is_left_alone(
    database: Database, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ExportRefused, match="other files"):
        export_to(database, run, tmp_path)
    assert files(tmp_path) == {"letters.txt": b"dear"}


def test_an_unfinished_export_goes_on_as_what_it_was_begun_only(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    interrupted(database, run, tmp_path)
    for options in ({"format_": "ndjson"}, {"part_rows": 11}, {"to": "2030-01-01T00:00:00Z"}):
        with pytest.raises(ExportRefused, match="of another kind"):
            export_to(database, run, tmp_path, **{"part_rows": 10, **options})
    assert export_to(database, run, tmp_path, part_rows=10).agrees


@pytest.mark.parametrize("name", ["postings-000002.csv", "balances.ndjson", "unfinished.json"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_what_was_changed_since_is_not_gone_on_with(
    name: str, is_lost: bool, database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    interrupted(database, run, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if not is_lost:
        path.write_bytes(content[:-2])
    with pytest.raises(ExportRefused, match=r"not as it was written|other files"):
        export_to(database, run, tmp_path, part_rows=10)


def test_an_export_does_not_go_on_from_other_books(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    interrupted(database, run, tmp_path)
    database.rows("SET session_replication_role = replica; TRUNCATE commits", SUPERUSER)
    with pytest.raises(ExportRefused, match="other books"):
        export_to(database, run, tmp_path, part_rows=10)


def test_two_exports_do_not_write_into_one_directory(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    refused: list[BaseException] = []

    def report(done: int, _of: int) -> None:
        if not done:
            with ThreadPoolExecutor(1) as threads:
                other = threads.submit(export_to, database, run, tmp_path)
                refused.append(other.exception() or AssertionError())

    export_to(database, run, tmp_path, report=report)
    assert [type(error) for error in refused] == [ExportRefused]


def test_ten_times_the_rows_take_no_more_memory(
    database: Database, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "FETCH_ROWS", 200)
    monkeypatch.setattr(exported, "FETCH_ROWS", 200)
    monkeypatch.setattr("ledger.operations.export.PIECE_ROWS", 200)
    monkeypatch.setattr(formats, "PIECE_ROWS", 200)
    fill(database.url(), 10_000)
    peaks = []
    # The first and the last days of the same year, so that all accounts are there both times.
    for number, start in enumerate(["2025-12-06T00:00:00Z", None]):
        gc.collect()
        tracemalloc.start()
        try:
            written = export_to(database, run, tmp_path / str(number), from_=start, part_rows=5000)
            peaks.append((written.postings, tracemalloc.get_traced_memory()[1]))
        finally:
            tracemalloc.stop()
    (few, small), (many, large) = peaks
    assert many > 10 * few
    # All rows at once take more than three megabytes.
    assert large < small + 500_000


def test_an_amount_beyond_what_the_balances_allow_is_refused_in_parquet(
    database: Database, run: Run, tmp_path: Path
) -> None:
    post_some(database, run)
    change = "UPDATE postings SET amount = 1e40 WHERE reward_id = 'r5'"
    database.rows(f"SET session_replication_role = replica; {change}", SUPERUSER)
    with pytest.raises(DoesNotFit):
        export_to(database, run, tmp_path / "out", "parquet")
    assert not (tmp_path / "out" / "manifest.json").exists()
