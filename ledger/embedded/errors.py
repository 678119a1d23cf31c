"""Why the embedded Postgres cannot be had. `ledger.embedded` re-exports these names."""

# Errors are named as facts in this house, without a suffix.
# ruff: noqa: N818


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot be had; the message says what to do next."""


class AlreadyRunning(EmbeddedPostgresError):
    """Another supervisor owns this directory; its server was left alone."""


class AnotherVersionsData(EmbeddedPostgresError):
    """The data was written by another major version of Postgres; it was not touched."""


class DidNotStart(EmbeddedPostgresError):
    """The server, or its first initialisation, failed; the message ends with its last words."""


class NoUsablePlace(EmbeddedPostgresError):
    """There is no directory, user or set of binaries with which a server could run."""
