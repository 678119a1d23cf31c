"""What verifying finds."""

from typing import Any, NamedTuple

from ledger.database import Connection

FINDINGS_MAX = 1000
"""How many differences one query names, of however many rules: more help nobody."""

SEALED = "a row is as it was sealed"


class Finding(NamedTuple):
    """One thing that does not hold."""

    rule: str
    """Which rule is broken, as a sentence."""
    subject: str
    """The account, reward or posting that breaks it."""
    expected: str | None
    """What follows from the rest of the books; ``None``: it should not be there."""
    found: str | None
    """What stands there; ``None``: it is missing."""


_LIMIT = f"\nLIMIT {FINDINGS_MAX}"


async def find(connection: Connection, query: str, **asked: Any) -> list[Finding]:  # noqa: ANN401
    """What ``query`` finds: rows of a rule, a subject, what was expected, what was found."""
    cursor = await connection.execute(query + _LIMIT, asked or None)
    return [Finding._make(row) for row in await cursor.fetchall()]


async def find_of(connection: Connection, rule: str, query: str, **asked: Any) -> list[Finding]:  # noqa: ANN401
    """What ``query``, which holds ``rule`` only, finds: the same rows without it."""
    cursor = await connection.execute(query + _LIMIT, asked or None)
    return [Finding(rule, *row) for row in await cursor.fetchall()]
