"""A reader that does not read stops nobody."""

import asyncio
import os
import threading

from ledger.lines import Lines
from tests.conftest import Run


def test_a_pipe_that_nobody_reads_stops_nobody_and_loses_only_what_is_counted(run: Run) -> None:
    reader, writer = os.pipe()
    dropped = 0

    def drop() -> None:
        nonlocal dropped
        dropped += 1

    async def write() -> Lines:
        lines = Lines(writer, drop, kept_bytes_max=200_000)
        for number in range(1000):
            lines.write(b"%03d" % number + b"x" * 996)
            if number % 100 == 0:
                # So that the thread stands in the middle of a write when more comes.
                await asyncio.sleep(0.11)
        return lines

    try:
        lines = run(write())
        assert dropped > 0
        kept = 1000 - dropped
        with os.fdopen(reader, "rb", closefd=False) as pipe:
            # What was kept is whole and in order.
            closing = threading.Thread(target=lines.close)
            closing.start()
            read = [pipe.readline() for _ in range(kept)]
            closing.join()
        assert all(len(line) == 1000 for line in read)
        assert read == sorted(read)
    finally:
        os.close(writer)
        os.close(reader)
