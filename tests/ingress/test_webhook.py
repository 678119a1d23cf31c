"""What becomes of a delivery: through the whole app, and into a real Postgres."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
import pytest
from falcon.testing import ASGIConductor

from ingress.app import PATH, create_app, from_environment
from ingress.config import read_settings
from ingress.tokens import UNSIGNED_ALLOWED
from ledger.database import Pool, Role
from ledger.quarantine import Quarantine
from ledger.writing import Writer
from tests.conftest import SUPERUSER, Database, Run
from tests.ingress.deliveries import (
    ABSENT,
    EXAMPLE,
    PREVIOUS_TOKEN,
    TOKEN,
    body,
    problem,
    signed,
)

REWARD_ID = EXAMPLE["rewardId"]

PUBLISHED_TOKEN = "PbTJp694bmgrfJpJPQmrjGfjgq"
PUBLISHED_SIGNATURE = "f2719895b483fbf3f98e1936bc88271cbe74f138"
PUBLISHED_BODY = (
    b'{"campaignId":"6bab1116-ae8e-4644-9cee-7a3d8ee9aff3","type":"direct",'
    b'"userId":"test-8-june-9","rewardId":"acdc71c6-08ad-4cd9-8c1e-3c812487b854",'
    b'"rewardName":"$15","rewardAmount":15,"details":{"currency":"USD","value":15,'
    b'"reward_reason":"got_referred","userAName":"Test Solve 7","userAId":"test-8-june-7"}}'
)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes

    def told(self) -> dict[str, Any]:
        """What a 200 says."""
        assert self.status == 200, self.content
        assert self.headers["content-type"] == "application/json"
        told: dict[str, Any] = json.loads(self.content)
        return told

    def problem(self) -> tuple[int, str]:
        """The status and the name of the problem."""
        return self.status, problem(self.status, self.headers, self.content)


Delivery = bytes | tuple[bytes, dict[str, str]]


class Door:
    """The ingress of one process, as gunicorn builds it, in front of this test's database."""

    def __init__(self, database: Database, run: Run) -> None:
        self.database = database
        self._run = run

    def within(self, act: Callable[[ASGIConductor], Any]) -> Any:
        """What ``act`` gives for the app, which is started before and stopped after."""

        async def live() -> Any:
            async with ASGIConductor(from_environment()) as conductor:
                return await act(conductor)

        return self._run(live())

    def deliver(self, *deliveries: Delivery) -> list[Answer]:
        """The answers to ``deliveries``, sent one after the other."""

        async def act(conductor: ASGIConductor) -> list[Answer]:
            return [await _send(conductor, delivery) for delivery in deliveries]

        answers: list[Answer] = self.within(act)
        return answers

    def deliver_at_once(self, *deliveries: Delivery) -> list[Answer]:
        """The answers to ``deliveries``, all sent before the first is answered."""

        async def act(conductor: ASGIConductor) -> list[Answer]:
            return await asyncio.gather(*(_send(conductor, delivery) for delivery in deliveries))

        answers: list[Answer] = self.within(act)
        return answers

    def rewards(self) -> int:
        """How many rewards stand in the books."""
        return int(self.database.rows("SELECT count(*) FROM rewards")[0][0])

    def balances(self) -> dict[tuple[str, str], Decimal]:
        """What each user is owed."""
        rows = self.database.rows(
            "SELECT account, currency, credits - debits FROM balances WHERE account LIKE 'user:%'"
        )
        return {(account, currency): amount for account, currency, amount in rows}


async def _send(conductor: ASGIConductor, delivery: Delivery) -> Answer:
    text, headers = delivery if isinstance(delivery, tuple) else (delivery, signed(delivery))
    result = await conductor.simulate_post(PATH, body=text, headers=headers)
    return Answer(result.status_code, result.headers, result.content)


