"""Receive, verify, parse, post, answer: in that order and no other."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from falcon.asgi import Request, Response

from ingress.config import IngressSettings
from ingress.errors import Incomplete, NotAJsonContentType, TooLarge
from ingress.payload import read_reward
from ingress.signature import believe
from ledger.reward import Reward
from ledger.writing import Outcome, Receipt

READ_SECONDS_MAX = 10.0
"""How long the whole body may take to arrive."""

_ENCODER = msgspec.json.Encoder()


class Books(Protocol):
    """Where a reward is posted: a ``ledger.writing.Writer``."""

    def post(self, reward: Reward) -> "asyncio.Future[Outcome]":
        """A future of what became of the reward."""
        ...


class CustomerGluWebhook:
    """``POST /v1/webhooks/customerglu``: one delivery of one reward.

    Answers 200 only when the reward stands in the books, or when there was nothing to book.
    Everything else is an exception, and becomes its status in ``ingress.app``.
    """

    def __init__(
        self,
        settings: IngressSettings,
        books: Books,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._books = books
        self._clock = clock

    async def on_post(self, request: Request, response: Response) -> None:
        """Book the delivery; see the class."""
        _check_content_type(request)
        body = await self._receive(request)
        text = self._believed(body, request.get_header("X-CG-SIGNATURE"))
        reward = read_reward(text, self._settings.default_currency)
        if reward is None:
            response.data = b'{"status":"ignored"}'
        else:
            outcome = await self._books.post(reward)
            if not isinstance(outcome, Receipt):
                raise outcome
            response.data = _ENCODER.encode(_answer(outcome))
        response.content_type = "application/json"

    async def _receive(self, request: Request) -> bytes:
        """The whole body; raises ``TooLarge`` while reading, ``Incomplete`` if it ends early."""
        announced = request.content_length
        limit = self._settings.body_size_max_bytes
        if announced is not None and announced > limit:
            raise TooLarge
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                body: bytes = await request.stream.read(limit + 1)
        except TimeoutError:
            raise Incomplete from None
        if len(body) > limit:
            raise TooLarge
        if announced is not None and len(body) != announced:
            raise Incomplete
        return body

    def _believed(self, body: bytes, signature: str | None) -> bytes:
        if not self._settings.tokens:
            return body
        return believe(body, signature, self._settings.tokens, self._clock()).text


def _check_content_type(request: Request) -> None:
    """Only JSON in UTF-8, as it is; a body without a type is taken at its word."""
    if request.get_header("Content-Encoding") not in {None, "identity"}:
        raise NotAJsonContentType
    given = request.content_type
    if given is None or given == "application/json":
        return
    media_type, *parameters = given.lower().replace(" ", "").split(";")
    charsets = {text.strip('"') for text in parameters if text.startswith("charset=")}
    if media_type != "application/json" or not charsets <= {"charset=utf-8", 'charset="utf-8'}:
        raise NotAJsonContentType


def _answer(receipt: Receipt) -> dict[str, object]:
    answer: dict[str, object] = {"status": receipt.status, "rewardId": receipt.reward_id}
    if receipt.version is not None:
        answer["posting"] = {
            "userId": receipt.user_id,
            "currency": receipt.currency,
            "version": receipt.version,
        }
    answer["postedAt"] = receipt.posted_at
    return answer
