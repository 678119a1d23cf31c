"""A body is read whole, within a size and a time, or refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from falcon.asgi import Request
from falcon.testing import create_scope

from ingress.errors import Incomplete, TooLarge
from ingress.receiving import RECEIVE, DeliveryApp, Receiver
from tests.conftest import Run

Receive = Callable[[], Awaitable[dict[str, Any]]]

SHORT_SECONDS = 0.05
LONG_SECONDS = 60.0


def sent(*pieces: bytes, pause_seconds: float = 0.0, is_whole: bool = True) -> Receive:
    """What a server hands on of ``pieces``; if they are not the whole body, it then waits."""
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(LONG_SECONDS)
        await asyncio.sleep(pause_seconds)
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting) or not is_whole}

    return receive


def request(receive: Receive, announced: int | None = None) -> Request:
    headers = {} if announced is None else {"Content-Length": str(announced)}
    scope = {**create_scope(method="POST", headers=headers), RECEIVE: receive}
    return Request(scope, receive)


def read(
    run: Run,
    receive: Receive,
    *,
    announced: int | None = None,
    size_max: int = 10,
    seconds_max: float = LONG_SECONDS,
) -> Any:
    async def main() -> bytes:
        return await Receiver(size_max, seconds_max).body(request(receive, announced))

    return run(main())


@pytest.mark.parametrize("pieces", [[b"0123456789"], [b"01234", b"", b"56789"], [b"", b""], [b""]])
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_is_read_whole(run: Run, pieces: list[bytes], is_announced: bool) -> None:
    whole = b"".join(pieces)
    announced = len(whole) if is_announced else None
    assert read(run, sent(*pieces, pause_seconds=0.001), announced=announced) == whole


def test_too_large_a_length_is_refused_without_reading(run: Run) -> None:
    with pytest.raises(TooLarge):
        read(run, sent(is_whole=False), announced=11)


def test_too_large_a_body_is_refused_as_soon_as_it_is(run: Run) -> None:
    with pytest.raises(TooLarge):
        read(run, sent(b"01234", b"567890", is_whole=False))


@pytest.mark.parametrize("pieces", [[b"012345678"], [b""], [b"0", b"1"]])
def test_a_body_that_ends_before_its_length_is_incomplete(run: Run, pieces: list[bytes]) -> None:
    with pytest.raises(Incomplete):
        read(run, sent(*pieces), announced=10)


def test_a_body_whose_sender_is_gone_is_incomplete(run: Run) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(Incomplete):
        read(run, receive, announced=10)


@pytest.mark.parametrize("pieces", [[], [b"0"], [b"0"] * 9])
@pytest.mark.parametrize("announced", [10, None])
def test_a_body_that_takes_too_long_is_incomplete(
    run: Run, pieces: list[bytes], announced: int | None
) -> None:
    receive = sent(*pieces, pause_seconds=SHORT_SECONDS / 4, is_whole=False)
    with pytest.raises(Incomplete):
        read(run, receive, announced=announced, seconds_max=SHORT_SECONDS)


def test_each_body_has_its_own_time(run: Run) -> None:
    """Ten stuck bodies begin one after the other; good ones come between them and after them."""

    async def main() -> None:
        receiver = Receiver(10, SHORT_SECONDS)
        loop = asyncio.get_running_loop()

        async def stuck() -> float:
            begun = loop.time()
            with pytest.raises(Incomplete):
                await receiver.body(request(sent(b"0", is_whole=False)))
            return loop.time() - begun

        tasks = []
        for _ in range(10):
            tasks.append(asyncio.create_task(stuck()))
            good = sent(b"0", b"1", pause_seconds=SHORT_SECONDS / 10)
            assert await receiver.body(request(good)) == b"01"
        # None was cut together with an older one.
        assert min(await asyncio.gather(*tasks)) > SHORT_SECONDS * 0.9
        # And when none was left, the next one is watched again.
        await asyncio.sleep(SHORT_SECONDS * 2)
        await stuck()

    run(main())


def test_a_task_is_not_cancelled_after_its_body_was_read(run: Run) -> None:
    async def main() -> None:
        receiver = Receiver(10, SHORT_SECONDS)
        assert await receiver.body(request(sent(b"0"))) == b"0"
        await asyncio.sleep(SHORT_SECONDS * 3)

    run(main())


def test_a_task_that_was_cut_can_go_on(run: Run) -> None:
    async def main() -> None:
        receiver = Receiver(10, SHORT_SECONDS)
        with pytest.raises(Incomplete):
            await receiver.body(request(sent(is_whole=False)))
        async with asyncio.timeout(LONG_SECONDS):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_who_cancels_a_read_is_obeyed(run: Run) -> None:
    async def main() -> None:
        receiver = Receiver(10, LONG_SECONDS)
        task = asyncio.create_task(receiver.body(request(sent(is_whole=False))))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_a_responder_starts_before_any_of_the_body_has_arrived(run: Run) -> None:
    async def main() -> None:
        events: list[Any] = []

        async def send(event: Any) -> None:
            events.append(event)

        app = DeliveryApp()
        await app(create_scope(method="POST", path="/nowhere"), sent(is_whole=False), send)
        assert events[0]["status"] == 404

    run(main())
