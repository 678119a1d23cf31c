"""The operator's commands. Each does one thing of ``ledger.operations`` and shows the result."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from ledger import page, reading
from ledger.config import InvalidSetting, Settings, read_settings
from ledger.database import Connection, Role, conninfo
from ledger.embedded import EmbeddedPostgresError
from ledger.errors import LedgerError
from ledger.money import CURRENCY_CODE, Currency
from ledger.operations import migrate as migrating
from ledger.operations import run as running
from ledger.operations import serve as serving
from ledger.operations.source import source
from ledger.operations.verify import verify as find

STATEMENT_SECONDS_MAX = 3600
"""A person waits longer than a service does: verifying many rewards takes its time."""

Answer = TypeVar("Answer")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

app = typer.Typer(
    help="The reward ledger: signed CustomerGlu rewards in, double-entry balances out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
currencies = typer.Typer(help="What amounts are counted in.", no_args_is_help=True)
app.add_typer(currencies, name="currency")


def main() -> None:
    """Run the command of the process's arguments; what goes wrong is said in one sentence."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (InvalidSetting, EmbeddedPostgresError, serving.AddressTaken) as error:
        _fail(str(error))
    except running.IsRunning as error:
        _fail(
            f"`ledger run` is running already (process {error}): stop it with Ctrl-C, "
            "or set LEDGER_DATA to another directory."
        )
    except running.DidNotStart as error:
        _fail(f"`ledger {error}` ended before it was ready; what it said stands above.")
    except psycopg.errors.UndefinedTable:
        _fail("The database holds no books yet: run `ledger migrate` first.")
    except psycopg.Error as error:
        _fail(f"Postgres refused ({error.sqlstate or 'no connection'}): check DATABASE_URL.")
    except LedgerError as error:
        _fail(f"The books cannot answer: {type(error).__name__}.")


def _fail(sentence: str) -> NoReturn:
    Console(stderr=True).print(sentence, style="red", highlight=False, soft_wrap=True)
    raise SystemExit(1)


@app.command()
def run() -> None:
    """Start everything on this machine: Postgres if none is given, the ingress, the service.

    Example: LEDGER_DATA=/srv/ledger ledger run
    """
    from ledger.operations.welcome import welcome

    with running.running(read_settings(), os.environ) as started:
        typer.echo(welcome(started))
        ended = running.wait(started)
        typer.echo("stopping")
    if ended is not None:
        _fail(f"`ledger {ended.name}` ended by itself; what it said stands above.")


@app.command()
def demo() -> None:
    """Start everything on free ports, post two rewards, ask for the balances, stop.

    Example: ledger demo
    """
    from ledger.operations.demo import demo as show

    show(typer.echo)


@app.command()
def serve(
    shares_port: Annotated[bool, typer.Option("--shares-port", hidden=True)] = False,
) -> None:
    """Serve gRPC on LEDGER_BIND from the database of DATABASE_URL.

    Example: DATABASE_URL=postgresql://ledger_reader@db/ledger ledger serve
    """
    logging.getLogger().setLevel(logging.INFO)
    settings = read_settings()
    if settings.database_url is None:
        raise InvalidSetting("DATABASE_URL", "is required")
    if shares_port:
        serving.serve_alone(settings.database_url, settings.bind, shares_port=True)
    else:
        serving.serve(settings.database_url, settings.bind, settings.processes)


@app.command()
def ingress() -> None:
    """Take deliveries on INGRESS_BIND and post them into the database of DATABASE_URL.

    Example: INGRESS_TOKEN=… DATABASE_URL=postgresql://ledger_writer@db/ledger ledger ingress
    """
    # `ledger` does not import `ingress`: this process becomes gunicorn.
    gunicorn = [sys.executable, "-m", "gunicorn", "--config", "python:ingress.gunicorn_conf"]
    os.execv(sys.executable, gunicorn)  # noqa: S606 - our own interpreter


@app.command()
def migrate() -> None:
    """Bring the database to the schema of this version, once.

    Example: DATABASE_URL=postgresql://ledger_owner@db/ledger ledger migrate
    """
    with source(read_settings()) as database:
        done = migrating.migrate(database.url())
    applied = ", ".join(done.migrations) or "nothing to apply"
    typer.echo(f"{applied}; {done.currencies} currencies added")


