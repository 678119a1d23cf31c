"""Where a value of a reward comes from: how a path is spelled, what can be a constant."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.source import EXPIRY_MAX, BodyPath, Constant


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("rewardId", ["rewardId"]),
        ("details.currency", ["details", "currency"]),
        ("a.b.c.d", ["a", "b", "c", "d"]),
        ('details."price.currency"', ["details", "price.currency"]),
        ('"a.b"."c.d"', ["a.b", "c.d"]),
        ('"plain".key', ["plain", "key"]),
        ('"a b"', ["a b"]),
        ('"a\\"b\\\\c"', ['a"b\\c']),
        ('"items[0]"', ["items[0]"]),
        ('""', [""]),
        ("$user-id_1.\u00e9", ["$user-id_1", "\u00e9"]),
        ("items.0.id", ["items", "0", "id"]),
    ],
)
def test_a_path_is_keys_joined_by_dots_and_quoted_where_they_hold_one(text, keys):
    assert BodyPath.read(text).keys == tuple(keys)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        " a",
        "a\n",
        '"a',
        'a"',
        '"a"b',
        'a."b',
        "'a.b'",
        "a\\.b",
        "a[0]",
        '"\\x"',
        '"\n"',
    ],
)
def test_what_could_be_meant_in_two_ways_is_no_path(text):
    with pytest.raises(ValueError, match="must be keys joined by dots"):
        BodyPath.read(text)


@given(st.lists(st.text(st.characters()), min_size=1).map(tuple))
def test_every_path_can_be_spelled_and_its_spelling_can_be_shown(keys):
    spelled = str(BodyPath(keys))
    assert BodyPath.read(spelled).keys == keys
    assert spelled.isprintable()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "direct"),
        ("code", ""),
        ("reward_type", "points"),
        ("campaign_id", "c" * 200),
        ("reward_amount", 5),
        ("reward_amount", Decimal("12.50")),
        ("reward_amount", 0),
        ("currency", "USD"),
        ("reward_expires_at", 0),
        ("reward_expires_at", -1),
        ("reward_expires_at", EXPIRY_MAX),
        ("details", {"source": "shop"}),
        ("tnc", ["one", "two"]),
        ("webhook_type", "reward"),
    ],
)
def test_a_constant_of_the_type_of_its_field_is_taken(field, value):
    assert Constant.read(field, value) == Constant(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", 5),
        ("body", True),
        ("status", "a\0"),
        ("reward_type", ["points"]),
        ("campaign_id", ""),
        ("campaign_id", "c" * 201),
        ("campaign_id", "c\0"),
        ("campaign_id", 5),
        ("reward_amount", "5"),
        ("reward_amount", -5),
        ("reward_amount", True),
        ("reward_amount", Decimal("NaN")),
        ("reward_amount", Decimal("Infinity")),
        ("reward_amount", 10**30),
        ("currency", "usd"),
        ("currency", ""),
        ("currency", 5),
        ("reward_expires_at", -2),
        ("reward_expires_at", EXPIRY_MAX + 1),
        ("reward_expires_at", True),
        ("reward_expires_at", Decimal("0.5")),
        ("details", {"value": 5}),
        ("details", []),
        ("tnc", [5]),
        ("tnc", "one"),
        ("webhook_type", "nudge"),
        ("webhook_type", 5),
    ],
)
def test_a_constant_that_no_reward_could_hold_is_refused(field, value):
    with pytest.raises(ValueError, match="must be"):
        Constant.read(field, value)


@pytest.mark.parametrize("field", ["reward_id", "user_id", "transaction_id"])
def test_what_tells_rewards_apart_cannot_be_a_constant(field):
    with pytest.raises(ValueError, match="must come from the body"):
        Constant.read(field, "always the same")
