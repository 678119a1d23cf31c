"""The ledger's own gRPC server with one more method, which asks nothing and answers nothing.

Its calls are counted, and each writes its line to standard output, as it is run by default.
"""

import asyncio
import secrets
import signal
import sys

import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ledger.callers import Scope
from ledger.counting import PUBLISH_EVERY_SECONDS
from ledger.database import Pool, Role
from ledger.lines import Lines
from ledger.listening import Server, create_server
from ledger.metrics import Load, Metrics
from ledger.observing import METHODS, STANDARD_OUTPUT, STATUSES, Observer
from ledger.reading import Reader
from ledger.server import POOL_SIZE_MAX
from ledger.service import LedgerService


async def main(url: str, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    metrics = Metrics([*METHODS, "Call"], STATUSES)
    lines = Lines(STANDARD_OUTPUT, metrics.dropped_line)
    async with Pool(url, Role.READER, size_max=POOL_SIZE_MAX) as pool:
        server = create_server(
            LedgerService(Reader(pool, metrics.batch)),
            observer=Observer(metrics, lines, secrets.token_bytes(32)),
        )
        server.calls.add("/bench.Empty/Call", _nothing, Empty, Scope.BALANCES)
        server.grpc.add_insecure_port(f"127.0.0.1:{port}")
        await server.grpc.start()
        publishing = asyncio.create_task(_keep_publishing(metrics, server, pool))
        await stop.wait()
        publishing.cancel()
        await server.grpc.stop(1)
    lines.close()


async def _nothing(request: Message) -> Message:
    return request


async def _keep_publishing(metrics: Metrics, server: Server, pool: Pool) -> None:
    while True:
        calls = server.calls
        metrics.publish(Load(calls.running, calls.streams, *pool.stats(), is_behind=False))
        await asyncio.sleep(PUBLISH_EVERY_SECONDS)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
