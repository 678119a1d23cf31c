"""The network between the ingress and Postgres, to be cut in every way that a network can be."""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any, Self

PIECE_BYTES_MAX = 1 << 18
ZOMBIE_SECONDS = 5.0

_WRITES = b'"\\\\x'
"""Stands in what is sent to Postgres where a believed text is to be written."""
_TEXT = re.compile(rb'"\\\\x([0-9a-f]+)"')
_IS_READY = b"Z\0\0\0\x05I"
"""How Postgres ends its answer when the database transaction is over."""
_TAG = re.compile(rb"C\0\0\0.(?:SELECT|INSERT 0) (\d+)\0", re.DOTALL)


class Loss(Enum):
    """How the answer to a statement that writes is lost."""

    AFTER_COMMIT = auto()
    """Postgres has committed it and said so, and nobody hears it."""
    UNSENT = auto()
    """The connection ends, and the statement never arrives."""
    AT_ONCE = auto()
    """The connection ends when the statement has been sent; whether it commits is open."""


class Wire:
    """A port of this machine whose bytes go to Postgres's socket and back, until they do not.

    Enter it first. Its methods may be called from any thread; they return when it is done.
    """

    def __init__(self, path: Path, writes: bytes = _WRITES) -> None:
        """``writes`` stands in what is sent to write."""
        self._writes = writes
        self.port = 0
        self.unheard: list[set[bytes]] = []
        """Of each commit that nobody heard of: the believed texts that it wrote."""
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._lines: set[_Line] = set()
        self._losses: list[Loss] = []
        self._flows = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Let no byte through, in either direction, without telling anybody."""
        self._call(self._hold())

    def flow(self) -> None:
        """Let everything through again, also what was held."""
        self._call(self._flow())

    def reset(self, *, both_ends: bool) -> None:
        """End every connection; Postgres hears of it at once, or some seconds later."""
        self._call(self._reset(both_ends=both_ends))

    def lose(self, *losses: Loss) -> None:
        """Lose the answers to so many of the next statements that write."""
        self._call(self._lose(losses))

    def to_lose(self) -> int:
        """How many answers are still to be lost."""
        return len(self._losses)

    def _call(self, done: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(done, self._loop).result(10)

    async def _listen(self) -> None:
        self._flows.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self) -> None:
        self._flows.clear()

    async def _flow(self) -> None:
        self._flows.set()

    async def _reset(self, *, both_ends: bool) -> None:
        for line in self._lines:
            line.reset(is_told=both_ends)

    async def _lose(self, losses: tuple[Loss, ...]) -> None:
        self._losses += losses

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, reader, writer)
        self._lines.add(line)
        try:
            with contextlib.suppress(OSError):
                await line.carry(self._path)
        finally:
            self._lines.discard(line)

    async def flowing(self) -> None:
        """Return when bytes may go on."""
        await self._flows.wait()

    def loss_of(self, sent: bytes) -> Loss | None:
        """Whether and how the answer to what is sent now is to be lost."""
        return self._losses.pop(0) if self._losses and self._writes in sent else None

    def note_unheard(self, sent: bytes, answer: bytes) -> None:
        """Note what was committed, if ``answer`` says that rows were written."""
        tag = _TAG.search(answer)
        if tag and int(tag[1]):
            self.unheard.append({bytes.fromhex(text.decode()) for text in _TEXT.findall(sent)})


class _Line:
    """One connection."""

    def __init__(
        self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._wire = wire
        self._from_client, self._to_client = reader, writer
        self._is_told = True
        self._unheard: bytes | None = None

    async def carry(self, path: Path) -> None:
        """Carry bytes until one end is gone."""
        try:
            await self._wire.flowing()
            server = await asyncio.open_unix_connection(str(path))
            try:
                await self._carry(*server)
            finally:
                server[1].transport.abort()
        finally:
            self.reset(is_told=True)

    def reset(self, *, is_told: bool) -> None:
        """End the client's end; the server is told at once, or some seconds later."""
        self._is_told = is_told
        if (client := self._to_client.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._to_client.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = [asyncio.create_task(self._up(writer)), asyncio.create_task(self._down(reader))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if not self._is_told:
            await asyncio.sleep(ZOMBIE_SECONDS)

    async def _up(self, writer: asyncio.StreamWriter) -> None:
        while sent := await self._from_client.read(PIECE_BYTES_MAX):
            await self._wire.flowing()
            loss = self._wire.loss_of(sent)
            if loss is Loss.UNSENT:
                return
            if loss is Loss.AFTER_COMMIT:
                self._unheard = sent
            writer.write(sent)
            await writer.drain()
            if loss is Loss.AT_ONCE:
                return

    async def _down(self, reader: asyncio.StreamReader) -> None:
        answer = b""
        while told := await reader.read(PIECE_BYTES_MAX):
            if self._unheard is not None:
                answer += told
                if answer.endswith(_IS_READY):
                    self._wire.note_unheard(self._unheard, answer)
                    return
                continue
            await self._wire.flowing()
            self._to_client.write(told)
            await self._to_client.drain()
