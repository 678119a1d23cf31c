"""Rows as CSV, NDJSON or Parquet, written piece by piece into a file that somebody else keeps."""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, Protocol

from ledger.lines import json_line

Row = Sequence[Any]


class Kind(Enum):
    """What a column holds; every value comes as text, whole numbers and nothing excepted."""

    TEXT = "text"
    WHOLE = "whole"
    AMOUNT = "amount"
    TIME = "time"


class Column(NamedTuple):
    """A column of a sheet."""

    name: str
    kind: Kind


class Sheet(Protocol):
    """A table that is being written."""

    def write(self, rows: Sequence[Any]) -> None:
        """Add ``rows``, each with a value for every column."""
        ...

    def close(self) -> None:
        """Write what belongs at the end; the file stays open."""
        ...


class DoesNotFit(Exception):
    """An amount is larger than the balances that it went into, so the books do not hold."""


AMOUNTS_AS_TEXT = "text"
DECIMAL_DIGITS = 38
"""How many digits a decimal of 128 bits holds."""


def decimal_type(scale: int, whole_digits: int) -> str:
    """How Parquet is to hold amounts: as decimals that every reader knows, or else as text."""
    if scale + whole_digits <= DECIMAL_DIGITS:
        return f"decimal128({DECIMAL_DIGITS}, {scale})"
    return AMOUNTS_AS_TEXT


class Csv:
    """RFC 4180 in UTF-8, with a line of names; nothing is an empty field."""

    def __init__(self, file: io.RawIOBase, columns: Sequence[Column]) -> None:
        self._file = file
        self.write([[column.name for column in columns]])

    def write(self, rows: Sequence[Row]) -> None:
        """Add ``rows``."""
        text = io.StringIO(newline="")
        # Python's csv quotes a return or a line feed only where its own line ends hold them.
        csv.writer(text, lineterminator="\r\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def close(self) -> None:
        """There is nothing to add."""


class NdJson:
    """One object a line, in ASCII; amounts are strings, as a number may lose digits."""

    def __init__(self, file: io.RawIOBase, columns: Sequence[Column]) -> None:
        self._file = file
        self._names = [column.name for column in columns]

    def write(self, rows: Sequence[Row]) -> None:
        """Add ``rows``."""
        lines = [json_line(dict(zip(self._names, row, strict=True))) for row in rows]
        self._file.write(b"\n".join((*lines, b"")))

    def close(self) -> None:
        """There is nothing to add."""


class Parquet:
    """One row group for each piece; amounts as ``decimal_type`` says, times in UTC."""

    def __init__(self, file: io.RawIOBase, columns: Sequence[Column], amounts: str) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        self._arrow = arrow
        is_text = amounts == AMOUNTS_AS_TEXT
        scale = 0 if is_text else int(amounts.partition(", ")[2].removesuffix(")"))
        types = {
            Kind.TEXT: arrow.string(),
            Kind.WHOLE: arrow.int64(),
            Kind.AMOUNT: arrow.string() if is_text else arrow.decimal128(DECIMAL_DIGITS, scale),
            Kind.TIME: arrow.timestamp("us", tz="UTC"),
        }
        self._schema = arrow.schema([(column.name, types[column.kind]) for column in columns])
        as_amount = _as_it_is if is_text else Decimal
        read: dict[Kind, Callable[[Any], Any]] = {
            Kind.AMOUNT: as_amount,
            Kind.TIME: datetime.fromisoformat,
        }
        self._read = [read.get(column.kind, _as_it_is) for column in columns]
        self._writer = parquet.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        """Add ``rows``; raises ``DoesNotFit``."""
        told = zip(self._read, zip(*rows, strict=True), self._schema, strict=True)
        try:
            columns = [
                self._arrow.array(list(map(read, values)), type=field.type)
                for read, values, field in told
            ]
        except self._arrow.ArrowInvalid:
            raise DoesNotFit from None
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer, without which nothing of it can be read."""
        self._writer.close()


def _as_it_is(value: Any) -> Any:  # noqa: ANN401 - of any column
    return value
