"""One OpenTelemetry span for each delivery, where somebody asked for spans.

The SDK's own variables say whether and where to: ``OTEL_TRACES_EXPORTER`` names an exporter that
is installed (``otlp``, ``console``), ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and the
exporter's own do the rest. Without them nothing is imported. A sender's ``traceparent`` is not
read: whoever can reach the port could write it.
"""

import logging
import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

Span = Callable[[Mapping[str, str | int | float], int, int], None]
"""Tells of one delivery: its facts, and its start and end in nanoseconds of Unix time."""

log = logging.getLogger("ingress")


def configured_span(environment: Mapping[str, str] = os.environ) -> Span | None:
    """How spans are told, or ``None`` where nobody wants them or the SDK is not installed.

    Call it after the fork: the SDK exports from a thread.
    """
    name = environment.get("OTEL_TRACES_EXPORTER", "")
    if name in {"", "none"} or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
    except ImportError:
        log.warning("there will be no spans: the OpenTelemetry SDK is not installed")
        return None
    exporters = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not exporters:
        log.warning("there will be no spans: the exporter of OTEL_TRACES_EXPORTER is missing")
        return None
    given = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "reward-ingress"}
    provider = TracerProvider(resource=Resource.create(given))
    provider.add_span_processor(BatchSpanProcessor(next(iter(exporters)).load()()))
    tracer = provider.get_tracer("ingress")

    def span(facts: Mapping[str, str | int | float], start: int, end: int) -> None:
        told = tracer.start_span(
            "delivery", kind=SpanKind.SERVER, attributes=dict(facts), start_time=start
        )
        told.end(end_time=end)

    return span
