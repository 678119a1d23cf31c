"""``ledger export`` and ``ledger second-opinion``: the books for finance, and for foreign code."""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ledger.operations.export import export
from ledger.operations.export_state import ExportRefused
from ledger.operations.formats import FORMATS
from ledger.operations.manifest import Total, Wanted
from ledger.operations.second_opinion import Opinion, second_opinion
from ledger.operations.sheets import DoesNotFit
from ledger.terminal import AsJson, Row, ask, fail, progress, show

PART_ROWS = 1_000_000

Start = Annotated[
    str | None, typer.Option("--from", help="Postings from this day or time on, in UTC.")
]
End = Annotated[str | None, typer.Option("--to", help="Postings before this day or time, in UTC.")]


def add_to(app: typer.Typer) -> None:
    """Give ``app`` both commands."""
    app.command("export")(export_)
    app.command("second-opinion")(second_opinion_)


def export_(
    directory: Annotated[Path, typer.Argument(help="A new one, or one with a begun export.")],
    format_: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))],
    start: Start = None,
    end: End = None,
    part_rows: Annotated[
        int, typer.Option(min=1000, help="How many postings a file holds at most.")
    ] = PART_ROWS,
    as_json: AsJson = False,
) -> None:
    """Write the postings and balances of one snapshot into DIRECTORY, with a manifest.

    The same command again goes on with an export that was interrupted.

    Example: ledger export october --format beancount --from 2026-10-01 --to 2026-11-01
    """
    if format_ not in FORMATS:
        fail(f"A format is one of {', '.join(FORMATS)}.")
    if format_ == "parquet":
        _need("pyarrow")
    wanted = _wanted(format_, start, end, part_rows)
    try:
        with progress("postings") as report:
            whole = ask(lambda connection: export(connection, directory, wanted, report))
    except ExportRefused as error:
        fail(str(error))
    except DoesNotFit:
        fail("An amount is larger than its account's balance: see `ledger verify`.")
    except OSError as error:
        fail(
            f"{directory} cannot be written ({error.strerror}): mend that, and give the same "
            "command again, which goes on from there."
        )
    if as_json:
        show([msgspec.to_builtins(whole)], as_json=True)
    else:
        show([_line(total) for total in whole.totals], as_json=False)
        typer.echo(f"{whole.postings} postings, {whole.balances} balances: {directory}")
    if not whole.agrees:
        fail("The postings and the balances do not agree: see `ledger verify`; do not use this.")


def _line(total: Total) -> Row:
    return {
        "currency": total.currency,
        "postings": total.postings,
        "debits": total.debits,
        "credits": total.credits,
        "agrees": "yes" if total.agrees() else "no",
    }


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        fail(f"{package} is not installed: pip install 'reward-ledger[finance]'.")


def _wanted(format_: str, start: str | None, end: str | None, part_rows: int) -> Wanted:
    first, last = _moment("--from", start), _moment("--to", end)
    if first is not None and last is not None and first >= last:
        fail("--from must be before --to.")
    return Wanted(format_, first, last, part_rows)


def _moment(option: str, text: str | None) -> str | None:
    """``text`` in UTC, always in the same form, so that moments compare as texts do."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{option} must be a day or a time, such as 2026-10-01 or 2026-10-01T12:00:00Z.")
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def second_opinion_(start: Start = None, end: End = None, as_json: AsJson = False) -> None:
    """Let beancount, and hledger where it is installed, add up the books; exit 1 if they differ.

    Example: ledger second-opinion --from 2026-10-01 --to 2026-11-01
    """
    _need("beancount")
    wanted = _wanted("beancount", start, end, PART_ROWS)
    with progress("postings") as report:
        opinions = ask(lambda connection: second_opinion(connection, wanted, report))
    differences = [
        difference._asdict() for opinion in opinions for difference in opinion.differences
    ]
    show(differences, as_json=as_json)
    if not as_json:
        for opinion in opinions:
            typer.echo(_sentence(opinion))
    if differences:
        raise SystemExit(1)


def _sentence(opinion: Opinion) -> str:
    if opinion.balances is None:
        return f"{opinion.program}: not installed, so not asked"
    if not opinion.differences:
        return f"{opinion.program}: agrees in all {opinion.balances} balances"
    return f"{opinion.program}: {len(opinion.differences)} differences"