@pytest.fixture
def environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The ingress's environment: two tokens, of which the previous one ends in an hour."""
    monkeypatch.setenv("DATABASE_URL", database.url())
    monkeypatch.setenv("INGRESS_TOKEN", TOKEN)
    monkeypatch.setenv("INGRESS_TOKEN_PREVIOUS", PREVIOUS_TOKEN)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setenv("INGRESS_TOKEN_PREVIOUS_NOT_AFTER", in_an_hour.isoformat())
    monkeypatch.delenv("INGRESS_ALLOW_UNSIGNED", raising=False)
    monkeypatch.delenv("INGRESS_DEFAULT_CURRENCY", raising=False)
    monkeypatch.delenv("INGRESS_BODY_SIZE_MAX_BYTES", raising=False)
    return monkeypatch


@pytest.fixture
def door(database: Database, run: Run, environment: pytest.MonkeyPatch) -> Door:
    return Door(database, run)


# What is credited, recorded or ignored


def test_the_vendors_published_example_is_credited(
    door: Door, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("INGRESS_TOKEN", PUBLISHED_TOKEN)
    headers = {"Content-Type": "application/json", "X-CG-SIGNATURE": PUBLISHED_SIGNATURE}
    (answer,) = door.deliver((PUBLISHED_BODY, headers))
    assert answer.told()["status"] == "credited"
    assert door.balances() == {("user:test-8-june-9", "USD"): 15}


def test_a_credited_reward_is_answered_with_its_posting(door: Door) -> None:
    (answer,) = door.deliver(body())
    told = answer.told()
    posted_at = datetime.fromisoformat(told.pop("postedAt"))
    assert told == {
        "status": "credited",
        "rewardId": REWARD_ID,
        "posting": {"userId": "testuser1", "currency": "USD", "version": 1},
    }
    assert door.database.rows("SELECT posted_at FROM postings") == [(posted_at,)]
    assert door.balances() == {("user:testuser1", "USD"): 400}


def test_the_believed_bytes_are_kept(door: Door) -> None:
    pretty = json.dumps(json.loads(body()), indent=2).encode()
    door.deliver((pretty, signed(body())), body(rewardId="other"))
    kept = door.database.rows("SELECT believed_bytes FROM rewards ORDER BY number")
    assert kept == [(body(),), (body(rewardId="other"),)]


def test_a_recorded_reward_is_answered_without_a_posting(door: Door) -> None:
    minimal = body(rewardAmount=ABSENT, code=ABSENT, details=ABSENT)
    (answer,) = door.deliver(minimal)
    told = answer.told()
    assert datetime.fromisoformat(told.pop("postedAt")).tzinfo is not None
    assert told == {"status": "recorded", "rewardId": REWARD_ID}
    assert door.rewards() == 1
    assert door.balances() == {}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (body(), 400),
        (
            body(
                rewardType="points",
                status="redeemable-unseen",
                transactionId="t",
                rewardExpiry=1724913123,
                tnc=["one", "two"],
            ),
            400,
        ),
        (body(rewardExpiry=-1), 400),
        (body(rewardAmount=12.5), Decimal("12.5")),
        (body(type="never heard of", somethingElse=[1, {"a": None}]), 400),
        (body(rewardName="200 Coins \u00e9\U0001f600"), 400),
    ],
)
def test_a_good_delivery_is_credited(door: Door, text: bytes, amount: Decimal) -> None:
    (answer,) = door.deliver(text)
    assert answer.told()["status"] == "credited"
    assert door.balances() == {("user:testuser1", "USD"): amount}


@pytest.mark.parametrize(
    "text",
    [
        body(rewardType="noReward"),
        body(rewardType="noReward", rewardAmount=ABSENT),
        body(rewardAmount=0),
        body(rewardAmount=ABSENT),
        body(rewardType="noReward", details={"currency": "NOBODYS"}),
    ],
)
def test_a_reward_of_nothing_is_recorded_and_posts_nothing(door: Door, text: bytes) -> None:
    (answer,) = door.deliver(text)
    assert answer.told()["status"] == "recorded"
    assert door.rewards() == 1
    assert door.database.rows("SELECT FROM postings") == []


