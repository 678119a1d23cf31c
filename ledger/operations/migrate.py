"""``ledger migrate``: bring a database to the schema of this version, once."""

from pathlib import Path
from typing import NamedTuple

import psycopg
import yoyo
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from ledger.money import Currency, standard_currencies

MIGRATIONS = Path(__file__).parent.parent / "migrations"

_LOCK = 0x1ED6E4
"""The advisory lock under which only one process migrates. It goes with its connection, so a
killed migration blocks nobody; yoyo's own lock is a row that would stay."""


class Migrated(NamedTuple):
    """What a call of ``migrate`` did."""

    migrations: list[str]
    """The migrations that were applied, in order; empty when all had been."""
    currencies: int
    """How many standard currencies were added."""


def migrate(url: str) -> Migrated:
    """Apply every migration that ``url``'s database lacks, and register the standard currencies.

    ``url`` must log in as the owner of the books. Two at once wait for each other; the second
    finds nothing to do. Raises what psycopg raises; a migration that failed leaves nothing.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%(lock)s)", {"lock": _LOCK})
        backend = PostgresqlPsycopgBackend(_address(url), "_yoyo_migration")
        try:
            backend.init_database()
            wanted = backend.to_apply(yoyo.read_migrations(str(MIGRATIONS)))
            applied = [migration.id for migration in wanted]
            backend.apply_migrations(wanted)
        finally:
            backend.connection.close()
        added = sum(add_currency(connection, currency) for currency in standard_currencies())
    return Migrated(applied, added)


_ADD_CURRENCY = """
INSERT INTO currencies (code, scale, name) VALUES (%(code)s, %(scale)s, %(name)s)
ON CONFLICT (code) DO NOTHING
"""


def add_currency(connection: psycopg.Connection, currency: Currency) -> bool:
    """Register ``currency``; false when its code is registered already, with whatever scale."""
    return connection.execute(_ADD_CURRENCY, currency._asdict()).rowcount == 1


def _address(url: str) -> DatabaseURI:
    """``url`` as yoyo's own kind of address; its parser knows URLs only, libpq's knows both."""
    parameters = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
    return DatabaseURI(
        scheme="postgresql+psycopg",
        username=None,
        password=None,
        hostname=None,
        port=None,
        database=str(parameters.pop("dbname", "")),
        args={name: str(value) for name, value in parameters.items()},
    )
