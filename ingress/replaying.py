"""Kept deliveries, sent through the webhook's own way once more."""

from collections.abc import Callable
from typing import NamedTuple

import psycopg

from ingress.errors import NotAReward, NotJson
from ledger.database import Connection, translated
from ledger.errors import Refused
from ledger.quarantine import Kept, close, get_kept, list_kept
from ledger.reward import Reward
from ledger.writing import Receipt, post


class Replayed(NamedTuple):
    """What became of one kept delivery."""

    number: int
    outcome: str
    """``credited``, ``recorded``, ``replayed``, ``ignored``, or why it is still refused."""
    is_posted: bool


async def replay(
    connection: Connection,
    read: Callable[[bytes], Reward | None],
    *,
    number: int | None,
    by: str,
) -> list[Replayed]:
    """Try what is open again, or only ``number``: post it if it can be posted now.

    Each is posted first and closed afterwards. Whoever is cut off in between finds the reward in
    the books the next time, and closes it then: replaying twice posts once.
    """
    if number is None:
        chosen = await list_kept(connection)
    else:
        kept = await get_kept(connection, number)
        chosen = [kept] if kept is not None and kept.state == "open" else []
    return [await _replay(connection, read, kept, by) for kept in chosen]


async def _replay(
    connection: Connection, read: Callable[[bytes], Reward | None], kept: Kept, by: str
) -> Replayed:
    try:
        reward = read(kept.believed_bytes)
    except NotAReward as error:
        return Replayed(kept.number, f"{error.field} {error.reason}".strip(), is_posted=False)
    except NotJson:
        return Replayed(kept.number, "is not JSON", is_posted=False)
    if reward is None:
        outcome = "ignored"
    else:
        try:
            found = (await post(connection, [reward]))[0]
        except psycopg.Error as error:
            # Its text quotes the row; and one bad row must not keep the others from being tried.
            trouble = translated(error)
            if not isinstance(trouble, Refused):
                raise trouble from None
            return Replayed(kept.number, type(trouble).__name__, is_posted=False)
        if not isinstance(found, Receipt):
            return Replayed(kept.number, type(found).__name__, is_posted=False)
        outcome = found.status
    await close(connection, kept.number, "posted", by, outcome)
    return Replayed(kept.number, outcome, is_posted=True)
