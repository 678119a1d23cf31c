"""What is known of one delivery, as the webhook goes along; ``ingress.observing`` tells it."""

import time
from random import getrandbits
from typing import Any, Protocol

from falcon.asgi import Request

from ingress.metrics import OTHER
from ledger.reward import Reward


class Witness(Protocol):
    """Who hears of a delivery before its end: an ``ingress.observing.Observer``."""

    def believed(self, form: str, token: str) -> None:
        """A token has just vouched for a delivery."""
        ...

    def abandoned(self, seen: "Observation") -> None:
        """Nobody waits for the answer to a believed delivery any more."""
        ...


class Observation:
    """What is known of one delivery so far; times are of ``time.perf_counter``."""

    __slots__ = (
        "_believed_at",
        "_read_at",
        "_received_at",
        "_witness",
        "form",
        "is_expected",
        "outcome",
        "peer",
        "request_id",
        "reward",
        "size_bytes",
        "started_at",
        "token",
    )

    def __init__(self, witness: Witness | None = None) -> None:
        self._witness = witness
        self.request_id = f"{getrandbits(64):016x}"  # noqa: S311 - not a secret
        """Also in the answer's ``requestId``, where it is a problem."""
        self.started_at = time.perf_counter()
        self.outcome: str = OTHER
        """A ``Status``, a problem's slug, ``ignored``, ``spooled`` or ``abandoned``."""
        self.peer: object = None
        """The address that spoke; without it, the other end of the connection is told."""
        self.is_expected: bool | None = None
        """Whether that address is in the list of those allowed; ``None`` where nobody looked."""
        self.size_bytes: int | None = None
        self.form: str | None = None
        self.token: str | None = None
        self.reward: Reward | None = None
        self._received_at = self._believed_at = self._read_at = 0.0

    def received(self, body: bytes) -> None:
        """The whole body is here; only its size is kept."""
        self._received_at = time.perf_counter()
        self.size_bytes = len(body)

    def believed(self, form: str, token: str) -> None:
        """The token of this name vouched for this form of the body, or both are ``unsigned``."""
        self._believed_at = time.perf_counter()
        self.form = form
        self.token = token
        if self._witness is not None:
            self._witness.believed(form, token)

    def abandoned(self) -> None:
        """Whoever sent it has gone, and there will be no answer; only of what was believed."""
        if self._witness is not None:
            self._witness.abandoned(self)

    def read(self, reward: Reward) -> None:
        """The body tells of ``reward``, and that is posted next."""
        self._read_at = time.perf_counter()
        self.reward = reward

    def time(self, facts: dict[str, Any], ended_at: float) -> None:
        """Add to ``facts`` how long each step took that was taken, in ms, to the microsecond."""
        facts["total_ms"] = int((ended_at - self.started_at) * 1e6) / 1000
        if received_at := self._received_at:
            facts["receive_ms"] = int((received_at - self.started_at) * 1e6) / 1000
            if self._believed_at:
                facts["verify_ms"] = int((self._believed_at - received_at) * 1e6) / 1000
        if self._read_at:
            facts["post_ms"] = int((ended_at - self._read_at) * 1e6) / 1000


def observation(request: Request) -> Observation:
    """The one observation of this request; it starts now where no ``Observer`` began it."""
    context = request.context
    seen: Observation | None = getattr(context, "observation", None)
    if seen is None:
        seen = context.observation = Observation()
    return seen
