"""What is seen of a call from outside: one log line, one count, and a span if asked for.

What is told is chosen here, fact by fact, never copied from a call: no token, code, name or user
id. A ``rewardId`` is told when the books know it. A user is told as a keyed hash, because a plain
one of a phone number is found by trying all of them; with the same key, the ingress tells the
same hash.
"""

import hashlib
import logging
import time
from datetime import UTC, datetime
from random import getrandbits
from typing import Any
from urllib.parse import unquote

from ledger.access import Call
from ledger.callers import Caller
from ledger.config import ServeSettings
from ledger.errors import where
from ledger.lines import Lines, json_line
from ledger.metrics import Metrics
from ledger.problems import PROBLEMS
from ledger.tracing import Parent, Span, configured_span, parent_of
from ledger.v1 import ledger_pb2 as pb

OK = "OK"
CANCELLED = "CANCELLED"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"

FIELDS = {
    method.name: frozenset(method.input_type.fields_by_name)
    for method in pb.DESCRIPTOR.services_by_name["LedgerService"].methods
}
"""The fields of each method's request: to ask one for what it has not takes a microsecond."""
METHODS = list(FIELDS)
STATUSES = sorted({OK, CANCELLED, *(problem.status.name for problem in PROBLEMS.values())})
STANDARD_OUTPUT = 1
"""Complaints go to standard error: the lines here are all of one kind, and all JSON."""

log = logging.getLogger("ledger")


class Observation:
    """What is known of one call so far."""

    __slots__ = (
        "caller",
        "field",
        "method",
        "reason",
        "request",
        "request_id",
        "started_at",
        "status",
    )

    def __init__(self, method: str) -> None:
        self.method = method
        self.started_at = time.perf_counter()
        self.request_id = f"{getrandbits(64):016x}"  # noqa: S311 - not a secret
        """Also in the details of an error."""
        self.caller: Caller | None = None
        self.request: Any = None
        """The message, when it has been read."""
        self.status = CANCELLED
        """The name of the gRPC status; until there is one, its caller may still go away."""
        self.reason = ""
        self.field = ""
        """Which field of the request is malformed."""


class Observer:
    """Every answer has one line, one count, and a span, each where there is somewhere to tell it.

    Answers of health and reflection have none. What gRPC answers by itself never gets here.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        sink: Lines | None = None,
        key: bytes = b"",
        span: Span | None = None,
    ) -> None:
        self._metrics = metrics
        self._sink = sink
        # Keyed once: for each user anew, that costs more than the hash does.
        self._keyed = hashlib.blake2b(key=key, digest_size=8)
        self._span = span

    def close(self) -> None:
        """Write what has been told so far."""
        if self._sink is not None:
            self._sink.close()

    def observe(self, seen: Observation, call: Call) -> None:
        """Tell of a call at its end. Never raises: it is answered as it is."""
        if self._metrics is None and self._sink is None and self._span is None:
            return
        try:
            self._observe(seen, call)
        except Exception as error:
            log.warning("a call was not observed: %s", where(error))

    def _observe(self, seen: Observation, call: Call) -> None:
        seconds = time.perf_counter() - seen.started_at
        if seen.status == CANCELLED and (left := call.time_remaining()) is not None and left <= 0:
            seen.status = DEADLINE_EXCEEDED
        if self._metrics is not None:
            self._metrics.call(seen.method, seen.status, seconds)
        if self._sink is None and self._span is None:
            return
        parent = _parent(call)
        facts = self._facts(seen, call, seconds)
        if self._span is not None:
            end = time.time_ns()
            self._span(seen.method, facts, end - int(seconds * 1e9), end, parent)
        if self._sink is not None:
            facts["at"] = datetime.now(UTC)
            if parent is not None:
                facts["trace_id"] = parent.trace_id
                facts["parent_id"] = parent.span_id
            self._sink.write(json_line(facts))

    def _facts(self, seen: Observation, call: Call, seconds: float) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "request_id": seen.request_id,
            "method": seen.method,
            "status": seen.status,
            "total_ms": int(seconds * 1e6) / 1000,
            "peer": _address(call.peer()),
        }
        if seen.caller is not None:
            facts["caller"] = seen.caller.name
        if seen.reason:
            facts["reason"] = seen.reason
        if seen.field:
            facts["field"] = seen.field
        if (request := seen.request) is None:
            return facts
        fields = FIELDS.get(seen.method, ())
        if "user_id" in fields and (user_id := request.user_id):
            keyed = self._keyed.copy()
            keyed.update(user_id.encode())
            facts["user_hash"] = keyed.hexdigest()
        if seen.status == OK:
            if "reward_id" in fields:
                facts["reward_id"] = request.reward_id
            if "keys" in fields:
                facts["keys"] = len(request.keys)
        return facts


def observer_of(settings: ServeSettings) -> tuple[Observer, Metrics | None]:
    """What tells and what counts, as ``settings`` and OpenTelemetry's own variables say."""
    metrics = Metrics(METHODS, STATUSES) if settings.metrics_bind is not None else None
    sink = None
    if settings.log.is_on:
        sink = Lines(STANDARD_OUTPUT, metrics.dropped_line if metrics else lambda: None)
    return Observer(metrics, sink, settings.log.key, configured_span("reward-ledger")), metrics


def _parent(call: Call) -> Parent | None:
    for name, value in call.invocation_metadata() or ():
        if name == "traceparent":
            return parent_of(str(value))
    return None


def _address(peer: str) -> str:
    """The address alone: ``ipv6:%5B::1%5D:50051`` is ``::1``."""
    address = peer.partition(":")[2].rpartition(":")[0]
    return unquote(address).strip("[]") if address.startswith("%") else address
