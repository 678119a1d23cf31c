"""The operator's commands. Each does one thing of ``ledger.operations`` and shows the result."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from ledger import (
    cli_caller,
    cli_correct,
    cli_export,
    cli_finance,
    cli_quarantine,
    cli_reconcile,
    cli_verify,
    page,
    reading,
)
from ledger.account import USER
from ledger.config import InvalidSetting, read_serve_settings, read_settings
from ledger.correction import Corrected
from ledger.embedded import EmbeddedPostgresError
from ledger.errors import LedgerError
from ledger.history import Booked, Line, RecordedReward, RewardFilter, list_history
from ledger.money import CURRENCY_CODE, Currency
from ledger.operations import migrate as migrating
from ledger.operations import processes
from ledger.operations import run as running
from ledger.operations import serve as serving
from ledger.operations.source import source
from ledger.terminal import AsJson, AsOf, ask, become_ingress, fail, json_option, show, time_as_of

app = typer.Typer(
    help="The reward ledger: signed CustomerGlu rewards in, double-entry balances out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
currencies = typer.Typer(help="What amounts are counted in.", no_args_is_help=True)
app.add_typer(currencies, name="currency")
spools = typer.Typer(help="Rewards that wait while Postgres is away.", no_args_is_help=True)
app.add_typer(spools, name="spool")
mappings = typer.Typer(help="Where a body holds what.", no_args_is_help=True)
app.add_typer(mappings, name="mapping")
app.add_typer(cli_quarantine.app, name="quarantine")
app.add_typer(cli_caller.app, name="caller")
app.command()(cli_reconcile.reconcile)
cli_export.add_to(app)
cli_finance.add_to(app)
app.command("reverse")(cli_correct.reverse_)
app.command()(cli_correct.corrections)
app.add_typer(cli_correct.adjustments, name="adjust")
app.command()(cli_verify.verify)
app.command()(cli_verify.rebuild)


def main() -> None:
    """Run the command of the process's arguments; what goes wrong is said in one sentence."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (InvalidSetting, EmbeddedPostgresError, serving.AddressTaken) as error:
        fail(str(error))
    except running.IsRunning as error:
        fail(
            f"`ledger run` is running already (process {error}): stop it with Ctrl-C, "
            "or set LEDGER_DATA to another directory."
        )
    except running.DidNotStart as error:
        fail(f"`ledger {error}` ended before it was ready; what it said stands above.")
    except psycopg.errors.UndefinedTable:
        fail("The database holds no books yet: run `ledger migrate` first.")
    except psycopg.Error as error:
        fail(f"Postgres refused ({error.sqlstate or 'no connection'}): check DATABASE_URL.")
    except LedgerError as error:
        fail(f"The books cannot answer: {type(error).__name__}.")


@app.command()
def run() -> None:
    """Start everything on this machine: Postgres if none is given, the ingress, the service.

    Example: LEDGER_DATA=/srv/ledger ledger run
    """
    from ledger.operations.welcome import welcome

    processes.unwind_at_sigterm()
    with running.running(read_settings(), os.environ) as started:
        typer.echo(welcome(started))
        ended = running.wait(started)
        typer.echo("stopping")
    if ended is not None:
        fail(f"`ledger {ended.name}` ended by itself; what it said stands above.")


@app.command()
def demo() -> None:
    """Start everything on free ports, post two rewards, ask for the balances, stop.

    Example: ledger demo
    """
    from ledger.operations.demo import demo as show

    show(typer.echo)


