"""`ledger caller`: a token is made, shown once, and known by its hash."""

import subprocess

import pytest

from ledger.callers import Scope, read_callers
from tests.forked import run_command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("ledger", "caller", *arguments)


def test_a_token_is_shown_apart_from_the_lines_that_know_it() -> None:
    made = [
        command("token", name, "--scope", "totals", "--scope", "balances") for name in ("a", "b")
    ]
    tokens = [each.stderr.strip() for each in made]
    file = "".join(each.stdout for each in made)
    callers = read_callers(file.encode())
    assert not any(token in file for token in tokens)
    assert len(set(tokens)) == 2
    for name, token in zip("ab", tokens, strict=True):
        assert len(token) == 43
        caller = callers.of_authorization(f"Bearer {token}")
        assert caller == (name, {Scope.BALANCES, Scope.TOTALS})


@pytest.mark.parametrize("name", ["", "a b", "a]\n[b", "é", "x" * 65])
def test_a_name_that_the_service_would_refuse_is_refused(name: str) -> None:
    done = command("token", name, "--scope", "totals")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "A caller's name is 1 to 64 letters, digits, - or _.\n"


@pytest.mark.parametrize("scopes", [[], ["--scope", "everything"]])
def test_a_scope_must_be_named(scopes: list[str]) -> None:
    done = command("token", "app", *scopes)
    assert done.returncode == 2
    assert "balances" in done.stderr
    assert done.stdout == ""
