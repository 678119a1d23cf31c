"""Kept deliveries, sent through the webhook's own way once more."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import psycopg

from ingress.errors import NotAReward, NotJson
from ingress.keeping import unposted
from ingress.mapping import Mapping
from ingress.payload import read_reward
from ledger.database import Connection, translated
from ledger.errors import Refused
from ledger.quarantine import Kept, close, explain, get_kept, list_open
from ledger.reward import Reward
from ledger.writing import Receipt, post

PAGE_SIZE = 1000
ANOTHER_MAPPING = "was read by another mapping"
"""The outcome of what is not tried, because nobody has said that it may be read otherwise."""


class Replayed(NamedTuple):
    """What became of one kept delivery."""

    number: int
    outcome: str
    """``credited``, ``recorded``, ``replayed``, ``ignored``, or why it is still refused."""
    is_posted: bool


async def replay(
    connection: Connection,
    mapping: Mapping,
    *,
    number: int | None,
    by: str,
    may_differ: bool = False,
) -> list[Replayed]:
    """Try what is open again, or only ``number``: post it if it can be posted now.

    It is read by ``mapping``. What the ingress read by another one, or by one that is not known,
    is only tried if it ``may_differ``: it could be booked otherwise than the ingress would, such
    as in another currency.

    Each is posted first and closed afterwards. Whoever is cut off in between finds the reward in
    the books the next time, and closes it then: replaying twice posts once. What is still refused
    says why by now.
    """
    return [
        await _replay(connection, mapping, kept, by)
        if may_differ or kept.read_under == mapping.digest
        else Replayed(kept.number, ANOTHER_MAPPING, is_posted=False)
        async for kept in _open(connection, number)
    ]


async def _open(connection: Connection, number: int | None) -> AsyncIterator[Kept]:
    """What is open, or only ``number``; one after the other, as they may be many and large."""
    numbers = await list_open(connection, 0, PAGE_SIZE) if number is None else [number]
    while numbers:
        for each in numbers:
            kept = await get_kept(connection, each)
            if kept is not None and kept.state == "open":
                yield kept
        numbers = await list_open(connection, numbers[-1], PAGE_SIZE) if number is None else []


async def _replay(connection: Connection, mapping: Mapping, kept: Kept, by: str) -> Replayed:
    reward = None
    try:
        reward = read_reward(kept.believed_bytes, mapping)
        outcome = "ignored" if reward is None else await _post(connection, reward)
    except (NotAReward, NotJson, Refused) as error:
        refused = unposted(
            kept.believed_bytes,
            error,
            reward_id=reward.reward_id if reward else None,
            token=kept.token,
            form=kept.form,
            read_under=mapping.digest,
        )
        await explain(connection, kept.number, refused)
        said = "is not JSON" if isinstance(error, NotJson) else refused.detail or refused.reason
        return Replayed(kept.number, said, is_posted=False)
    await close(connection, kept.number, "posted", by, outcome)
    return Replayed(kept.number, outcome, is_posted=True)


async def _post(connection: Connection, reward: Reward) -> str:
    """The status of the receipt; raises why the books refuse ``reward``."""
    try:
        (found,) = await post(connection, [reward])
    except psycopg.Error as error:
        # Its text quotes the row; and one bad row must not keep the others from being tried.
        raise translated(error) from None
    if not isinstance(found, Receipt):
        raise found
    return found.status
