"""The operator's commands for those who may ask."""

import secrets
from hashlib import sha256
from typing import Annotated

import typer

from ledger.callers import CALLER_NAME, Scope
from ledger.terminal import fail

TOKEN_SIZE_BYTES = 32

app = typer.Typer(help="Who may ask the gRPC service.", no_args_is_help=True)


@app.callback()
def caller() -> None:
    """Who may ask the gRPC service."""


@app.command()
def token(name: str, scope: Annotated[list[Scope], typer.Option(help="Once for each.")]) -> None:
    """Make a token for the caller NAME, and the lines for the file of LEDGER_CALLERS.

    The token is shown on standard error, once and nowhere else; the lines can be appended.

    Example: ledger caller token reporting --scope balances --scope totals >> callers.toml
    """
    if CALLER_NAME.fullmatch(name) is None:
        fail("A caller's name is 1 to 64 letters, digits, - or _.")
    made = secrets.token_urlsafe(TOKEN_SIZE_BYTES)
    scopes = ", ".join(f'"{each}"' for each in dict.fromkeys(scope))
    digest = sha256(made.encode()).hexdigest()
    lines = f'[{name}]\ntoken_sha256 = "{digest}"\nscopes = [{scopes}]\n'
    typer.echo(made, err=True)
    typer.echo(f"\n{lines}", nl=False)
