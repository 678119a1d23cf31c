"""The whole ingress before a real Postgres, and a judge of everything that it answers.

The judge knows of each delivery what was signed, because it was made here, and reads in the tables
what became of it: nothing that is believed may be lost, and nothing else may get in.
"""

import asyncio
import hmac
import json
from decimal import Decimal
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg
import uvloop
from falcon.testing import ASGIConductor

from ingress.app import from_environment
from ingress.canonical import stringify
from ingress.errors import NotCanonical
from tests.ingress.deliveries import PATH, PREVIOUS_TOKEN, TOKEN, problem
from tests.verifying import verify

LIMIT = 2048
"""The body limit here: small, so that what is random is often about as large."""

UNHEARD = "UNHEARD"
"""A method that HTTP does not have."""


def environment(url: str) -> dict[str, str]:
    """What the ingress is told before it is fuzzed."""
    return {
        "DATABASE_URL": url,
        "INGRESS_TOKEN": TOKEN,
        "INGRESS_TOKEN_PREVIOUS": PREVIOUS_TOKEN,
        "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": "9999-01-01T00:00:00Z",
        "INGRESS_BODY_SIZE_MAX_BYTES": str(LIMIT),
        # Else whatever is not believed would soon not even be looked at.
        "INGRESS_FAILURES_PER_MINUTE": "0",
        "INGRESS_LOG": "off",
    }


