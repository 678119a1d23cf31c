"""A delivery is believed if and only if a usable token signed a text of it."""

import ast
import hashlib
import hmac
import inspect
import json
from datetime import UTC, datetime, timedelta

import pytest

from ingress import signature
from ingress.errors import NotBelieved
from ingress.signature import Believed, Form, Token, believe

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CURRENT = Token("current", b"PbTJp694bmgrfJpJPQmrjGfjgq")
PREVIOUS = Token("previous", b"the one before", not_after=NOW)
TOKENS = [CURRENT, PREVIOUS]

BODY = (
    b'{"campaignId":"6bab1116-ae8e-4644-9cee-7a3d8ee9aff3","type":"direct",'
    b'"userId":"test-8-june-9","rewardId":"acdc71c6-08ad-4cd9-8c1e-3c812487b854",'
    b'"rewardName":"$15","rewardAmount":15,"details":{"currency":"USD","value":15,'
    b'"reward_reason":"got_referred","userAName":"Test Solve 7","userAId":"test-8-june-7"}}'
)
SIGNATURE = "f2719895b483fbf3f98e1936bc88271cbe74f138"


def signed(text: bytes, token: Token = CURRENT, method: str = "sha1") -> str:
    return hmac.new(token.secret, text, method).hexdigest()


def test_the_published_example_of_the_vendor_is_believed():
    believed = believe(BODY, SIGNATURE, [CURRENT], NOW)
    assert believed == Believed(BODY, "current", Form.RAW)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        SIGNATURE[:-1],
        SIGNATURE + "0",
        SIGNATURE.upper(),
        SIGNATURE[:-1] + "g",
        "sha1=" + SIGNATURE,
        "0x" + SIGNATURE[2:],
        " " + SIGNATURE,
        SIGNATURE + " ",
        SIGNATURE + "\n",
        SIGNATURE[:20] + " " + SIGNATURE[20:],
        SIGNATURE[:39] + "\N{FULLWIDTH DIGIT EIGHT}",
        SIGNATURE[:39] + "\u00e9",
        SIGNATURE[:39] + "\0",
        SIGNATURE + "," + SIGNATURE,
        SIGNATURE + ", " + "0" * 40,
        "0" * 40 + "," + SIGNATURE,
    ],
)
def test_a_header_that_is_not_forty_lower_case_hex_digits_is_not_believed(header):
    with pytest.raises(NotBelieved):
        believe(BODY, header, TOKENS, NOW)


@pytest.mark.parametrize(
    "header",
    [
        "0" * 40,
        signed(BODY, Token("stranger", b"another secret")),
        hashlib.sha1(BODY).hexdigest(),
        hashlib.sha1(CURRENT.secret + BODY).hexdigest(),
        signed(BODY, method="sha256"),
        signed(BODY, method="sha256")[:40],
        signed(BODY, method="md5"),
        signed(BODY, method="md5") + "0" * 8,
        signed(b"{}"),
    ],
)
def test_another_digest_is_not_believed(header):
    with pytest.raises(NotBelieved):
        believe(BODY, header, TOKENS, NOW)


def test_no_byte_of_the_body_can_be_changed_dropped_or_added():
    for place in range(len(BODY)):
        before, after = BODY[:place], BODY[place + 1 :]
        for body in (before + bytes([BODY[place] ^ 1]) + after, before + after):
            with pytest.raises(NotBelieved):
                believe(body, SIGNATURE, TOKENS, NOW)
    with pytest.raises(NotBelieved):
        believe(BODY + b"0", SIGNATURE, TOKENS, NOW)


