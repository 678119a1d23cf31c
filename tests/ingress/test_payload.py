"""What a believed text says: exactly, or why it is not a reward."""

import json
import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ingress.canonical import DEPTH_MAX
from ingress.errors import NotAReward, NotJson
from ingress.mapping import Mapping
from ingress.payload import parse, read_reward
from ledger.reward import Reward
from tests.ingress.deliveries import ABSENT, EXAMPLE, body


def read(text: bytes) -> Reward:
    reward = read_reward(text, Mapping())
    assert reward is not None
    return reward


def test_every_documented_field_is_read():
    told = EXAMPLE | {
        "rewardType": "coupons",
        "status": "redeemable-unseen",
        "transactionId": "transaction-1",
        "rewardExpiry": 1724913123,
        "body": "Show this code",
        "tnc": ["one", "two"],
        "webhookType": "reward",
    }
    text = json.dumps(told).encode()
    assert read(text) == Reward(
        reward_id="xyzbb3ca-093f-43f2-84ba-8d5ed0d6c1b4",
        user_id="testuser1",
        campaign_id="xyz41c29-bb0d-4fe6-8260-1403d1c0e964",
        type="scratchcard",
        reward_type="coupons",
        reward_name="200 Coins",
        reward_amount=Decimal(400),
        currency="USD",
        code="CODE123",
        status="redeemable-unseen",
        transaction_id="transaction-1",
        reward_expires_at=datetime(2024, 8, 29, 6, 32, 3, tzinfo=UTC),
        reward_category="RM",
        details=json.dumps(EXAMPLE["details"], separators=(",", ":")),
        body="Show this code",
        tnc='["one","two"]',
        webhook_type="reward",
        believed_bytes=text,
    )


def test_what_was_not_said_is_none():
    text = b'{"campaignId":"c","userId":"u","rewardId":"r"}'
    nothing = dict.fromkeys(Reward._fields)
    said = {"reward_id": "r", "user_id": "u", "campaign_id": "c", "believed_bytes": text}
    assert read(text)._asdict() == nothing | said


@pytest.mark.parametrize(
    ("literal", "amount"),
    [
        ("400", "400"),
        ("400.0", "400"),
        ("4e2", "400"),
        ("4E+2", "400"),
        ("12.50", "12.5"),
        ("0.1", "0.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("9007199254740993", "9007199254740993"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "18446744073709551616"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1e29", "1" + "0" * 29),
        ("1." + "0" * 60_000, "1"),
        ("1" + "0" * 60_000 + "e-60000", "1"),
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("0e999999999", "0"),
    ],
)
def test_an_amount_is_read_exactly(literal, amount):
    text = body(rewardAmount=ABSENT)[:-1] + b',"rewardAmount":' + literal.encode() + b"}"
    read_amount = read(text).reward_amount
    assert str(read_amount) == amount
    assert type(read_amount) is Decimal


@pytest.mark.parametrize(
    "literal",
    [
        "-5",
        "-0.01",
        "true",
        "false",
        "{}",
        "[]",
        "[5]",
        '"5"',
        '"4 0 0"',
        '""',
        "1" * 31,
        "1" * 60_000,
        "0." + "0" * 30 + "1",
        "0." + "0" * 60_000 + "1",
        "1e30",
        "1e999999999",
        "1e-999999999",
        "1e99999999999999999999",
        "-1e99999999999999999999",
        "1e-99999999999999999999",
        "1e400",
    ],
)
def test_what_is_not_an_amount_is_refused(literal):
    text = body(rewardAmount=ABSENT)[:-1] + b',"rewardAmount":' + literal.encode() + b"}"
    with pytest.raises(NotAReward) as refusal:
        read(text)
    assert refusal.value.field == "rewardAmount"


@pytest.mark.parametrize("field", ["rewardId", "userId", "campaignId"])
@pytest.mark.parametrize(
    "value",
    [ABSENT, None, "", 5, True, ["r"], {"r": 1}, "r" * 201, "r\0", "\0", "\ud800", "r\udfff"],
)
def test_an_identifier_that_cannot_be_one_is_refused(field, value):
    with pytest.raises(NotAReward) as refusal:
        read(json.dumps(json.loads(body(**{field: ABSENT})) | told(field, value)).encode())
    assert refusal.value.field == field


def told(field: str, value: object) -> dict[str, object]:
    return {} if value is ABSENT else {field: value}


@pytest.mark.parametrize("value", ["r", "r" * 200, " ", "\u00e9" * 200, "\U0001f600", "\x01", "R"])
def test_an_identifier_is_kept_as_it_is(value):
    reward = read(body(rewardId=value, userId=value, campaignId=value))
    assert (reward.reward_id, reward.user_id, reward.campaign_id) == (value, value, value)


@pytest.mark.parametrize("field", ["rewardType", "code"])
@pytest.mark.parametrize("value", [5, True, [], {}, "\0", "a\ud800"])
def test_what_decides_the_money_is_text_that_can_be_stored_or_refused(field, value):
    with pytest.raises(NotAReward) as refusal:
        read(json.dumps(EXAMPLE | {field: value}).encode())
    assert refusal.value.field == field


