"""Spans are told to whom an exporter was named, and cost nobody else anything."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ledger.tracing import Parent, parent_of
from tests.ingress.observed import ROOT

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPAN = """
import sys
from ledger.tracing import configured_span, parent_of
span = configured_span("a-service")
assert span is not None
facts = {"outcome": "credited", "total_ms": 1.5}
span("delivery", facts, 1_000_000_000, 3_000_000_000, parent_of(sys.argv[1]))
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def told(traceparent: str, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        python(SPAN, traceparent, OTEL_TRACES_EXPORTER="console", **environment)
    )
    return found


def test_a_span_tells_the_same_when_an_exporter_is_named() -> None:
    span = told("")
    assert span["name"] == "delivery"
    assert span["attributes"] == {"outcome": "credited", "total_ms": 1.5}
    assert span["start_time"] == "1970-01-01T00:00:01.000000Z"
    assert span["end_time"] == "1970-01-01T00:00:03.000000Z"
    assert span["resource"]["attributes"]["service.name"] == "a-service"
    assert span["parent_id"] is None


def test_a_span_belongs_to_the_trace_that_caused_it() -> None:
    span = told(f"00-{TRACE}-{CALLER}-01")
    assert (span["context"]["trace_id"], span["parent_id"]) == (f"0x{TRACE}", f"0x{CALLER}")


def test_what_its_cause_does_not_want_sampled_is_not() -> None:
    assert python(SPAN, f"00-{TRACE}-{CALLER}-00", OTEL_TRACES_EXPORTER="console") == ""


@pytest.mark.parametrize(
    ("traceparent", "parent"),
    [
        (f"00-{TRACE}-{CALLER}-01", Parent(TRACE, CALLER, True)),
        (f"00-{TRACE}-{CALLER}-02", Parent(TRACE, CALLER, False)),
        (f"cc-{TRACE}-{CALLER}-01-what-comes-later", Parent(TRACE, CALLER, True)),
        (f"ff-{TRACE}-{CALLER}-01", None),
        (f"00-{'0' * 32}-{CALLER}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{CALLER}-01", None),
        (f"00-{TRACE}-{CALLER}-01\n", None),
        (f"00-{TRACE}-{CALLER}", None),
        ("user-1", None),
        ("", None),
    ],
)
def test_only_a_well_formed_traceparent_is_believed(
    traceparent: str, parent: Parent | None
) -> None:
    assert parent_of(traceparent) == parent


@pytest.mark.parametrize(
    "given", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "missing"}]
)
def test_nobody_who_does_not_ask_has_spans(given: dict[str, str]) -> None:
    code = "import sys; from ledger.tracing import configured_span as c; print(c('a-service'))"
    code += "; print('opentelemetry.sdk.trace' in sys.modules)"
    printed = python(code, **({"OTEL_TRACES_EXPORTER": ""} | given)).split()
    assert printed[0] == "None"
    assert printed[1] == str(given == {"OTEL_TRACES_EXPORTER": "missing"})
