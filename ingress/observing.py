"""What is seen of a delivery from outside: one log line, one count, and a span if asked for.

What is told is chosen here, fact by fact, never copied from a delivery: no body, code, name,
signature, token or user id. The ``rewardId`` is told: it is the operator's handle and says nothing
of a person. A user is told as a keyed hash, because a plain one of a phone number is found by
trying all of them.
"""

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import structlog
from falcon.asgi import Request, Response

from ingress.health import Live, Ready
from ingress.lines import Lines
from ingress.metrics import Metrics
from ingress.observation import Observation, observation
from ingress.tracing import Span, configured_span
from ledger.config import InvalidSetting
from ledger.errors import where

STANDARD_OUTPUT = 1
"""Complaints go to standard error: the lines here are all of one kind, and all JSON."""
KEY_SIZE_MIN, KEY_SIZE_MAX = 16, 64

log = logging.getLogger("ingress")


class ObservingSettings(msgspec.Struct, frozen=True):
    """What is told of deliveries, and how."""

    is_logged: bool
    """``INGRESS_LOG``: ``json`` or ``off``."""
    key: bytes
    """``INGRESS_LOG_KEY``: what users are hashed with; drawn anew for each process if unset."""


def read_observing_settings(environment: Mapping[str, str] = os.environ) -> ObservingSettings:
    """The settings that ``environment`` holds; raises ``InvalidSetting``."""
    mode = environment.get("INGRESS_LOG") or "json"
    if mode not in {"json", "off"}:
        raise InvalidSetting("INGRESS_LOG", "must be json or off")
    key = os.fsencode(environment.get("INGRESS_LOG_KEY", ""))
    if key and not KEY_SIZE_MIN <= len(key) <= KEY_SIZE_MAX:
        raise InvalidSetting("INGRESS_LOG_KEY", f"must have {KEY_SIZE_MIN} to {KEY_SIZE_MAX} bytes")
    return ObservingSettings(mode == "json", key or secrets.token_bytes(32))


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


_ENCODE = msgspec.json.Encoder().encode


def _render(_logger: object, _method: str, facts: Any) -> bytes:  # noqa: ANN401 - structlog's event
    line = _ENCODE(facts)
    # A rewardId may hold what a reader takes for the end of a line, or a terminal for a command.
    return line if line.isascii() else json.dumps(json.loads(line)).encode()


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
        # Whatever goes wrong here, what became of the delivery is answered as it is.
        try:
            self._observe(observation(request), request, response)
        except Exception as error:
            log.warning("a delivery was not observed: %s", where(error))

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the end of a worker."""
        if isinstance(self._sink, Lines):
            self._sink.close()

    def _observe(self, seen: Observation, request: Request, response: Response) -> None:
        ended_at = time.perf_counter()
        seconds = ended_at - seen.started_at
        self._metrics.delivery(seen.outcome, seconds, seen.form, seen.token)
        if seen.is_expected is not None:
            self._metrics.peer(is_expected=seen.is_expected)
        if seen.shares_transaction:
            self._metrics.shared_transaction()
        if self._sink is None and self._span is None:
            return
        facts = self._facts(seen, request, response, ended_at)
        if self._sink is not None:
            self._logger.delivery(facts)
        if self._span is not None:
            end = time.time_ns()
            del facts["at"]
            self._span(facts, end - int(seconds * 1e9), end)

    def _facts(
        self, seen: Observation, request: Request, response: Response, ended_at: float
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "at": datetime.now(UTC),
            "request_id": seen.request_id,
            "outcome": seen.outcome,
            "status_code": response.status_code,
        }
        seen.time(facts, ended_at)
        # Falcon's `remote_addr` would invent one where there is none.
        if peer := seen.peer or (request.scope.get("client") or ("",))[0]:
            facts["peer"] = str(peer)
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
        if seen.shares_transaction:
            facts["shares_transaction"] = True
        return facts


def from_environment(outcomes: Collection[str]) -> tuple[Metrics, Observer]:
    """What counts and what tells, as the environment says; raises ``InvalidSetting``.

    Both are middleware of the same app, in this order. ``outcomes`` are the slugs of problems.
    """
    settings = read_observing_settings()
    metrics = Metrics(outcomes)
    sink = Lines(STANDARD_OUTPUT, metrics.dropped_line) if settings.is_logged else None
    return metrics, Observer(metrics, settings.key, sink, configured_span())
