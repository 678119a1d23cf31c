"""The gRPC process: bind, serve, drain, stop."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio
import uvloop
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from ledger.database import Pool, Role
from ledger.errors import DeadlineExceeded, Unavailable, where
from ledger.reading import BalanceKey, Reader
from ledger.service import SERVICE, LedgerService, problem_of
from ledger.v1 import ledger_pb2 as pb

MESSAGE_SIZE_MAX_BYTES = 256 * 1024
MESSAGE_SECONDS_MAX = 5.0
"""How long a call's message may take to arrive."""
CALLS_MAX = 1000
CONNECTION_AGE_MAX_SECONDS = 600
GRACE_SECONDS = 5.0
POOL_SIZE_MAX = 4
HEALTH_INTERVAL_SECONDS = 1.0

log = logging.getLogger("ledger")

Method = Callable[[Message], Awaitable[Message]]
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Handlers(grpc.GenericRpcHandler):
    """Every method of the service behind one handler: grpc.aio pays for each it waits on."""

    def __init__(self, service: LedgerService) -> None:
        methods = pb.DESCRIPTOR.services_by_name["LedgerService"].methods
        self._handlers = {
            f"/{SERVICE}/{method.name}": _handler(
                getattr(service, _snake_case(method.name)),
                getattr(pb, method.input_type.name),
            )
            for method in methods
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The handler of a call's method; ``None`` becomes UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _handler(method: Method, request_type: type[Message]) -> Handler:
    """``method`` as a handler that takes its one message from a stream, within a time limit.

    A unary handler of grpc.aio waits for ever for a message that never comes, and such calls
    would fill the server. On the wire there is no difference.
    """

    async def answer(_requests: object, context: Context) -> bytes:
        try:
            try:
                data = await asyncio.wait_for(context.read(), MESSAGE_SECONDS_MAX)
            except TimeoutError:
                raise DeadlineExceeded from None
            # EOF, when the caller closed its side without a word, is not bytes.
            request = request_type()
            request.ParseFromString(data if isinstance(data, bytes) else b"\xff")
            return (await method(request)).SerializeToString()
        except Exception as error:
            problem, status = problem_of(error)
            if problem.status is grpc.StatusCode.INTERNAL:
                log.error("%s", where(error))
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(problem.status, problem.text, details)
            raise AssertionError from None

    return grpc.stream_unary_rpc_method_handler(answer)


async def serve(url: str, bind: str, *, shares_port: bool = False) -> None:
    """Serve on ``bind`` from the database of ``url`` until SIGTERM or SIGINT, then drain.

    ``shares_port`` lets other processes serve on the same port. Raises ``OSError`` when the
    address cannot be had.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Pool(url, Role.READER, size_max=POOL_SIZE_MAX) as pool:
        reader = Reader(pool)
        server, healths = create_server(LedgerService(reader), shares_port=shares_port)
        try:
            server.add_insecure_port(bind)
        except RuntimeError:
            raise OSError(f"{bind} cannot be bound: is something else listening there?") from None
        await server.start()
        log.info("serving on %s", bind)
        watch = asyncio.create_task(_follow_database(reader, healths))
        await stop.wait()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await healths.enter_graceful_shutdown()
        await server.stop(GRACE_SECONDS)


def create_server(
    service: LedgerService, *, shares_port: bool = False
) -> tuple[grpc.aio.Server, health.HealthServicer]:
    """A server of ``service`` with health and reflection, not yet bound or started."""
    server = grpc.aio.server(
        options=(
            # Else a second server on the same port starts without a word.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX_BYTES),
            ("grpc.max_connection_age_ms", CONNECTION_AGE_MAX_SECONDS * 1000),
            ("grpc.max_connection_age_grace_ms", 10_000),
        ),
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    server.add_generic_rpc_handlers((Handlers(service),))
    healths = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return server, healths


async def _follow_database(reader: Reader, healths: health.HealthServicer) -> None:
    """Say NOT_SERVING while the books cannot be read, and SERVING when they can."""
    while True:
        try:
            await reader.balance(BalanceKey("health", "XXX"))
            status = health_pb2.HealthCheckResponse.SERVING
        except Unavailable:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await healths.set(name, status)
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)


def run(url: str, bind: str, *, shares_port: bool = False) -> None:
    """``serve`` on uvloop, for a process of its own."""
    uvloop.run(serve(url, bind, shares_port=shares_port))