@app.command()
def balance(user: str, as_json: AsJson = False) -> None:
    """Show a user's balances in all currencies.

    Example: ledger balance testuser1
    """
    balances = _ask(lambda connection: reading.list_balances(connection, user))
    _show(
        [
            {"currency": b.currency, "balance": b.value, "postings": b.version, "last": b.posted_at}
            for b in balances
        ],
        as_json,
    )


@app.command()
def history(
    user: str,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show a user's rewards, newest first.

    Example: ledger history testuser1 --limit 10
    """
    chosen = reading.RewardFilter(user)
    rewards = _ask(lambda connection: reading.list_rewards(connection, chosen, page.FIRST, limit))
    _show([_line(reward) for reward in rewards], as_json)


def _line(reward: reading.RecordedReward) -> dict[str, Any]:
    booked = reward.posting
    return {
        "recorded": reward.recorded_at,
        "reward": reward.reward_id,
        "campaign": reward.campaign_id,
        "type": reward.type,
        "name": reward.reward_name,
        "amount": booked.amount if booked else None,
        "currency": booked.currency if booked else None,
        "version": booked.version if booked else None,
        "balance after": booked.balance_after if booked else None,
    }


@app.command()
def totals(as_json: AsJson = False) -> None:
    """Show all debits and all credits per currency, and that they agree.

    Example: ledger totals --json
    """
    found = _ask(lambda connection: reading.list_currency_totals(connection, None))
    _show([total._asdict() for total in found], as_json)


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Derive every balance, version and total again; name each difference, exit 1 if there is one.

    Example: ledger verify
    """
    findings = _ask(find)
    _show([finding._asdict() for finding in findings], as_json)
    if findings:
        raise SystemExit(1)
    if not as_json:
        typer.echo("the books hold: nothing found")


@currencies.command("add")
def currency_add(
    code: str, scale: Annotated[int, typer.Option(min=0, max=18)], name: str = ""
) -> None:
    """Register a currency for good: its scale cannot be changed afterwards.

    Example: ledger currency add GEMS --scale 0 --name Gems
    """
    if CURRENCY_CODE.fullmatch(code) is None:
        _fail("A currency's code is a capital letter and up to 19 capitals, digits or _.")
    with source(read_settings()) as database, psycopg.connect(database.url()) as connection:
        if not migrating.add_currency(connection, Currency(code, scale, name or code)):
            _fail(f"{code} is registered already; `ledger currency list` shows its scale.")
    typer.echo(f"{code} is registered with {scale} decimals")


@currencies.command("list")
def currency_list(as_json: AsJson = False) -> None:
    """Show every currency with its scale.

    Example: ledger currency list --json
    """
    _show([currency._asdict() for currency in _ask(reading.list_currencies)], as_json)


def _ask(question: Callable[[Connection], Awaitable[Answer]]) -> Answer:
    """What ``question`` answers, asked as a role that can only read."""

    async def ask(url: str) -> Answer:
        info = conninfo(url, Role.READER, statement_seconds_max=STATEMENT_SECONDS_MAX)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            return await question(connection)

    with _reader(read_settings()) as url:
        return asyncio.run(ask(url))


@contextmanager
def _reader(settings: Settings) -> Iterator[str]:
    with source(settings) as database:
        yield database.url(Role.READER)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """``rows`` as JSON, as a table for a person, or as tab-separated lines for a pipe."""
    if as_json:
        typer.echo(json.dumps(rows, default=_time))
        return
    if not rows:
        return
    cells = [["" if v is None else str(v) for v in row.values()] for row in rows]
    console = Console()
    if not console.is_terminal:
        for line in [list(rows[0]), *cells]:
            typer.echo("\t".join(line))
        return
    table = Table(*rows[0])
    for line in cells:
        table.add_row(*line)
    console.print(table)


def _time(value: Any) -> str:  # noqa: ANN401 - json.dumps's hook
    return str(value.isoformat())
