"""The ledger's own gRPC server with one more method, which asks nothing and answers nothing."""

import asyncio
import signal
import sys

import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ledger.callers import Scope
from ledger.database import Pool, Role
from ledger.reading import Reader
from ledger.server import POOL_SIZE_MAX, create_server
from ledger.service import LedgerService


async def main(url: str, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Pool(url, Role.READER, size_max=POOL_SIZE_MAX) as pool:
        server = create_server(LedgerService(Reader(pool)))
        server.calls.add("/bench.Empty/Call", _nothing, Empty, Scope.BALANCES)
        server.grpc.add_insecure_port(f"127.0.0.1:{port}")
        await server.grpc.start()
        await stop.wait()
        await server.grpc.stop(1)


async def _nothing(request: Message) -> Message:
    return request


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
