"""Spans are told to whom an exporter was named, and cost nobody else anything."""

import json
import os
import subprocess
import sys

import pytest

from tests.ingress.observed import ROOT

SPAN = """
from ingress.tracing import configured_span
span = configured_span()
assert span is not None
span({"outcome": "credited", "total_ms": 1.5}, 1_000_000_000, 3_000_000_000)
"""


def python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_span_tells_the_same_when_an_exporter_is_named() -> None:
    told = json.loads(python(SPAN, OTEL_TRACES_EXPORTER="console"))
    assert told["name"] == "delivery"
    assert told["attributes"] == {"outcome": "credited", "total_ms": 1.5}
    assert told["start_time"] == "1970-01-01T00:00:01.000000Z"
    assert told["end_time"] == "1970-01-01T00:00:03.000000Z"
    assert told["resource"]["attributes"]["service.name"] == "reward-ingress"


@pytest.mark.parametrize(
    "given", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "missing"}]
)
def test_nobody_who_does_not_ask_has_spans(given: dict[str, str]) -> None:
    code = "import sys; from ingress.tracing import configured_span as c; print(c())"
    code += "; print('opentelemetry.sdk.trace' in sys.modules)"
    told = python(code, **({"OTEL_TRACES_EXPORTER": ""} | given)).split()
    assert told[0] == "None"
    assert told[1] == str(given == {"OTEL_TRACES_EXPORTER": "missing"})
