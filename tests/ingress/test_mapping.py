"""A mapping says where in a body each part of a reward is found."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ingress
from ingress.errors import NotAReward, NotJson
from ingress.mapping import FIELDS, VENDOR, Mapping, read_mapping
from ingress.payload import read_reward
from ingress.source import BodyPath, Constant
from ledger.posting import Posting
from ledger.reward import Reward

EXAMPLE_FILE = Path(ingress.__file__).with_name("mapping.toml")

RESHAPED = """
amount_strings = true

[fields]
reward_id = "event.id"
user_id = 'event."user.id"'
campaign_id = { constant = "the only one" }
type = "kind"
reward_amount = "event.prize.value"
currency = "event.prize.unit"
reward_expires_at = { constant = -1 }
details = "event.extra"
tnc = { constant = ["as agreed"] }

[default_currency]
general = "EUR"
reward_type.coins = "COINS"

[default_currency.campaign]
"the other one" = "USD"
"""


def mapping_of(text: str, directory: Path, **environment: str) -> Mapping:
    file = directory / "mapping.toml"
    file.write_bytes(text.encode())
    return read_mapping({"INGRESS_MAPPING": str(file), **environment})


def reward_of(body: object, mapping: Mapping) -> Reward:
    reward = read_reward(json.dumps(body).encode(), mapping)
    assert reward is not None
    return reward


def test_without_a_file_the_names_are_the_ones_of_the_vendor():
    assert read_mapping({}) == read_mapping({"INGRESS_MAPPING": ""}) == Mapping()
    assert Mapping().sources is VENDOR
    assert tuple(VENDOR) == FIELDS
    assert read_mapping({"INGRESS_DEFAULT_CURRENCY": "USD"}) == Mapping(default_currency="USD")


@pytest.mark.parametrize("currency", ["", "POINTS", "USD"])
def test_the_example_file_is_exactly_the_default(currency):
    environment = {"INGRESS_DEFAULT_CURRENCY": currency}
    with_file = read_mapping(environment | {"INGRESS_MAPPING": str(EXAMPLE_FILE)})
    assert with_file == read_mapping(environment)


def test_the_example_file_names_every_field_and_its_comments_can_be_used(tmp_path):
    text = EXAMPLE_FILE.read_text()
    for name, source in VENDOR.items():
        assert f'{name} = "{source}"\n' in text
    used = mapping_of(text.replace("\n# general", "\ngeneral").replace('\n# "', '\n"'), tmp_path)
    assert used.default_currency == "POINTS"
    assert set(used.default_currency_by_campaign.values()) == {"USD"}


def test_a_file_changes_only_what_it_says(tmp_path):
    changed = mapping_of('[fields]\nuser_id = "user.id"\n', tmp_path)
    assert changed == Mapping(sources={**VENDOR, "user_id": BodyPath(("user", "id"))})
    assert mapping_of("", tmp_path) == Mapping()


def test_a_reshaped_body_is_booked_as_its_mapping_says(tmp_path):
    prize = {"value": "12.50", "unit": "usd"}
    event = {"id": "r", "user.id": "u", "prize": prize, "extra": {"a": 1}}
    body = {"kind": "direct", "event": event, "rewardId": "x", "details": {"rewardCategory": "RM"}}
    reward = reward_of(body, mapping_of(RESHAPED, tmp_path))
    nothing = dict.fromkeys(Reward._fields)
    assert reward._asdict() == nothing | {
        "reward_id": "r",
        "user_id": "u",
        "campaign_id": "the only one",
        "type": "direct",
        "reward_amount": Decimal("12.5"),
        "currency": "USD",
        "reward_category": "RM",
        "details": '{"a":1}',
        "tnc": '["as agreed"]',
        "believed_bytes": json.dumps(body).encode(),
    }
    assert reward.posting() == Posting("campaign:the only one", "user:u", "USD", Decimal("12.5"))


@pytest.mark.parametrize(
    ("field", "constant", "kept"),
    [
        ("campaign_id", "c", "c"),
        ("code", "", None),
        ("reward_type", "points", "points"),
        ("reward_amount", Decimal("12.50"), Decimal("12.5")),
        ("reward_amount", 400, Decimal(400)),
        ("reward_expires_at", 1724913123, datetime(2024, 8, 29, 6, 32, 3, tzinfo=UTC)),
        ("currency", "EUR", "EUR"),
        ("details", {"a": "b"}, '{"a":"b"}'),
    ],
)
def test_a_constant_is_taken_whatever_the_body_holds(field, constant, kept):
    mapping = Mapping(sources={**VENDOR, field: Constant(constant)})
    body = {"rewardId": "r", "userId": "u", "campaignId": "x", "rewardAmount": 1, "": "empty"}
    said = {"campaign_id": "campaignId", "code": "code", "reward_type": "rewardType"}
    for wrong in ({}, {said.get(field, "another"): 5}):
        assert getattr(reward_of(body | wrong, mapping), field) == kept


@pytest.mark.parametrize(
    ("campaign", "reward_type", "said", "currency"),
    [
        ("c", "coins", None, "CAMPAIGN"),
        ("c", None, "", "CAMPAIGN"),
        ("x", "coins", None, "TYPE"),
        ("x", "Coins", None, "GENERAL"),
        ("x", None, None, "GENERAL"),
        ("x", "", None, "GENERAL"),
        ("c", "coins", "usd", "USD"),
        ("c", "noReward", None, None),
    ],
)
def test_the_body_says_the_currency_or_the_campaign_or_the_type_or_the_default(
    campaign, reward_type, said, currency
):
    mapping = Mapping(
        default_currency="GENERAL",
        default_currency_by_reward_type={"coins": "TYPE"},
        default_currency_by_campaign={"c": "CAMPAIGN"},
    )
    body = {"rewardId": "r", "userId": "u", "campaignId": campaign, "rewardAmount": 1}
    body |= {"rewardType": reward_type, "details": {"currency": said}}
    assert reward_of(body, mapping).currency == currency


@pytest.mark.parametrize("amount", ["400", "0400", "12.50", "0", "-0", "0.000000000000000001"])
def test_a_string_of_digits_is_an_amount_if_the_mapping_says_so(amount):
    body = {"rewardId": "r", "userId": "u", "campaignId": "c", "rewardAmount": amount}
    assert reward_of(body, Mapping(amount_strings=True)).reward_amount == Decimal(amount)
    with pytest.raises(NotAReward) as refusal:
        reward_of(body, Mapping())
    assert refusal.value.field == "rewardAmount"


@pytest.mark.parametrize(
    "amount",
    ["", " 4", "4 0 0", "4\n", "+4", "-4", "1e3", ".5", "5.", "1,000", "1_000", "0x4", "NaN",
     "Infinity", "\u0664", "9" * 31, "9" * 60_000, True, [], {}, ["4"]],
)  # fmt: skip
def test_no_other_string_is_an_amount(amount):
    body = {"rewardId": "r", "userId": "u", "campaignId": "c", "rewardAmount": amount}
    with pytest.raises(NotAReward) as refusal:
        reward_of(body, Mapping(amount_strings=True))
    assert refusal.value.field == "rewardAmount"


@pytest.mark.parametrize(
    ("user", "field", "reason"),
    [
        ({}, 'user."the.id"', "is missing"),
        (None, 'user."the.id"', "is missing"),
        (5, "user", "is not an object"),
        ("u", "user", "is not an object"),
        (["u"], "user", "is not an object"),
        ({"the.id": None}, 'user."the.id"', "is not a string"),
        ({"the.id": {"x": "u"}}, 'user."the.id"', "is not a string"),
        ({"the.id": ""}, 'user."the.id"', "is not 1 to 200 characters long"),
    ],
)
def test_a_refusal_names_the_path_at_which_the_body_goes_wrong(user, field, reason):
    mapping = Mapping(sources={**VENDOR, "user_id": BodyPath(("user", "the.id"))})
    with pytest.raises(NotAReward) as refusal:
        reward_of({"rewardId": "r", "campaignId": "c", "user": user}, mapping)
    assert (refusal.value.field, refusal.value.reason) == (field, reason)


def test_what_is_only_shown_is_left_out_when_its_path_leads_nowhere():
    deep = BodyPath(("a", "b", "c"))
    shown = ("type", "reward_name", "reward_expires_at", "details", "tnc", "webhook_type")
    mapping = Mapping(sources={**VENDOR, **dict.fromkeys(shown, deep)})
    for a in (None, 5, "b", ["b"], {}, {"b": None}, {"b": 5}, {"b": {}}, {"b": {"c": None}}):
        body = {"rewardId": "r", "userId": "u", "campaignId": "c", "a": a}
        assert {getattr(reward_of(body, mapping), name) for name in shown} == {None}


MAPPINGS = [
    Mapping(),
    Mapping(amount_strings=True, default_currency_by_reward_type={"coins": "COINS"}),
    Mapping(sources=dict.fromkeys(FIELDS, BodyPath(("a",)))),
    Mapping(sources=dict.fromkeys(FIELDS, BodyPath(("a", "b", "a"))), amount_strings=True),
    Mapping(sources={**VENDOR, "campaign_id": Constant("c"), "user_id": BodyPath(("a", "b"))}),
]
KEYS = st.sampled_from(["a", "b", "", *(str(source) for source in VENDOR.values())])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
    | st.sampled_from(["r", "USD", "4", "-4.5", "nudge", "coins", -1, 400, 10**40, 1e300])
)  # fmt: skip
BODIES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    ),
)
WHOLE = st.fixed_dictionaries(
    {key: st.sampled_from(["r", "u"]) for key in ("rewardId", "userId", "campaignId")}
)


@given(
    st.binary() | st.builds(lambda whole, body: json.dumps(whole | body).encode(), WHOLE, BODIES),
    st.sampled_from(MAPPINGS),
)
def test_any_body_is_a_reward_or_a_nudge_or_is_refused_under_any_mapping(text, mapping):
    try:
        reward = read_reward(text, mapping)
    except (NotJson, NotAReward):
        return
    if reward is not None:
        assert reward.believed_bytes == text
        assert len(reward.fingerprint()) == 32
        assert all(0 < len(identifier) <= 200 for identifier in reward[:3])
        assert (reward.posting() is None) == (reward.currency is None)
        "".join(value for value in reward if isinstance(value, str)).encode()


def test_two_mappings_have_one_digest_when_they_read_alike_and_else_not(tmp_path: Path) -> None:
    def digest(text: str, **environment: str) -> str:
        return mapping_of(text, tmp_path, **environment).digest

    assert digest("") == digest("# Nothing is said.") == Mapping().digest
    assert digest('[fields]\nuser_id = "userId"') == Mapping().digest
    assert digest('[default_currency]\ngeneral = "USD"') == digest(
        "", INGRESS_DEFAULT_CURRENCY="USD"
    )
    assert digest('fields.tnc = "a"\nfields.body = "b"') == digest(
        'fields.body = "b"\nfields.tnc = "a"'
    )
    different = [
        "",
        RESHAPED,
        "amount_strings = true",
        'fields.user_id = "user"',
        'fields.user_id = "user.id"',
        "fields.user_id = '\"user.id\"'",
        'fields.body = { constant = "body" }',
        "fields.reward_amount = { constant = 1 }",
        "fields.reward_amount = { constant = 1.5 }",
        'default_currency.general = "USD"',
        'default_currency.reward_type.USD = "USD"',
        'default_currency.campaign.USD = "USD"',
    ]
    assert len({digest(text) for text in different}) == len(different)
