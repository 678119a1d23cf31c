"""Calls whose caller does not take what comes, or is gone."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ledger import calls, listening
from ledger.database import Pool, Role
from ledger.reading import Reader
from ledger.service import LedgerService
from ledger.v1 import ledger_pb2 as pb
from tests.conftest import Database, Run
from tests.ledger.test_server import begun_call, frame, value
from tests.rewards import reward
from tests.serving import connected, free_port
from tests.watches import Watch, posted

WATCH_REWARDS = b"/ledger.v1.LedgerService/WatchRewards"
FROM_BEGINNING = pb.WatchRewardsRequest(from_beginning=True).SerializeToString()
WINDOW_BYTES = 65_535
"""How much of a stream HTTP/2 lets be on its way until somebody says that it was taken."""


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when ``is_so()``."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def started(database: Database, port: int, **options: Any) -> AsyncIterator[listening.Server]:
    """A server whose parts can be had."""
    async with Pool(database.url(Role.READER), Role.READER, size_max=4) as pool:
        created = listening.create_server(LedgerService(Reader(pool)), **options)
        created.grpc.add_insecure_port(f"127.0.0.1:{port}")
        await created.start()
        try:
            yield created
        finally:
            await created.stop(None)


async def large_rewards(database: Database) -> None:
    """More of them than can be on their way."""
    details = '"' + "x" * 60_000 + '"'
    await posted(database, *(reward(f"r-{i}", "1", details=details) for i in range(4)))


@asynccontextmanager
async def blocked_stream(port: int) -> AsyncIterator[None]:
    """A stream of large rewards whose caller has never said that it took anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    message = b"\0" + struct.pack(">I", len(FROM_BEGINNING)) + FROM_BEGINNING
    writer.write(begun_call(WATCH_REWARDS) + frame(0, 1, 1, message))
    await asyncio.wait_for(reader.readexactly(WINDOW_BYTES), 20)
    try:
        yield
    finally:
        writer.transport.abort()


def handlers() -> int:
    """How many handlers of streams run."""
    return sum("WatchRewards" in task.get_name() for task in asyncio.all_tasks())


def test_an_ended_stream_gives_its_place_away_also_when_its_caller_does_not_read(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calls, "REFUSAL_SECONDS_MAX", 1.0)

    async def main() -> None:
        port = free_port()
        await large_rewards(database)
        async with started(database, port, streams_max=1) as created, connected(port) as channel:
            async with blocked_stream(port):
                created.calls.end_streams()
                await until(lambda: created.calls.streams == 0)
                assert handlers() == 1
                # Its place can be had, and nothing waits for it for ever.
                (await Watch(channel).begin()).cut()
                await until(lambda: handlers() == 0)
            assert await value(channel) == "4"

    run(main())
    assert not caplog.records


def test_whoever_goes_away_while_it_is_written_to_or_told_is_no_trouble(
    database: Database, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        port = free_port()
        await large_rewards(database)
        async with started(database, port) as created, connected(port) as channel:
            for is_told in (False, True) * 3:
                async with blocked_stream(port):
                    if is_told:
                        created.calls.end_streams()
                        await until(lambda: created.calls.streams == 0)
                await until(lambda: handlers() == 0)
            assert await value(channel) == "4"

    run(main())
    assert not caplog.records


def test_a_caller_that_vanished_without_a_word_is_noticed(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says that the connection is gone, and nothing more is sent on it."""
    monkeypatch.setattr(listening, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(listening, "KEEPALIVE_ANSWER_SECONDS_MAX", 0.2)

    async def main() -> None:
        port = free_port()
        await large_rewards(database)
        async with started(database, port) as created, blocked_stream(port):
            await until(lambda: created.calls.streams == 1)
            await until(lambda: created.calls.streams == 0)

    run(main())
