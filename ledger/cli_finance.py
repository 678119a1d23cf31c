"""``ledger totals`` and ``ledger trial-balance``: what finance asks, by currency."""

from datetime import date
from typing import Annotated

import typer

from ledger.operations.totals import (
    Group,
    Movement,
    TrialBalance,
    list_movements,
    list_trial_balance,
)
from ledger.reading import list_currency_totals
from ledger.terminal import AsJson, AsOf, Row, ask, fail, show, time_as_of


def add_to(app: typer.Typer) -> None:
    """Give ``app`` these commands."""
    app.command()(totals)
    app.command("trial-balance")(trial_balance)


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
    kinds: list[Row] = [
        {"currency": balance.currency, **kind._asdict(), "difference": None}
        for kind in balance.accounts
    ]
    whole = {"currency": balance.currency, "kind": "all", "debits": balance.debits,
             "credits": balance.credits, "balance": None, "postings": balance.postings,
             "difference": balance.difference}  # fmt: skip
    return [*kinds, whole]
