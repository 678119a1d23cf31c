"""The Postgres that is used when none is given: ``EmbeddedPostgres`` and its errors.

``postgres`` puts it together; ``home`` finds a place, a user and the binaries; ``server`` starts,
awaits and ends the process; ``processes`` ends what a killed supervisor left; ``roles`` and
``settings`` say who may do what, and how it runs.
"""

from ledger.embedded.errors import (
    AlreadyRunning,
    AnotherVersionsData,
    DidNotStart,
    EmbeddedPostgresError,
    NoUsablePlace,
)
from ledger.embedded.postgres import EmbeddedPostgres

__all__ = [
    "AlreadyRunning",
    "AnotherVersionsData",
    "DidNotStart",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "NoUsablePlace",
]