class Sent(NamedTuple):
    """One request, as it arrives."""

    pieces: tuple[bytes, ...]
    vouched: bytes | None = None
    """The text that the signature is for; ``None`` where no token made it."""
    token: str = TOKEN
    signature: bytes | None = None
    """Sent instead of one that a token made."""
    content: tuple[tuple[bytes, bytes], ...] = ()
    """The headers that say what the body is."""
    is_json: bool = True
    """Whether they say that it is JSON in UTF-8."""
    announced: bytes | None = None
    """The Content-Length, if any."""
    is_cut: bool = False
    """Whether the sender is gone before the end."""
    method: str = "POST"
    path: str = PATH

    @property
    def body(self) -> bytes:
        """All that is sent of the body."""
        return b"".join(self.pieces)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as a server hands them on."""
        headers = [(b"host", b"ledger"), *self.content]
        if self.announced is not None:
            headers.append((b"content-length", self.announced))
        signature = self.signature
        if self.vouched is not None:
            signature = hmac.new(self.token.encode(), self.vouched, "sha1").hexdigest().encode()
        if signature is not None:
            headers.append((b"x-cg-signature", signature))
        return headers


class Standing(NamedTuple):
    """What stands in the tables."""

    rewards: int
    postings: int
    quarantined: int
    """Deliveries, not bodies."""


class FuzzedDoor:
    """The ingress as gunicorn builds it, in an event loop of its own that runs while it answers.

    The process's environment must hold what ``environment`` says.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._conductor = ASGIConductor(from_environment())

    def __enter__(self) -> Self:
        self._tables = psycopg.connect(self._url, autocommit=True)
        self._runner.run(self._conductor.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(self._conductor.__aexit__(kind, error, traceback))
        self._runner.close()
        self._tables.close()

    def check(self, sent: Sent) -> str:
        """Send it; fails unless the answer and what is in the tables afterwards are right.

        Gives the outcome: the status that a 200 tells of, or the name of the problem.
        """
        before = self._standing()
        status, headers, content = self._runner.run(self._answer(sent))
        after = self._standing()
        if status == 200:
            outcome = self._check_success(sent, headers, content)
        else:
            outcome = problem(status, headers, content)
        assert outcome in self._expected(sent), outcome
        credited, recorded = outcome == "credited", outcome == "recorded"
        kept = outcome in UNPOSTED
        assert after == (
            before.rewards + credited + recorded,
            before.postings + credited,
            before.quarantined + kept,
        )
        if kept:
            row = self._row(
                "SELECT believed_bytes FROM quarantine WHERE believed_bytes = %s", sent.vouched
            )
            assert row is not None
        return outcome

    def check_books(self) -> None:
        """Fails unless the books hold against themselves."""
        assert self._runner.run(verify(self._url)) == []

    def _expected(self, sent: Sent) -> set[str]:
        """The outcomes that are documented for it, in the order in which things are refused."""
        size = len(sent.body)
        if sent.method == UNHEARD:
            return {"bad-request", "not-found"}
        if sent.path != PATH:
            return {"not-found"}
        if sent.method != "POST":
            return {"method-not-allowed"}
        if not sent.is_json:
            return {"not-json-type"}
        if sent.announced is not None:
            if not sent.announced.isdigit():
                return {"bad-request"}
            if int(sent.announced) > LIMIT:
                return {"too-large"}
        if size > LIMIT:
            return {"too-large"}
        if sent.is_cut or (sent.announced is not None and int(sent.announced) != size):
            return {"incomplete"}
        return BELIEVED if _is_believed(sent) else {"not-believed"}

    def _check_success(self, sent: Sent, headers: dict[str, str], content: bytes) -> str:
        """The outcome of a 200, when it tells what stands in the books."""
        assert headers["content-type"] == "application/json"
        told = json.loads(content)
        status: str = told.pop("status")
        assert sent.vouched is not None
        # Numbers as they are spelled.
        body = json.loads(sent.vouched, parse_int=str, parse_float=str)
        if status == "ignored":
            assert told == {}
            assert body["webhookType"] == "nudge"
            return status
        assert status in {"credited", "recorded", "replayed"}
        assert told["rewardId"] == body["rewardId"]
        row = self._row(
            "SELECT rewards.believed_bytes, rewards.user_id, postings.user_id, postings.currency,"
            " postings.version, postings.amount, coalesce(posted_at, recorded_at)"
            " FROM rewards LEFT JOIN postings USING (reward_id) WHERE reward_id = %s",
            body["rewardId"],
        )
        assert row is not None
        believed, user_id, posted_to, currency, version, amount, at = row
        assert user_id == body["userId"]
        if status != "replayed":
            assert believed == sent.vouched
        if posted_to is None:
            assert "posting" not in told
        else:
            assert told["posting"] == {"userId": user_id, "currency": currency, "version": version}
            assert posted_to == user_id
            assert amount == Decimal(body["rewardAmount"])
            named = (body.get("details") or {}).get("currency") or "POINTS"
            assert currency == named.upper()
        assert told.keys() <= {"rewardId", "posting", "postedAt"}
        assert at is not None
        return status

    def _standing(self) -> Standing:
        row = self._row(
            "SELECT (SELECT count(*) FROM rewards), (SELECT count(*) FROM postings),"
            " (SELECT coalesce(sum(seen), 0)::bigint FROM quarantine)"
        )
        assert row is not None
        return Standing(*row)

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        return self._tables.execute(query, values).fetchone()  # type: ignore[call-overload]

    async def _answer(self, sent: Sent) -> tuple[int, dict[str, str], bytes]:
        """What the ASGI app answers."""
        arriving = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in sent.pieces
        ]
        last: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
        arriving.append({"type": "http.disconnect"} if sent.is_cut else last)
        events: list[Any] = []

        async def receive() -> Any:
            return arriving.pop(0) if len(arriving) > 1 else arriving[0]

        async def send(event: Any) -> None:
            events.append(event)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": sent.path,
            "raw_path": sent.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": sent.headers(),
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8080),
        }
        await self._conductor.app(scope, receive, send)
        start, *rest = events
        headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return start["status"], headers, b"".join(event.get("body", b"") for event in rest)


UNPOSTED = {
    *("not-json", "not-a-reward", "unknown-currency", "invalid-amount", "broken-rule"),
    *("refused", "conflict"),
}
"""What is answered to a believed delivery that goes to the quarantine."""
BELIEVED = UNPOSTED | {"credited", "recorded", "replayed", "ignored"}


def _is_believed(sent: Sent) -> bool:
    if sent.vouched is None or sent.token not in {TOKEN, PREVIOUS_TOKEN}:
        return False
    if sent.vouched == sent.body:
        return True
    try:
        return sent.vouched == stringify(sent.body)
    except NotCanonical:
        return False
