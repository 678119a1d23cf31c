"""What is seen of a delivery from outside: one log line, one count, and a span if asked for.

What is told is chosen here, fact by fact, never copied from a delivery: no body, code, name,
signature, token or user id. The ``rewardId`` is told: it is the operator's handle and says nothing
of a person. A user is told as a keyed hash, because a plain one of a phone number is found by
trying all of them.
"""

import hashlib
import logging
import os
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from falcon.asgi import Request, Response

from ingress.health import Live, Ready
from ingress.metrics import Metrics
from ingress.observation import Observation, observation
from ingress.tallying import ABANDONED
from ledger.config import LogSettings, read_log_settings
from ledger.errors import where
from ledger.lines import Lines, json_line
from ledger.tracing import Span, configured_span

STANDARD_OUTPUT = 1
"""Complaints go to standard error: the lines here are all of one kind, and all JSON."""

log = logging.getLogger("ingress")


def read_observing_settings(environment: Mapping[str, str] = os.environ) -> LogSettings:
    """What is told of deliveries, and how; raises ``InvalidSetting``."""
    return read_log_settings(environment, "INGRESS_LOG", "INGRESS_LOG_KEY")


class _Sink(Protocol):
    """Where lines go: ``Lines``."""

    def write(self, line: bytes) -> None:
        """Take one line, without its end."""
        ...


class _DeliveryLogger(structlog.BoundLoggerBase):
    """structlog's logger with the one kind of event that there is."""

    def delivery(self, facts: dict[str, Any]) -> None:
        (line,), _ = self._process_event("delivery", None, facts)
        self._logger.write(line)


def _render(_logger: object, _method: str, facts: Any) -> bytes:  # noqa: ANN401 - structlog's event
    return json_line(facts)


class Observer:
    """A Falcon middleware: every answer has one line, one count, and a span where configured.

    Answers to probes have none: they come every few seconds and tell nothing that they do not
    answer. What gunicorn answers by itself, to what is not HTTP, never gets here.
    """

    def __init__(
        self, metrics: Metrics, key: bytes, sink: _Sink | None = None, span: Span | None = None
    ) -> None:
        self._metrics = metrics
        # Keyed once: for each user anew, that costs more than the hash does.
        self._keyed = hashlib.blake2b(key=key, digest_size=8)
        self._sink = sink
        self._span = span
        self._logger: _DeliveryLogger = structlog.wrap_logger(
            sink, processors=[_render], wrapper_class=_DeliveryLogger
        ).bind()

    async def process_request(self, request: Request, response: Response) -> None:  # noqa: ARG002
        """Falcon's hook for a request whose headers are here."""
        request.context.observation = Observation(self)

    def believed(self, form: str, token: str) -> None:
        """Count a delivery as soon as a token has vouched for it."""
        self._metrics.believed(form, token)

    def abandoned(self, seen: Observation) -> None:
        """Tell of a believed delivery to which there will be no answer."""
        seen.outcome = ABANDONED
        self._observe(seen, None)

    def shares_transaction(self, reward_id: str, first_reward_id: str) -> None:
        """Tell of a reward that came under the transactionId of another."""
        self._metrics.shared_transaction()
        if self._sink is not None:
            self._logger.delivery(
                {
                    "at": datetime.now(UTC),
                    "alert": "shared-transaction",
                    "reward_id": reward_id,
                    "first_reward_id": first_reward_id,
                }
            )

    async def process_response(
        self,
        request: Request,
        response: Response,
        resource: object,
        request_succeeded: bool,  # noqa: FBT001 - Falcon's hook
    ) -> None:
        """Falcon's hook for an answer that is about to go out."""
        if request_succeeded and isinstance(resource, Live | Ready):
            return
        seen = observation(request)
        if seen.peer is None:
            # Falcon's `remote_addr` would invent one where there is none.
            seen.peer = (request.scope.get("client") or ("",))[0]
        self._observe(seen, response.status_code)

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the end of a worker."""
        if isinstance(self._sink, Lines):
            self._sink.close()

    def _observe(self, seen: Observation, status_code: int | None) -> None:
        # Whatever goes wrong here, what became of the delivery is answered as it is.
        try:
            ended_at = time.perf_counter()
            seconds = ended_at - seen.started_at
            self._metrics.delivery(seen.outcome, seconds, is_believed=seen.form is not None)
            if seen.is_expected is not None:
                self._metrics.peer(is_expected=seen.is_expected)
            if self._sink is not None or self._span is not None:
                self._tell(self._facts(seen, status_code, ended_at), seconds)
        except Exception as error:
            log.warning("a delivery was not observed: %s", where(error))

    def _tell(self, facts: dict[str, Any], seconds: float) -> None:
        if self._sink is not None:
            self._logger.delivery(facts)
        if self._span is not None:
            end = time.time_ns()
            del facts["at"]
            self._span("delivery", facts, end - int(seconds * 1e9), end, None)

    def _facts(self, seen: Observation, status_code: int | None, ended_at: float) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "at": datetime.now(UTC),
            "request_id": seen.request_id,
            "outcome": seen.outcome,
        }
        if status_code is not None:
            facts["status_code"] = status_code
        seen.time(facts, ended_at)
        if seen.peer:
            facts["peer"] = str(seen.peer)
        if seen.size_bytes is not None:
            facts["size_bytes"] = seen.size_bytes
        if seen.form is not None:
            facts["form"] = seen.form
            facts["token"] = seen.token
        if seen.reward is not None:
            facts["reward_id"] = seen.reward.reward_id
            keyed = self._keyed.copy()
            keyed.update(seen.reward.user_id.encode())
            facts["user_hash"] = keyed.hexdigest()
        if seen.is_expected is not None:
            facts["is_expected"] = seen.is_expected
        return facts


def from_environment(outcomes: Collection[str]) -> tuple[Metrics, Observer]:
    """What counts and what tells, as the environment says; raises ``InvalidSetting``.

    Both are middleware of the same app, in this order. ``outcomes`` are the slugs of problems.
    """
    settings = read_observing_settings()
    metrics = Metrics(outcomes)
    sink = Lines(STANDARD_OUTPUT, metrics.dropped_line) if settings.is_on else None
    return metrics, Observer(metrics, settings.key, sink, configured_span("reward-ingress"))
