"""``ledger reconcile``: hold the books against somebody else's report of the rewards."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, TextIO

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ledger.database import Connection, Role
from ledger.operations.columns import BadColumns, Columns, read_columns
from ledger.operations.differences import FIELDS, HEADER, Class, Difference
from ledger.operations.reconcile import Answer, Options, Tell
from ledger.operations.reconcile import reconcile as compare
from ledger.operations.rows import BadReport
from ledger.terminal import AsJson, Row, ask, fail, show

_DAY = ["%Y-%m-%d"]


def reconcile(
    report: Annotated[Path, typer.Argument(help="CSV or NDJSON, packed with gzip or not.")],
    columns: Annotated[
        Path | None, typer.Option(help="A TOML file that says where the report holds what.")
    ] = None,
    from_: Annotated[
        datetime | None,
        typer.Option("--from", formats=_DAY, help="The first day of the report, in UTC."),
    ] = None,
    to: Annotated[
        datetime | None, typer.Option(formats=_DAY, help="The last day of it, in UTC.")
    ] = None,
    campaign: Annotated[
        list[str] | None,
        typer.Option(help="A campaign of which it must hold all; else those that it names."),
    ] = None,
    reads_anew: Annotated[
        bool,
        typer.Option("--now", help="Read the books as they are, not as for the run before."),
    ] = False,
    imports: Annotated[
        bool, typer.Option("--import", help="Post what is missing here; reads the books anew.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write all differences there, as CSV.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many differences to show.")] = 20,
    by: Annotated[str, typer.Option(help="Who runs it; the one logged in here if not said.")] = "",
    as_json: AsJson = False,
) -> None:
    """Compare a report of rewards with the books, by rewardId; exit 1 when anything differs.

    Example: ledger reconcile october.csv.gz --from 2026-10-01 --to 2026-10-31 --out diff.csv
    """
    if (from_ is None) != (to is None) or (from_ and to and to < from_):
        fail("A period needs both --from and --to, the first day not after the last.")
    if out is not None and out.exists() and report.exists() and out.samefile(report):
        fail("--out is the report itself: name another file.")
    try:
        options = Options(
            read_columns(columns) if columns else Columns(),
            _day(from_),
            _day(to),
            tuple(campaign) if campaign else None,
            reads_anew,
            imports,
        )
        answer = _run(report, options, out, limit, by or getpass.getuser())
    except (BadReport, BadColumns) as error:
        fail(str(error))
    except psycopg.errors.InsufficientPrivilege:
        fail(
            "ledger_writer may not do this here: run `ledger migrate`, or GRANT TEMPORARY ON"
            " DATABASE … TO ledger_writer."
        )
    if as_json:
        show([_whole(answer)], as_json=True)
    else:
        _tell(answer, imports)
    if not answer.agrees():
        raise SystemExit(1)


def _day(at: datetime | None) -> date | None:
    return at.date() if at else None


def _run(report: Path, options: Options, out: Path | None, limit: int, by: str) -> Answer:
    with _progress() as tell, _written(out) as opened:

        async def run(connection: Connection) -> Answer:
            return await compare(
                connection, report, options, run_by=by, limit=limit, out=opened, tell=tell
            )

        return ask(run, role=Role.WRITER)


@contextmanager
def _progress() -> Iterator[Tell]:
    """What shows each step on a terminal, and on nothing else."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        shown = bars.add_task("", total=None)

        def tell(step: str, done: int, whole: int) -> None:
            bars.update(shown, description=step, completed=done, total=whole or None)

        yield tell


@contextmanager
def _written(path: Path | None) -> Iterator[TextIO | None]:
    """A file that stands at ``path``, whole, when the block has ended well; and else not.

    It is for its owner's eyes: it holds user ids.
    """
    if path is None:
        yield None
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}.")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _whole(answer: Answer) -> Row:
    whole = answer._asdict()
    del whole["counts"], whole["as_of"], whole["imported"], whole["not_imported"]
    whole |= {
        "agrees": answer.agrees(),
        "position": answer.as_of.position,
        "read_at": answer.as_of.at,
        "counts": answer.counts.by_class,
        "differing": answer.counts.differing,
        "differences": [
            dict(zip(HEADER, difference, strict=True)) for difference in answer.differences
        ],
    }
    if answer.imported is not None:
        whole["imported"] = {
            **answer.imported.counts,
            "not imported": answer.not_imported,
            "refused": [line._asdict() for line in answer.imported.refused],
        }
    return whole


def _tell(answer: Answer, imports: bool) -> None:  # noqa: FBT001
    campaigns = "the report's campaigns" if answer.campaigns is None else "the given campaigns"
    typer.echo(
        f"run {answer.run}: {answer.first_day} to {answer.last_day}, {campaigns};"
        f" compared {', '.join(answer.compared)}"
    )
    if answer.repeats is not None:
        typer.echo(
            f"against the books as they were for run {answer.repeats}, at"
            f" {answer.as_of.at:%Y-%m-%d %H:%M:%S} UTC; --now reads them as they are"
        )
    show(_counts(answer), as_json=False)
    if answer.differences:
        shown, all_ = len(answer.differences), sum(_others(answer).values())
        typer.echo("" if shown == all_ else f"\nthe first {shown} of {all_}, --out has all:")
        show([_line(difference) for difference in answer.differences], as_json=False)
    if answer.imported is not None:
        told = ", ".join(f"{name.value} {n}" for name, n in answer.imported.counts.items() if n)
        typer.echo(f"\nimported: {told or 'nothing'}; not imported: {answer.not_imported}")
        show([line._asdict() for line in answer.imported.refused], as_json=False)
    if not answer.is_as_recorded:
        typer.echo(
            f"\nrun {answer.repeats} found something else: since then somebody changed what stood"
            " in the books or waits in the quarantine; see `ledger verify`"
        )
    if answer.agrees():
        typer.echo("report and books agree")
    elif imports:
        typer.echo("the counts are of before the import: reconcile again with --now")


def _others(answer: Answer) -> dict[Class, int]:
    return {name: n for name, n in answer.counts.by_class.items() if name is not Class.MATCHED}


def _counts(answer: Answer) -> list[Row]:
    rows: list[Row] = [{"class": "lines", "count": answer.lines}]
    for name, number in answer.counts.by_class.items():
        if not number and name is not Class.MATCHED:
            continue
        rows.append({"class": name.value, "count": number})
        if name is Class.DIFFERS:
            rows += [
                {"class": f"  {field}", "count": differing}
                for field, differing in answer.counts.differing.items()
                if differing
            ]
    return rows


def _line(difference: Difference) -> Row:
    """A difference as a row that a terminal has room for."""
    told = difference._asdict()

    def both(name: str) -> str:
        sides = told[f"reported_{name}"], told[f"booked_{name}"]
        if sides[0] == sides[1] or None in sides:
            return str(sides[0] or sides[1] or "")
        return f"{sides[0] or 'nothing'} ≠ {sides[1] or 'nothing'}"

    at = difference.recorded_at
    return {
        "class": difference.found.value,
        "line": difference.line,
        "reward": difference.reward_id,
        "differing": difference.differing,
        **{name: both(name) for name in FIELDS},
        "recorded": at and f"{at:%Y-%m-%d %H:%M:%S}",
    }