def test_no_digit_of_the_signature_can_be_changed():
    for place, digit in enumerate(SIGNATURE):
        other = "0" if digit != "0" else "1"
        with pytest.raises(NotBelieved):
            believe(BODY, SIGNATURE[:place] + other + SIGNATURE[place + 1 :], TOKENS, NOW)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (json.dumps(json.loads(BODY), indent=2).encode(), BODY),
        (b"\xef\xbb\xbf" + BODY + b"\r\n", BODY),
        (b'{"rewardAmount":400.0}', b'{"rewardAmount":400}'),
        (b'{"userId":"u","7":1}', b'{"7":1,"userId":"u"}'),
        (b'{"userId":"\\u00e9\\/"}', '{"userId":"\u00e9/"}'.encode()),
        # What is read must be what was signed: of a repeated key, the value that JavaScript saw.
        (b'{"rewardAmount":1,"rewardAmount":900}', b'{"rewardAmount":900}'),
    ],
)
@pytest.mark.parametrize("token", TOKENS)
def test_a_reformatted_body_is_believed_as_the_canonical_text_that_was_signed(body, text, token):
    believed = believe(body, signed(text, token), TOKENS, NOW)
    assert believed == Believed(text, token.name, Form.CANONICAL)


@pytest.mark.parametrize(
    "body",
    [b'{"rewardAmount":400.0}', b'{"a":1,"a":2}', b" {}", b"[1,", b"", b"\xff", b"[" * 100_000],
)
@pytest.mark.parametrize("token", TOKENS)
def test_a_body_signed_as_it_is_is_believed_as_it_is(body, token):
    believed = believe(body, signed(body, token), TOKENS, NOW)
    assert believed == Believed(body, token.name, Form.RAW)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":', b"", b"null", b"\x00", BODY, b" {}"])
def test_an_unsigned_body_is_not_believed_whatever_it_is(body):
    with pytest.raises(NotBelieved) as refusal:
        believe(body, "0" * 40, TOKENS, NOW)
    assert refusal.value.args == ("no token vouches for the body",)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("body", [BODY, b" " + BODY])
def test_a_token_is_believed_up_to_its_end_and_not_a_microsecond_longer(body):
    header = signed(BODY, PREVIOUS)
    for now in (NOW - timedelta(days=1), NOW):
        assert believe(body, header, TOKENS, now).token == "previous"
    for now in (NOW + timedelta(microseconds=1), NOW + timedelta(days=365)):
        with pytest.raises(NotBelieved):
            believe(body, header, TOKENS, now)


def test_the_end_of_one_token_does_not_end_another():
    assert believe(BODY, SIGNATURE, [PREVIOUS, CURRENT], NOW + timedelta(days=365)).token
    with pytest.raises(NotBelieved):
        believe(BODY, SIGNATURE, [], NOW)


def test_of_two_tokens_with_one_secret_the_first_is_named():
    twin = Token("previous", CURRENT.secret)
    assert believe(BODY, SIGNATURE, [CURRENT, twin], NOW).token == "current"


def test_every_usable_token_is_tried_even_after_one_has_matched():
    """Seen by a token that cannot be asked: it is met behind the token that matches."""
    broken = Token("previous", b"secret")
    object.__setattr__(broken, "_keyed", None)
    with pytest.raises(AttributeError):
        believe(BODY, SIGNATURE, [CURRENT, broken], NOW)


def test_digests_are_compared_in_constant_time_only():
    comparisons = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(inspect.getsource(signature)))
        if isinstance(node, ast.Compare)
    ]
    assert not [text for text in comparisons if "digest" in text or "signature" in text]
    assert "hmac.compare_digest(" in inspect.getsource(signature)


def test_neither_a_secret_nor_a_body_shows_in_a_repr():
    assert "PbTJ" not in repr(CURRENT)
    assert "Solve" not in repr(believe(BODY, SIGNATURE, TOKENS, NOW))


@pytest.mark.parametrize(
    ("secret", "not_after"), [(b"", None), (b"secret", NOW.replace(tzinfo=None))]
)
def test_a_token_without_a_secret_or_with_an_end_without_a_time_zone_cannot_be_made(
    secret, not_after
):
    with pytest.raises(ValueError, match="a token's"):
        Token("current", secret, not_after)
