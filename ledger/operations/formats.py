"""The formats of an export: what stands in its files, and under which names."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import date
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from ledger.operations.cut import Held
from ledger.operations.exported import ExportedPosting
from ledger.operations.journal import Beancount, Dialect, Hledger, assertions, declarations
from ledger.operations.sheets import (
    AMOUNTS_AS_TEXT,
    Column,
    Csv,
    Kind,
    NdJson,
    Parquet,
    Sheet,
    decimal_type,
)

POSTING_COLUMNS = (
    Column("user_id", Kind.TEXT),
    Column("currency", Kind.TEXT),
    Column("version", Kind.WHOLE),
    Column("reward_id", Kind.TEXT),
    Column("correction_key", Kind.TEXT),
    Column("reversed_reward_id", Kind.TEXT),
    Column("debit_account", Kind.TEXT),
    Column("credit_account", Kind.TEXT),
    Column("amount", Kind.AMOUNT),
    Column("balance_after", Kind.AMOUNT),
    Column("posted_at", Kind.TIME),
)
BALANCE_COLUMNS = (
    Column("account", Kind.TEXT),
    Column("currency", Kind.TEXT),
    Column("opening_version", Kind.WHOLE),
    Column("opening_debits", Kind.AMOUNT),
    Column("opening_credits", Kind.AMOUNT),
    Column("closing_version", Kind.WHOLE),
    Column("closing_debits", Kind.AMOUNT),
    Column("closing_credits", Kind.AMOUNT),
)
Item = TypeVar("Item")

PIECE_ROWS = 10_000
"""How many rows are in memory at once."""


class Shape(msgspec.Struct, frozen=True):
    """What a format must know of the whole before it writes the first row."""

    amounts: str
    currencies: list[str]
    first_day: date
    last_day: date


class Rest(NamedTuple):
    """A file that is written when all postings are."""

    name: str
    rows: int
    pieces: Callable[[io.RawIOBase], None]
    """Writes it."""


class Format(Protocol):
    """A way to write an export."""

    suffix: str
    main: str | None
    """The file that reads all others."""

    def amounts(self, scale: int, whole_digits: int) -> str:
        """How amounts are written that have so many digits behind and before the point."""
        ...

    def postings(self, file: io.RawIOBase, shape: Shape) -> Sheet:
        """A part with postings, each a row as ``ExportedPosting`` has it."""
        ...

    def rest(
        self, held: Callable[[], Iterator[Held]], count: int, parts: Sequence[str], shape: Shape
    ) -> list[Rest]:
        """Every other file: ``held`` gives each balance of ``count``, ``parts`` are the others."""
        ...


class Tabular:
    """Two tables: postings in parts, and the balances."""

    main: str | None = None

    def __init__(
        self, suffix: str, sheet: Callable[[io.RawIOBase, Sequence[Column], str], Sheet]
    ) -> None:
        self.suffix = suffix
        self._sheet = sheet

    def amounts(self, scale: int, whole_digits: int) -> str:
        """Decimals in Parquet, if they can hold them all; the books' own text in all others."""
        return decimal_type(scale, whole_digits) if self._sheet is Parquet else AMOUNTS_AS_TEXT

    def postings(self, file: io.RawIOBase, shape: Shape) -> Sheet:
        """See ``Format``."""
        return self._sheet(file, POSTING_COLUMNS, shape.amounts)

    def rest(
        self,
        held: Callable[[], Iterator[Held]],
        count: int,
        parts: Sequence[str],  # noqa: ARG002 - nothing refers to them
        shape: Shape,
    ) -> list[Rest]:
        """The balances, unless that is how they are there already."""
        if self.suffix == "ndjson":
            return []

        def write(file: io.RawIOBase) -> None:
            with closing(self._sheet(file, BALANCE_COLUMNS, shape.amounts)) as sheet:
                for rows in _in_pieces(map(msgspec.structs.astuple, held())):
                    sheet.write(rows)

        return [Rest(f"balances.{self.suffix}", count, write)]


class Journal:
    """Declarations, transactions in parts, and assertions, put together by a main file."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.suffix = dialect.suffix
        self.main: str | None = f"main.{dialect.suffix}"

    def amounts(self, scale: int, whole_digits: int) -> str:  # noqa: ARG002 - any will do
        """The books' own text."""
        return AMOUNTS_AS_TEXT

    def postings(self, file: io.RawIOBase, shape: Shape) -> Sheet:  # noqa: ARG002
        """See ``Format``."""
        return _Transactions(file, self._dialect)

    def rest(
        self, held: Callable[[], Iterator[Held]], count: int, parts: Sequence[str], shape: Shape
    ) -> list[Rest]:
        """What is read before the parts, what after them, and the file that reads all."""
        dialect, currencies = self._dialect, shape.currencies
        before, after = f"accounts.{self.suffix}", f"balances.{self.suffix}"
        includes = [dialect.include(name) for name in (before, *parts, after)]
        return [
            Rest(
                before,
                count,
                lambda file: _write(
                    file, declarations(dialect, held(), currencies, shape.first_day)
                ),
            ),
            Rest(
                after,
                count,
                lambda file: _write(file, assertions(dialect, held(), currencies, shape.last_day)),
            ),
            Rest(f"main.{self.suffix}", len(includes), lambda file: _write(file, includes)),
        ]


class _Transactions:
    def __init__(self, file: io.RawIOBase, dialect: Dialect) -> None:
        self._file = file
        self._transaction = dialect.posting
        file.write(dialect.head.encode())

    def write(self, rows: Sequence[ExportedPosting]) -> None:
        self._file.write("".join(map(self._transaction, rows)).encode())

    def close(self) -> None:
        pass


def _write(file: io.RawIOBase, texts: Iterable[str]) -> None:
    file.writelines("".join(piece).encode() for piece in _in_pieces(texts))


def _in_pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while piece := list(islice(iterator, PIECE_ROWS)):
        yield piece


FORMATS: dict[str, Format] = {
    "csv": Tabular("csv", lambda file, columns, _: Csv(file, columns)),
    "ndjson": Tabular("ndjson", lambda file, columns, _: NdJson(file, columns)),
    "parquet": Tabular("parquet", Parquet),
    "beancount": Journal(Beancount()),
    "hledger": Journal(Hledger()),
}
