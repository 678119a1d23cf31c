"""``python -m ingress``: the operator's commands that need the webhook's own way of reading.

``ledger`` does not import ``ingress``; its commands of the same names become these.
"""

import asyncio
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psycopg
import typer

from ingress import cli_books
from ingress.app import keep_spooled
from ingress.config import read_database_url
from ingress.errors import NotAReward, NotJson
from ingress.mapping import FIELDS, Mapping, read_mapping
from ingress.payload import parse, read_reward
from ingress.replaying import ANOTHER_MAPPING, Replayed, replay
from ingress.source import BodyPath
from ingress.spool import SpoolStatus
from ingress.spool_file import SpoolUnavailable, UnusableSpool
from ingress.spooling import SpoolSettings, drain, read_spool_settings, status
from ingress.tallying import CountingKeeper, Counts, Tallying
from ledger.config import InvalidSetting
from ledger.database import Connection, Pool, Role
from ledger.embedded import EmbeddedPostgresError
from ledger.errors import LedgerError
from ledger.quarantine import Quarantine
from ledger.reward import Reward
from ledger.terminal import AsJson, ask, fail, operator, printable

NOT_CHECKED = (
    "Whether the currency is registered, and how many decimals it has, is checked against the "
    "books only on posting."
)

app = typer.Typer(
    help="The ingress of the reward ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli_books.add_to(app)


def main() -> None:
    """Run the command of the process's arguments; what goes wrong is said in one sentence."""
    # The pool would tell of every vain attempt, in the server's words.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    try:
        app(prog_name="python -m ingress")
    except (InvalidSetting, UnusableSpool, EmbeddedPostgresError) as error:
        fail(str(error))
    except psycopg.errors.UndefinedTable:
        fail("The database holds no books yet: run `ledger migrate` first.")
    except psycopg.Error as error:
        # Never its text, which may quote the values that were refused.
        fail(f"Postgres refused ({error.sqlstate or 'no connection'}): check DATABASE_URL.")
    except SpoolUnavailable as error:
        fail(f"The spool cannot be read or written now: {type(error).__name__}.")
    except LedgerError as error:
        fail(f"The books cannot answer: {type(error).__name__}.")


@app.command("quarantine-replay")
def quarantine_replay(
    number: Annotated[int | None, typer.Argument(help="Only this one.")] = None,
    by: Annotated[str, typer.Option(help="Who decides.")] = "",
    under_this_mapping: Annotated[bool, typer.Option("--under-this-mapping")] = False,
) -> None:
    """Send what is open in the quarantine through the webhook's own way again."""
    mapping = read_mapping(os.environ)

    async def replay_all(connection: Connection) -> list[Replayed]:
        return await replay(
            connection,
            mapping,
            number=number,
            by=by or operator(),
            may_differ=under_this_mapping,
        )

    replayed = ask(replay_all, role=Role.WRITER)
    for one in replayed:
        typer.echo(f"{one.number}\t{one.outcome}")
    if number is not None and not replayed:
        fail(f"Nothing is open under {number}: see `ledger quarantine list --all`.")
    if any(one.outcome == ANOTHER_MAPPING for one in replayed):
        fail(
            "Set INGRESS_MAPPING and INGRESS_DEFAULT_CURRENCY as the ingress has them; or say "
            "--under-this-mapping, and what the ingress read otherwise is read by these."
        )
    if not all(one.is_posted for one in replayed):
        raise SystemExit(1)


@app.command("spool-status")
def spool_status(as_json: AsJson = False) -> None:
    """Show how many rewards wait in the spool, and since when."""
    _show_spool(status(_spool_settings()), as_json=as_json)


@app.command("spool-drain")
def spool_drain() -> None:
    """Post what waits in the spool, and try again what was set aside."""
    spool, url, mapping = _spool_settings(), read_database_url(os.environ), read_mapping(os.environ)
    read = partial(read_reward, mapping=mapping)

    async def drain_it() -> SpoolStatus:
        async with Pool(url, Role.WRITER, size_max=1) as pool:
            counts = Counts()
            keep = keep_spooled(CountingKeeper(Quarantine(pool), counts), mapping)
            try:
                return await drain(spool, url, read, keep, counts.drain)
            finally:
                await Tallying(pool, counts).end()

    _show_spool(asyncio.run(drain_it()), as_json=False)


def _spool_settings() -> SpoolSettings:
    settings = read_spool_settings()
    if settings is None:
        raise InvalidSetting("INGRESS_SPOOL", "is not set: there is no spool")
    return settings


def _show_spool(found: SpoolStatus, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found._asdict()))
        return
    for name, value in found._asdict().items():
        typer.echo(f"{name}\t{'' if value is None else value}")


