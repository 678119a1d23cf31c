"""Who may speak, and how often in vain, over real sockets that come from several addresses."""

import http.client
import json
from collections import Counter
from contextlib import closing
from typing import NamedTuple

from tests.conftest import Database
from tests.ingress.deliveries import PATH, body, problem, signed
from tests.ingress.observed import WAIT_SECONDS_MAX, Ingress, running, wait_until

PROXY, OTHER_PROXY = "127.0.0.1", "127.0.0.9"
ALLOWED, STRANGER = "127.0.0.5", "127.0.0.2"
ALLOWED_BEHIND, STRANGER_BEHIND = "192.0.2.1", "203.0.113.9"

SETTINGS = {
    "INGRESS_ADDRESSES_ALLOWED": f"{ALLOWED},{ALLOWED_BEHIND}",
    "INGRESS_TRUSTED_PROXIES": f"{PROXY},{OTHER_PROXY}",
}


class Spoken(NamedTuple):
    """Who opens the connection, what it says of others, and who is taken to speak."""

    source: str
    forwarded_for: tuple[str, ...]
    speaker: str | None
    is_allowed: bool


SPOKEN = [
    Spoken(ALLOWED, (), ALLOWED, True),
    Spoken(STRANGER, (), STRANGER, False),
    # Whoever is no proxy of ours speaks for itself.
    Spoken(STRANGER, (ALLOWED_BEHIND,), STRANGER, False),
    Spoken(STRANGER, (ALLOWED, PROXY), STRANGER, False),
    Spoken(ALLOWED, (STRANGER_BEHIND,), ALLOWED, True),
    # So does a proxy that names nobody; one that does not know whom is not the same.
    Spoken(PROXY, (), PROXY, False),
    Spoken(PROXY, ("unknown",), None, False),
    Spoken(PROXY, (f"{ALLOWED_BEHIND},",), None, False),
    Spoken(PROXY, (ALLOWED_BEHIND,), ALLOWED_BEHIND, True),
    Spoken(PROXY, (STRANGER_BEHIND,), STRANGER_BEHIND, False),
    # Only the right end was written by our proxy.
    Spoken(PROXY, (f"{ALLOWED_BEHIND}, {STRANGER_BEHIND}",), STRANGER_BEHIND, False),
    Spoken(PROXY, (ALLOWED_BEHIND, STRANGER_BEHIND), STRANGER_BEHIND, False),
    Spoken(PROXY, (STRANGER_BEHIND, ALLOWED_BEHIND), ALLOWED_BEHIND, True),
    Spoken(PROXY, (f"{STRANGER_BEHIND}, {ALLOWED_BEHIND}", OTHER_PROXY), ALLOWED_BEHIND, True),
    Spoken(PROXY, (ALLOWED_BEHIND, f"{STRANGER_BEHIND}, {OTHER_PROXY}"), STRANGER_BEHIND, False),
]


def deliver(
    ingress: Ingress, text: bytes, source: str, *forwarded_for: str, signature: str | None = None
) -> str:
    """What became of a delivery from ``source`` with so many ``X-Forwarded-For``."""
    client = http.client.HTTPConnection(
        "127.0.0.1", ingress.port, timeout=WAIT_SECONDS_MAX, source_address=(source, 0)
    )
    with closing(client):
        client.putrequest("POST", PATH)
        headers = signed(text)
        if signature is not None:
            headers["X-CG-SIGNATURE"] = signature
        for name, value in headers.items():
            client.putheader(name, value)
        for value in forwarded_for:
            client.putheader("X-Forwarded-For", value)
        client.putheader("Content-Length", str(len(text)))
        client.endheaders(text)
        response = client.getresponse()
        content = response.read()
        if response.status == 200:
            return str(json.loads(content)["status"])
        return problem(response.status, response.headers, content)


def check_what_is_told(ingress: Ingress) -> None:
    """Each delivery of ``SPOKEN`` has one count and one line, which name who spoke."""
    expected = Counter("yes" if spoken.is_allowed else "no" for spoken in SPOKEN)

    def counted() -> dict[str, float]:
        return {
            dict(key)["expected"]: n for key, n in ingress.samples("ingress_peers_total").items()
        }

    wait_until(lambda: len(ingress.lines()) == len(SPOKEN) and counted() == expected)
    # Of nobody the other end of the connection is told.
    assert [(line["peer"], line["is_expected"]) for line in ingress.lines()] == [
        (spoken.speaker or spoken.source, spoken.is_allowed) for spoken in SPOKEN
    ]


def test_enforced_only_the_addresses_of_the_list_are_taken(database: Database) -> None:
    with running(database.url(), INGRESS_ADDRESSES="enforce", **SETTINGS) as ingress:
        for number, (source, forwarded_for, _, is_allowed) in enumerate(SPOKEN):
            text = body(rewardId=f"enforced-{number}", userId="enforced")
            outcome = deliver(ingress, text, source, *forwarded_for)
            assert outcome == ("credited" if is_allowed else "address-not-allowed"), number
        check_what_is_told(ingress)
        believed = ingress.samples("ingress_believed_deliveries_total")
        assert sum(believed.values()) == sum(spoken.is_allowed for spoken in SPOKEN)
    posted = database.rows("SELECT count(*) FROM postings WHERE user_id = 'enforced'")
    assert posted == [(sum(spoken.is_allowed for spoken in SPOKEN),)]


def test_observed_all_addresses_are_taken_and_told(database: Database) -> None:
    with running(database.url(), INGRESS_ADDRESSES="observe", **SETTINGS) as ingress:
        for number, (source, forwarded_for, _, _) in enumerate(SPOKEN):
            text = body(rewardId=f"observed-{number}", userId="observed")
            assert deliver(ingress, text, source, *forwarded_for) == "credited", number
        check_what_is_told(ingress)


def test_each_address_behind_a_proxy_fails_for_itself_alone(database: Database) -> None:
    wrong = "0" * 40
    with running(database.url(), INGRESS_FAILURES_PER_MINUTE="2", **SETTINGS) as ingress:
        text = body(rewardId="limited", userId="limited")

        def fail(*way: str) -> str:
            return deliver(ingress, text, *way, signature=wrong)

        outcomes = [fail(PROXY, STRANGER_BEHIND) for _ in range(4)]
        assert outcomes == ["not-believed"] * 2 + ["too-many-failures"] * 2
        # Another one behind the same proxy, and one that only claims to be it.
        assert fail(PROXY, ALLOWED_BEHIND) == "not-believed"
        assert fail(STRANGER, STRANGER_BEHIND) == "not-believed"
        assert deliver(ingress, text, PROXY, STRANGER_BEHIND) == "credited"
        assert fail(PROXY, STRANGER_BEHIND) == "too-many-failures"
        wait_until(lambda: ingress.answered() == 8)
        refused = ingress.samples("ingress_deliveries_total")
        assert refused[frozenset({("outcome", "too-many-failures"), ("believed", "no")})] == 3
