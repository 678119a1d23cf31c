"""Reading reports: CSV and NDJSON, packed or not; what cannot be read is named by its line."""

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.operations.columns import BadColumns, Columns, read_columns
from ledger.operations.report import Line, opened
from ledger.operations.rows import LINE_BYTES_MAX, BadReport
from tests.ledger.reports import NAMES, csv_of, said

ROWS = [said("r1"), said("r2", rewardAmount="12.50", userId="übel, 'die'", currency="eur")]
PLAIN = csv_of(ROWS)


def written(path: Path, content: bytes | str) -> Path:
    file = path / "report"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


KNOWN = Columns()


def lines(file: Path, columns: Columns = KNOWN, *, with_days: bool = False) -> list[Line]:
    with opened(file, columns, with_days=with_days) as report:
        return list(report.lines())


def facts(line: Line) -> tuple[object, ...]:
    return (line.number, line.reward_id, line.user_id, line.campaign_id, line.amount, line.currency)


WHOLE = [
    (2, "r1", "user-1", "campaign-1", Decimal(400), "USD"),
    (3, "r2", "übel, 'die'", "campaign-1", Decimal("12.5"), "EUR"),
]

NDJSON = "".join(json.dumps(row) + "\n" for row in ROWS)
NUMBERS = (
    '{"rewardId":"r1","rewardAmount":400,"details":{"currency":"USD"},'
    '"userId":"user-1","campaignId":"campaign-1"}\n'
)

SPELLINGS: dict[str, bytes | str] = {
    "as it is": PLAIN,
    "packed": gzip.compress(PLAIN.encode()),
    "packed in two parts": gzip.compress(PLAIN[:50].encode()) + gzip.compress(PLAIN[50:].encode()),
    "with a byte order mark": "\ufeff" + PLAIN,
    "packed, with a byte order mark": gzip.compress(("\ufeff" + PLAIN).encode()),
    "with semicolons": csv_of(ROWS, delimiter=";"),
    "with tabs": csv_of(ROWS, delimiter="\t"),
    "all quoted": csv_of(ROWS, quoting=1),
    "lines ended by LF": PLAIN.replace("\r\n", "\n"),
    "without the last end of a line": PLAIN.removesuffix("\r\n"),
    "other names": PLAIN.replace("rewardId,userId", " Reward ID ,user_id", 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_csv_report_says_the_same_however_it_is_spelled(spelling: str, tmp_path: Path) -> None:
    assert [facts(line) for line in lines(written(tmp_path, SPELLINGS[spelling]))] == WHOLE


@pytest.mark.parametrize("content", [NDJSON.encode(), gzip.compress(NDJSON.encode())])
def test_ndjson_says_the_same_one_line_higher(content: bytes, tmp_path: Path) -> None:
    found = [facts(line) for line in lines(written(tmp_path, content))]
    assert found == [(number - 1, *rest) for number, *rest in WHOLE]


def test_numbers_of_ndjson_are_exact_and_objects_are_looked_into(tmp_path: Path) -> None:
    text = NUMBERS + NUMBERS.replace("r1", "r2").replace("400", "0.1234567890123456789012345678")
    first, second = lines(written(tmp_path, text))
    assert facts(first) == (1, "r1", "user-1", "campaign-1", Decimal(400), "USD")
    assert second.amount == Decimal("0.1234567890123456789012345678")


def test_a_cell_over_many_lines_belongs_to_the_line_where_its_row_begins(tmp_path: Path) -> None:
    text = 'rewardId,rewardAmount,name\nr1,1,"a\nb\nc"\n\nr2,2,b\nr3,x,c\n'
    with pytest.raises(BadReport, match="line 7 has an amount"):
        lines(written(tmp_path, text))
    found = lines(written(tmp_path, text.replace("x", "3")))
    assert [(line.number, line.reward_id) for line in found] == [(2, "r1"), (6, "r2"), (7, "r3")]


HEADER = ",".join(NAMES) + "\n"
BAD = {
    HEADER + "r1,u,c,ten,USD,,\n": "line 2 has an amount that is not a number such as 12.50",
    HEADER + "r1,u,c,1e3,USD,,\n": "line 2 has an amount that is not a number",
    HEADER + 'r1,u,c,"1,000",USD,,\n': "line 2 has an amount that is not a number",
    HEADER + "r1,u,c,NaN,USD,,\n": "line 2 has an amount that is not a number",
    HEADER + f"r1,u,c,{'9' * 31},USD,,\n": "line 2 has an amount with too many digits",
    HEADER + ",u,c,1,USD,,\n": "line 2 has no reward_id",
    HEADER + f"{'r' * 201},u,c,1,USD,,\n": "line 2 has a reward_id of over 200 characters",
    HEADER + f"r1,{'u' * 201},c,1,USD,,\n": "line 2 has a user_id of over 200 characters",
    HEADER + "r1,u\0,c,1,USD,,\n": "line 2 has a user_id with a NUL",
    HEADER + "r1,u,c,1\n": "line 2 has 4 cells where the header has 7",
    HEADER
    + "r1,u,c,1,USD,,\nr2,u,c,x,USD,,\nr3,u\n": "line 3 has an amount .*; line 4 has 2 cells",
    HEADER + 'r1,u,c,1,USD,,"open\n': "line 2, is not CSV",
    HEADER + 'r1,u,c,1,USD,,"a"b\n': "line 2, is not CSV",
    HEADER + f"r1,u,c,1,USD,,{'x' * 200_000}\n": "line 2, is not CSV: .* a cell has over",
    HEADER + "x" * (LINE_BYTES_MAX + 1): "line 2, is over 1048576 bytes",
    '{"rewardId":"r1","rewardAmount":1}\nnot json\n': "line 2 is not a JSON object",
    '{"rewardId":"r1","rewardAmount":1}\n[1]\n': "line 2 is not a JSON object",
    '{"rewardId":1,"rewardAmount":1}\n': "line 1 has a reward_id that is not a string",
    '{"rewardId":"r1","rewardAmount":true}\n': "line 1 has an amount that is not a number",
    '{"rewardId":"r1","rewardAmount":1e999999}\n': "line 1 has an amount with too many digits",
    '{"rewardId":"r1","rewardAmount":1,"x":' + "[" * 100_000: "line 1 is not a JSON object",
    "[": "is a JSON array",
    "": "is empty",
    "\n": "is empty",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_is_named_by_its_line_and_not_by_what_it_holds(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(BadReport, match=BAD[text]) as refused:
        lines(written(tmp_path, text))
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"rewardId,rewardAmount\nr\xff,1\n", "line 2, is not UTF-8"),
        (PLAIN.encode("utf-16"), "is UTF-16"),
        (b"PK\x03\x04rest", "is a spreadsheet"),
        (gzip.compress(PLAIN.encode())[:-9], "packing"),
        (gzip.compress(PLAIN.encode()) + b"rest", "packing"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0not deflated", "packing"),
    ],
)
def test_a_file_that_is_no_text_is_told_what_it_is(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BadReport, match=reason):
        lines(written(tmp_path, content))


def test_no_more_than_ten_bad_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        BadReport, match=r"line 11 has no .*; the rest was not looked at"
    ) as refused:
        lines(written(tmp_path, "rewardId,rewardAmount\n" + ",1\n" * 50))
    assert str(refused.value).count("has no reward_id") == 10


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadReport, match="No such file"):
        lines(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,rewardAmount\nr1,1\n", "no column for reward_id"),
        ("rewardId,points\nr1,1\n", "no column for amount"),
        ('{"rewardId":"r1"}\n', "no column for amount"),
        ("rewardId,reward_id,amount\nr1,r1,1\n", "could both be reward_id"),
    ],
)
def test_a_report_without_its_columns_is_told_which(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadColumns, match=reason):
        lines(written(tmp_path, text))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadReport, match="two columns of one name"):
        lines(written(tmp_path, "rewardId,amount,amount\nr1,1,1\n"))


