"""``ledger verify`` and ``ledger rebuild``: the books against themselves."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ledger.config import read_settings
from ledger.database import Role, conninfo
from ledger.operations.source import source
from ledger.operations.verified import UnusableState, Verified, read_verified, write_verified
from ledger.operations.verify import in_words
from ledger.operations.verifying import Outcome, ReadAgain, verify_in_parts
from ledger.terminal import (
    STATEMENT_SECONDS_MAX,
    AsJson,
    become_ingress,
    fail,
    json_option,
    progress,
    show,
)

StateFile = Annotated[
    Path | None,
    typer.Option("--state", help="A file that keeps how far the books are verified."),
]
Whole = Annotated[bool, typer.Option("--whole", help="Begin anew, whatever the file says.")]
Reading = Callable[[str], AbstractContextManager[ReadAgain]]
"""How documents are read again, from the books of a conninfo."""


def verify(
    state: StateFile = None,
    whole: Whole = False,
    documents: Annotated[
        bool,
        typer.Option("--documents", help="Read the believed bytes again, too, as the ingress."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Derive the books again; name each difference, exit 1 if there is one. Never writes to them.

    With --state, a run that was cut off goes on where it was, and one after a run that found
    nothing looks at what came since. --documents needs INGRESS_MAPPING and
    INGRESS_DEFAULT_CURRENCY as the ingress has them.

    Example: ledger verify --state verified.json
    """
    if documents:
        kept = ["--state", str(state)] if state else []
        become_ingress("verify", *kept, *(["--whole"] if whole else []), *json_option(as_json))
    run_verify(state, whole=whole, as_json=as_json)


def run_verify(
    state: Path | None, *, whole: bool, as_json: bool, reading: Reading | None = None
) -> None:
    """Verify, and show what was found; with ``reading`` the documents, too. Exits 1 if needed."""
    try:
        outcome = _verify(state, None if whole or not state else read_verified(state), reading)
    except UnusableState as error:
        fail(f"{state} {error}.")
    show([finding._asdict() for finding in outcome.findings], as_json=as_json)
    if not as_json:
        typer.echo(in_words(outcome.tally))
    if outcome.findings:
        raise SystemExit(1)
    if not as_json:
        since = f" since commit {outcome.since}" if outcome.since else ""
        typer.echo(f"the books hold: nothing found{since}")


def _verify(state: Path | None, before: Verified | None, reading: Reading | None) -> Outcome:
    def keep(verified: Verified) -> None:
        if state:
            write_verified(state, verified)

    with source(read_settings()) as database, progress("verifying") as report:
        info = conninfo(
            database.url(Role.READER),
            Role.READER,
            statement_seconds_max=STATEMENT_SECONDS_MAX,
            is_service=False,
        )
        with reading(info) if reading else nullcontext() as read_again:
            outcome = asyncio.run(
                verify_in_parts(
                    info,
                    workers=len(os.sched_getaffinity(0)),
                    before=before,
                    read_again=read_again,
                    keep=keep,
                    report=report,
                )
            )
    if state and (outcome.verified or not (before and before.is_whole)):
        write_verified(state, outcome.verified)
    return outcome


def rebuild(
    into: Annotated[
        str, typer.Option("--into", help="A database's name beside this one, or its address.")
    ],
    as_json: AsJson = False,
) -> None:
    """Post every believed body again into empty, migrated books, and compare both, row by row.

    Exits 1 if there is a difference. It is read as the ingress reads: INGRESS_MAPPING and
    INGRESS_DEFAULT_CURRENCY must be as the ingress has them.

    Example: ledger rebuild --into rebuilt
    """
    become_ingress("rebuild", "--into", into, *json_option(as_json))