def test_a_nudge_is_ignored(door: Door) -> None:
    (answer,) = door.deliver(body(webhookType="nudge"))
    assert answer.told() == {"status": "ignored"}
    assert door.rewards() == 0


@pytest.mark.parametrize("details", [ABSENT, {}, {"userAId": "a"}])
@pytest.mark.parametrize("currency", ["POINTS", "COINS"])
def test_without_a_currency_the_default_is_credited(
    door: Door, environment: pytest.MonkeyPatch, details: object, currency: str
) -> None:
    environment.setenv("INGRESS_DEFAULT_CURRENCY", currency)
    door.deliver(body(details=details))
    assert door.balances() == {("user:testuser1", currency): 400}


@pytest.mark.parametrize(
    "changed",
    [
        {"details": {"a": "\0", "b\0": ["\0"]}},
        {"details": {"\ud800": "\udfff"}},
        {"rewardName": "\0\ud800"},
        {"body": "\0", "type": "\0", "status": "\ud800", "transactionId": "\0"},
        {"tnc": ["\0", {"\ud83d": "\ud83d"}]},
        {"webhookType": "\0"},
        {"details": {"rewardCategory": "\0"}},
        {"details": {"n": 10**4000}},
        {"rewardExpiry": 10**400},
    ],
)
def test_what_postgres_cannot_hold_harms_neither_its_reward_nor_the_batch(
    door: Door, changed: dict[str, object]
) -> None:
    odd = json.dumps(EXAMPLE | {"rewardId": "odd"} | changed).encode()
    others = [body(rewardId=f"plain-{number}") for number in range(5)]
    answers = door.deliver_at_once(*others[:2], odd, *others[2:])
    assert [answer.told()["status"] for answer in answers] == ["credited"] * 6
    assert door.rewards() == 6


# What was sent before


def test_the_same_delivery_again_is_answered_with_the_first_receipt(door: Door) -> None:
    first, again = door.deliver(body(), body())
    (later,) = door.deliver(body())
    assert first.told()["status"] == "credited"
    assert again.told() == later.told() == first.told() | {"status": "replayed"}
    assert door.balances() == {("user:testuser1", "USD"): 400}


A_YEAR_LATER = """
SET session_replication_role = replica;
UPDATE rewards SET recorded_at = recorded_at - interval '1 year';
UPDATE postings SET posted_at = posted_at - interval '1 year';
UPDATE balances SET posted_at = posted_at - interval '1 year'
"""


def test_the_same_delivery_a_year_later_is_answered_with_the_first_receipt(door: Door) -> None:
    (first,) = door.deliver(body())
    door.database.rows(A_YEAR_LATER, SUPERUSER)
    told = door.deliver(body())[0].told()
    long_ago, now = (datetime.fromisoformat(each["postedAt"]) for each in (told, first.told()))
    assert timedelta(days=365) <= now - long_ago <= timedelta(days=366)
    assert told == first.told() | {"status": "replayed", "postedAt": told["postedAt"]}
    assert (door.rewards(), door.balances()) == (1, {("user:testuser1", "USD"): 400})


def test_a_recorded_reward_sent_again_is_replayed(door: Door) -> None:
    first, again = door.deliver(body(rewardAmount=ABSENT), body(rewardAmount=ABSENT))
    assert again.told() == first.told() | {"status": "replayed"}


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "redeemable-seen"},
        {"rewardName": "Another name"},
        {"type": "direct"},
        {"rewardAmount": 400.0},
        {"transactionId": "another"},
        {"rewardExpiry": 5},
        {"details": {"currency": "usd"}},
    ],
)
def test_the_same_reward_told_otherwise_is_a_replay(door: Door, changed: dict[str, object]) -> None:
    _, again = door.deliver(body(), body(**changed))
    assert again.told()["status"] == "replayed"
    assert door.balances() == {("user:testuser1", "USD"): 400}


