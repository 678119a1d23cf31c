"""Who may ask, and what: the file of callers, and how each is known."""

from hashlib import sha256

import pytest

from ledger.callers import NOBODY, Callers, Scope, calling, read_callers
from ledger.config import InvalidSetting
from ledger.errors import Unauthenticated


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


FILE = f"""
[reporting]
token_sha256 = ["{digest("new")}", "{digest("old").upper()}"]
scopes = ["balances", "totals"]

[app-2]
certificate = ["app.internal", "spiffe://house/app"]
token_sha256 = "{digest("app")}"
scopes = ["codes", "history"]
"""


@pytest.fixture
def callers() -> Callers:
    return read_callers(FILE.encode())


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Bearer new", "reporting"),
        ("Bearer old", "reporting"),
        ("bearer app", "app-2"),
        ("BEARER app", "app-2"),
    ],
)
def test_a_caller_is_known_by_any_of_its_tokens(callers: Callers, value: str, name: str) -> None:
    assert callers.of_authorization(value).name == name


@pytest.mark.parametrize(
    "value",
    [
        "",
        "new",
        "Bearer",
        "Bearer ",
        "Bearer  new",
        "Bearer new ",
        "Bearer NEW",
        "Basic new",
        "Bearer new,old",
        "Bearer ÿ",
        f"Bearer {digest('new')}",
    ],
)
def test_no_other_token_is_anybodys(callers: Callers, value: str) -> None:
    with pytest.raises(Unauthenticated):
        callers.of_authorization(value)


@pytest.mark.parametrize(
    "names", [[b"app.internal"], [b"other", b"spiffe://house/app"], [b"app.internal"] * 2]
)
def test_a_caller_is_known_by_any_name_in_its_certificate(
    callers: Callers, names: list[bytes]
) -> None:
    assert callers.of_certificate(names).scopes == {Scope.CODES, Scope.HISTORY}


@pytest.mark.parametrize(
    "names", [[], [b""], [b"app"], [b"APP.INTERNAL"], [b"app.internal.example"], [b"\xff"]]
)
def test_no_other_certificate_is_anybodys(callers: Callers, names: list[bytes]) -> None:
    with pytest.raises(Unauthenticated):
        callers.of_certificate(names)


def test_a_certificate_with_the_names_of_two_callers_is_nobodys() -> None:
    callers = read_callers(
        b'[a]\ncertificate = "a"\nscopes = ["totals"]\n'
        b'[b]\ncertificate = "b"\nscopes = ["totals"]\n'
    )
    assert callers.of_certificate([b"b"]).name == "b"
    with pytest.raises(Unauthenticated):
        callers.of_certificate([b"a", b"b"])


def test_outside_of_a_call_nothing_may_be_seen() -> None:
    assert calling.get() == NOBODY
    assert not NOBODY.scopes


KNOWN = f'token_sha256 = "{digest("t")}"\n'
SECRET = "tell-nobody"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "names no caller"),
        ("# nobody", "names no caller"),
        (f"[a]\n{SECRET}\n", "is not TOML in UTF-8: look at line 2"),
        (f"[a\n{SECRET}", "is not TOML in UTF-8: look at line 1"),
        (f'[a]\nscopes = ["{SECRET}', "is not TOML in UTF-8: look at"),
        ("[a]\n" + "x = " + "[" * 10000, "is not TOML in UTF-8: look at its end"),
        (f'{SECRET} = "x"', "caller 1 of the file is not a table"),
        (f'[a]\n{KNOWN}scopes = ["totals"]\n[b]\n{SECRET} = 1', "caller 2 of the file has 1 keys"),
        (f'["{SECRET} "]\n{KNOWN}scopes = ["totals"]', "caller 1 of the file has a name"),
        (f'["{SECRET * 9}"]\n{KNOWN}scopes = ["totals"]', "caller 1 of the file has a name"),
        (f"[a]\n{KNOWN}", "caller 1 of the file has scopes other than balances, history"),
        (f"[a]\n{KNOWN}scopes = []", "caller 1 of the file has scopes other than"),
        (f'[a]\n{KNOWN}scopes = ["{SECRET}"]', "caller 1 of the file has scopes other than"),
        (f'[a]\n{KNOWN}scopes = ["totals", "Codes"]', "caller 1 of the file has scopes other than"),
        (f"[a]\n{KNOWN}scopes = [1]", "caller 1 of the file has a scopes that is not a text"),
        ('[a]\nscopes = ["totals"]', "caller 1 of the file has neither"),
        (f'[a]\ntoken_sha256 = "{SECRET}"\nscopes = ["totals"]', "64 hexadecimal digits"),
        (f'[a]\ntoken_sha256 = "{"é" * 64}"\nscopes = ["totals"]', "64 hexadecimal digits"),
        ('[a]\ntoken_sha256 = [""]\nscopes = ["totals"]', "token_sha256 that is not a text"),
        ('[a]\ncertificate = ""\nscopes = ["totals"]', "certificate that is not a text"),
        (
            f'[a]\n{KNOWN}scopes = ["totals"]\n[b]\n{KNOWN}scopes = ["codes"]',
            "caller 2 of the file has the token of another",
        ),
        (
            "".join(f'[{name}]\ncertificate = "c"\nscopes = ["totals"]\n' for name in "ab"),
            "caller 2 of the file has the certificate of another",
        ),
    ],
)
def test_a_bad_file_is_refused_without_a_word_of_it(content: str, reason: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_callers(content.encode())
    assert caught.value.name == "LEDGER_CALLERS"
    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)
    assert digest("t") not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_what_is_not_text_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(InvalidSetting, match="is not TOML in UTF-8") as caught:
        read_callers(b"[\xff" + SECRET.encode())
    assert caught.value.__context__ is None
