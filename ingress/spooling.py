"""What the webhook posts into when a spool is set: the books, or this machine's disk.

Every 200 is then one of two promises: it stands in the books, or it is on disk and will stand in
them, once. A delivery asks the books first, whether or not the spool is empty; only one that got
no answer is spooled, and its outcome found out later. That the same reward may be asked for twice
is what the books are made for, so nothing here has to guess.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ingress.draining import Count, Drainer, Keep, Read, are_answering
from ingress.keeping import Keeper
from ingress.spool import Delivery, Spool, SpoolStatus
from ingress.spool_file import SpoolUnavailable, UnusableSpool, UnwritableSpool, lease
from ledger.coalescing import Coalescer
from ledger.config import InvalidSetting, whole_number
from ledger.database import Pool, Role
from ledger.errors import DatabaseUnavailable, Overloaded, Unavailable, where
from ledger.quarantine import Unposted
from ledger.reward import Reward
from ledger.writing import Outcome, Writer

PUT_BATCH_SIZE_MAX = 256
PUT_BYTES_MAX = 1024 * 1024
PUT_SECONDS_MAX = 1.0
KEEP_SECONDS_MAX = 0.4
"""How long the quarantine may take: the books may have taken their time before, the disk takes its
own afterwards, and the sender waits for three seconds."""
PAUSE_SECONDS = 0.5
"""How often a worker looks whether there is something to drain, or whether the books are back."""
UNUSABLE_SECONDS = 10.0
"""How long a spool that somebody must mend is left alone: to look at it may mean to read it all."""

log = logging.getLogger("ingress.spool")


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """Where deliveries wait while the books are away."""

    directory: Path
    """``INGRESS_SPOOL``: a directory of its own, on a local disk."""
    size_max_bytes: int
    """``INGRESS_SPOOL_SIZE_MAX_BYTES``: how much of that disk it may take, its log included."""


def read_spool_settings(environment: Mapping[str, str] = os.environ) -> SpoolSettings | None:
    """The spool's settings, ``None`` when there is to be none; raises ``InvalidSetting``."""
    size_max_bytes = whole_number(
        environment, "INGRESS_SPOOL_SIZE_MAX_BYTES", 2**30, minimum=2**24, maximum=2**43
    )
    directory = environment.get("INGRESS_SPOOL")
    if not directory:
        return None
    path = Path(directory).absolute()
    if path.exists() and not path.is_dir():
        raise InvalidSetting("INGRESS_SPOOL", "must be a directory, or not exist yet")
    return SpoolSettings(path, size_max_bytes)


class Spooled(NamedTuple):
    """The receipt of a reward that is on disk, and not known to be in the books yet."""

    reward_id: str
    status: str = "spooled"


