"""One OpenTelemetry span for each delivery or call, where somebody asked for spans.

The SDK's own variables say whether and where to: ``OTEL_TRACES_EXPORTER`` names an exporter that
is installed (``otlp``, ``console``), ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and the
exporter's own do the rest. Without them nothing is imported.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import NamedTuple

Facts = Mapping[str, str | int | float | bool]


class Parent(NamedTuple):
    """The span of a caller, as W3C's ``traceparent`` tells of it."""

    trace_id: str
    span_id: str
    is_sampled: bool


Span = Callable[[str, Facts, int, int, Parent | None], None]
"""Tells of one span: name, facts, start and end in nanoseconds of Unix time, and what caused it."""

log = logging.getLogger("ledger")

# https://www.w3.org/TR/trace-context/#traceparent-header; later versions only add to its end.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


def parent_of(traceparent: str) -> Parent | None:
    """What the header says; ``None`` when it is not well formed."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    return Parent(found[1], found[2], bool(int(found[3], 16) & 1))


def configured_span(service_name: str, environment: Mapping[str, str] = os.environ) -> Span | None:
    """How spans are told, or ``None`` where nobody wants them or the SDK is not installed.

    ``service_name`` is told where ``OTEL_SERVICE_NAME`` says none. Call it after the fork: the
    SDK exports from a thread.
    """
    name = environment.get("OTEL_TRACES_EXPORTER", "")
    if name in {"", "none"} or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("there will be no spans: the OpenTelemetry SDK is not installed")
        return None
    exporters = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not exporters:
        log.warning("there will be no spans: the exporter of OTEL_TRACES_EXPORTER is missing")
        return None
    given = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": service_name}
    provider = TracerProvider(resource=Resource.create(given))
    provider.add_span_processor(BatchSpanProcessor(next(iter(exporters)).load()()))
    tracer = provider.get_tracer(service_name)

    def span(name: str, facts: Facts, start: int, end: int, parent: Parent | None) -> None:
        context = None
        if parent is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.is_sampled else 0)
            caused_by = trace.SpanContext(
                int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(caused_by))
        told = tracer.start_span(
            name,
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes=dict(facts),
            start_time=start,
        )
        told.end(end_time=end)

    return span
