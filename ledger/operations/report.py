"""Somebody else's report of rewards: what each of its lines says.

A line that cannot be read is named by its number and by what is wrong, never by what it holds;
and a report with such a line is refused as a whole, because what was not read was not compared.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal, DecimalException
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ledger.errors import InvalidAmount
from ledger.money import exact
from ledger.operations.columns import REQUIRED, BadColumns, Columns
from ledger.operations.rows import BadReport, Cells, Rows
from ledger.reward import IDENTIFIER_LENGTH_MAX

BAD_LINES_MAX = 10
"""After so many the rest is not looked at: it is the wrong file, or the wrong columns."""

_NO_AMOUNT = "has an amount that is not a number such as 12.50"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_AMOUNT = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)


class Line(NamedTuple):
    """What a line says of a reward; empty, or ``None``, where it says nothing."""

    number: int
    reward_id: str
    amount: Decimal | None
    """Exact, as ``ledger.money.exact`` returns it, but for its sign."""
    currency: str
    user_id: str
    campaign_id: str
    reward_type: str
    code: str
    type: str
    reward_name: str
    cells: Cells


class _BadLine(Exception):
    """A line cannot be read: the text says why."""


class Report:
    """An open report. Take its lines once and whole: then the rest of it is known, too."""

    def __init__(self, path: Path, rows: Rows, columns: Columns, *, with_days: bool) -> None:
        self._path = path
        self._rows = rows
        self._read = reader(columns)
        self._with_days = with_days
        self._named = columns.named
        self.fields: set[str] = set(columns.constants)
        """The fields for which there is a column, or a constant."""
        self.first_day: date | None = None
        self.last_day: date | None = None
        """Between which days, in UTC, the lines say that their rewards were issued, if asked."""
        if rows.header is not None:
            self.fields.update(columns.find(rows.header))
            self.require(REQUIRED)

    @property
    def size_bytes(self) -> int:
        """How large the file is; 0 for one that comes through a pipe."""
        return self._rows.size_bytes

    @property
    def read_bytes(self) -> int:
        """How much of it was read so far."""
        return self._rows.read_bytes

    def sha256(self) -> bytes:
        """The digest of the file as it was given; known after the last line."""
        return self._rows.sha256()

    def lines(self) -> Iterator[Line]:
        """Every line that can be read; at the end ``BadReport`` if there was one that cannot be.

        Raises ``BadColumns`` when a column is missing.
        """
        bad: list[str] = []
        for number, row in self._rows:
            try:
                if isinstance(row, str):
                    raise _BadLine(row)
                line, issued_at = self._read(number, row, self.fields)
                if self._with_days and issued_at:
                    self._note(_day(issued_at))
            except _BadLine as error:
                bad.append(f"line {number} {error}")
                if len(bad) == BAD_LINES_MAX:
                    bad.append("the rest was not looked at")
                    break
            else:
                yield line
        if bad:
            raise BadReport(
                f"{self._path} was not compared: {'; '.join(bad)}. Mend it and try again."
            )
        self.require(REQUIRED)

    def _note(self, day: date) -> None:
        self.first_day = min(self.first_day or day, day)
        self.last_day = max(self.last_day or day, day)

    def require(self, fields: tuple[str, ...]) -> None:
        """Raises ``BadColumns`` unless there is a column, or a constant, for each of ``fields``."""
        missing = [name for name in (*self._named, *fields) if name not in self.fields]
        if missing:
            raise BadColumns(
                f"{self._path} has no column for {', '.join(dict.fromkeys(missing))}: name it in a"
                " file for --columns."
            )


@contextmanager
def opened(path: Path, columns: Columns, *, with_days: bool = False) -> Iterator[Report]:
    """The report in the file at ``path``; raises ``BadReport`` and ``BadColumns``.

    ``with_days`` reads when its rewards were issued, too.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise BadReport(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        rows = Rows(path, file, columns.delimiter)
        yield Report(path, rows, columns, with_days=with_days)


def reader(columns: Columns) -> Callable[[int, Cells, set[str]], tuple[Line, object]]:
    """What reads a line of these columns, and when it says that its reward was issued.

    It adds to the given set for which fields the cells had a column.
    """
    # The lines of a report have few sets of names: of CSV one, of NDJSON one for each kind.
    find = lru_cache(maxsize=256)(columns.find)

    def read(number: int, cells: Cells, fields: set[str]) -> tuple[Line, object]:
        found = find(tuple(cells))
        fields.update(found)
        told: Cells = {field: cells[column] for field, column in found.items()}
        get = {**columns.constants, **told}.get
        return Line(
            number,
            _reward_id(get("reward_id")),
            _amount(get("amount")),
            _text("currency", get("currency")).upper(),
            _identifier("user_id", get("user_id")),
            _identifier("campaign_id", get("campaign_id")),
            _text("reward_type", get("reward_type")),
            _text("code", get("code")),
            _text("type", get("type")),
            _text("reward_name", get("reward_name")),
            cells,
        ), get("issued_at")

    return read


def _text(field: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _BadLine(f"has a {field} that is not a string")
    if not value.isprintable() and _UNSTORABLE.search(value):
        raise _BadLine(f"has a {field} with a NUL or a lone surrogate")
    return value


def _identifier(field: str, value: object) -> str:
    text = _text(field, value)
    if len(text) > IDENTIFIER_LENGTH_MAX:
        raise _BadLine(f"has a {field} of over {IDENTIFIER_LENGTH_MAX} characters")
    return text


def _reward_id(value: object) -> str:
    text = _identifier("reward_id", value)
    if not text:
        raise _BadLine("has no reward_id")
    return text


def _amount(value: object) -> Decimal | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _amount_of_text(value)
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise _BadLine(_NO_AMOUNT)
    return _exact(Decimal(value))


# Amounts come again and again, and to look one up costs a tenth.
@lru_cache(maxsize=4096)
def _amount_of_text(text: str) -> Decimal:
    if _AMOUNT.fullmatch(text) is None:
        raise _BadLine(_NO_AMOUNT)
    return _exact(Decimal(text))


def _exact(value: Decimal) -> Decimal:
    try:
        amount = exact(value.copy_abs())
    except (InvalidAmount, DecimalException):
        raise _BadLine("has an amount with too many digits") from None
    return amount.copy_negate() if value < 0 else amount


def _day(value: object) -> date:
    text = str(value)
    try:
        if text.isdigit() and len(text) in _UNIX_DIGITS:
            return datetime.fromtimestamp(int(text) // _UNIX_DIGITS[len(text)], UTC).date()
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo in {None, UTC} else at.astimezone(UTC)).date()
    except (ValueError, OverflowError):
        raise _BadLine(
            "has an issued_at that is neither a time such as 2026-10-31T23:59:59Z nor one in"
            " seconds or milliseconds since 1970"
        ) from None


_UNIX_DIGITS = {9: 1, 10: 1, 12: 1000, 13: 1000}
"""How many units a second has, by how many digits a time since 1970 has."""
