"""What both clients raise, and what they ask again before they do."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import grpc
import grpc.aio
import psycopg
import pytest
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ledger import errors, problems
from ledger.client import (
    AsyncLedgerClient,
    BalanceTooLow,
    BooksUnavailable,
    ClientError,
    CorrectionsOff,
    DeadlineExceeded,
    FellBehind,
    InvalidArgument,
    KeyConflict,
    LedgerClient,
    NothingToReverse,
    Overloaded,
    PermissionDenied,
    Refused,
    RewardNotFound,
    ServiceFault,
    TooMuchToReverse,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from ledger.v1 import ledger_pb2 as pb
from tests.conftest import Database, Run
from tests.ledger.test_client import KINDS, asking, client, posted
from tests.rewards import reward
from tests.serving import free_port, serving

Status = grpc.StatusCode


class Refusing(grpc.GenericRpcHandler):
    """Refuses every call with what is next in ``refusals``; when they are used up, answers."""

    def __init__(self, refusals: Sequence[tuple[Status, bytes]]) -> None:
        self.refusals = list(refusals)
        self.calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, _request: bytes, context: Any) -> bytes:
        self.calls += 1
        if self.refusals:
            status, details = self.refusals.pop(0)
            trailing = (("grpc-status-details-bin", details),) if details else ()
            await context.abort(status, "constant text", trailing)
        return pb.GetBalanceResponse(
            balance=pb.Balance(user_id="user-1", amount=pb.Amount(currency="USD", value="7"))
        ).SerializeToString()


@asynccontextmanager
async def refusing(*refusals: tuple[Status, bytes]) -> AsyncIterator[tuple[Refusing, str]]:
    """Such a service on a real socket, and its address."""
    server = grpc.aio.server()
    handler = Refusing(refusals)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def locked(database: Database) -> AsyncIterator[None]:
    """Nobody can read balances meanwhile."""
    async with await psycopg.AsyncConnection.connect(database.url()) as connection:
        await connection.execute("LOCK TABLE balances IN ACCESS EXCLUSIVE MODE")
        yield
        await connection.rollback()


async def caught(ask: Any, *question: Any, **named: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        await ask(*(question or ("get_balance", "user-1", "USD")), **named)
    return error.value


# What the real service says


@KINDS
def test_a_malformed_question_says_which_field_is_wrong(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        async with asking(kind, database) as ask:
            for question, field in (
                (("get_balance", "user-1", "U SD"), "currency"),
                (("get_balance", "", "USD"), "user_id"),
                (("list_balances", "\0"), "user_id"),
                (("batch_get_balances", [("user-1", "USD"), ("user-1", "")]), "keys[1].currency"),
                (("batch_get_balances", []), "keys"),
                (("list_rewards", ""), "user_id"),
                (("get_reward", "r" * 201), "reward_id"),
            ):
                error = await caught(ask, *question)
                assert type(error) is InvalidArgument
                assert isinstance(error, Refused)
                assert error.field == field
                assert error.problem
                assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "INVALID_ARGUMENT")
                assert f": {field} {error.problem} (request {error.request_id})" in str(error)

    run(main())


@KINDS
def test_a_reward_that_the_books_do_not_have_is_not_found(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        async with asking(kind, database) as ask:
            error = await caught(ask, "get_reward", "unknown")
        assert type(error) is RewardNotFound
        assert error.request_id
        assert str(error) == (
            f"REWARD_NOT_FOUND: no reward has this reward_id (request {error.request_id})"
        )

    run(main())


@KINDS
def test_a_service_without_its_books_is_told_from_one_that_is_not_there(
    run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        port = free_port()
        nowhere = "postgresql://ledger_reader@127.0.0.1:1/nowhere"
        async with client(kind, f"127.0.0.1:{port}") as ask:
            error = await caught(ask)
            assert type(error) is Unreachable
            assert error.reason == ""
            assert isinstance(error, Unavailable)
            async with serving(nowhere, port=port):
                error = await caught(ask, timeout_seconds=20)
            assert type(error) is BooksUnavailable
            assert isinstance(error, Unavailable)
            assert error.retry_seconds == problems.RETRY_SECONDS

    run(main())


@KINDS
def test_a_service_with_too_much_to_do_is_overloaded(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        port = free_port()
        async with (
            serving(database.url("ledger_reader"), port=port, calls_max=0),
            client(kind, f"127.0.0.1:{port}") as ask,
        ):
            error = await caught(ask)
        assert type(error) is Overloaded
        assert isinstance(error, Unavailable)

    run(main())


@KINDS
def test_a_question_takes_no_longer_than_it_is_given(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward())
        async with asking(kind, database, timeout_seconds=0.3) as ask:
            async with locked(database):
                for given, seconds in (({}, 0.3), ({"timeout_seconds": 0.6}, 0.6)):
                    began = time.monotonic()
                    error = await caught(ask, "list_balances", "user-1", **given)
                    assert seconds - 0.01 <= time.monotonic() - began < seconds + 1
                    assert type(error) is DeadlineExceeded
                    assert isinstance(error, Unavailable)
            found = await ask("list_balances", "user-1", timeout_seconds=20)
            assert found[0].amount == 400

    run(main())


# What a refusal means


REFUSALS: list[tuple[Exception, type[ClientError]]] = [
    (errors.InvalidArgument("user_id", "is empty"), InvalidArgument),
    (DecodeError(), InvalidArgument),
    (errors.Unauthenticated(), Unauthenticated),
    (errors.PermissionDenied("history"), PermissionDenied),
    (errors.RewardNotFound(), RewardNotFound),
    (errors.NothingToReverse(), NothingToReverse),
    (errors.TooMuchToReverse("12.50"), TooMuchToReverse),
    (errors.BalanceTooLow("-3"), BalanceTooLow),
    (errors.IdempotencyConflict(), KeyConflict),
    (errors.CorrectionsOff(), CorrectionsOff),
    (errors.Overloaded(), Overloaded),
    (errors.FellBehind(), FellBehind),
    (errors.DeadlineExceeded(), DeadlineExceeded),
    (errors.DatabaseUnavailable(), BooksUnavailable),
    (KeyError("secret"), ServiceFault),
]


def test_every_problem_of_the_service_has_its_own_error() -> None:
    told = {problems.problem_of(error)[0].reason for error, _ in REFUSALS}
    assert told == {problem.reason for problem in problems.PROBLEMS.values()}


@KINDS
def test_every_problem_is_raised_as_its_error_and_can_be_sent_to_another_process(
    run: Run, kind: type[Any]
) -> None:
    async def check(raised: Exception, expected: type[ClientError]) -> None:
        problem, status = problems.problem_of(raised)
        refusal = (problem.status, status.SerializeToString())
        async with refusing(*[refusal] * 5) as (_, address), client(kind, address) as ask:
            error = await caught(ask)
        assert type(error) is expected
        assert (error.status, error.reason) == (problem.status, problem.reason)
        assert isinstance(error, Unavailable) is isinstance(raised, errors.Unavailable)
        if isinstance(error, Unavailable):
            assert error.retry_seconds == problems.RETRY_SECONDS
        if isinstance(error, PermissionDenied):
            assert error.scope == "history"
            assert "history" in str(error)
        if isinstance(error, TooMuchToReverse):
            assert (error.left, "12.50" in str(error)) == (Decimal("12.50"), True)
        if isinstance(error, BalanceTooLow):
            assert (error.balance, "-3" in str(error)) == (Decimal(-3), True)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is expected
        assert (str(again), vars(again)) == (str(error), vars(error))

    async def main() -> None:
        await asyncio.gather(*(check(*refusal) for refusal in REFUSALS))

    run(main())


def details(reason: str, domain: str) -> bytes:
    status = RpcStatus()
    status.details.add().Pack(ErrorInfo(reason=reason, domain=domain))
    return status.SerializeToString()


def unreadable(kind: str) -> bytes:
    status = RpcStatus()
    status.details.add(type_url=kind, value=b"\xff\xff")
    return status.SerializeToString()


ALONE: list[tuple[Status, bytes, type[ClientError]]] = [
    (Status.UNAUTHENTICATED, b"", Unauthenticated),
    (Status.PERMISSION_DENIED, b"", PermissionDenied),
    (Status.INVALID_ARGUMENT, b"", InvalidArgument),
    (Status.INTERNAL, b"", ServiceFault),
    (Status.UNKNOWN, b"", ServiceFault),
    (Status.UNAVAILABLE, b"", Unreachable),
    (Status.DEADLINE_EXCEEDED, b"", DeadlineExceeded),
    (Status.ABORTED, b"", Unavailable),
    (Status.CANCELLED, b"", Unavailable),
    (Status.UNIMPLEMENTED, b"", Refused),
    # A message that is too large stays too large.
    (Status.RESOURCE_EXHAUSTED, b"", Refused),
    (Status.NOT_FOUND, b"", Refused),
    (Status.NOT_FOUND, b"\xff\xff", Refused),
    (Status.NOT_FOUND, unreadable("type.googleapis.com/google.rpc.ErrorInfo"), Refused),
    # A proxy's reasons are not the service's.
    (Status.NOT_FOUND, details("REWARD_NOT_FOUND", "proxy.example"), Refused),
    (Status.FAILED_PRECONDITION, details("OF_A_LATER_VERSION", "reward-ledger"), Refused),
    (Status.UNAUTHENTICATED, details("OF_A_LATER_VERSION", "reward-ledger"), Unauthenticated),
]


@KINDS
def test_a_status_without_a_known_reason_speaks_for_itself(run: Run, kind: type[Any]) -> None:
    async def check(status: Status, told: bytes, expected: type[ClientError]) -> None:
        async with refusing(*[(status, told)] * 5) as (_, address), client(kind, address) as ask:
            error = await caught(ask)
        assert type(error) is expected, status
        assert error.status is status
        assert error.reason in {"", "OF_A_LATER_VERSION"}
        assert str(error) == f"{error.reason or status.name}: constant text"

    async def main() -> None:
        await asyncio.gather(*(check(*row) for row in ALONE))

    run(main())


# What is asked again


@KINDS
def test_what_may_be_better_in_a_moment_is_asked_again(run: Run, kind: type[Any]) -> None:
    async def check(status: Status, times: int, calls: int) -> None:
        async with refusing(*[(status, b"")] * times) as (server, address):
            async with client(kind, address) as ask:
                if times < calls:
                    assert (await ask("get_balance", "user-1", "USD")).amount == 7
                else:
                    assert (await caught(ask)).status is status
            assert server.calls == calls

    async def main() -> None:
        both = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED)
        await asyncio.gather(
            *(check(status, times, 5) for status in both for times in (4, 6)),
            # What will be no better is not asked again.
            *(check(status, 1, 1) for status in set(Status) - {Status.OK, *both}),
        )

    run(main())


def test_asking_again_ends_with_the_time_that_was_given(run: Run) -> None:
    async def main() -> None:
        refusals = [(Status.UNAVAILABLE, b"")] * 9
        async with (
            refusing(*refusals) as (_, address),
            AsyncLedgerClient(address, timeout_seconds=0.2) as ledger,
        ):
            began = time.monotonic()
            await caught(ledger.get_balance, "user-1", "USD")
            assert time.monotonic() - began < 1

    run(main())


def test_a_service_in_trouble_is_not_asked_five_times_as_much(run: Run) -> None:
    async def main() -> None:
        refusals = [(Status.RESOURCE_EXHAUSTED, b"")] * 999
        async with (
            refusing(*refusals) as (server, address),
            AsyncLedgerClient(address, timeout_seconds=20) as ledger,
        ):
            questions = (caught(ledger.get_balance, "user-1", "USD") for _ in range(100))
            await asyncio.gather(*questions)
        # Without a bound it would be 500.
        assert server.calls < 200

    run(main())


@KINDS
def test_a_question_outlives_a_restart_of_the_service(
    database: Database, run: Run, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward())
        port = free_port()
        async with client(kind, f"127.0.0.1:{port}") as ask:
            async with serving(database.url("ledger_reader"), port=port):
                assert (await ask("get_balance", "user-1", "USD")).amount == 400
            waiting = asyncio.ensure_future(ask("get_balance", "user-1", "USD"))
            await asyncio.sleep(0.2)
            async with serving(database.url("ledger_reader"), port=port):
                assert (await waiting).amount == 400

    run(main())


# How it ends


def test_whoever_stops_waiting_cancels_the_question(database: Database, run: Run) -> None:
    async def main() -> None:
        async with asking(AsyncLedgerClient, database) as ask, locked(database):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask("list_balances", "user-1"), 0.2)

    run(main())


@pytest.mark.parametrize("is_opened", [False, True])
def test_a_closed_client_asks_nothing(run: Run, is_opened: bool) -> None:
    async def main() -> None:
        async with refusing() as (server, address):
            async with AsyncLedgerClient(address) as ledger:
                if is_opened:
                    await ledger.get_balance("user-1", "USD")
            with pytest.raises(grpc.aio.UsageError):
                await ledger.get_balance("user-1", "USD")
            blocking = LedgerClient(address)
            if is_opened:
                await asyncio.to_thread(blocking.get_balance, "user-1", "USD")
            blocking.close()
            with pytest.raises(ValueError, match="closed"):
                blocking.get_balance("user-1", "USD")
            blocking.close()
            assert server.calls == (2 if is_opened else 0)

    run(main())