@pytest.mark.parametrize(
    "changed",
    [
        {"rewardAmount": 401},
        {"rewardAmount": ABSENT},
        {"userId": "another"},
        {"campaignId": "another"},
        {"details": {"currency": "EUR"}},
        {"details": ABSENT},
        {"code": "ANOTHER"},
        {"rewardType": "points"},
        {"rewardType": "noReward"},
    ],
)
def test_the_same_reward_id_with_other_facts_is_a_conflict(
    door: Door, changed: dict[str, object]
) -> None:
    first, other, again = door.deliver(body(), body(**changed), body())
    assert first.told()["status"] == "credited"
    assert other.problem() == (409, "conflict")
    assert again.told()["status"] == "replayed"
    assert door.balances() == {("user:testuser1", "USD"): 400}
    assert door.rewards() == 1


def test_another_reward_of_the_same_transaction_is_credited(door: Door) -> None:
    answers = door.deliver(body(transactionId="t"), body(transactionId="t", rewardId="another"))
    assert [answer.told()["status"] for answer in answers] == ["credited"] * 2


def test_fifty_deliveries_of_a_reward_at_once_credit_it_once(door: Door) -> None:
    answers = [answer.told() for answer in door.deliver_at_once(*[body()] * 50)]
    credited = [told for told in answers if told["status"] == "credited"]
    assert len(credited) == 1
    assert answers.count(credited[0] | {"status": "replayed"}) == 49
    assert door.balances() == {("user:testuser1", "USD"): 400}


def test_each_of_many_deliveries_at_once_gets_its_own_answer(door: Door) -> None:
    answers = door.deliver_at_once(
        *(body(rewardId=f"r{number}", userId=f"u{number}") for number in range(600))
    )
    for number, answer in enumerate(answers):
        told = answer.told()
        assert (told["rewardId"], told["posting"]["userId"]) == (f"r{number}", f"u{number}")
    assert door.rewards() == 600


# What is believed


def test_a_reformatted_body_is_believed_by_its_canonical_text(door: Door) -> None:
    pretty = json.dumps(json.loads(body()), indent=2).encode()
    decimal = body(rewardId="decimal").replace(b"400", b"400.0")
    answers = door.deliver((pretty, signed(body())), (decimal, signed(body(rewardId="decimal"))))
    assert [answer.told()["status"] for answer in answers] == ["credited"] * 2
    assert door.balances() == {("user:testuser1", "USD"): 800}


def test_what_was_signed_is_read_and_not_what_was_sent(door: Door) -> None:
    sent = body()[:-1] + b',"rewardAmount":9}'
    believed = body(rewardAmount=9)
    (answer,) = door.deliver((sent, signed(believed)))
    assert answer.told()["status"] == "credited"
    assert door.balances() == {("user:testuser1", "USD"): 9}


def test_the_previous_token_is_believed_until_its_end(
    door: Door, environment: pytest.MonkeyPatch
) -> None:
    delivery = (body(), signed(body(), PREVIOUS_TOKEN))
    (answer,) = door.deliver(delivery)
    assert answer.told()["status"] == "credited"
    before = datetime.now(UTC) - timedelta(seconds=1)
    environment.setenv("INGRESS_TOKEN_PREVIOUS_NOT_AFTER", before.isoformat())
    late, current = door.deliver(delivery, body())
    assert late.problem() == (401, "not-believed")
    assert current.told()["status"] == "replayed"


_DIGEST = signed(body())["X-CG-SIGNATURE"]


NOT_SIGNATURES = [
    None,
    "",
    _DIGEST[:39],
    _DIGEST + "0",
    "0" * 40,
    _DIGEST.upper(),
    "sha1=" + _DIGEST,
    f"{_DIGEST},{_DIGEST}",
    f"{'0' * 40},{_DIGEST}",
    _DIGEST[:39] + "\u00e9",
    signed(body(), "a stranger's token")["X-CG-SIGNATURE"],
    signed(body(), method="sha256")["X-CG-SIGNATURE"],
    signed(body(), method="md5")["X-CG-SIGNATURE"],
    signed(body() + b" ")["X-CG-SIGNATURE"],
    hmac.new(b"", body(), "sha1").hexdigest(),
    hashlib.sha1(body()).hexdigest(),
]


