"""The spool → the books: oldest first, each removed when its outcome is known.

What "in order" promises: of one user, and of one rewardId, a spooled reward is posted after those
that were spooled before it. Between what is spooled and what arrives meanwhile there is no order,
as there is none between two deliveries of the sender: a reward is told by its rewardId. One that
the books were asked for in vain before it was spooled arrived meanwhile: they may have posted it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ingress.spool import Delivery, Spool, Waiting
from ledger.database import Pool
from ledger.errors import Refused, Unavailable, where
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt, Writer

PAGE_SIZE = 256
DOUBTED_TRIES = 5
"""From how many unknown outcomes on a delivery no longer holds up those behind it."""

log = logging.getLogger("ingress.spool")

Read = Callable[[bytes], Reward | None]
"""The webhook's own way from the believed text to the reward; ``None`` for a nudge."""
Keep = Callable[[Delivery, Exception], Awaitable[None]]
"""Keeps what was refused, with the reason, for good; may be called again with the same."""
Count = Callable[[str, int], None]
"""Told of what was removed from the spool: what became of it, and how many."""

IGNORED, KEPT = "ignored", "kept"
"""What becomes of a nudge, and of what the books refuse; of all else it is the receipt's status."""


class _Readable(NamedTuple):
    waiting: Waiting
    reward: Reward


class _Refused(NamedTuple):
    waiting: Waiting
    error: Exception


class Drainer:
    """Posts what waits in a spool, and removes it when it stands in the books.

    What the books refuse goes to ``keep`` and is removed; without ``keep`` it is set aside in the
    spool. So is a text that is no longer the one that was put. An outcome that is not known is
    asked again by the next ``drain``, never guessed: what the books have, they call a replay. So
    is a ``keep`` that was not done.
    """

    def __init__(
        self,
        writer: Writer,
        spool: Spool,
        read: Read,
        keep: Keep | None = None,
        count: Count = lambda *_: None,
    ) -> None:
        self._count = count
        self._writer = writer
        self._spool = spool
        self._read = read
        self._keep = keep

    async def drain(self) -> bool:
        """Post everything that waits, once through; false when the books stopped answering.

        For one process at a time: take the spool's lease first. Raises ``SpoolUnavailable``.
        """
        after = 0
        while page := await asyncio.to_thread(self._spool.oldest, PAGE_SIZE, after):
            after = page[-1].number
            readable, unreadable = await self._read_all(page)
            if not await self._refuse(unreadable):
                return False
            for group in groups(readable):
                if not await self._post(group):
                    return False
        return True

    async def _read_all(self, page: Sequence[Waiting]) -> tuple[list[_Readable], list[_Refused]]:
        """The rewards of ``page``, and what cannot be read; what is neither is removed."""
        readable: list[_Readable] = []
        unreadable: list[_Refused] = []
        nudges: list[int] = []
        for waiting in page:
            if not waiting.is_whole:
                await self._set_aside(waiting, "Damaged")
                continue
            try:
                reward = self._read(waiting.delivery.text)
            except Exception as error:
                # Whatever it is: it must not hold up those behind it.
                unreadable.append(_Refused(waiting, error))
                continue
            if reward is None:
                nudges.append(waiting.number)
            else:
                readable.append(_Readable(waiting, reward))
        await self._remove({IGNORED: nudges})
        return readable, unreadable

    async def _post(self, group: Sequence[_Readable]) -> bool:
        """Post ``group`` at once; false when an outcome is not known that somebody waits for."""
        outcomes = await asyncio.gather(
            *[self._ask(readable.reward) for readable in group], return_exceptions=True
        )
        posted: defaultdict[str, list[int]] = defaultdict(list)
        refused: list[_Refused] = []
        unknown: list[Waiting] = []
        for (waiting, _), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                posted[outcome.status].append(waiting.number)
            elif isinstance(outcome, Refused):
                refused.append(_Refused(waiting, outcome))
            else:
                unknown.append(waiting)
                if not isinstance(outcome, Unavailable):
                    log.error("spool: number %d: %s", waiting.number, where(outcome))
        await self._remove(posted)
        is_kept = await self._refuse(refused)
        return await self._leave(unknown) and is_kept

    async def _ask(self, reward: Reward) -> Outcome:
        return await self._writer.post(reward)

    async def _refuse(self, refused: Sequence[_Refused]) -> bool:
        """Have kept what cannot be posted as it is; false when one is not that somebody waits for.

        All at once: there may be an outage's worth of them, and no order between them.
        """
        if self._keep is None:
            for waiting, error in refused:
                await self._set_aside(waiting, type(error).__name__)
            return True
        troubles = await asyncio.gather(
            *[self._keep(waiting.delivery, error) for waiting, error in refused],
            return_exceptions=True,
        )
        kept: list[int] = []
        unknown: list[Waiting] = []
        for (waiting, error), trouble in zip(refused, troubles, strict=True):
            if trouble is None:
                kept.append(waiting.number)
            elif isinstance(trouble, Unavailable):
                unknown.append(waiting)
            else:
                log.error("spool: number %d: %s", waiting.number, where(trouble))
                await self._set_aside(waiting, type(error).__name__)
        await self._remove({KEPT: kept})
        return await self._leave(unknown)

    async def _leave(self, unknown: Sequence[Waiting]) -> bool:
        """Leave for the next time what became of is not known; whether to go on without it."""
        if unknown:
            numbers = [waiting.number for waiting in unknown]
            await asyncio.to_thread(self._spool.note_tries, numbers)
        return all(_is_doubted(waiting) for waiting in unknown)

    async def _set_aside(self, waiting: Waiting, refusal: str) -> None:
        await asyncio.to_thread(self._spool.set_aside, waiting.number, refusal)
        log.warning("spool: number %d is set aside: %s", waiting.number, refusal)

    async def _remove(self, ended: Mapping[str, Sequence[int]]) -> None:
        """Remove what is done with, by what became of it, and count it then."""
        numbers = [number for each in ended.values() for number in each]
        if numbers:
            await asyncio.to_thread(self._spool.remove, numbers)
        for outcome, each in ended.items():
            self._count(outcome, len(each))