class Tried(NamedTuple):
    """What would become of a body under a mapping, as far as the books need not be asked."""

    outcome: str
    """``credited``, ``recorded`` or ``ignored``, as the webhook answers; or ``refused``."""
    reward: dict[str, str | None] | None = None
    found_at: dict[str, str] | None = None
    """For each field of the reward the path at which it is looked for, or what stood in for it."""
    posting: dict[str, str] | None = None
    refusal: dict[str, str] | None = None


@app.command("mapping-check")
def mapping_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The mapping: a TOML file.")],
    body: Annotated[
        Path, typer.Argument(metavar="BODY", help="The body of one delivery: a JSON file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what would be booked for BODY under the mapping FILE; exit 1 if it would be refused.

    INGRESS_DEFAULT_CURRENCY counts, as it does for the ingress.

    Example: python -m ingress mapping-check mapping.toml body.json
    """
    mapping = read_mapping({**os.environ, "INGRESS_MAPPING": str(file)})
    try:
        text = body.read_bytes()
    except OSError as error:
        fail(f"BODY cannot be read: {error.strerror}")
    tried = _try(text, mapping)
    if as_json:
        typer.echo(json.dumps({**tried._asdict(), "not_checked": NOT_CHECKED}))
    else:
        _show(tried)
    if tried.refusal:
        raise SystemExit(1)


def _try(text: bytes, mapping: Mapping) -> Tried:
    try:
        reward = read_reward(text, mapping)
    except NotJson:
        return Tried("refused", refusal={"field": "", "reason": "is not JSON"})
    except NotAReward as error:
        return Tried("refused", refusal={"field": error.field, "reason": error.reason})
    if reward is None:
        return Tried("ignored")
    posting = reward.posting()
    return Tried(
        outcome="recorded" if posting is None else "credited",
        reward=_told(reward),
        found_at=_found_at(reward, mapping),
        posting=posting and {name: str(value) for name, value in posting._asdict().items()},
    )


def _told(reward: Reward) -> dict[str, str | None]:
    told: dict[str, Any] = {name: getattr(reward, name) for name in FIELDS}
    if reward.reward_expires_at is not None:
        told["reward_expires_at"] = reward.reward_expires_at.isoformat()
    if reward.code is not None:
        # Whoever reads a terminal or the log of a build could redeem it.
        told["code"] = f"{len(reward.code)} characters, not shown"
    return {name: None if value is None else str(value) for name, value in told.items()}


def _found_at(reward: Reward, mapping: Mapping) -> dict[str, str]:
    found_at = {
        name: str(source) if isinstance(source, BodyPath) else "a constant"
        for name, source in mapping.sources.items()
    }
    told = dict(zip(FIELDS, mapping.values(parse(reward.believed_bytes)), strict=True))
    if reward.currency is not None and not told["currency"]:
        found_at["currency"] = "a default"
    return found_at


def _show(tried: Tried) -> None:
    if tried.refusal:
        field, reason = tried.refusal["field"], tried.refusal["reason"]
        typer.echo(f"would be refused: {field or 'the body'} {reason}")
        return
    typer.echo(f"would be {tried.outcome}")
    for name, booked in (tried.posting or {}).items():
        typer.echo(f"  {name:18} {printable(booked)}")
    if tried.reward is not None and tried.found_at is not None:
        for name, value in tried.reward.items():
            shown = "-" if value is None else printable(value)
            typer.echo(f"{name:20} {tried.found_at[name]:24} {shown}")
    if tried.posting:
        typer.echo(NOT_CHECKED)


if __name__ == "__main__":
    main()
