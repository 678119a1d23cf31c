"""Deliveries as the sender makes them, and how an answer is judged."""

import hmac
import json
import re
from typing import Any

from ingress.app import PATH, PROBLEMS

TOKEN = "the token that is used now"
PREVIOUS_TOKEN = "the token that was used before"

ABSENT = object()
"""Stands for a field that is not sent."""

__all__ = ["ABSENT", "EXAMPLE", "PATH", "PREVIOUS_TOKEN", "TOKEN", "body", "problem", "signed"]

EXAMPLE: dict[str, Any] = {
    "campaignId": "xyz41c29-bb0d-4fe6-8260-1403d1c0e964",
    "type": "scratchcard",
    "userId": "testuser1",
    "rewardId": "xyzbb3ca-093f-43f2-84ba-8d5ed0d6c1b4",
    "rewardName": "200 Coins",
    "rewardAmount": 400,
    "code": "CODE123",
    "details": {
        "userBName": "testuser2",
        "userBId": "testuser2",
        "userAName": "testuser0",
        "userAId": "testuser0",
        "rewardCategory": "RM",
        "currency": "USD",
    },
}
"""The example in the vendor's documentation, with all its optional fields."""


def body(**told: object) -> bytes:
    """The example's JSON.stringify text with the fields that ``told`` names changed."""
    fields = {name: value for name, value in (EXAMPLE | told).items() if value is not ABSENT}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def signed(text: bytes, token: str = TOKEN, method: str = "sha1") -> dict[str, str]:
    """The headers of a delivery for which ``token`` vouches."""
    return {
        "Content-Type": "application/json",
        "X-CG-SIGNATURE": hmac.new(token.encode(), text, method).hexdigest(),
    }


_TITLES = {(row.status, row.slug): row.title for row in PROBLEMS.values()}


def problem(status: int, headers: Any, content: bytes) -> str:
    """The name of the problem that an answer tells of, after everything else was checked."""
    told = json.loads(content)
    assert headers["content-type"] == "application/problem+json"
    prefix, _, slug = told.pop("type").rpartition(":")
    assert prefix == "urn:reward-ledger:problem"
    assert told.pop("title") == _TITLES[status, slug]
    assert told.pop("status") == status
    assert re.fullmatch("[0-9a-f]{16}", told.pop("requestId"))
    assert told.keys() <= ({"detail"} if slug == "not-a-reward" else set())
    assert ("retry-after" in headers) == (status in {429, 503})
    assert status != 503 or 1 <= int(headers["retry-after"]) <= 5
    return slug
