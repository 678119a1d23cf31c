"""``ledger totals``, ``trial-balance``, ``close`` and ``statement``: what finance asks and does."""

from datetime import date
from typing import Annotated

import typer

from ledger.database import Connection, Role
from ledger.operations.close import (
    CloseRefused,
    Statement,
    close,
    get_statement,
)
from ledger.operations.late import Late, list_late
from ledger.operations.totals import (
    Group,
    Movement,
    TrialBalance,
    list_movements,
    list_trial_balance,
)
from ledger.reading import list_currency_totals
from ledger.terminal import AsJson, AsOf, Row, ask, fail, operator, printable, show, time_as_of


def add_to(app: typer.Typer) -> None:
    """Give ``app`` these commands."""
    app.command()(totals)
    app.command("trial-balance")(trial_balance)
    app.command("close")(close_)
    app.command()(statement)


def totals(
    as_of: AsOf = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="What moved from this day on, UTC.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="What moved before this day, UTC.")
    ] = None,
    by: Annotated[Group | None, typer.Option(help="Tell these apart, in a period.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show all debits and all credits per currency, and that they agree, now or as of a time.

    With --from and --to: what users were owed before that period of whole days, what was rewarded,
    reversed and adjusted in it, and what they were owed after it.

    Example: ledger totals --from 2026-10-01 --to 2026-11-01 --by campaign
    """
    if start is None and end is None:
        if by is not None:
            fail("--by tells a period's movements apart: say --from and --to too.")
        at = time_as_of(as_of)
        found = ask(lambda connection: list_currency_totals(connection, at))
        show([total._asdict() for total in found], as_json=as_json)
        return
    if as_of is not None:
        fail("--as-of asks for one moment, --from and --to for a period: say either.")
    first, last = _day("--from", start), _day("--to", end)
    if first >= last:
        fail("--from must be before --to, which is the day after the period's last.")
    moved = ask(lambda connection: list_movements(connection, first, last, by))
    controls = [control._asdict() for control in moved.controls]
    if as_json:
        told = {"from": first, "to": last, "movements": [_moved(m, by) for m in moved.movements]}
        show([{**told, "controls": controls}], as_json=True)
    else:
        show([_moved(movement, by) for movement in moved.movements], as_json=False)
        show(controls, as_json=False)
    if any(control.difference != "0" for control in moved.controls):
        fail("Movements and totals do not agree: see `ledger verify`.")


def _day(option: str, text: str | None) -> date:
    if text is None:
        fail(f"A period has two ends: say {option} too.")
    try:
        return date.fromisoformat(text)
    except ValueError:
        fail(f"{option} must be a day, such as 2026-10-01.")


def _moved(movement: Movement, by: Group | None) -> Row:
    row = movement._asdict()
    group = row.pop("group")
    if by is None:
        return row
    currency = row.pop("currency")
    return {"currency": currency, by.value: group, **row}


def trial_balance(as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Show debits, credits and balance per currency and kind of account, now or as of a time.

    Example: ledger trial-balance --as-of 2026-11-01T00:00:00Z
    """
    at = time_as_of(as_of)
    found = ask(lambda connection: list_trial_balance(connection, at))
    if as_json:
        rows = [
            {**each._asdict(), "accounts": [kind._asdict() for kind in each.accounts]}
            for each in found
        ]
        show(rows, as_json=True)
    else:
        show([line for each in found for line in _lines(each)], as_json=False)


def _lines(balance: TrialBalance) -> list[Row]:
    kinds = [(*kind[:4], None, kind.postings) for kind in balance.accounts]
    sums = (balance.debits, balance.credits, None, balance.difference, balance.postings)
    names = ("kind", "debits", "credits", "balance", "difference", "postings")
    return [
        {"currency": balance.currency, **dict(zip(names, row, strict=True))}
        for row in (*kinds, ("all", *sums))
    ]


Month = Annotated[str, typer.Argument(help="Such as 2026-10; months are of UTC.")]


def close_(
    month: Month,
    by: Annotated[str, typer.Option(help="Who does it; the one logged in here if not said.")] = "",
    as_json: AsJson = False,
) -> None:
    """Close a month that is over: what every kind of account held before and after it, for good.

    Months are closed one after the other. A month that is closed stays as it is, and closing it
    again shows the same. Needs a login that may become ledger_closer.

    Example: ledger close 2026-10 --by ann
    """
    first = _month(month)
    try:
        closed = ask(lambda c: close(c, first, by or operator()), role=Role.CLOSER)
    except CloseRefused as error:
        fail(str(error))
    _show_statement(closed, None, as_json=as_json)


def statement(month: Month, as_json: AsJson = False) -> None:
    """Show the statement of a closed month, and what of it was posted late.

    Example: ledger statement 2026-10 --json
    """
    first = _month(month)

    async def look(connection: Connection) -> tuple[Statement | None, list[Late]]:
        return await get_statement(connection, first), await list_late(connection, first)

    closed, late = ask(look)
    if closed is None:
        fail(f"{month} is not closed: see `ledger close --help`.")
    _show_statement(closed, late, as_json=as_json)


def _month(text: str) -> date:
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError:
        fail("A month must be written such as 2026-10.")


def _show_statement(closed: Statement, late: list[Late] | None, *, as_json: bool) -> None:
    lines = [line._asdict() for line in closed.lines()]
    late_rows = [each._asdict() for each in late or []]
    if as_json:
        told = {**closed._asdict(), "month": f"{closed.month:%Y-%m}", "accounts": lines}
        show([told if late is None else {**told, "late": late_rows}], as_json=True)
        return
    show(lines, as_json=False)
    typer.echo(
        f"{closed.month:%Y-%m} was closed by {printable(closed.closed_by)} at "
        f"{closed.closed_at:%Y-%m-%d %H:%M:%SZ}, up to commit {closed.position}"
    )
    typer.echo(f"sha256 {closed.sha256}")
    if late is not None:
        typer.echo(f"{len(late)} rewards of it were posted late")
        show(late_rows, as_json=False)