@pytest.mark.parametrize("field", ["rewardType", "code"])
@pytest.mark.parametrize("value", [None, ""])
def test_what_decides_the_money_may_be_left_empty(field, value):
    reward = read(body(**{field: value}))
    assert (reward.code if field == "code" else reward.reward_type) is None


@pytest.mark.parametrize(
    ("details", "currency"),
    [
        (ABSENT, "POINTS"),
        (None, "POINTS"),
        ({}, "POINTS"),
        ({"currency": None}, "POINTS"),
        ({"currency": ""}, "POINTS"),
        ({"currency": "USD"}, "USD"),
        ({"currency": "usd"}, "USD"),
        ({"currency": "NOBODYS_2"}, "NOBODYS_2"),
    ],
)
def test_the_amount_is_in_the_currency_of_the_details_or_in_the_default(details, currency):
    assert read(body(details=details)).currency == currency


@pytest.mark.parametrize(
    "value", [5, True, ["USD"], "US D", " USD", "USD\n", "2USD", "\u0131", "A" * 21, "\0", "-"]
)
def test_a_currency_that_cannot_be_one_is_refused(value):
    with pytest.raises(NotAReward) as refusal:
        read(body(details={"currency": value}))
    assert refusal.value.field == "details.currency"


@pytest.mark.parametrize("details", ["USD", 5, True, [], ["USD"]])
def test_details_that_are_no_object_are_refused(details):
    with pytest.raises(NotAReward) as refusal:
        read(body(details=details))
    assert refusal.value.field == "details"


@pytest.mark.parametrize(
    ("changed", "currency"),
    [
        ({"rewardType": "noReward"}, None),
        ({"rewardAmount": 0}, None),
        ({"rewardAmount": ABSENT}, None),
        ({"rewardAmount": None}, None),
        ({"rewardType": "noreward"}, "USD"),
        ({"rewardType": "never heard of"}, "USD"),
    ],
)
def test_a_reward_has_a_currency_if_and_only_if_something_is_posted(changed, currency):
    reward = read(body(**changed))
    assert reward.currency == currency
    assert (reward.posting() is None) == (currency is None)


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("type", "type"),
        ("rewardName", "reward_name"),
        ("status", "status"),
        ("transactionId", "transaction_id"),
        ("body", "body"),
        ("webhookType", "webhook_type"),
    ],
)
def test_what_is_only_shown_never_stops_a_reward(field, column):
    def shown(value: object) -> Any:
        reward = read(json.dumps(EXAMPLE | {field: value}).encode())
        assert reward.reward_amount == 400
        return getattr(reward, column)

    for value in (None, 5, True, [], {}, ["a"]):
        assert shown(value) is None
    assert shown("") == ""
    assert shown("a\0b\ud800c") == "a\ufffdb\ufffdc"
    assert shown("\u00e9\n\x7f\U0001f600") == "\u00e9\n\x7f\U0001f600"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1724913123, datetime(2024, 8, 29, 6, 32, 3, tzinfo=UTC)),
        (1724913123.9, datetime(2024, 8, 29, 6, 32, 3, tzinfo=UTC)),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (253_402_300_800, None),
        (-1, None),
        (-0.5, None),
        (10**400, None),
        ("1724913123", None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_an_expiry_is_read_when_it_is_a_time(value, expected):
    assert (
        read(json.dumps(EXAMPLE | {"rewardExpiry": value}).encode()).reward_expires_at == expected
    )


@pytest.mark.parametrize("literal", ["1e999999999", "1e99999999999999999999", "1" * 60_000])
def test_a_number_bomb_outside_the_amount_harms_nobody(literal):
    text = body(rewardExpiry="N", details={"n": "N"}, tnc=["N"]).replace(b'"N"', literal.encode())
    reward = read(text)
    assert reward.reward_expires_at is None
    for kept in (reward.details, reward.tnc):
        assert kept is not None
        assert len(kept) <= len(text)
        assert json.loads(kept, parse_int=len, parse_float=len)


@pytest.mark.parametrize("tnc", ["one", 5, {"a": 1}, True, None])
def test_terms_that_are_no_list_are_left_out(tnc):
    assert read(body(tnc=tnc)).tnc is None


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ({"a": "\0"}, {"a": "\ufffd"}),
        ({"a\0": 1}, {"a\ufffd": 1}),
        ({"a": "\ud800"}, {"a": "\ufffd"}),
        ({"\udfff": {"b": ["\0", "\ud83d"]}}, {"\ufffd": {"b": ["\ufffd", "\ufffd"]}}),
        ({"a": "\\u0000"}, {"a": "\\u0000"}),
        ({"a": "\U0001f600"}, {"a": "\U0001f600"}),
    ],
)
def test_details_and_terms_are_kept_as_json_that_postgres_can_hold(details, kept):
    reward = read(json.dumps(EXAMPLE | {"details": details, "tnc": [details]}).encode())
    assert reward.details is not None
    assert reward.tnc is not None
    assert json.loads(reward.details) == kept
    assert json.loads(reward.tnc) == [kept]
    assert "\\u0000" not in reward.details.replace("\\\\u0000", "")


