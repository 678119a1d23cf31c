"""What a comparison of a report with the books found, line by line."""

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Class(StrEnum):
    """What a line of a report, or a reward that it does not hold, turned out to be."""

    MATCHED = "matched"
    MISSING_HERE = "missing here"
    """The books do not have it."""
    MISSING_THERE = "missing there"
    """The books have it, posted within the period and campaigns; no line has."""
    DIFFERS = "differs"
    """The same rewardId with another amount, currency, user or campaign."""
    DUPLICATE = "duplicate"
    """A line before has the rewardId."""
    CONFLICT = "conflict"
    """The books have it, and the quarantine holds another body with its rewardId, open."""
    QUARANTINED = "quarantined"
    """The books do not have it; a body with its rewardId is open in the quarantine."""
    REVERSED = "reversed"
    """The books have it as the line says, and have taken it back, in whole or in part."""


class Difference(NamedTuple):
    """A line that is not matched, or a reward that no line holds."""

    found: Class
    line: int | None
    reward_id: str
    differing: str
    """The fields in which line and books are not the same, joined by commas."""
    reported_amount: str | None
    reported_currency: str | None
    reported_user: str | None
    reported_campaign: str | None
    booked_amount: str | None
    booked_currency: str | None
    booked_user: str | None
    booked_campaign: str | None
    recorded_at: datetime | None


FIELDS = ("amount", "currency", "user", "campaign")
"""What can differ."""

HEADER = ("class", *Difference._fields[1:])

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def csv_text(rows: Iterable[Difference | tuple[str, ...]]) -> str:
    """``rows`` as CSV in which no cell of somebody else's is a formula.

    A text that a spreadsheet would take for one has an apostrophe put before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        cells = list(row)
        # Not the amounts: they are numbers, whatever they begin with.
        for place in _TEXTS:
            text = cells[place]
            if isinstance(text, str) and text.startswith(_FORMULA):
                cells[place] = f"'{text}"
        writer.writerow(cells)
    return buffer.getvalue()


_TEXTS = tuple(
    place
    for place, name in enumerate(Difference._fields)
    if name == "reward_id" or name.endswith(("_currency", "_user", "_campaign"))
)