TOML = """
delimiter = ";"
[columns]
reward_id = "id"
amount = "value in points"
currency = { constant = "POINTS" }
user_id = "who.id"
[quarantine]
reward_id = "event.id"
"""


def columns_of(path: Path, text: str) -> Columns:
    file = path / "columns.toml"
    file.write_text(text)
    return read_columns(file)


def test_a_file_says_where_a_report_holds_what(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, TOML)
    assert columns.quarantined_reward_id == "event.id"
    told = "id;value in points;who.id;rewardId;amount\nr1;7;u;other;9\n"
    (line,) = lines(written(tmp_path, told), columns)
    assert facts(line) == (2, "r1", "u", "", Decimal(7), "POINTS")
    told = '{"id":"r1","value in points":7,"who":{"id":"u"}}\n'
    assert facts(lines(written(tmp_path, told), columns)[0])[1:3] == ("r1", "u")


@pytest.mark.parametrize("told", ["id;amount;who.id\nr1;7;u\n", '{"id":"r1","amount":7}\n'])
def test_a_column_that_a_file_names_must_be_there(told: str, tmp_path: Path) -> None:
    with pytest.raises(BadColumns, match="no column for"):
        lines(written(tmp_path, told), columns_of(tmp_path, TOML))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[columns\n", "line 1"),
        ("[column]\n", "column is not known in the file; what is"),
        ("[columns]\nreward = 'x'\n", "reward is not known"),
        ("[columns]\namount = 1\n", "amount must be the name of a column"),
        ("[columns]\ncurrency = ''\n", "currency must be the name of a column, or"),
        ("[columns]\nreward_id = { constant = 'x' }\n", "reward_id must be the name"),
        ("[columns]\namount = { constant = '1' }\n", "amount must be the name"),
        ("columns = 1\n", "must be a table"),
        ("delimiter = 'x'\n", "delimiter must be"),
        ("delimiter = ''\n", "delimiter must be"),
        ("[quarantine]\nreward_id = 1\n", "must be keys"),
        ("#" * 70_000, "is it the report"),
    ],
)
def test_columns_that_cannot_be_used_say_why(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadColumns, match=reason):
        columns_of(tmp_path, text)
    with pytest.raises(BadColumns, match="cannot be read"):
        read_columns(tmp_path / "none")


@pytest.mark.parametrize(
    ("at", "day"),
    [
        ("2026-10-31", date(2026, 10, 31)),
        ("2026-10-31T23:59:59Z", date(2026, 10, 31)),
        ("2026-10-31 23:59:59-01:00", date(2026, 11, 1)),
        ("1793491199", date(2026, 10, 31)),
        ("1793491199000", date(2026, 10, 31)),
    ],
)
def test_the_days_of_a_report_are_those_of_its_lines(at: str, day: date, tmp_path: Path) -> None:
    text = f"rewardId,amount,Created At\nr1,1,{at}\nr2,1,\nr3,1,2026-11-05\n"
    with opened(written(tmp_path, text), Columns(), with_days=True) as report:
        list(report.lines())
        assert (report.first_day, report.last_day) == (day, date(2026, 11, 5))


def test_a_time_that_nobody_can_read_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, "rewardId,amount,date\nr1,1,31.10.2026\n")
    with pytest.raises(BadReport, match="line 2 has an issued_at that is neither"):
        lines(file, with_days=True)
    assert len(lines(file)) == 1