def test_what_no_token_vouches_for_is_not_believed(door: Door) -> None:
    def headers(signature: str | None) -> dict[str, str]:
        given = {} if signature is None else {"X-CG-SIGNATURE": signature}
        return {"Content-Type": "application/json"} | given

    answers = door.deliver(*((body(), headers(signature)) for signature in NOT_SIGNATURES))
    for answer, signature in zip(answers, NOT_SIGNATURES, strict=True):
        assert answer.problem() == (401, "not-believed"), signature
    assert door.rewards() == 0


def test_the_header_of_an_old_page_is_not_looked_at(door: Door) -> None:
    headers = {"Content-Type": "application/json", "X-GLU-SIGNATURE": _DIGEST}
    (answer,) = door.deliver((body(), headers))
    assert answer.problem() == (401, "not-believed")


def test_one_changed_byte_is_not_believed(door: Door) -> None:
    changed = body().replace(b"400", b"401")
    (answer,) = door.deliver((changed, signed(body())))
    assert answer.problem() == (401, "not-believed")
    assert door.rewards() == 0


def test_unsigned_deliveries_are_taken_only_where_they_are_allowed(
    door: Door, environment: pytest.MonkeyPatch
) -> None:
    unsigned = (body(), {"Content-Type": "application/json"})
    (refused,) = door.deliver(unsigned)
    assert refused.problem() == (401, "not-believed")
    for name in ("INGRESS_TOKEN", "INGRESS_TOKEN_PREVIOUS"):
        environment.delenv(name)
    environment.setenv("INGRESS_ALLOW_UNSIGNED", UNSIGNED_ALLOWED)
    (taken,) = door.deliver(unsigned)
    assert taken.told()["status"] == "credited"


# What is refused

NOT_JSON = [
    b"",
    body()[:-1],
    body() + b"x",
    b"\xff",
    body(rewardName="N").replace(b"N", b"\xed\xa0\x80"),
    body(rewardName="N").replace(b"N", b"\0"),
    body(rewardAmount="N").replace(b'"N"', b"NaN"),
    b"[" * 60_000,
    b"[" * 30_000 + b"]" * 30_000,
    b'{"a":' * 10_000,
    body(details={"a": "N"}).replace(b'"N"', b"[" * 500 + b'"\\u0000"' + b"]" * 500),
]

NOT_REWARDS = [
    b"[1,2]",
    b'"x"',
    b"1",
    b"null",
    b"{}",
    body()[:-1] + b',"userId":"testuser1"}',
    body(rewardId=ABSENT),
    body(userId=ABSENT),
    body(campaignId=ABSENT),
    body(rewardId=""),
    body(userId=5),
    body(rewardId="r" * 201),
    body(userId="\0"),
    json.dumps(EXAMPLE | {"rewardId": "\ud800"}).encode(),
    body(rewardAmount=-5),
    body(rewardAmount=True),
    body(rewardAmount={}),
    body(rewardAmount="400"),
    body(rewardAmount="4 0 0"),
    body(rewardAmount="N").replace(b'"N"', b"1e999999999"),
    body(rewardAmount="N").replace(b'"N"', b"1e-999999999"),
    body(rewardAmount="N").replace(b'"N"', b"1e99999999999999999999"),
    body(rewardAmount="N").replace(b'"N"', b"9" * 60_000),
    body(details=[]),
    body(details={"currency": 5}),
    body(code=5),
]


NOT_HEARD = {(401, "not-believed"), (429, "too-many-failures")}

