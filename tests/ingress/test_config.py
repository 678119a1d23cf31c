"""The settings: closed by default, read once, and no secret in a complaint."""

import ast
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import ingress
from ingress.config import (
    ListenSettings,
    read_listen_settings,
    read_settings,
)
from ingress.mapping import Mapping
from ingress.signature import Token
from ingress.tokens import UNSIGNED_ALLOWED
from ledger.config import InvalidSetting

SECRET = "s3cret"
ENOUGH = {"DATABASE_URL": f"postgresql://writer:{SECRET}@db/ledger", "INGRESS_TOKEN": SECRET}
PREVIOUS = {
    "INGRESS_TOKEN_PREVIOUS": "older " + SECRET,
    "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": "2026-12-31T00:00:00Z",
}


def test_a_token_and_a_database_are_enough():
    settings = read_settings(ENOUGH)
    assert settings.tokens.current() == (Token("current", SECRET.encode()),)
    assert settings.database_url == ENOUGH["DATABASE_URL"]
    assert settings.mapping == Mapping()
    assert settings.body_size_max_bytes == 65536
    assert settings.peers.mode == "observe"
    assert read_listen_settings({}) == ListenSettings("127.0.0.1:8080", 1)


def test_what_is_set_is_obeyed():
    environment = {
        "INGRESS_DEFAULT_CURRENCY": "COINS",
        "INGRESS_BODY_SIZE_MAX_BYTES": "2048",
        "INGRESS_BIND": "[::]:80",
        "INGRESS_WORKERS": "4",
    }
    settings = read_settings(ENOUGH | environment)
    assert settings.mapping.default_currency == "COINS"
    assert settings.body_size_max_bytes == 2048
    assert read_listen_settings(environment) == ListenSettings("[::]:80", 4)


def test_a_setting_that_is_empty_is_not_set():
    empty = {
        "INGRESS_TOKEN_PREVIOUS": "",
        "INGRESS_ALLOW_UNSIGNED": "",
        "INGRESS_DEFAULT_CURRENCY": "",
        "INGRESS_BODY_SIZE_MAX_BYTES": "",
    }
    settings, same = read_settings(ENOUGH | empty), read_settings(ENOUGH)
    assert settings.tokens.current() == same.tokens.current()
    assert (settings.mapping, settings.body_size_max_bytes) == (Mapping(), 65536)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"INGRESS_TOKEN": ""}, "INGRESS_TOKEN"),
        ({"INGRESS_TOKEN": ""} | PREVIOUS, "INGRESS_TOKEN"),
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": f"postgresql://writer:{SECRET}%zz@db"}, "DATABASE_URL"),
        ({"DATABASE_URL": SECRET}, "DATABASE_URL"),
        ({"INGRESS_TOKEN_PREVIOUS": SECRET}, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER"),
        *(
            (PREVIOUS | {"INGRESS_TOKEN_PREVIOUS_NOT_AFTER": value}, name)
            for name in ["INGRESS_TOKEN_PREVIOUS_NOT_AFTER"]
            for value in ["", "soon", "2026-12-31", "2026-12-31T00:00:00", "1767139200", "9999"]
        ),
        *(
            ({"INGRESS_ALLOW_UNSIGNED": value, "INGRESS_TOKEN": token}, "INGRESS_ALLOW_UNSIGNED")
            for value in ["1", "true", "yes", UNSIGNED_ALLOWED.upper(), UNSIGNED_ALLOWED + " "]
            for token in ["", SECRET]
        ),
        ({"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED}, "INGRESS_ALLOW_UNSIGNED"),
        (
            PREVIOUS | {"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED, "INGRESS_TOKEN": ""},
            "INGRESS_ALLOW_UNSIGNED",
        ),
        *(
            ({"INGRESS_DEFAULT_CURRENCY": value}, "INGRESS_DEFAULT_CURRENCY")
            for value in ["usd", "US D", "$", "A" * 21, "USD\n"]
        ),
        *(
            ({"INGRESS_BODY_SIZE_MAX_BYTES": value}, "INGRESS_BODY_SIZE_MAX_BYTES")
            for value in ["0", "1023", "16777217", "-1", "64k", "1e4", "\u0661\u0662", "9" * 5000]
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name_alone(changed, name):
    with pytest.raises(InvalidSetting) as refusal:
        read_settings(ENOUGH | changed)
    assert refusal.value.name == name
    assert "\n" not in str(refusal.value)
    assert SECRET not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("INGRESS_WORKERS", ["0", "65", "-1", "two", "1.5", " 1"]),
        ("INGRESS_BIND", ["8080", ":8080", "localhost", "localhost:", "localhost:65536", "h:x"]),
    ],
)
def test_a_way_to_listen_that_cannot_be_used_is_refused(name, values):
    for value in values:
        with pytest.raises(InvalidSetting) as refusal:
            read_listen_settings({name: value})
        assert refusal.value.name == name


def test_unsigned_deliveries_are_allowed_in_so_many_words_only():
    allowed = {"DATABASE_URL": "dbname=ledger", "INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED}
    assert read_settings(allowed).tokens.current() == ()


@pytest.mark.parametrize("bound", ["1024", "1048576"])
def test_a_body_limit_may_be_at_its_bounds(bound):
    environment = ENOUGH | {"INGRESS_BODY_SIZE_MAX_BYTES": bound}
    assert read_settings(environment).body_size_max_bytes == int(bound)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-12-31T00:00:00Z", datetime(2026, 12, 31, tzinfo=UTC)),
        (
            "2026-12-31T05:30:00+05:30",
            datetime(2026, 12, 31, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        ),
    ],
)
def test_the_previous_token_is_believed_until_its_end(text, moment):
    environment = ENOUGH | PREVIOUS | {"INGRESS_TOKEN_PREVIOUS_NOT_AFTER": text}
    assert read_settings(environment).tokens.current() == (
        Token("current", SECRET.encode()),
        Token("previous", b"older " + SECRET.encode(), moment),
    )


def test_a_token_is_the_bytes_that_the_environment_holds():
    """Bytes that are not UTF-8 are in ``os.environ`` as lone surrogates."""
    environment = ENOUGH | PREVIOUS | {"INGRESS_TOKEN": "\u00e9\udcff"}
    environment["INGRESS_TOKEN_PREVIOUS"] = "\udcfe"
    assert [token.secret for token in read_settings(environment).tokens.current()] == [
        b"\xc3\xa9\xff",
        b"\xfe",
    ]


def test_settings_cannot_be_changed_and_do_not_follow_the_environment():
    environment = dict(ENOUGH)
    settings = read_settings(environment)
    environment["INGRESS_TOKEN"] = "another"
    assert settings.tokens.current() == (Token("current", SECRET.encode()),)
    with pytest.raises(FrozenInstanceError):
        settings.mapping = Mapping()  # type: ignore[misc]


def test_no_secret_shows_in_a_repr():
    assert SECRET not in repr(read_settings(ENOUGH | PREVIOUS))


@pytest.mark.parametrize(
    "module", ["app", "canonical", "payload", "receiving", "signature", "webhook"]
)
def test_what_config_has_read_nobody_reads_again(module):
    text = (Path(ingress.__file__).parent / f"{module}.py").read_text()
    names = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert not names & {"environ", "environb", "getenv"}