def test_numbers_in_the_details_keep_their_digits():
    text = body(details={"a": "N"}).replace(b'"N"', b"12345678901234567890.10")
    assert read(text).details == '{"a":12345678901234567890.10}'


def test_a_nudge_is_not_a_reward():
    assert read_reward(b'{"webhookType":"nudge"}', Mapping()) is None


@pytest.mark.parametrize("value", ["reward", "Nudge", "", None, 5, ["nudge"], {"nudge": 1}])
def test_only_a_nudge_is_a_nudge(value):
    assert read(body(webhookType=value))


@pytest.mark.parametrize("text", [b"[1,2]", b'"x"', b"1", b"null", b"true", b"[]"])
def test_json_that_is_no_object_is_not_a_reward(text):
    with pytest.raises(NotAReward) as refusal:
        read(text)
    assert refusal.value.field == ""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        body()[:-1],
        body() + b"}",
        body() + b"{}",
        b"\xef\xbb\xbf" + body(),
        b"\xff",
        body(rewardName="N").replace(b"N", b"\xff"),
        body(rewardName="N").replace(b"N", b"\xed\xa0\x80"),
        body(rewardName="N").replace(b'"N"', b'"\0"'),
        body(rewardName="N").replace(b'"N"', b"NaN"),
        body(rewardName="N").replace(b'"N"', b"Infinity"),
        body(rewardName="N").replace(b'"N"', b"-Infinity"),
        body(rewardName="N").replace(b'"N"', b"01"),
        body(rewardName="N").replace(b'"N"', b"'N'"),
        b"\0" + body(),
        body().decode().encode("utf-16"),
        b"[" * 60_000,
        b"[" * 30_000 + b"]" * 30_000,
        b'{"a":' * 10_000,
        body(details={"a": "N"}).replace(b'"N"', b"[" * 30_000 + b"]" * 30_000),
    ],
)
def test_what_is_not_json_is_refused(text):
    with pytest.raises(NotJson) as refusal:
        read(text)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("leaf", ["1", '"\\u0000"', '"\\ud800"', '"["', '{"a":1,"b":1.50}'])
@pytest.mark.parametrize("bracket", ["[]", '{"a":}'])
def test_nesting_is_read_up_to_its_bound_and_no_further(leaf, bracket):
    before, after = bracket[:-1], bracket[-1]

    def nested(depth: int) -> bytes:
        text = before * depth + leaf + after * depth
        return body(details={"a": "N"}).replace(b'"N"', text.encode())

    # The reward and its details are two levels, and one leaf is another.
    room = DEPTH_MAX - 2 - leaf.count("{")
    assert read(nested(room)).details is not None
    for depth in (room + 1, 500, 990, 5000):
        with pytest.raises(NotJson):
            read(nested(depth))


@pytest.mark.parametrize(
    "text",
    [
        b'{"rewardAmount":1,' + body()[1:],
        body()[:-1] + b',"rewardId":"' + str(EXAMPLE["rewardId"]).encode() + b'"}',
        body()[:-1] + b',"reward\\u0049d":"another"}',
        body()[:-1] + b',"x":{"a":1,"a":1}}',
        body()[:-1] + b',"x":[{"a":1,"a":2}]}',
    ],
)
def test_a_key_that_stands_twice_anywhere_is_refused(text):
    with pytest.raises(NotAReward):
        read(text)


def test_both_ways_of_reading_see_the_same():
    """A text that can be written again from its value takes a shorter way: same value, or refusal.

    The same text with a space in front takes the longer way.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    leaves = [
        "1",
        "-1",
        "0",
        "-0",
        "1.0",
        "1.50",
        "0.1",
        "1e5",
        "1E+5",
        "1E+400",
        "1e999999999999999999999",
    ]
    leaves += [
        str(2**63),
        str(-(2**63)),
        str(2**64 - 1),
        str(2**64),
        "1" * 40,
        "true",
        "null",
        "NaN",
    ]
    leaves += [
        '"a"',
        '""',
        '"\\u0000"',
        '"\\ud800"',
        '"\u00e9"',
        '"\\u00e9"',
        '"\\/"',
        '"\x7f"',
        '"\\n"',
    ]

    def text(depth: int) -> str:
        kind = generator.random()
        if depth == 0 or kind < 0.5:
            return generator.choice(leaves)
        if kind < 0.7:
            return "[" + ",".join(text(depth - 1) for _ in range(generator.randrange(3))) + "]"
        members = [
            f'"{generator.choice("abcd")}":{text(depth - 1)}' for _ in range(generator.randrange(4))
        ]
        return "{" + ",".join(members) + "}"

    def seen(raw: bytes) -> str:
        try:
            # An int and a Decimal of the same number are the same to what reads them.
            return repr(parse(raw)).replace("Decimal('", "").replace("')", "")
        except (NotJson, NotAReward) as refusal:
            return repr(refusal)

    for _ in range(5_000):
        raw = text(3).encode()
        assert seen(raw) == seen(b" " + raw), raw