REFUSED = [
    *((text, (400, "not-json")) for text in NOT_JSON),
    *((text, (422, "not-a-reward")) for text in NOT_REWARDS),
    (body(rewardAmount=1.234), (422, "invalid-amount")),
    (body(rewardAmount=0.5, details={"currency": "COINS"}), (422, "invalid-amount")),
    (body(details={"currency": "NOBODYS"}), (422, "unknown-currency")),
]


def test_what_cannot_be_posted_is_refused_if_it_is_believed_and_harms_no_other(
    door: Door,
) -> None:
    """Each beside good deliveries in one batch; unsigned, it is not even looked at."""
    unsigned = {"Content-Type": "application/json"}
    forged = signed(b"another text")

    async def act(conductor: ASGIConductor) -> None:
        for number, (text, expected) in enumerate(REFUSED):
            good = [body(rewardId=f"good-{number}-{place}") for place in range(3)]
            deliveries = [good[0], text, good[1], (text, unsigned), (text, forged), good[2]]
            answers = await asyncio.gather(*(_send(conductor, one) for one in deliveries))
            assert answers[1].problem() == expected, text[:200]
            for answer in answers[3], answers[4]:
                # After many of them, whoever sends such is not heard at all.
                assert answer.problem() in NOT_HEARD, text[:200]
            for answer in answers[0], answers[2], answers[5]:
                assert answer.told()["status"] == "credited"

    door.within(act)
    assert door.balances() == {("user:testuser1", "USD"): len(REFUSED) * 3 * 400}


def test_a_refusal_names_the_field_and_holds_nothing_that_was_sent(door: Door) -> None:
    answers = door.deliver(
        body(userId=["PRIVATE"]),
        body(details={"currency": "PRIVATE!"}),
        b'["PRIVATE"]',
        b"PRIVATE",
        body(details={"currency": "PRIVATE"}),
    )
    assert json.loads(answers[0].content)["detail"] == "userId is not a string"
    assert json.loads(answers[1].content)["detail"] == "details.currency is not a currency's code"
    assert json.loads(answers[2].content)["detail"] == "is not an object"
    for answer in answers:
        assert b"PRIVATE" not in answer.content


def test_a_currency_that_is_registered_later_can_then_be_credited(door: Door) -> None:
    text = body(details={"currency": "STARS"})
    (before,) = door.deliver(text)
    assert before.problem() == (422, "unknown-currency")
    door.database.rows("INSERT INTO currencies (code, scale, name) VALUES ('STARS', 0, 'Stars')")
    (after,) = door.deliver(text)
    assert after.told()["status"] == "credited"


JSON_TYPES = [
    "application/json",
    "APPLICATION/JSON",
    "application/json;charset=utf-8",
    'application/json; charset="UTF-8"',
    "application/json; version=1",
]


def test_json_in_utf_8_is_read_and_so_is_a_body_without_a_type(door: Door) -> None:
    signature = {"X-CG-SIGNATURE": _DIGEST}
    headers = [signature, *(signature | {"Content-Type": given} for given in JSON_TYPES)]
    answers = door.deliver(*((body(), given) for given in headers))
    assert [answer.status for answer in answers] == [200] * len(headers)


NOT_JSON_TYPES = [
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "identity, gzip"},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "application/jsonl"},
    {"Content-Type": "application/json; charset=latin-1"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "application/json; charset=utf-8; charset=latin-1"},
    {"Content-Type": "\u00e9"},
]


def test_anything_but_json_in_utf_8_is_refused(door: Door) -> None:
    answers = door.deliver(*((body(), signed(body()) | given) for given in NOT_JSON_TYPES))
    for answer, given in zip(answers, NOT_JSON_TYPES, strict=True):
        assert answer.problem() == (415, "not-json-type"), given
    assert door.rewards() == 0