class SpoolingBooks:
    """The books, and the spool for when they are away; one for each worker.

    ``start`` and ``stop`` it with the worker. While the books are known to be away, deliveries go
    to the spool at once, and only the worker itself asks, twice a second, whether they are back;
    then one worker of the machine drains the spool, and a delivery asks the books again.
    """

    def __init__(
        self,
        writer: Writer,
        pool: Pool,
        spool: Spool,
        read: Read,
        keep: Keep | None = None,
        count: Count = lambda *_: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.are_away = False
        """Whether the books were away when they were last asked."""
        self.can_spool = False
        """Whether the spool had room when it was last looked at, twice a second."""
        self._had_room = True
        self._look_again_at = 0.0
        self._trouble = ""
        self._writer = writer
        self._pool = pool
        self._spool = spool
        self._drainer = Drainer(writer, spool, read, keep, count)
        self._clock = clock
        self._putting: Coalescer[Delivery, None] = Coalescer(
            self._put, batch_size_max=PUT_BATCH_SIZE_MAX, wait_seconds_max=PUT_SECONDS_MAX
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the spool and begin to drain what an earlier process left.

        One that cannot be opened stops no worker: the books can be reached without it. It is
        looked at again, and until then nothing is spooled.
        """
        self.can_spool = await asyncio.to_thread(self._look_for_room)
        turns = (self._look_for_the_books, self._drain)
        self._tasks = [asyncio.create_task(_repeat(turn)) for turn in turns]

    async def stop(self) -> None:
        """Stop draining, finish what is being put, close the spool; before the writer's end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._putting.drain()
        await asyncio.to_thread(self._spool.close)

    async def post(
        self, reward: Reward, token: str | None = None, form: str | None = None
    ) -> Outcome | Spooled:
        """What became of ``reward``; ``Spooled`` when it is on disk, its outcome not known yet.

        ``token`` and ``form`` say which vouched for it. Raises ``SpoolUnavailable`` when the
        books are away and the spool takes nothing, and else what ``Writer.post`` raises.
        """
        if not self.are_away:
            try:
                return await self._writer.post(reward)
            except Overloaded:
                # They are there, with more to do than they can; the disk has time.
                pass
            except Unavailable:
                self._see(are_away=True)
        await self.put(reward.believed_bytes, token, form)
        return Spooled(reward.reward_id)

    async def put(self, text: bytes, token: str | None, form: str | None) -> None:
        """Put a believed ``text`` into the spool, whatever it is; on disk when it returns.

        Raises ``SpoolUnavailable`` or ``DeadlineExceeded``; it may be there nevertheless.
        """
        await self._putting.submit(Delivery(text, token, form, self._clock()))

    def status(self) -> SpoolStatus:
        """What waits in the spool of the whole machine; to be called in a thread."""
        return self._spool.status()

    async def _put(self, deliveries: list[Delivery]) -> list[None]:
        for portion in _portions(deliveries):
            await asyncio.to_thread(self._spool.put, portion)
        return [None] * len(deliveries)

    async def _look_for_the_books(self) -> None:
        if self.are_away and await are_answering(self._pool):
            self._see(are_away=False)

    async def _drain(self) -> None:
        """Post what waits, if the books are there and no other process drains."""
        self.can_spool = await asyncio.to_thread(self._look_for_room)
        if self.can_spool != self._had_room:
            self._had_room = self.can_spool
            log.warning("spool: it %s", "has room" if self.can_spool else "can take nothing")
        if self.are_away or not self._spool.is_open:
            return
        with lease(self._spool.directory) as is_ours:
            if is_ours and not await self._drainer.drain():
                self._see(are_away=True)

    def _look_for_room(self) -> bool:
        if time.monotonic() < self._look_again_at:
            return False
        try:
            self._spool.open()
            self._trouble = ""
            return self._spool.has_room()
        except (SpoolUnavailable, UnwritableSpool):
            return False
        except UnusableSpool as error:
            self._look_again_at = time.monotonic() + UNUSABLE_SECONDS
            # Once, not at every look. It tells of the file, and nothing of what is in it.
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("spool: going on without it: %s", error)
            return False

    def _see(self, *, are_away: bool) -> None:
        if are_away != self.are_away:
            self.are_away = are_away
            log.warning("spool: the books are %s", "away" if are_away else "back")


class SpoolingQuarantine:
    """The quarantine, and the spool for when it cannot be reached; one for each worker.

    What is refused is kept before that is answered. From the spool it goes its way again: whoever
    drains finds it refused once more, and hands it to the quarantine.
    """

    def __init__(self, quarantine: Keeper, books: SpoolingBooks) -> None:
        self._quarantine = quarantine
        self._books = books

    async def keep(self, delivery: Unposted) -> None:
        """Done when the delivery is in the quarantine or in the spool; raises ``Unavailable``."""
        if not self._books.are_away:
            # One that is late may be kept nevertheless: it is then counted twice, and kept once.
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(KEEP_SECONDS_MAX):
                    await self._quarantine.keep(delivery)
                return
        await self._books.put(delivery.believed_bytes, delivery.token, delivery.form)


def _portions(deliveries: list[Delivery]) -> Iterator[list[Delivery]]:
    """All ``deliveries`` in one, unless they are so large that the log would swell."""
    portion: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        if portion and size + len(delivery.text) > PUT_BYTES_MAX:
            yield portion
            portion, size = [], 0
        portion.append(delivery)
        size += len(delivery.text)
    yield portion


async def _repeat(turn: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await turn()
        except Exception as error:
            log.error("spool: %s", where(error))
        await asyncio.sleep(PAUSE_SECONDS)


def status(settings: SpoolSettings) -> SpoolStatus:
    """What waits in the spool; raises ``UnusableSpool`` or ``SpoolUnavailable``."""
    spool = Spool(settings.directory, settings.size_max_bytes)
    if not spool.exists():
        return SpoolStatus(0, 0, 0, None)
    with spool:
        return spool.status()


async def drain(
    settings: SpoolSettings,
    database_url: str,
    read: Read,
    keep: Keep | None = None,
    count: Count = lambda *_: None,
) -> SpoolStatus:
    """Post what waits, and once more what was set aside; gives what is left then.

    Waits until no worker drains. Raises ``DatabaseUnavailable`` when the books stop answering;
    what was posted until then is posted, and calling it again goes on.
    """
    spool = Spool(settings.directory, settings.size_max_bytes)
    if not spool.exists():
        return SpoolStatus(0, 0, 0, None)
    with spool:
        async with Pool(database_url, Role.WRITER, size_max=1) as pool:
            writer = Writer(pool)
            spool.recall()
            is_done = await _drain_alone(Drainer(writer, spool, read, keep, count), spool)
            await writer.drain()
        if not is_done:
            raise DatabaseUnavailable
        return spool.status()


async def _drain_alone(drainer: Drainer, spool: Spool) -> bool:
    while True:
        with lease(spool.directory) as is_ours:
            if is_ours:
                return await drainer.drain()
        await asyncio.sleep(PAUSE_SECONDS / 5)