@app.command()
def serve(
    child_of: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve gRPC on LEDGER_BIND from the database of DATABASE_URL.

    Example: DATABASE_URL=postgresql://ledger_reader@db/ledger ledger serve
    """
    logging.getLogger().setLevel(logging.INFO)
    settings = read_settings()
    if settings.database_url is None:
        raise InvalidSetting("DATABASE_URL", "is required")
    served = read_serve_settings()
    if child_of is None:
        serving.serve(settings.database_url, settings.bind, settings.processes, served)
    else:
        serving.serve_as_child(settings.database_url, settings.bind, served, child_of)


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
def balance(user: str, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Show a user's balances in all currencies, now or as of a time.

    Example: ledger balance testuser1 --as-of 2026-11-25T00:00:00Z
    """
    at = time_as_of(as_of)
    balances = ask(lambda connection: reading.list_balances(connection, user, at))
    show(
        [
            {"currency": b.currency, "balance": b.value, "postings": b.version, "last": b.posted_at}
            for b in balances
        ],
        as_json=as_json,
    )


@app.command()
def history(
    user: str,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show a user's rewards and corrections, newest first.

    Example: ledger history testuser1 --limit 10
    """
    chosen = RewardFilter(user)
    found = ask(lambda connection: list_history(connection, chosen, page.FIRST, limit))
    show([_line(line) for line in found.lines], as_json=as_json)


def _line(line: Line) -> dict[str, Any]:
    reward_id: str | None
    kind: str | None
    name: str | None
    booked: Booked | Corrected | None
    if isinstance(line, RecordedReward):
        reward_id, kind, name = line.reward_id, line.type, line.reward_name
        booked, taken_back = line.posting, line.reversed
    else:
        reward_id, kind, name = line.corrected.reward_id, line.corrected.kind, line.corrected.reason
        booked, taken_back = line.corrected, None
    # What was taken from the user has a minus here, where nobody looks at the accounts.
    is_debited = booked is not None and booked.debit_account == USER.account(line.user_id)
    return {
        "recorded": line.recorded_at,
        "reward": reward_id,
        "campaign": line.campaign_id,
        "type": kind,
        "name": name,
        "amount": booked and f"{'-' if is_debited else ''}{booked.amount}",
        "currency": line.currency,
        "version": booked and booked.version,
        "balance after": booked and booked.balance_after,
        "reversed": taken_back,
    }


@mappings.command("check")
def mapping_check(file: Path, body: Path, as_json: AsJson = False) -> None:
    """Show what would be booked for the delivery in BODY under the mapping in FILE.

    Example: ledger mapping check mapping.toml body.json
    """
    become_ingress("mapping-check", str(file), str(body), *json_option(as_json))


@spools.command("status")
def spool_status(as_json: AsJson = False) -> None:
    """Show how many rewards wait in the spool of INGRESS_SPOOL, and since when.

    Example: INGRESS_SPOOL=/var/spool/ledger ledger spool status --json
    """
    become_ingress("spool-status", *json_option(as_json))


@spools.command("drain")
def spool_drain() -> None:
    """Post what waits in the spool now, and try again what was set aside.

    INGRESS_MAPPING and INGRESS_DEFAULT_CURRENCY must be those of the ingress.

    Example: INGRESS_SPOOL=/var/spool/ledger ledger spool drain
    """
    become_ingress("spool-drain")


@currencies.command("add")
def currency_add(
    code: str, scale: Annotated[int, typer.Option(min=0, max=18)], name: str = ""
) -> None:
    """Register a currency for good: its scale cannot be changed afterwards.

    Example: ledger currency add GEMS --scale 0 --name Gems
    """
    if CURRENCY_CODE.fullmatch(code) is None:
        fail("A currency's code is a capital letter and up to 19 capitals, digits or _.")
    with source(read_settings()) as database, psycopg.connect(database.url()) as connection:
        if not migrating.add_currency(connection, Currency(code, scale, name or code)):
            fail(f"{code} is registered already; `ledger currency list` shows its scale.")
    typer.echo(f"{code} is registered with {scale} decimals")


@currencies.command("list")
def currency_list(as_json: AsJson = False) -> None:
    """Show every currency with its scale.

    Example: ledger currency list --json
    """
    show([currency._asdict() for currency in ask(reading.list_currencies)], as_json=as_json)
