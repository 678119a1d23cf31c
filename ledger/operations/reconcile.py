"""``ledger reconcile``: the books against somebody else's report → differences.

The same file, with the same options, gives the same answer again: it is compared with the books
as of the place in commit order at which they stood for the last run that read them anew. Of each
run the digest of all differences is recorded, so an answer that is another all the same is found.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ledger.database import Connection
from ledger.operations.columns import COMPARED, IMPORTED, Columns
from ledger.operations.comparing import (
    AsOf,
    Counts,
    Scope,
    compare,
    count,
    differences,
    load,
    missing_here,
    now,
    snapshot,
)
from ledger.operations.differences import HEADER, Class, Difference, csv_text
from ledger.operations.importing import Imported, NotImported, import_lines
from ledger.operations.reconciliations import Run, former, record
from ledger.operations.report import Line, Report, opened, reader
from ledger.operations.rows import BadReport
from ledger.writing import BATCH_SIZE_MAX, Status


class Options(NamedTuple):
    """How a report is compared."""

    columns: Columns = Columns()
    first_day: date | None = None
    """With ``last_day`` the period, in UTC; ``None``: the days that the lines say."""
    last_day: date | None = None
    campaigns: tuple[str, ...] | None = None
    """``None``: those that the lines name."""
    reads_anew: bool = False
    """Whether the books are read as they are, also when the file was compared before."""
    imports: bool = False
    """Whether what is missing here is posted afterwards; reads anew."""

    def told(self) -> dict[str, Any]:
        """What of them decides the answer, as JSON can hold it."""
        return {
            "columns": self.columns.told(),
            "from": self.first_day and self.first_day.isoformat(),
            "to": self.last_day and self.last_day.isoformat(),
            "campaigns": self.campaigns and sorted(set(self.campaigns)),
        }


class Answer(NamedTuple):
    """What a comparison found, and what it compared."""

    run: int
    """Its number, for whoever asks later."""
    repeats: int | None
    """The run as of whose time the books were read; ``None``: they were read as they are."""
    is_as_recorded: bool
    """Whether a repeated run found what was found then."""
    file_sha256: str
    lines: int
    first_day: date
    last_day: date
    campaigns: tuple[str, ...] | None
    as_of: AsOf
    compared: tuple[str, ...]
    """The fields of the lines that were held against the books."""
    counts: Counts
    differences: list[Difference]
    """The first of them."""
    imported: Imported | None
    """Of what was not imported, no more than of the differences."""
    not_imported: int
    """How many were missing here and are still: refused, or more than once in the file."""

    def agrees(self) -> bool:
        """Whether every line is matched, and no reward is missing there."""
        others = [n for name, n in self.counts.by_class.items() if name is not Class.MATCHED]
        return not any(others) and self.is_as_recorded


Tell = Callable[[str, int, int], None]
"""Hears how far a step is: its name, how much is done, and how much there is, 0 if unknown."""


async def reconcile(
    connection: Connection,
    path: Path,
    options: Options,
    *,
    run_by: str,
    limit: int,
    out: TextIO | None = None,
    tell: Tell = lambda _step, _done, _whole: None,
) -> Answer:
    """Compare the report at ``path`` with the books, record that, and import if that is wanted.

    Gives the first ``limit`` differences; all of them are written to ``out``, as CSV. Raises
    ``BadReport`` or ``BadColumns`` before anything is recorded. Needs a connection in autocommit
    mode, of ``Role.WRITER``, that may make temporary tables.
    """
    with opened(path, options.columns, with_days=options.first_day is None) as report:
        lines = await _load(connection, report, options, tell)
    first_day, last_day = _period(path, report, options)
    scope = Scope(
        datetime.combine(first_day, time(), UTC),
        datetime.combine(last_day + timedelta(days=1), time(), UTC),
        options.campaigns,
        frozenset(report.fields),
    )
    before = None
    if not (options.reads_anew or options.imports):
        before = await former(connection, report.sha256(), options.told())
    tell("comparing", 0, 0)
    async with snapshot(connection):
        as_of = await now(connection) if before is None else before.as_of
        keys = tuple(options.columns.quarantined_reward_id.split("."))
        await compare(connection, scope, as_of, keys)
        counts = await count(connection, lines)
        found = await _take(connection, limit, out)
    run = Run(
        report.sha256(), options.told(), scope.starts_at, scope.ends_at, as_of,
        before and before.number, options.imports, lines, counts.by_class, found.sha256, run_by,
    )  # fmt: skip
    number = await record(connection, run)
    imported = await _import(connection, run, options.columns, limit, tell)
    posted = sum(imported.counts.values()) if imported else 0
    return Answer(
        number, run.repeats, before is None or before.answer_sha256 == found.sha256,
        run.file_sha256.hex(), lines, first_day, last_day, options.campaigns, as_of,
        tuple(name for name in COMPARED if name in report.fields),
        counts, found.first, imported, counts.by_class[Class.MISSING_HERE] - posted,
    )  # fmt: skip


async def _load(connection: Connection, report: Report, options: Options, tell: Tell) -> int:
    def lines() -> Iterator[Line]:
        for place, line in enumerate(report.lines()):
            if place % 1024 == 0:
                tell("reading", report.read_bytes, report.size_bytes)
            yield line
        if options.imports:
            report.require(IMPORTED)

    return await load(connection, lines(), with_cells=options.imports)


def _period(path: Path, report: Report, options: Options) -> tuple[date, date]:
    first_day = options.first_day or report.first_day
    last_day = options.last_day or report.last_day
    if first_day is None or last_day is None:
        raise BadReport(
            f"{path} does not say when its rewards were issued, so nobody knows what it must hold:"
            " say --from and --to, or name its column issued_at in a file for --columns."
        )
    return first_day, last_day


class _Taken(NamedTuple):
    sha256: bytes
    first: list[Difference]


async def _take(connection: Connection, limit: int, out: TextIO | None) -> _Taken:
    digest = sha256()
    first: list[Difference] = []
    if out is not None:
        out.write(csv_text([HEADER]))
    async for some in differences(connection):
        first += some[: limit - len(first)]
        text = csv_text(some)
        digest.update(text.encode())
        if out is not None:
            out.write(text)
    return _Taken(digest.digest(), first)


async def _import(
    connection: Connection, run: Run, columns: Columns, limit: int, tell: Tell
) -> Imported | None:
    if not run.imports:
        return None
    read = reader(columns)
    counts = dict.fromkeys(Status, 0)
    refused: list[NotImported] = []
    done = 0
    async for some in missing_here(connection, BATCH_SIZE_MAX):
        tell("importing", done, run.counts[Class.MISSING_HERE])
        lines = [read(number, cells, set())[0] for number, cells in some]
        batch = await import_lines(connection, lines, run.file_sha256)
        for status, posted in batch.counts.items():
            counts[status] += posted
        refused += batch.refused[: limit - len(refused)]
        done += len(some)
    return Imported(counts, refused)