def test_a_body_that_is_not_encoded_may_say_so(door: Door) -> None:
    (answer,) = door.deliver((body(), signed(body()) | {"Content-Encoding": "identity"}))
    assert answer.told()["status"] == "credited"


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(
    door: Door, environment: pytest.MonkeyPatch
) -> None:
    for limit in (64 * 1024, 1024):
        room = limit - len(body(rewardId=str(limit), rewardName=""))
        largest = body(rewardId=str(limit), rewardName="n" * room)
        larger = body(rewardId=str(limit), rewardName="n" * (room + 1))
        environment.setenv("INGRESS_BODY_SIZE_MAX_BYTES", str(limit))
        refused, taken = door.deliver(larger, largest)
        assert refused.problem() == (413, "too-large")
        assert taken.told()["status"] == "credited"


def test_another_method_is_refused_with_the_one_that_is_allowed(door: Door) -> None:
    async def act(conductor: ASGIConductor) -> None:
        for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
            result = await conductor.simulate_request(method, PATH)
            assert result.status_code == 405
            assert result.headers["allow"] == "POST"
            if method != "HEAD":
                assert problem(405, result.headers, result.content) == "method-not-allowed"

    door.within(act)


def test_another_path_is_not_found(door: Door) -> None:
    async def act(conductor: ASGIConductor) -> None:
        for path in ("/", PATH + "/", PATH + "x", PATH.upper(), "/v1/webhooks", "/v1//webhooks"):
            result = await conductor.simulate_post(path, body=body(), headers=signed(body()))
            assert result.status_code == 404
            assert problem(404, result.headers, result.content) == "not-found"

    door.within(act)
    assert door.rewards() == 0


def test_each_problem_has_a_request_id_of_its_own(door: Door) -> None:
    answers = door.deliver(*[b"[]"] * 5)
    assert len({json.loads(answer.content)["requestId"] for answer in answers}) == 5


# Who failed too often


WRONG = {"X-CG-SIGNATURE": "0" * 40}
LARGE = body(rewardId="large", body="b" * 20_000)
PRETTY = json.dumps(json.loads(LARGE), indent=2).encode()
"""What only its canonical text can be believed by, and what is not small."""


@pytest.fixture
def failed(door: Door, environment: pytest.MonkeyPatch) -> Door:
    """A door at which each address has one failure."""
    environment.setenv("INGRESS_FAILURES_PER_MINUTE", "1")
    return door


def test_an_address_that_failed_too_often_is_told_when_it_may_fail_again(failed: Door) -> None:
    first, second, large = failed.deliver((body(), WRONG), (body(), WRONG), (PRETTY, WRONG))
    assert first.problem() == (401, "not-believed")
    for answer in (second, large):
        assert answer.problem() == (429, "too-many-failures")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert failed.rewards() == 0


def test_what_a_token_vouches_for_is_never_limited(failed: Door) -> None:
    small = body(rewardId="small")
    reformatted = body(rewardId="reformatted")
    raw = body(rewardId="raw", body="b" * 20_000)
    _, *answers = failed.deliver(
        (body(), WRONG),
        small,
        (json.dumps(json.loads(reformatted)).encode(), signed(reformatted)),
        raw,
        (PRETTY, signed(LARGE)),
        (body(), WRONG),
    )
    assert [answer.told()["status"] for answer in answers[:-1]] == ["credited"] * 4
    assert answers[-1].problem() == (429, "too-many-failures")


