"""``ledger quarantine``: deal with believed deliveries that could not be posted."""

import os
import sys
from typing import Annotated

import typer

from ledger.database import Connection, Role
from ledger.operations.quarantine import look_at
from ledger.quarantine import close, get_kept, list_kept
from ledger.terminal import AsJson, ask, fail, operator, printable, show

app = typer.Typer(
    help="Believed deliveries that could not be posted, kept whole.", no_args_is_help=True
)
Number = Annotated[int, typer.Argument(help="The number that `ledger quarantine list` shows.")]
By = Annotated[str, typer.Option(help="Who decides; the one logged in here if not said.")]


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
    show([row._asdict() for row in kept], as_json=as_json)


@app.command("show")
def show_(number: Number, as_json: AsJson = False) -> None:
    """Show one delivery whole: its bytes, how it was believed, what differs in a conflict.

    Example: ledger quarantine show 7
    """
    shown = ask(lambda connection: look_at(connection, number))
    if shown is None:
        fail(f"Nothing is kept under {number}: see `ledger quarantine list --all`.")
    row = shown.kept._asdict()
    row["believed_bytes"] = shown.kept.believed_bytes.decode(errors="backslashreplace")
    if shown.credited_bytes is not None:
        row["credited_bytes"] = shown.credited_bytes.decode(errors="backslashreplace")
    differences = [difference._asdict() for difference in shown.differences]
    if as_json:
        show([{**row, "differences": differences}], as_json=True)
        return
    for name, value in row.items():
        if value is not None:
            typer.echo(f"{name}\t{printable(str(value))}")
    if differences:
        typer.echo("\nwhat differs, and what was credited:")
        show(differences, as_json=False)


@app.command()
def replay(
    number: Annotated[int | None, typer.Argument(help="Only this one.")] = None,
    by: By = "",
    under_this_mapping: Annotated[
        bool,
        typer.Option(
            "--under-this-mapping",
            help="Also what the ingress read by another mapping or default currency.",
        ),
    ] = False,
) -> None:
    """Send what is open through the webhook's own way again: post it if it can be posted now.

    It is read by INGRESS_MAPPING and INGRESS_DEFAULT_CURRENCY, as the ingress reads it. If the
    ingress read it by others, it is only tried under --under-this-mapping.

    Example: ledger quarantine replay 7 --by Ada
    """
    # `ledger` does not import `ingress`: this process becomes it.
    arguments = [] if number is None else [str(number)]
    if by:
        arguments += ["--by", by]
    if under_this_mapping:
        arguments.append("--under-this-mapping")
    command = [sys.executable, "-m", "ingress", "quarantine-replay", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter


@app.command()
def discard(
    number: Number,
    why: Annotated[str, typer.Option(help="The reason, for whoever asks later.")],
    by: By = "",
) -> None:
    """Give an open delivery up for good; it stays in the quarantine, with who, when and why.

    Example: ledger quarantine discard 7 --why "a test of the campaign team"
    """
    if not why.strip():
        fail("A reason is needed: --why.")

    async def discard_it(connection: Connection) -> bool:
        if await get_kept(connection, number) is None:
            return False
        return await close(connection, number, "discarded", by or operator(), why)

    if not ask(discard_it, role=Role.WRITER):
        fail(f"Nothing is open under {number}: see `ledger quarantine list --all`.")
    typer.echo(f"{number} is discarded")
