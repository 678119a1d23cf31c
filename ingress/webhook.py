"""Receive, verify, parse, post, answer: in that order and no other."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

import msgspec
from falcon.asgi import Request, Response

from ingress.config import IngressSettings
from ingress.errors import (
    AddressNotAllowed,
    NotAJsonContentType,
    NotAReward,
    NotBelieved,
    NotJson,
    TooManyFailures,
)
from ingress.keeping import Keeper, unposted
from ingress.limiting import Turns
from ingress.metrics import UNSIGNED
from ingress.observation import Observation, observation
from ingress.payload import read_reward
from ingress.peers import Address, Mode
from ingress.receiving import Receiver
from ingress.signature import Believed, believe, believe_canonical, believe_raw
from ingress.spooling import Spooled, SpoolingBooks
from ledger.errors import DeadlineExceeded, Refused
from ledger.reward import Reward
from ledger.writing import WAIT_SECONDS_MAX, Outcome, Receipt

READ_SECONDS_MAX = 5.0
"""How long the whole body may take to arrive, counted from the end of the headers."""
ANSWER_SECONDS_MAX = 2.8
"""How long it may take from the whole body to the answer: the sender must have one within three
seconds."""
CHEAP_SIZE_MAX_BYTES = 4096
"""Up to this size the canonical text of any body is made in well under a millisecond."""
CHECK_SHARE = 0.05
"""How much of a worker's time goes to larger bodies from addresses that failed too often."""
TURN_SECONDS_MAX = 2.0
"""How long such a body may wait to be checked: the books need what is left."""

_ENCODER = msgspec.json.Encoder()

Result = TypeVar("Result")


class Books(Protocol):
    """Where a reward is posted: a ``ledger.writing.Writer``, with or without a spool before it."""

    def post(self, reward: Reward) -> Awaitable[Outcome | Spooled]:
        """What became of the reward."""
        ...


class CustomerGluWebhook:
    """``POST /v1/webhooks/customerglu``: one delivery of one reward.

    Answers 200 only when the reward stands in the books, or in the spool on this machine's disk, or
    when there was nothing to book.
    Everything else is an exception, and becomes its status in ``ingress.app``. What was believed
    and refused is then in the quarantine already, or in the spool on its way there; what is
    answered 503 is not known to be anywhere, and is to be sent again.
    """

    def __init__(
        self,
        settings: IngressSettings,
        books: Books,
        quarantine: Keeper,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._books = books
        self._quarantine = quarantine
        self._receiver = Receiver(settings.body_size_max_bytes, READ_SECONDS_MAX)
        self._turns = Turns(CHECK_SHARE)
        self._clock = clock

    async def on_post(self, request: Request, response: Response) -> None:
        """Book the delivery; see the class."""
        seen = observation(request)
        address = self._speaker(request, seen)
        _check_content_type(request)
        body = await self._receiver.body(request)
        seen.received(body)
        answer_by = time.monotonic() + ANSWER_SECONDS_MAX
        text = await self._believed(body, request.get_header("X-CG-SIGNATURE"), address, seen)
        try:
            response.data = await self._post_or_keep(text, request.content_type, seen, answer_by)
        except asyncio.CancelledError:
            seen.abandoned()
            raise

    def _speaker(self, request: Request, seen: Observation) -> Address | None:
        policy = self._settings.peers
        # Not `remote_addr`, which says 127.0.0.1 of somebody unknown.
        client = request.scope.get("client")
        speaker = policy.speaker(
            client[0] if client else None, request.get_header("X-Forwarded-For")
        )
        seen.peer = speaker.address
        if policy.mode is not Mode.OFF:
            seen.is_expected = speaker.is_allowed
        if policy.refuses(speaker):
            raise AddressNotAllowed
        return speaker.address

    async def _believed(
        self, body: bytes, signature: str | None, address: Address | None, seen: Observation
    ) -> bytes:
        tokens = self._settings.tokens.current()
        if not tokens:
            seen.believed(UNSIGNED, UNSIGNED)
            return body
        limit, now = self._settings.failures, time.monotonic()
        told = (body, signature, tokens, self._clock())
        believed: Believed | None
        wait_seconds = limit.wait_seconds(address, now)
        try:
            if wait_seconds and len(body) > CHEAP_SIZE_MAX_BYTES:
                # Who failed too often waits for the costly check. It is not left out: the address
                # may be one that others share, such as a proxy's.
                believed = believe_raw(*told)
                if believed is None:
                    check = partial(believe_canonical, *told)
                    believed = await self._turns.take(check, TURN_SECONDS_MAX)
            else:
                believed = believe(*told)
        except NotBelieved:
            if wait_seconds:
                raise TooManyFailures(wait_seconds) from None
            limit.count_failure(address, now)
            raise
        seen.believed(believed.form, believed.token)
        return believed.text

    async def _post_or_keep(
        self, text: bytes, content_type: str | None, seen: Observation, answer_by: float
    ) -> bytes:
        """The answer to the believed ``text``; what the books refuse is kept, and then raised."""
        try:
            # The books keep to their time by themselves, and a timer for each delivery costs more
            # than all else that is done here for it.
            if answer_by - time.monotonic() > WAIT_SECONDS_MAX:
                return await self._post(text, seen)
            return await _by(answer_by, self._post(text, seen))
        except (NotJson, NotAReward, Refused) as error:
            delivery = unposted(
                text,
                error,
                reward_id=seen.reward.reward_id if seen.reward else None,
                token=seen.token,
                form=seen.form,
                content_type=content_type,
                read_under=self._settings.mapping.digest,
            )
            # The books may have taken most of the time to refuse it.
            await _by(answer_by, self._quarantine.keep(delivery))
            raise

    async def _post(self, text: bytes, seen: Observation) -> bytes:
        """The answer to the believed ``text``, when it stands in the books."""
        reward = read_reward(text, self._settings.mapping)
        if reward is None:
            seen.outcome = "ignored"
            return b'{"status":"ignored"}'
        seen.read(reward)
        if isinstance(self._books, SpoolingBooks):
            # What the books refuse later is then kept with who vouched for it.
            outcome = await self._books.post(reward, seen.token, seen.form)
        else:
            outcome = await self._books.post(reward)
        if isinstance(outcome, Spooled):
            seen.outcome = outcome.status
            return _ENCODER.encode({"status": outcome.status, "rewardId": outcome.reward_id})
        if not isinstance(outcome, Receipt):
            raise outcome
        seen.outcome = outcome.status
        return _ENCODER.encode(_answer(outcome))


async def _by(answer_by: float, work: Awaitable[Result]) -> Result:
    """What ``work`` gives; raises ``DeadlineExceeded`` when it is not there in time."""
    try:
        async with asyncio.timeout(answer_by - time.monotonic()):
            return await work
    except TimeoutError:
        raise DeadlineExceeded from None


def _check_content_type(request: Request) -> None:
    """Only JSON in UTF-8, as it is; a body without a type is taken at its word."""
    if request.get_header("Content-Encoding") not in {None, "identity"}:
        raise NotAJsonContentType
    given = request.content_type
    if given is None or given == "application/json":
        return
    media_type, *parameters = given.lower().replace(" ", "").replace('"', "").split(";")
    charsets = {parameter for parameter in parameters if parameter.startswith("charset=")}
    if media_type != "application/json" or not charsets <= {"charset=utf-8"}:
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
