"""``ledger quarantine``: deal with believed deliveries that could not be posted."""

import getpass
import os
import sys
from typing import Annotated

import typer

from ledger.database import Connection, Role
from ledger.operations.quarantine import look_at
from ledger.quarantine import Kept, close, get_kept, list_kept
from ledger.terminal import AsJson, Row, ask, fail, show

app = typer.Typer(
    help="Believed deliveries that could not be posted, kept whole.", no_args_is_help=True
)
Number = Annotated[int, typer.Argument(help="The number that `ledger quarantine list` shows.")]


@app.command("list")
def list_(
    with_closed: Annotated[
        bool, typer.Option("--all", help="Also what was posted later or discarded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is open, oldest first; never what it holds.

    Example: ledger quarantine list --all
    """
    kept = ask(lambda connection: list_kept(connection, with_closed=with_closed))
    show([_line(row) for row in kept], as_json=as_json)


def _line(kept: Kept) -> Row:
    names = ("number", "state", "reason", "detail", "reward_id", "seen", "first_seen_at")
    return {name: getattr(kept, name) for name in (*names, "last_seen_at")}


@app.command("show")
def show_(number: Number, as_json: AsJson = False) -> None:
    """Show one delivery whole: its bytes, how it was believed, what differs in a conflict.

    Example: ledger quarantine show 7
    """
    shown = ask(lambda connection: look_at(connection, number))
    if shown is None:
        fail(f"Nothing is kept under {number}: see `ledger quarantine list --all`.")
    row = shown.kept._asdict()
    row["believed_bytes"] = shown.kept.believed_bytes.decode(errors="replace")
    if shown.credited_bytes is not None:
        row["credited_bytes"] = shown.credited_bytes.decode(errors="replace")
    differences = [difference._asdict() for difference in shown.differences]
    if as_json:
        show([{**row, "differences": differences}], as_json=True)
        return
    for name, value in row.items():
        if value is not None:
            typer.echo(f"{name}\t{value}")
    if differences:
        typer.echo("\nwhat differs, and what was credited:")
        show(differences, as_json=False)


@app.command()
def replay(
    number: Annotated[int | None, typer.Argument(help="Only this one.")] = None,
) -> None:
    """Send what is open through the webhook's own way again: post it if it can be posted now.

    Example: ledger quarantine replay 7
    """
    # `ledger` does not import `ingress`: this process becomes it.
    arguments = [] if number is None else [str(number)]
    command = [sys.executable, "-m", "ingress", "quarantine-replay", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter


@app.command()
def discard(
    number: Number,
    why: Annotated[str, typer.Option(help="The reason, for whoever asks later.")],
    by: Annotated[str, typer.Option(help="Who decides; the one logged in here if not said.")] = "",
) -> None:
    """Give an open delivery up for good; it stays in the quarantine, with who, when and why.

    Example: ledger quarantine discard 7 --why "a test of the campaign team"
    """
    if not why.strip():
        fail("A reason is needed: --why.")

    async def discard_it(connection: Connection) -> bool:
        if await get_kept(connection, number) is None:
            return False
        return await close(connection, number, "discarded", by or getpass.getuser(), why)

    if not ask(discard_it, role=Role.WRITER):
        fail(f"Nothing is open under {number}: see `ledger quarantine list --all`.")
    typer.echo(f"{number} is discarded")
