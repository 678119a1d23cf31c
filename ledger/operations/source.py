"""Which Postgres a command talks to: the one that was given, or the embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ledger.config import Settings
from ledger.embedded import AlreadyRunning, EmbeddedPostgres

OWNER = "ledger_owner"


class Source(NamedTuple):
    """A Postgres that answers."""

    given: str | None
    embedded: EmbeddedPostgres | None

    def url(self, role: str = OWNER) -> str:
        """Where ``role`` logs in.

        A given database is logged into as its URL says; ``ledger.database`` then takes the role.
        """
        if self.given is not None:
            return self.given
        if self.embedded is None:
            raise AssertionError
        return self.embedded.url(role)


def embedded_directory(settings: Settings) -> Path:
    """Where the embedded Postgres is wanted."""
    return settings.data_directory / "postgres"


@contextmanager
def source(settings: Settings, *, must_own: bool = False) -> Iterator[Source]:
    """The database of a command, for the time of the block.

    Without ``DATABASE_URL`` it is the embedded one: the running one, or one that is started for
    this command only. ``must_own`` refuses a running one, which another command may stop at any
    moment. Raises ``EmbeddedPostgresError``.
    """
    if settings.database_url is not None:
        yield Source(settings.database_url, None)
        return
    embedded = EmbeddedPostgres(embedded_directory(settings))
    try:
        embedded.start()
    except AlreadyRunning:
        if must_own:
            raise
        yield Source(None, embedded)
        return
    try:
        yield Source(None, embedded)
    finally:
        embedded.stop()