def groups(page: Sequence[_Readable]) -> Iterator[list[_Readable]]:
    """``page`` in groups to be posted one after the other, each of them at once.

    In a group no user and no rewardId comes twice: rewards of one statement have no order of
    their own. What was tried before goes alone, so that it cannot fail those beside it; what has
    been tried too often for that goes last, and nothing waits for it.
    """
    layers: list[list[_Readable]] = []
    last: dict[tuple[str, str], int] = {}
    for readable in page:
        if _is_doubted(readable.waiting):
            continue
        user, reward = ("user", readable.reward.user_id), ("reward", readable.reward.reward_id)
        layer = max(last.get(user, -1), last.get(reward, -1)) + 1
        last[user] = last[reward] = layer
        if layer == len(layers):
            layers.append([])
        layers[layer].append(readable)
    for together in layers:
        if fresh := [readable for readable in together if not readable.waiting.tries]:
            yield fresh
        yield from ([readable] for readable in together if readable.waiting.tries)
    yield from ([readable] for readable in page if _is_doubted(readable.waiting))


def _is_doubted(waiting: Waiting) -> bool:
    return waiting.tries >= DOUBTED_TRIES


_ASK = """
SELECT pg_logical_emit_message(true, 'reward-ledger', ''),
       current_setting('transaction_read_only') = 'off'
"""


async def are_answering(pool: Pool) -> bool:
    """Whether the books can be written: a record in Postgres's log, and nothing in a table.

    A question that only reads would be answered by a standby, or by a server whose commits wait
    for another one that is gone.
    """
    try:
        async with pool.connection() as connection:
            row = await (await connection.execute(_ASK)).fetchone()
    except Unavailable:
        return False
    return row is not None and bool(row[1])
