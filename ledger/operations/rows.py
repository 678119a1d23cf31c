"""The rows of a CSV or NDJSON file, packed or not, each with the number of its line.

What the file is, its first bytes say, not its name. Never more than a row of it is held.
"""

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

LINE_BYTES_MAX = 1024 * 1024
BUFFER_BYTES = 64 * 1024
DELIMITERS = ",;\t|"

_PACKED = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_TEXT = {
    b"PK\x03\x04": "is a spreadsheet or an archive: save it as CSV in UTF-8",
    b"PAR1": "is Parquet: save it as CSV or NDJSON",
    b"\xff\xfe": "is UTF-16: save it as CSV in UTF-8",
    b"\xfe\xff": "is UTF-16: save it as CSV in UTF-8",
}

Cells = dict[str, Any]
"""What a row holds, by the name of the column: texts, or of NDJSON any JSON value.

What an object of NDJSON holds in objects has the keys that lead there, joined by dots, as name.
"""

_Stream = io.BufferedReader | gzip.GzipFile

_DECODE = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


class BadReport(Exception):
    """The file cannot be read; the text is a sentence for the operator, without what it holds."""


class Rows:
    """A file of rows. Iterate it once, to its end: then the digest is the whole file's.

    A row is its line's number and its cells, or, instead of them, what is wrong with it. Raises
    ``BadReport`` for what leaves nothing to go on with.
    """

    def __init__(self, path: Path, opened: io.RawIOBase, delimiter: str | None) -> None:
        self._path = path
        self._file = _Digested(opened)
        self.size_bytes = os.fstat(opened.fileno()).st_size
        self.header: tuple[str, ...] | None = None
        """The names of the columns, of CSV."""
        stream: _Stream = io.BufferedReader(self._file, BUFFER_BYTES)
        if stream.peek(2).startswith(_PACKED):
            stream = gzip.GzipFile(fileobj=stream, mode="rb")
        with self._whole():
            start = stream.peek(4)
            for magic, reason in _NOT_TEXT.items():
                if start.startswith(magic):
                    raise BadReport(f"{path} {reason}.")
            texts = self._texts(stream)
            first = next(texts, "")
            if not first.strip():
                raise BadReport(f"{path} is empty, or begins with an empty line.")
            if first.lstrip().startswith("["):
                raise BadReport(
                    f"{path} is a JSON array: put each reward on a line of its own, such as with"
                    " `jq -c '.[]'`."
                )
            texts = chain([first], texts)
            if first.lstrip().startswith("{"):
                self._rows = _json_rows(texts)
            else:
                self._rows = self._csv_rows(texts, delimiter or max(DELIMITERS, key=first.count))

    @property
    def read_bytes(self) -> int:
        """How much of the file was read so far."""
        return self._file.count

    def sha256(self) -> bytes:
        """The digest of what was read of the file, as it was given."""
        return self._file.digest.digest()

    def __iter__(self) -> Iterator[tuple[int, Cells | str]]:
        with self._whole():
            yield from self._rows

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A damaged packing is an OSError of gzip's own, without a number.
            reason = error.strerror or "its packing (gzip) is damaged"
            raise BadReport(f"{self._path} cannot be read: {reason}.") from None
        except (EOFError, zlib.error):
            raise BadReport(f"{self._path} is not whole: its packing (gzip) is damaged.") from None

    def _texts(self, stream: _Stream) -> Iterator[str]:
        number = 0
        while line := stream.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise self._bad(number, f"is over {LINE_BYTES_MAX} bytes")
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise self._bad(number, "is not UTF-8") from None

    def _csv_rows(self, texts: Iterator[str], delimiter: str) -> Iterator[tuple[int, Cells | str]]:
        reader = csv.reader(texts, delimiter=delimiter, strict=True)
        header = self.header = tuple(name.strip() for name in self._csv_row(reader))
        for name in header:
            if header.count(name) > 1:
                raise BadReport(f"{self._path} has two columns of one name: rename one.")
        return self._csv_rest(reader, header)

    def _csv_rest(
        self,
        reader: Any,
        header: tuple[str, ...],  # noqa: ANN401 - csv's own type has no name
    ) -> Iterator[tuple[int, Cells | str]]:
        width = len(header)
        while True:
            # Where the row begins: a cell in quotes may go over many lines.
            number = reader.line_num + 1
            try:
                row = self._csv_row(reader)
            except StopIteration:
                return
            if len(row) == width:
                yield number, dict(zip(header, row, strict=True))
            elif row:
                yield number, f"has {len(row)} cells where the header has {width}"

    def _csv_row(self, reader: Any) -> list[str]:  # noqa: ANN401 - csv's own type has no name
        number = reader.line_num + 1
        try:
            row: list[str] = next(reader)
        except csv.Error:
            raise self._bad(
                number,
                "is not CSV: a quote is out of place or never closed, or a cell has over"
                f" {csv.field_size_limit()} characters",
            ) from None
        return row

    def _bad(self, number: int, reason: str) -> BadReport:
        return BadReport(f"{self._path}, line {number}, {reason}: mend it and try again.")


def _json_rows(texts: Iterator[str]) -> Iterator[tuple[int, Cells | str]]:
    for number, text in enumerate(texts, 1):
        if text.isspace():
            continue
        try:
            yield number, _flat(_DECODE(text))
        except (ValueError, ArithmeticError, RecursionError):
            yield number, "is not a JSON object"


def _flat(told: dict[str, Any]) -> Cells:
    if not any(type(value) is dict for value in told.values()):
        return told
    cells: Cells = {}
    for key, value in told.items():
        if type(value) is dict:
            cells |= {f"{key}.{name}": inner for name, inner in _flat(value).items()}
        else:
            cells[key] = value
    return cells


class _Digested(io.RawIOBase):
    """A file that is read once: how much of it was, and the digest of that."""

    def __init__(self, opened: io.RawIOBase) -> None:
        self._opened = opened
        self.digest = sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any buffer
        count = self._opened.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.count += count
        return count
