"""Health and reflection: open to everybody, and so within bounds."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ledger import probes
from tests.conftest import Database, Run
from tests.ledger.test_calls import started, until
from tests.ledger.test_server import (
    NOT_A_MESSAGE,
    REFLECTION,
    SERVICE,
    TOO_LATE,
    begun_call,
    frame,
    health,
)
from tests.serving import Refusal, connected, free_port, refusal

CHECK, WATCH = (f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))
OVERLOADED = Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", can_be_retried=True)
TAKES_NOTHING = frame(4, 0, 0, struct.pack(">HI", 4, 0))
"""A caller's SETTINGS: no byte of a message may be sent to it."""
Status = health_pb2.HealthCheckResponse


@asynccontextmanager
async def probing(database: Database, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    port = free_port()
    async with started(database, port, **options), connected(port) as channel:
        yield channel


def watch(channel: grpc.aio.Channel, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Watch(request)


async def read(stream: Any) -> Any:
    async with asyncio.timeout(20):
        return await stream.read()


def test_what_is_not_the_message_is_refused_and_so_is_none(database: Database, run: Run) -> None:
    async def main() -> None:
        async with probing(database, message_seconds_max=0.2) as channel:
            for path in (WATCH, REFLECTION):
                for message in (b"\xff", b"\x0a\x01\xff"):
                    call = channel.stream_stream(path)()
                    await call.write(message)
                    assert await refusal(read(call)) == NOT_A_MESSAGE
                call = channel.stream_stream(path)()
                await call.done_writing()
                assert await refusal(read(call)) == NOT_A_MESSAGE
                assert await refusal(read(channel.stream_stream(path)())) == TOO_LATE

    run(main())


def test_reflection_goes_on_until_it_is_asked_what_is_no_question(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with probing(database, message_seconds_max=0.2) as channel:
            call = channel.stream_stream(REFLECTION)()
            question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such")
            for _ in range(3):
                await call.write(question.SerializeToString())
                reply = reflection_pb2.ServerReflectionResponse.FromString(await read(call))
                assert reply.error_response.error_code == 5
                # Longer than the first may take.
                await asyncio.sleep(0.15)
            await call.write(b"\xff")
            assert await refusal(read(call)) == NOT_A_MESSAGE

    run(main())


def test_a_service_that_is_not_here_is_not_found_and_can_be_waited_for(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with probing(database) as channel:
            told = await refusal(health(channel, "another.Service"))
            assert told == Refusal("NOT_FOUND", "SERVICE_NOT_FOUND")
            assert (await read(watch(channel, "another.Service"))).status == Status.SERVICE_UNKNOWN

    run(main())


def test_whoever_watches_is_told_each_change_also_beside_one_who_does_not_read(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        port = free_port()
        async with started(database, port) as created, connected(port) as channel:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened = begun_call(WATCH.encode()) + frame(0, 1, 1, b"\0\0\0\0\0")
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            writer.write(preface + TAKES_NOTHING + opened.removeprefix(preface))
            # Its headers are there, and its first message cannot go.
            await asyncio.wait_for(reader.readuntil(b"application/grpc"), 20)
            watches = [watch(channel), watch(channel, SERVICE)]
            for serves in (None, True, False, True):
                if serves is not None:
                    created.health.set(serves=serves)
                expected = Status.SERVING if serves else Status.NOT_SERVING
                for stream in watches:
                    assert (await read(stream)).status == expected
            created.health.leave()
            created.health.set(serves=True)
            assert await health(channel) == Status.NOT_SERVING
            writer.transport.abort()

    run(main())


def test_a_connection_has_few_such_streams_and_takes_none_from_others(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        port = free_port()
        async with (
            started(database, port),
            connected(port) as stranger,
            connected(port) as channel,
        ):
            held = [watch(stranger) for _ in range(probes.STREAMS_PER_CONNECTION_MAX)]
            for stream in held:
                assert await read(stream)
            assert await refusal(read(watch(stranger))) == OVERLOADED
            assert await refusal(read(stranger.stream_stream(REFLECTION)())) == OVERLOADED
            assert await health(stranger) == Status.NOT_SERVING
            assert (await read(watch(channel))).status == Status.NOT_SERVING
            held[0].cancel()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await read(watch(stranger))
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)

    run(main())


def test_all_connections_together_have_a_bound_too(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "STREAMS_MAX", 3)

    async def main() -> None:
        async with probing(database) as channel:
            for _ in range(3):
                assert await read(watch(channel))
            assert await refusal(read(watch(channel))) == OVERLOADED

    run(main())


def test_checks_whose_message_never_comes_do_not_stay(database: Database, run: Run) -> None:
    def checks() -> int:
        return sum("Health/Check" in task.get_name() for task in asyncio.all_tasks())

    async def main() -> None:
        async with probing(database, message_seconds_max=0.5) as channel:
            held = [channel.stream_unary(CHECK)() for _ in range(300)]
            await until(lambda: checks() > 0)
            assert {await call.code() for call in held} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            await until(lambda: checks() == 0)

    run(main())
