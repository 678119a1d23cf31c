"""The commands that need the books and the webhook's own way of reading: verify and rebuild."""

import asyncio
import os
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import make_conninfo

from ingress.documents import RULE, reading_again
from ingress.mapping import Mapping, read_mapping
from ingress.rebuilding import Books, Report, is_empty, rebuild
from ledger import reading
from ledger.cli_verify import run_verify
from ledger.config import read_settings
from ledger.database import Connection, Role, conninfo
from ledger.money import Currency
from ledger.operations.alike import Difference
from ledger.operations.migrate import add_currency
from ledger.operations.source import source
from ledger.terminal import STATEMENT_SECONDS_MAX, AsJson, fail, progress, show

DIFFERENCES_MAX = 1000
"""How many are shown; all are counted."""


def add_to(app: typer.Typer) -> None:
    """Give ``app`` both commands."""
    app.command("verify")(verify_)
    app.command("rebuild")(rebuild_)


def verify_(
    state: Annotated[Path | None, typer.Option("--state")] = None,
    whole: Annotated[bool, typer.Option("--whole")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify the books, and that their columns are what the believed bytes say."""
    reading_documents = partial(
        reading_again, mapping=read_mapping(os.environ), processes=len(os.sched_getaffinity(0))
    )
    if not as_json:
        typer.echo(
            f"under “{RULE}”, read by INGRESS_MAPPING and INGRESS_DEFAULT_CURRENCY as they are set "
            "here: a reward that only this rule names was posted under other settings"
        )
    run_verify(state, whole=whole, as_json=as_json, reading=reading_documents)


class _Shown:
    """The differences: all counted, the first of them kept."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Difference] = []

    def tell(self, difference: Difference) -> None:
        """One more."""
        self.count += 1
        if self.count <= DIFFERENCES_MAX:
            self.first.append(difference)


def rebuild_(into: Annotated[str, typer.Option("--into")], as_json: AsJson = False) -> None:
    """Post every believed body again into empty, migrated books, and compare both."""
    mapping, shown = read_mapping(os.environ), _Shown()
    with source(read_settings()) as database, progress("rewards") as report:
        target = into
        if "=" not in into and "://" not in into:
            target = make_conninfo(database.url(), dbname=into)
        try:
            rewards = asyncio.run(
                _rebuild(database.url(Role.READER), target, mapping, report, shown)
            )
        except psycopg.errors.UndefinedTable:
            fail("Where the books shall be rebuilt there are none: run `ledger migrate` there.")
    show([difference._asdict() for difference in shown.first], as_json=as_json)
    if shown.count:
        fail(
            f"{shown.count} differences, {len(shown.first)} of them shown: if INGRESS_MAPPING or "
            "INGRESS_DEFAULT_CURRENCY are not as they were, that may be why."
        )
    if not as_json:
        typer.echo(f"the rebuilt books are the same: {rewards} rewards")


async def _rebuild(url: str, target: str, mapping: Mapping, report: Report, shown: _Shown) -> int:
    async with AsyncExitStack() as stack:

        async def connect(url: str, role: Role) -> Connection:
            seconds, is_service = STATEMENT_SECONDS_MAX, role is not Role.READER
            info = conninfo(url, role, statement_seconds_max=seconds, is_service=is_service)
            opened = await psycopg.AsyncConnection.connect(info, autocommit=True)
            return await stack.enter_async_context(opened)

        original = await connect(url, Role.READER)
        try:
            writer = await connect(target, Role.WRITER)
            corrector = await connect(target, Role.CORRECTOR)
        except psycopg.OperationalError:
            fail("Where the books shall be rebuilt nobody answers: create the database first.")
        if not await is_empty(writer):
            fail("Books are rebuilt into empty ones only: name a new database, and migrate it.")
        _add_currencies(target, await reading.list_currencies(original))
        return await rebuild(Books(original, writer, corrector), mapping, report, shown.tell)


def _add_currencies(target: str, currencies: list[Currency]) -> None:
    with psycopg.connect(target) as connection:
        for currency in currencies:
            add_currency(connection, currency)
