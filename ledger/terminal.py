"""How the operator's commands ask the books, and how they show what they were told."""

import asyncio
import getpass
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ledger.config import read_settings
from ledger.database import Connection, Role, conninfo
from ledger.operations.source import source

STATEMENT_SECONDS_MAX = 3600
"""A person waits longer than a service does: verifying many rewards takes its time."""

Answer = TypeVar("Answer")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="After all postings until then: 2026-11-25, 2026-11-25T09:30:00Z."
    ),
]
Row = dict[str, Any]


def ask(question: Callable[[Connection], Awaitable[Answer]], *, role: Role = Role.READER) -> Answer:
    """What ``question`` answers on a connection of its own, in ``role``."""

    async def answer(url: str) -> Answer:
        info = conninfo(url, role, statement_seconds_max=STATEMENT_SECONDS_MAX, is_service=False)
        async with await psycopg.AsyncConnection.connect(info, autocommit=True) as connection:
            return await question(connection)

    with source(read_settings()) as database:
        return asyncio.run(answer(database.url(role)))


def time_as_of(text: str | None) -> datetime | None:
    """The time that ``text`` of ``--as-of`` says, in UTC if it names no zone."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        fail("--as-of is not a time: write 2026-11-25 or 2026-11-25T09:30:00Z.")


def show(rows: list[Row], *, as_json: bool) -> None:
    """``rows`` as JSON, as a table for a person, or as tab-separated lines for a pipe.

    What a sender wrote may be in them: outside JSON, which escapes it, it is made printable.
    """
    if as_json:
        typer.echo(json.dumps(rows, default=_time))
        return
    if not rows:
        return
    cells = [["" if v is None else printable(str(v)) for v in row.values()] for row in rows]
    console = Console()
    if not console.is_terminal:
        for line in [list(rows[0]), *cells]:
            typer.echo("\t".join(line))
        return
    table = Table(*rows[0])
    for line in cells:
        # As text: a string would be read as markup.
        table.add_row(*map(Text, line))
    console.print(table)


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal obeys, cannot show, or ends a line with."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def operator() -> str:
    """Who is logged in here: by name, or by number where the system has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def json_option(as_json: bool) -> list[str]:
    """``--json`` for another command."""
    return ["--json"] if as_json else []


def become_ingress(*arguments: str) -> NoReturn:
    """Go on as a command of ``ingress``, which ``ledger`` does not import."""
    command = [sys.executable, "-m", "ingress", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a person, gone at the end; nothing into a pipe. It is told how many of how many."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def fail(sentence: str) -> NoReturn:
    """Say what went wrong, and end with status 1."""
    Console(stderr=True).print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1)


def _time(value: Any) -> str:  # noqa: ANN401 - json.dumps's hook
    return str(value.isoformat())
