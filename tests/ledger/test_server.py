"""The gRPC process: what it does with calls that are wrong, with trouble, and at its end."""

import asyncio
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ledger.config import ServeSettings
from ledger.database import Role
from ledger.embedded import EmbeddedPostgres
from ledger.server import POOL_SIZE_MAX, serve_until
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.conftest import Database, Run, throw_away_postgres
from tests.rewards import reward
from tests.serving import Refusal, connected, free_port, refusal, serving

SERVICE = "ledger.v1.LedgerService"
GET_BALANCE = f"/{SERVICE}/GetBalance"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
REQUEST = pb.GetBalanceRequest(user_id="user-1", currency="USD")
NOT_A_MESSAGE = Refusal("INVALID_ARGUMENT", "NOT_A_MESSAGE", "")
TOO_LATE = Refusal("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", can_be_retried=True)
AWAY = Refusal("UNAVAILABLE", "BOOKS_UNAVAILABLE", can_be_retried=True)
Health = health_pb2.HealthCheckResponse


async def health(channel: grpc.aio.Channel, service: str = SERVICE) -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def becomes(channel: grpc.aio.Channel, status: Any) -> None:
    """Returns when both names have this health."""
    async with asyncio.timeout(30):
        for service in ("", SERVICE):
            while await health(channel, service) != status:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def serving_books(database: Database, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A server that one reward can be asked from."""
    async with database.connected() as connection:
        await post(connection, [reward()])
    async with serving(database.url("ledger_reader"), **options) as channel:
        yield channel


async def value(channel: grpc.aio.Channel, *, wait_for_ready: bool = False) -> str:
    answer = await LedgerServiceStub(channel).GetBalance(REQUEST, wait_for_ready=wait_for_ready)
    return str(answer.balance.amount.value)


async def status_of(call: Any) -> str:
    """The name of the status that ``call`` is answered with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def read_to_the_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


# Calls that are wrong


def test_an_unknown_method_is_unimplemented(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            for path in (f"/{SERVICE}/TakeAll", "/ledger.v2.LedgerService/GetBalance", "/"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(main())


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"{}",
        b"\x0a\x02u",
        # A string field with bytes that are not UTF-8, and with a lone surrogate.
        b"\x0a\x01\xff\x12\x03USD",
        b"\x0a\x03\xed\xa0\x80\x12\x03USD",
    ],
)
def test_what_is_not_the_message_is_refused(database: Database, run: Run, message: bytes) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            assert await refusal(channel.unary_unary(GET_BALANCE)(message)) == NOT_A_MESSAGE

    run(main())


def test_an_unknown_field_of_a_later_version_is_passed_over(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            message = REQUEST.SerializeToString() + b"\xf2\x07\x05later"
            answer = await channel.unary_unary(GET_BALANCE)(message)
            assert pb.GetBalanceResponse.FromString(answer).balance.amount.value == "400"

    run(main())


METHODS = [
    f"/{SERVICE}/{method.name}"
    for method in pb.DESCRIPTOR.services_by_name["LedgerService"].methods
    # Who does not say who they are is not asked what they want to take back.
    if not method.server_streaming and method.name != "ReverseReward"
] + ["/grpc.health.v1.Health/Check"]


def test_no_method_waits_for_a_message_that_does_not_come_or_reads_one_that_is_none(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database, message_seconds_max=0.2) as channel:
            for path in METHODS:
                assert await refusal(channel.unary_unary(path)(b"\xff")) == NOT_A_MESSAGE, path
                call = channel.stream_unary(path)()
                await call.done_writing()
                assert await refusal(call) == NOT_A_MESSAGE, path
                assert await refusal(channel.stream_unary(path)()) == TOO_LATE, path
            assert await value(channel) == "400"

    assert len(METHODS) == 9
    run(main())


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def begun_call(path: bytes) -> bytes:
    """What an HTTP/2 client sends to begin a gRPC call, up to its message."""
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"test",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    literals = b"".join(
        b"\0" + bytes([len(text)]) + text if not place else bytes([len(text)]) + text
        for header in headers.items()
        for place, text in enumerate(header)
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, literals)


async def exchanged(port: int, sent: bytes, wanted: bytes) -> bool:
    """Whether ``wanted`` comes back before the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(sent)
        while wanted not in received:
            if not (data := await asyncio.wait_for(reader.read(65536), 20)):
                return False
            received += data
        return True
    finally:
        writer.close()
        await writer.wait_closed()


def test_a_call_whose_message_never_completes_ends(database: Database, run: Run) -> None:
    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port, message_seconds_max=0.2):
            begun = frame(0, 0, 1, b"\0" + struct.pack(">I", 100) + b"only these")
            sent = begun_call(GET_BALANCE.encode()) + begun
            assert await exchanged(port, sent, b"grpc-status\x014")

    run(main())


async def break_down(port: int) -> None:
    """Returns when a path that is not text has been heard."""
    end = frame(0, 1, 1, b"\0\0\0\0\0")
    await exchanged(port, begun_call(b"/\xff\xfe") + end, b"grpc-status")


def test_a_path_that_is_not_text_does_not_stop_the_service(
    database: Database, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        port, health_port = free_port(), free_port()
        settings = ServeSettings(health_bind=f"127.0.0.1:{health_port}")
        async with (
            serving_books(database, port=port, settings=settings) as channel,
            connected(health_port) as probing,
        ):
            for broken in (port, health_port):
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                await watch.read()
                await break_down(broken)
                # Ended with the server that broke down; the channel finds the next one.
                with pytest.raises(grpc.aio.AioRpcError):
                    await asyncio.wait_for(read_to_the_end(watch), 20)
                assert await asyncio.wait_for(value(channel, wait_for_ready=True), 20) == "400"
                for each in (channel, probing):
                    await asyncio.wait_for(each.channel_ready(), 20)
                    await becomes(each, Health.SERVING)

    run(main())
    assert caplog.text.count("UnicodeDecodeError at ") == 2


def test_a_path_that_is_not_text_cuts_no_call_and_takes_no_token(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port) as channel:
            await becomes(channel, Health.SERVING)
            stream = LedgerServiceStub(channel).WatchRewards(pb.WatchRewardsRequest())
            assert (await stream.read()).token
            make_slow(database, "rewards", 1.5)
            request = pb.GetRewardRequest(reward_id="reward-1")
            call = asyncio.ensure_future(LedgerServiceStub(channel).GetReward(request))
            await until_asked(database, "rewards")
            await break_down(port)
            assert await refusal(read_to_the_end(stream)) == AWAY
            # Others are answered by the next server, before the call of the one before ends.
            assert await asyncio.wait_for(value(channel, wait_for_ready=True), 20) == "400"
            assert not call.done()
            assert (await call).reward.reward_id == "reward-1"

    run(main())


def test_a_message_over_the_limit_is_refused_and_one_below_is_read(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            service = LedgerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.GetBalance(pb.GetBalanceRequest(user_id="u" * 300_000))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            call = service.GetBalance(pb.GetBalanceRequest(user_id="u" * 250_000))
            assert await refusal(call) == Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", "user_id")

    run(main())


def test_more_calls_than_the_limit_are_refused_at_once_and_health_is_not(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database, calls_max=3, message_seconds_max=60) as channel:
            held = [channel.stream_unary(GET_BALANCE)() for _ in range(3)]
            for call in held:
                await call.wait_for_connection()
            # A call that is open for the caller may still be on its way to its handler.
            overloaded = Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", can_be_retried=True)
            async with asyncio.timeout(20):
                while True:
                    try:
                        await value(channel)
                    except grpc.aio.AioRpcError:
                        break
            assert await refusal(LedgerServiceStub(channel).GetBalance(REQUEST)) == overloaded
            assert await health(channel)
            for call in held:
                call.cancel()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await value(channel) == "400"
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)

    run(main())


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def test_more_connections_than_the_limit_are_closed_and_the_others_live_on(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port, connections_max=5) as channel:
            writers = []
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(PREFACE)
                if not await asyncio.wait_for(reader.read(1), 20):
                    break
            # The channel's own is one of the five.
            assert len(writers) == 5
            assert await value(channel) == "400"
            for writer in writers:
                writer.close()
            async with connected(port) as another:
                assert await value(another) == "400"

    run(main())


def test_a_connection_is_told_how_many_calls_it_may_have_open(database: Database, run: Run) -> None:
    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port):
            max_concurrent_streams = struct.pack(">HI", 3, 1000)
            assert await exchanged(port, PREFACE, max_concurrent_streams)

    run(main())


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0", b"GET / HTTP/1.1\r\n"])
def test_a_connection_that_never_begins_is_closed(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("ledger.listening.HANDSHAKE_SECONDS_MAX", 1)

    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port) as channel:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await asyncio.wait_for(reader.read(-1), 20)
            writer.close()
            assert await value(channel) == "400"

    run(main())


# Trouble with the books


def test_while_postgres_is_down_callers_are_told_and_afterwards_it_goes_on_by_itself(
    run: Run,
) -> None:
    async def main(postgres: EmbeddedPostgres) -> None:
        async with serving(postgres.url("ledger_reader")) as channel:
            service = LedgerServiceStub(channel)
            await becomes(channel, Health.SERVING)
            postgres.stop()
            requests = (
                service.GetBalance(REQUEST),
                service.GetBalance(
                    pb.GetBalanceRequest(user_id="u", currency="USD", as_of={"seconds": 1})
                ),
                service.ListBalances(pb.ListBalancesRequest(user_id="u")),
                service.BatchGetBalances(
                    pb.BatchGetBalancesRequest(keys=[{"user_id": "u", "currency": "USD"}])
                ),
                service.ListRewards(pb.ListRewardsRequest(user_id="u")),
                service.GetReward(pb.GetRewardRequest(reward_id="r")),
                service.ListCurrencyTotals(pb.ListCurrencyTotalsRequest()),
            )
            assert await asyncio.gather(*map(refusal, requests)) == [AWAY] * len(requests)
            await becomes(channel, Health.NOT_SERVING)
            # Under load that does not stop, too: nobody waits for others to be refused first.
            several = [service.GetBalance(REQUEST) for _ in range(5)]
            await asyncio.sleep(0.3)
            several += [service.GetBalance(REQUEST) for _ in range(5)]
            assert await asyncio.gather(*map(refusal, several)) == [AWAY] * len(several)
            postgres.start()
            await becomes(channel, Health.SERVING)
            assert (await service.GetBalance(REQUEST)).balance.amount.value == "0"

    with throw_away_postgres() as postgres:
        run(main(postgres))


def test_a_connection_that_was_closed_in_the_pool_is_not_noticed(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            for _ in range(3):
                database.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE datname = '{database.name}' AND usename = '{Role.READER}'",
                    "postgres",
                )
                found = await LedgerServiceStub(channel).GetReward(
                    pb.GetRewardRequest(reward_id="reward-1")
                )
                assert found.reward.reward_id == "reward-1"

    run(main())


def test_health_follows_what_can_be_read(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            database.rows("ALTER TABLE balances RENAME TO hidden")
            await becomes(channel, Health.NOT_SERVING)
            database.rows("ALTER TABLE hidden RENAME TO balances")
            await becomes(channel, Health.SERVING)
            # A fault that asking again does not mend: every question divides by zero.
            database.rows(
                "ALTER TABLE balances RENAME TO hidden;"
                " CREATE VIEW balances AS SELECT * FROM hidden"
                " WHERE 1 / (SELECT count(*) FROM hidden WHERE version < 0) = 1;"
                " GRANT SELECT ON balances TO ledger_reader"
            )
            await becomes(channel, Health.NOT_SERVING)
            database.rows("DROP VIEW balances; ALTER TABLE hidden RENAME TO balances")
            await becomes(channel, Health.SERVING)
            assert await value(channel) == "400"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(channel, "another.Service")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(main())


# A view takes the table's place, so that its reader has to wait; `waited` counts those that did.
SLOW = """
ALTER TABLE {table} RENAME TO quick_{table};
CREATE SEQUENCE waited;
CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM pg_sleep({seconds});
    PERFORM nextval('waited');
    RETURN true;
END
$$;
CREATE VIEW {table} AS
    WITH once AS MATERIALIZED (SELECT wait() AS is_over)
    SELECT quick_{table}.* FROM quick_{table}, once WHERE once.is_over;
GRANT SELECT ON {table} TO ledger_reader
"""


def make_slow(database: Database, table: str, seconds: float) -> None:
    database.rows(SLOW.format(table=table, seconds=seconds))


def waited(database: Database) -> int:
    ((count, is_called),) = database.rows("SELECT last_value, is_called FROM waited")
    return int(count) if is_called else 0


async def until_asked(database: Database, table: str, *, is_asked: bool = True) -> None:
    """Returns when Postgres works for a reader of ``table``, or does not any more."""
    query = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}'"
        f" AND application_name = '{Role.READER}' AND state = 'active'"
        f" AND query LIKE '%{table}%'"
    )
    async with asyncio.timeout(20):
        while (database.rows(query, "postgres")[0][0] > 0) != is_asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_deadline_that_passes_cancels_the_callers_own_query(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            make_slow(database, "rewards", 1)
            request = pb.GetRewardRequest(reward_id="reward-1")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await LedgerServiceStub(channel).GetReward(request, timeout=0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until_asked(database, "rewards", is_asked=False)
            assert waited(database) == 0
            # The connection can be used again.
            answer = await LedgerServiceStub(channel).GetReward(request)
            assert answer.reward.reward_id == "reward-1"
            assert waited(database) == 1

    run(main())


def test_a_deadline_that_passes_does_not_take_the_answer_from_those_in_the_same_batch(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            make_slow(database, "balances", 0.5)
            first = asyncio.create_task(value(channel))
            await until_asked(database, "balances")
            service = LedgerServiceStub(channel)
            impatient = service.GetBalance(REQUEST, timeout=0.7)
            patient = service.GetBalance(REQUEST)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await impatient
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await first == (await patient).balance.amount.value == "400"

    run(main())


def test_long_questions_keep_neither_balances_nor_health_waiting(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            # The statement looks twice, so it takes longer than others wait for their turn.
            make_slow(database, "rewards", 0.7)
            request = pb.ListRewardsRequest(user_id="user-1")
            pages = [
                asyncio.ensure_future(status_of(LedgerServiceStub(channel).ListRewards(request)))
                for _ in range(6)
            ]
            await until_asked(database, "rewards")
            while not all(page.done() for page in pages):
                async with asyncio.timeout(1):
                    assert await value(channel) == "400"
                    assert await health(channel) == Health.SERVING
                await asyncio.sleep(0.05)
            told = [await page for page in pages]
            assert told.count("RESOURCE_EXHAUSTED") == 4, told

    run(main())


def test_health_is_looked_up_on_a_connection_of_its_own(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.server.HEALTH_INTERVAL_SECONDS", 0.1)

    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == Health.SERVING
            changed = asyncio.ensure_future(watch.read())
            make_slow(database, "rewards", 1.5)
            request = pb.GetRewardRequest(reward_id="reward-1")
            # As many as the service has connections, for longer than one waits for one of them.
            calls = [LedgerServiceStub(channel).GetReward(request) for _ in range(POOL_SIZE_MAX)]
            await asyncio.gather(*map(status_of, calls))
            assert not changed.done()
            changed.cancel()

    run(main())


def test_concurrent_calls_share_round_trips(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            make_slow(database, "balances", 0.3)
            first = asyncio.create_task(value(channel))
            await until_asked(database, "balances")
            # All of them come while the first is asked, or while the next is.
            answers = await asyncio.gather(*(value(channel) for _ in range(100)))
            assert [await first, *answers] == ["400"] * 101
            assert waited(database) < 10

    run(main())


def test_a_statement_that_takes_too_long_is_not_tried_again(database: Database, run: Run) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            await becomes(channel, Health.SERVING)
            database.rows(
                "ALTER TABLE rewards RENAME TO hidden;"
                " CREATE SEQUENCE tries; GRANT USAGE ON SEQUENCE tries TO ledger_reader;"
                " CREATE FUNCTION refuse() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE EXCEPTION '%', nextval('tries') USING ERRCODE = 'lock_not_available';"
                " END $$;"
                " CREATE VIEW rewards AS SELECT * FROM hidden WHERE refuse() = 1;"
                " GRANT SELECT ON rewards TO ledger_reader"
            )
            call = LedgerServiceStub(channel).GetReward(pb.GetRewardRequest(reward_id="reward-1"))
            assert await refusal(call) == AWAY
            assert database.rows("SELECT last_value, is_called FROM tries") == [(1, True)]

    run(main())


def test_a_fault_of_ours_is_told_without_its_text_and_logged_with_its_place(
    database: Database, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            # Books of another shape than the program thinks: a version that is no number.
            database.rows(
                "ALTER TABLE balances DROP CONSTRAINT balance_version_is_positive,"
                " ALTER COLUMN version TYPE text USING 'secret'"
            )
            call = LedgerServiceStub(channel).GetBalance(REQUEST)
            assert await refusal(call) == Refusal("INTERNAL", "INTERNAL")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await LedgerServiceStub(channel).GetBalance(REQUEST)
            assert caught.value.details() == "a fault of ours"
            assert "secret" not in str(caught.value.trailing_metadata())

    run(main())
    assert "TypeError at " in caplog.text
    assert "_balance" in caplog.text
    assert "secret" not in caplog.text


# Health, reflection and the port


def test_health_is_not_serving_before_the_books_were_read(run: Run) -> None:
    async def main() -> None:
        # Nobody ever answers there: neither yes nor no.
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
            async with serving(url) as channel:
                for service in ("", SERVICE):
                    assert await health(channel, service) == Health.NOT_SERVING

    run(main())


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_the_services_and_their_messages(
    database: Database, run: Run, version: str
) -> None:
    async def main() -> None:
        async with serving_books(database) as channel:
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = (await call.read()).list_services_response.service
            assert {service.name for service in listed} == {
                SERVICE,
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            }
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
            files = (await call.read()).file_descriptor_response.file_descriptor_proto
            assert "ledger/v1/ledger.proto" in {
                FileDescriptorProto.FromString(file).name for file in files
            }
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

    run(main())


def test_a_taken_port_is_an_error_that_names_it(database: Database, run: Run) -> None:
    async def main() -> None:
        port = free_port()
        async with serving_books(database, port=port) as channel:
            second = serve_until(
                asyncio.Event(), database.url("ledger_reader"), f"127.0.0.1:{port}"
            )
            with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be bound"):
                await asyncio.wait_for(second, 20)
            assert await value(channel) == "400"

    run(main())


def test_servers_that_share_a_port_can_both_have_it(database: Database, run: Run) -> None:
    async def main() -> None:
        port = free_port()
        async with (
            serving_books(database, port=port, shares_port=True),
            serving(database.url("ledger_reader"), port=port, shares_port=True) as channel,
        ):
            assert await value(channel) == "400"

    run(main())


# The end


@contextmanager
def process(database: Database, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server as a process of its own."""
    source = f"from ledger.server import run; run({database.url('ledger_reader')!r}, {{!r}})"
    started = subprocess.Popen([sys.executable, "-c", source.format(f"127.0.0.1:{port}")])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_call_finish_and_ends_the_process_in_order(
    database: Database, run: Run, number: signal.Signals
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward()])
        make_slow(database, "rewards", 1)
        port = free_port()
        with process(database, port) as server:
            async with connected(port) as channel:
                await becomes(channel, Health.SERVING)
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                assert (await watch.read()).status == Health.SERVING
                request = pb.GetRewardRequest(reward_id="reward-1")
                call = asyncio.ensure_future(LedgerServiceStub(channel).GetReward(request))
                await until_asked(database, "rewards")
                server.send_signal(number)
                assert (await watch.read()).status == Health.NOT_SERVING
                assert (await call).reward.reward_id == "reward-1"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watch.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await value(channel)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await asyncio.to_thread(server.wait, 20) == 0

    run(main())


def test_a_signal_ends_streams_at_once_and_the_running_call_finishes(
    database: Database, run: Run
) -> None:
    async def main() -> None:
        async with database.connected() as connection:
            await post(connection, [reward()])
        port = free_port()
        with process(database, port) as server:
            async with connected(port) as channel:
                await becomes(channel, Health.SERVING)
                service = LedgerServiceStub(channel)
                stream = service.WatchRewards(pb.WatchRewardsRequest())
                assert (await stream.read()).token
                make_slow(database, "rewards", 1.4)
                request = pb.GetRewardRequest(reward_id="reward-1")
                call = asyncio.ensure_future(service.GetReward(request))
                # Whoever watches reads the rewards too, in other words.
                await until_asked(database, "WHERE rewards.reward_id =")
                server.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(refusal(read_to_the_end(stream)), 20) == AWAY
                assert not call.done()
                assert (await call).reward.reward_id == "reward-1"
            assert await asyncio.to_thread(server.wait, 20) == 0

    run(main())


def test_a_call_whose_message_is_still_to_come_is_let_finish(database: Database, run: Run) -> None:
    async def main() -> None:
        port = free_port()
        stop = asyncio.Event()
        server = asyncio.create_task(
            serve_until(stop, database.url("ledger_reader"), f"127.0.0.1:{port}")
        )
        async with connected(port) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            held = channel.stream_unary(GET_BALANCE)()
            await held.wait_for_connection()
            await becomes(channel, Health.SERVING)
            stop.set()
            while (await watch.read()).status == Health.SERVING:
                pass
            # Longer than it takes to end a server in which nothing runs.
            await asyncio.wait({server}, timeout=0.5)
            await held.write(REQUEST.SerializeToString())
            await held.done_writing()
            answer = pb.GetBalanceResponse.FromString(await held)
            assert answer.balance.amount.value == "0"
            await server

    run(main())


def test_open_streams_do_not_hold_up_the_end(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they waited for, the end would come only after the longest drain: ten minutes here."""
    monkeypatch.setattr("ledger.server.DRAIN_SECONDS_MAX", 600)

    async def main() -> None:
        port = free_port()
        stop = asyncio.Event()
        server = asyncio.create_task(
            serve_until(stop, database.url("ledger_reader"), f"127.0.0.1:{port}")
        )
        async with connected(port) as channel, asyncio.timeout(60):
            await becomes(channel, Health.SERVING)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == Health.SERVING
            asked = channel.stream_stream(REFLECTION)()
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            await asked.write(question.SerializeToString())
            assert await asked.read()
            stop.set()
            await server
            for stream in (watch, asked):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await read_to_the_end(stream)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(main())
