"""The real gRPC server on a real socket, and what callers see of it."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ledger.server import serve_until

# A channel that was refused tries again at once, so that no test waits for it.
CHANNEL = tuple((f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max"))


PORTS = range(10_000, 32_768)
"""Below those that systems give to connections: between the look and the use, one could get it."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@asynccontextmanager
async def connected(
    port: int, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of its own to whoever listens, or soon will; over TLS with ``credentials``."""
    options = (*CHANNEL, ("grpc.use_local_subchannel_pool", 1))
    address = f"127.0.0.1:{port}"
    if credentials is None:
        opened = grpc.aio.insecure_channel(address, options=options)
    else:
        opened = grpc.aio.secure_channel(address, credentials, options=options)
    async with opened as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        yield channel


@asynccontextmanager
async def serving(
    url: str,
    *,
    port: int | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    **options: Any,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of this test's own, which is drained afterwards."""
    port = port or free_port()
    stop = asyncio.Event()
    server = asyncio.create_task(serve_until(stop, url, f"127.0.0.1:{port}", **options))
    try:
        async with connected(port, credentials) as channel:
            yield channel
            stop.set()
            await server
    finally:
        stop.set()
        await server


class Refusal(NamedTuple):
    """What a caller is told instead of an answer."""

    status: str
    reason: str
    field: str | None = None
    can_be_retried: bool = False


async def refusal(call: Awaitable[Any]) -> Refusal:
    """What ``call`` is refused with; fails unless it says so as the proto promises."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    status = RpcStatus.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    details: dict[type[Any], Any] = {}
    for packed in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                details[kind] = kind.FromString(packed.value)
    assert details[ErrorInfo].domain == "reward-ledger"
    field = None
    if BadRequest in details:
        (violation,) = details[BadRequest].field_violations
        assert violation.description
        field = violation.field
    if RetryInfo in details:
        assert details[RetryInfo].retry_delay.seconds > 0
    return Refusal(error.code().name, details[ErrorInfo].reason, field, RetryInfo in details)
