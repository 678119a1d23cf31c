"""Streams of rewards, and what came on them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ledger.reward import Reward
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.conftest import Database
from tests.serving import Refusal, refusal, serving

SECONDS_MAX = 30
NOT_A_PLACE = Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", "token")
AWAY = Refusal("UNAVAILABLE", "BOOKS_UNAVAILABLE", can_be_retried=True)
SLOW = Refusal("ABORTED", "FELL_BEHIND", can_be_retried=True)


class Watch:
    """A stream, and what came on it."""

    def __init__(self, channel: grpc.aio.Channel, *, caller: str = "", **asked: Any) -> None:
        metadata = (("authorization", f"Bearer {caller}"),) if caller else None
        self._stream = LedgerServiceStub(channel).WatchRewards(
            pb.WatchRewardsRequest(**asked), metadata=metadata
        )
        self.rewards: list[pb.Reward] = []
        self.lines: list[str] = []
        """The names of all rewards and the keys of all corrections."""
        self.token = ""

    async def read(self) -> pb.WatchRewardsResponse:
        """The next message; raises what ended the stream."""
        async with asyncio.timeout(SECONDS_MAX):
            message = await self._stream.read()
        assert message is not grpc.aio.EOF, "a stream without an end has ended well"
        self.rewards += message.rewards
        self.lines += lines(message)
        self.token = message.token
        assert self.token
        return message  # type: ignore[no-any-return]

    async def begin(self) -> "Watch":
        """Itself, when the stream has begun."""
        assert not (await self.read()).rewards
        return self

    async def until(self, count: int) -> list[str]:
        """The names of all rewards that came, when they are at least so many."""
        async with asyncio.timeout(SECONDS_MAX):
            while len(self.rewards) < count:
                await self.read()
        return self.names()

    async def until_line(self, count: int) -> list[str]:
        """All lines that came, when they are at least so many."""
        async with asyncio.timeout(SECONDS_MAX):
            while len(self.lines) < count:
                await self.read()
        return self.lines

    def names(self) -> list[str]:
        return [told.reward_id for told in self.rewards]

    async def end(self) -> tuple[Refusal, str]:
        """With what the stream ends, and the token in it."""

        async def read_on() -> None:
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    await self.read()

        caught: list[Exception] = []

        async def kept() -> None:
            try:
                await read_on()
            except grpc.aio.AioRpcError as error:
                caught.append(error)
                raise

        told = await refusal(kept())
        (error,) = caught
        assert isinstance(error, grpc.aio.AioRpcError)
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        info = ErrorInfo()
        assert RpcStatus.FromString(details).details[0].Unpack(info)
        return told, info.metadata["token"]

    def cut(self) -> None:
        """Goes away without a word."""
        self._stream.cancel()


def lines(message: pb.WatchRewardsResponse | pb.ListRewardsResponse) -> list[str]:
    """The names of the rewards and the keys of the corrections, each at its place."""
    found = [told.reward_id for told in message.rewards]
    for correction in reversed(message.corrections):
        found.insert(correction.rewards_before, correction.key)
    return found


async def posted(database: Database, *rewards: Reward) -> None:
    async with database.connected() as connection:
        await post(connection, rewards)


@asynccontextmanager
async def watching_books(database: Database, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(database.url("ledger_reader"), **options) as channel:
        yield channel
