"""Nobody speaks for another, and who is not known is nobody."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.peers import HOPS_MAX, TEXT_SIZE_MAX, TEXTS_MAX, Speaker, read_peer_policy
from ledger.config import InvalidSetting

SENDER = "20.207.108.216"
STRANGER = "203.0.113.7"
PROXY = "10.0.0.1"
BEHIND_PROXIES = {
    "INGRESS_ADDRESSES": "enforce",
    "INGRESS_TRUSTED_PROXIES": "10.0.0.0/8, 2001:db8::/32",
}
POLICY = read_peer_policy(BEHIND_PROXIES)


def spoken(address: str, *, is_allowed: bool = False) -> Speaker:
    return Speaker(ip_address(address), is_allowed=is_allowed)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "speaker"),
    [
        (SENDER, None, spoken(SENDER, is_allowed=True)),
        (STRANGER, None, spoken(STRANGER)),
        (STRANGER, SENDER, spoken(STRANGER)),
        (SENDER, STRANGER, spoken(SENDER, is_allowed=True)),
        # A proxy speaks for whom it names, and for itself when it names nobody.
        (PROXY, SENDER, spoken(SENDER, is_allowed=True)),
        (PROXY, None, spoken(PROXY)),
        (PROXY, "", spoken(PROXY)),
        # What stands left of the first address that is no proxy was written by that address.
        (PROXY, f"{SENDER}, {STRANGER}", spoken(STRANGER)),
        (PROXY, f"{SENDER},{STRANGER}, 10.9.9.9", spoken(STRANGER)),
        (PROXY, f"{STRANGER}, {SENDER}\t,  10.9.9.9", spoken(SENDER, is_allowed=True)),
        (PROXY, "10.1.1.1, 10.9.9.9", spoken("10.1.1.1")),
        ("2001:db8::1", "10.1.1.1, 2001:db8::2", spoken("10.1.1.1")),
        ("2001:db9::1", SENDER, spoken("2001:db9::1")),
        # An address has many spellings.
        ("::ffff:20.207.108.216", None, spoken(SENDER, is_allowed=True)),
        ("::FFFF:14CF:6CD8", None, spoken(SENDER, is_allowed=True)),
        ("::ffff:10.0.0.1", SENDER, spoken(SENDER, is_allowed=True)),
        (PROXY, "20.207.108.216:5678", spoken(SENDER, is_allowed=True)),
        (PROXY, "[::ffff:20.207.108.216]:5678", spoken(SENDER, is_allowed=True)),
        (PROXY, "[2001:DB9:0::1]:80", spoken("2001:db9::1")),
        (PROXY, "[2001:db9::1]", spoken("2001:db9::1")),
        (PROXY, "2001:db9::1:80", spoken("2001:db9::1:80")),
        (PROXY, "fe80::1%eth0", spoken("fe80::1")),
    ],
)
def test_the_speaker_is_the_nearest_hop_that_is_no_proxy_of_ours(peer, forwarded_for, speaker):
    assert POLICY.speaker(peer, forwarded_for) == speaker
    assert POLICY.refuses(speaker) is not speaker.is_allowed


GARBAGE = [
    "",
    " ",
    "unknown",
    "_hidden",
    "localhost",
    "1.2.3",
    "1.2.3.4.5",
    "1.2.3.256",
    "01.2.3.4",
    "1.2.3.4:",
    "1.2.3.4:port",
    "1.2.3.4:123456",
    "1.2.3.4:80:80",
    "1.2.3.4\n",
    "1.2.3.4/32",
    "1.2.3.4;5.6.7.8",
    "for=1.2.3.4",
    '"1.2.3.4"',
    "[::1",
    "::1]",
    "[::1]80",
    "[]",
    "[::1]:",
    "0x7f000001",
    "16909060",
    "\N{FULLWIDTH DIGIT ONE}.2.3.4",
    "\0",
    "1" * 10_000,
]


@pytest.mark.parametrize("text", GARBAGE)
def test_what_is_no_address_is_nobody_and_is_refused(text):
    nobody = Speaker(None, is_allowed=False)
    assert POLICY.speaker(text, SENDER) == nobody
    assert POLICY.speaker(PROXY, f"{SENDER},{text}") == nobody
    assert POLICY.refuses(nobody)


def test_a_peer_that_is_not_known_is_nobody_whatever_it_claims():
    assert POLICY.speaker(None, SENDER) == Speaker(None, is_allowed=False)


def test_nobody_is_looked_for_beyond_the_bound():
    for hops, address in ((HOPS_MAX - 1, ip_address(SENDER)), (HOPS_MAX, None)):
        for before in ([], [STRANGER]):
            chain = ",".join([*before, SENDER, *[PROXY] * hops])
            assert POLICY.speaker(PROXY, chain).address == address


def test_what_is_remembered_is_bounded():
    policy = read_peer_policy(BEHIND_PROXIES)
    policy.speaker("x" * (TEXT_SIZE_MAX + 1), None)
    assert policy._remembered.cache_info().currsize == 0
    for number in range(TEXTS_MAX + 100):
        policy.speaker(str(IPv4Address(number)), None)
    assert policy._remembered.cache_info().currsize == TEXTS_MAX


ADDRESSES = st.ip_addresses().map(str)
CLAIMS = st.lists(
    st.one_of(ADDRESSES, st.sampled_from([SENDER, PROXY, "2001:db8::1"]), st.text(max_size=20))
).map(",".join)


@given(peer=st.one_of(st.none(), st.text(), ADDRESSES), claims=CLAIMS)
def test_no_header_of_a_peer_that_is_no_proxy_changes_who_it_is(peer, claims):
    alone = POLICY.speaker(peer, None)
    named = alone.address is None or not POLICY._hop(str(alone.address)).is_proxy
    assert POLICY.speaker(peer, claims) == alone or not named


@given(claims=CLAIMS, proxies=st.lists(st.just("10.2.3.4"), max_size=HOPS_MAX - 2))
def test_what_a_speaker_writes_before_its_own_address_changes_nothing(claims, proxies):
    header = ", ".join([claims, STRANGER, *proxies])
    assert POLICY.speaker(PROXY, header) == spoken(STRANGER)


@given(peer=st.one_of(st.none(), st.text(), st.just(PROXY)), claims=st.one_of(st.text(), CLAIMS))
def test_nothing_that_is_claimed_raises(peer, claims):
    address, is_allowed = POLICY.speaker(peer, claims)
    assert address is None or isinstance(address, IPv4Address | IPv6Address)
    assert is_allowed is (str(address) == SENDER)


def test_only_the_published_address_is_allowed_and_no_proxy_believed_unless_said():
    policy = read_peer_policy({})
    assert policy.speaker(SENDER, None).is_allowed
    assert policy.speaker("127.0.0.1", SENDER) == spoken("127.0.0.1")


@pytest.mark.parametrize(("mode", "refuses"), [("off", 0), ("observe", 0), ("", 0), ("enforce", 1)])
def test_only_enforcing_refuses(mode, refuses):
    policy = read_peer_policy({"INGRESS_ADDRESSES": mode})
    assert policy.refuses(policy.speaker(STRANGER, None)) is bool(refuses)
    assert policy.refuses(policy.speaker(None, None)) is bool(refuses)
    assert not policy.refuses(policy.speaker(SENDER, None))


@pytest.mark.parametrize(
    ("allowed", "address", "is_allowed"),
    [
        ("203.0.113.0/24", STRANGER, True),
        ("203.0.113.0/24", SENDER, False),
        (f"{SENDER} , 203.0.113.7", STRANGER, True),
        ("2001:db9::/64", "2001:db9::ffff", True),
        ("2001:db9::/64", "2001:db9:0:1::", False),
        ("::ffff:203.0.113.0/120", STRANGER, True),
        ("::/0", STRANGER, False),
    ],
)
def test_the_allowed_networks_are_those_of_the_setting(allowed, address, is_allowed):
    policy = read_peer_policy({"INGRESS_ADDRESSES_ALLOWED": allowed})
    assert policy.speaker(address, None).is_allowed is is_allowed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INGRESS_ADDRESSES", "Enforce"),
        ("INGRESS_ADDRESSES", "on"),
        *[("INGRESS_ADDRESSES_ALLOWED", bad) for bad in ("x", ",", "1.2.3.4,", "10.0.0.1/8", " ")],
        *[("INGRESS_TRUSTED_PROXIES", bad) for bad in ("nginx", "10.0.0.1/8", "::1,")],
        *[("INGRESS_TRUSTED_PROXIES", bad) for bad in ("0.0.0.0/0", "::/0", "::ffff:0:0/96")],
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name_without_its_value(name, value):
    with pytest.raises(InvalidSetting, match=name) as refusal:
        read_peer_policy({name: value})
    assert repr(value) not in str(refusal.value)