def test_large_bodies_of_an_address_that_failed_too_often_wait_their_turn_and_delay_nobody(
    failed: Door, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr("ingress.webhook.TURN_SECONDS_MAX", 0.2)
    slow = b'{"a":[' + b"0.1," * 15_000 + b"1]}"

    async def act(conductor: ASGIConductor) -> tuple[list[Answer], Answer, Answer]:
        await _send(conductor, (body(), WRONG))
        waiting = [asyncio.create_task(_send(conductor, (slow, WRONG))) for _ in range(50)]
        good = await _send(conductor, body())
        unsigned = await _send(conductor, (slow, {}))
        assert not all(task.done() for task in waiting)
        return await asyncio.gather(*waiting), good, unsigned

    answers, good, unsigned = failed.within(act)
    assert good.told()["status"] == "credited"
    # There is nothing to check of it.
    assert unsigned.problem() == (429, "too-many-failures")
    problems = [answer.problem() for answer in answers]
    assert set(problems) == {(429, "too-many-failures"), (503, "not-checked")}
    assert problems.count((503, "not-checked")) > 25


# In which order: what is cheap to refuse is refused first


def test_refusals_come_in_the_order_of_the_steps(door: Door) -> None:
    large = b"x" * 70_000
    answers = door.deliver(
        (large, {"Content-Type": "text/plain"}),
        (large, {}),
        (b"x", {}),
        b"x",
        b"[]",
        body(rewardAmount=-1, details={"currency": "NOBODYS"}),
        body(details={"currency": "NOBODYS"}),
    )
    assert [answer.problem()[1] for answer in answers] == [
        "not-json-type",
        "too-large",
        "not-believed",
        "not-json",
        "not-a-reward",
        "not-a-reward",
        "unknown-currency",
    ]


# The end


def test_while_no_connection_is_free_the_sender_is_soon_asked_to_send_again(
    door: Door, environment: pytest.MonkeyPatch
) -> None:
    async def main() -> list[Answer]:
        async with Pool(door.database.url(), Role.WRITER, size_max=1) as pool:
            app = create_app(read_settings(), Writer(pool), Quarantine(pool))
            async with ASGIConductor(app) as conductor:
                async with pool.connection():
                    begun = time.monotonic()
                    answers = [await _send(conductor, body()), await _send(conductor, b"[]")]
                    # Each of the two had three seconds.
                    assert time.monotonic() - begun < 6
                return [*answers, *[await _send(conductor, body()) for _ in range(2)]]

    reward, no_reward, again, once_more = door._run(main())
    assert reward.problem() == no_reward.problem() == (503, "unavailable")
    assert (again.told()["status"], once_more.told()["status"]) == ("credited", "replayed")
    assert door.balances() == {("user:testuser1", "USD"): 400}


def test_what_was_handed_in_is_posted_before_the_end(door: Door) -> None:
    """Its sender is gone, and its batch waits for a lock when the end begins."""
    with psycopg.connect(door.database.url()) as blocker:

        async def act(conductor: ASGIConductor) -> None:
            blocker.execute("LOCK TABLE rewards")
            handed_in = asyncio.create_task(_send(conductor, body()))
            await asyncio.sleep(0.1)
            asyncio.get_running_loop().call_later(0.3, blocker.rollback)
            handed_in.cancel()

        door.within(act)
    assert door.rewards() == 1


def test_no_connection_stays_open_after_the_end(door: Door) -> None:
    door.deliver(body())
    open_ = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND usename <> %s"
    with psycopg.connect(door.database.url(SUPERUSER), autocommit=True) as connection:
        for _ in range(100):
            if not connection.execute(open_, [SUPERUSER]).fetchall():
                return
            time.sleep(0.05)
    pytest.fail("a connection is still open")


# Trouble of ours


def test_an_error_nobody_thought_of_is_trouble_of_ours_and_its_text_stays_here(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("PRIVATE")

    monkeypatch.setattr(Writer, "post", fail)
    (answer,) = door.deliver(body())
    assert answer.problem() == (503, "unavailable")
    assert b"PRIVATE" not in answer.content
    (record,) = [record for record in caplog.records if record.name == "ingress"]
    assert json.loads(answer.content)["requestId"] in record.getMessage()
    assert "ZeroDivisionError" in record.getMessage()
    assert "PRIVATE" not in caplog.text


def test_what_is_refused_is_no_trouble_of_ours(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.deliver(b"[]", (body(), {}), body(details={"currency": "NOBODYS"}))
    assert [record for record in caplog.records if record.name == "ingress"] == []


def test_retry_after_is_not_the_same_for_all(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Writer, "post", fail)
    answers = door.deliver(*[body()] * 60)
    assert {answer.headers["retry-after"] for answer in answers} == set("12345")
