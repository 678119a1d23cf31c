"""Tokens change without a restart, and nothing that goes wrong with them closes the door."""

import os
import traceback
from datetime import UTC, datetime

import pytest

from ingress.signature import Token
from ingress.tokens import FILE_SIZE_MAX_BYTES, UNSIGNED_ALLOWED, read_tokens
from ledger.config import InvalidSetting

SECRET = "PbTJp694bmgrfJpJPQmrjGfjgq"
END = datetime(2026, 12, 31, tzinfo=UTC)
END_TEXT = "2026-12-31T00:00:00Z"
BOTH = {
    "INGRESS_TOKEN": "new",
    "INGRESS_TOKEN_PREVIOUS": SECRET,
    "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": END_TEXT,
}


@pytest.fixture
def environment(tmp_path):
    """Two files: the current token, and no previous one."""
    names = {"INGRESS_TOKEN_FILE": "current", "INGRESS_TOKEN_PREVIOUS_FILE": "previous"}
    for name in names.values():
        (tmp_path / name).touch(0o600)
    (tmp_path / "current").write_text(SECRET + "\n")
    return {setting: str(tmp_path / name) for setting, name in names.items()}


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"INGRESS_TOKEN": "new"}, (Token("current", b"new"),)),
        (BOTH, (Token("current", b"new"), Token("previous", SECRET.encode(), END))),
        ({"INGRESS_TOKEN": "new", "INGRESS_TOKEN_FILE": ""}, (Token("current", b"new"),)),
        ({"INGRESS_TOKEN": "n\u00e9"}, (Token("current", b"n\xc3\xa9"),)),
        ({"INGRESS_TOKEN": "n\udce9"}, (Token("current", b"n\xe9"),)),
        ({"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED}, ()),
    ],
)
def test_tokens_in_the_environment_are_read_byte_for_byte(given, tokens):
    assert read_tokens(given).current() == tokens


@pytest.mark.parametrize("content", [b"new", b"new\n", b"new\r\n", b"new\n\n"])
def test_a_token_in_a_file_is_its_line_without_the_end_of_the_line(environment, tmp_path, content):
    (tmp_path / "current").write_bytes(content)
    (tmp_path / "previous").write_bytes(b" o l d \xff\r\n" + END_TEXT.encode())
    assert read_tokens(environment).current() == (
        Token("current", b"new"),
        Token("previous", b" o l d \xff", END),
    )


CONTRADICTIONS = [
    {},
    {"INGRESS_TOKEN": ""},
    {"INGRESS_TOKEN_PREVIOUS": SECRET, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": END_TEXT},
    {**BOTH, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": ""},
    {**BOTH, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": "2026-12-31T00:00:00"},
    {**BOTH, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": SECRET},
    {"INGRESS_TOKEN": SECRET, "INGRESS_TOKEN_FILE": "/dev/null"},
    {**BOTH, "INGRESS_TOKEN_PREVIOUS_FILE": "/dev/null"},
    {"INGRESS_ALLOW_UNSIGNED": "yes"},
    {"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED, "INGRESS_TOKEN": SECRET},
    {"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED, "INGRESS_TOKEN_FILE": "/dev/null"},
    {"INGRESS_ALLOW_UNSIGNED": UNSIGNED_ALLOWED, "INGRESS_TOKEN_PREVIOUS_FILE": "/dev/null"},
    {"INGRESS_TOKEN_FILE": SECRET},
]


@pytest.mark.parametrize("given", CONTRADICTIONS)
def test_what_is_missing_or_contradicts_is_refused_without_a_secret_in_the_error(given):
    with pytest.raises(InvalidSetting) as refusal:
        read_tokens(given)
    assert_tells_no_secret(refusal.value)


def test_the_end_of_a_token_in_a_file_is_said_in_the_file_only(environment):
    with pytest.raises(InvalidSetting, match="INGRESS_TOKEN_PREVIOUS_NOT_AFTER contradicts"):
        read_tokens({**environment, "INGRESS_TOKEN_PREVIOUS_NOT_AFTER": END_TEXT})


def make_a_directory(path):
    path.unlink()
    path.mkdir()


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED = {
    "gone": lambda path: path.unlink(),
    "a directory": make_a_directory,
    "a pipe that nobody writes into": make_a_pipe,
    "writable by its group": lambda path: path.chmod(0o620),
    "writable by others": lambda path: path.chmod(0o602),
    "too large": lambda path: path.write_bytes(b"x" * (FILE_SIZE_MAX_BYTES + 1)),
    "three lines": lambda path: path.write_text(f"{SECRET}\n{END_TEXT}\n{SECRET}"),
    "an empty first line": lambda path: path.write_text(f"\n{END_TEXT}\n"),
}
SPOILED_CURRENT = {
    "empty": lambda path: path.write_text(""),
    "an empty line": lambda path: path.write_text("\n"),
    "two lines": lambda path: path.write_text(f"{SECRET}\n{END_TEXT}\n"),
}
SPOILED_PREVIOUS = {
    "without its end": lambda path: path.write_text(SECRET),
    "the lines exchanged": lambda path: path.write_text(f"{END_TEXT}\n{SECRET}\n"),
    "an end without a zone": lambda path: path.write_text(f"{SECRET}\n2026-12-31"),
    "bytes that are no text": lambda path: path.write_bytes(SECRET.encode() + b"\n\xff\xfe"),
}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *[pytest.param("current", v, id=k) for k, v in (SPOILED | SPOILED_CURRENT).items()],
        *[pytest.param("previous", v, id=k) for k, v in (SPOILED | SPOILED_PREVIOUS).items()],
    ],
)
def test_a_bad_file_is_refused_at_the_start_and_changes_nothing_later(
    environment, tmp_path, name, spoil
):
    tokens = read_tokens(environment)
    before = tokens.current()
    (tmp_path / "current").write_text("new")
    (tmp_path / "previous").write_text(f"{SECRET}\n{END_TEXT}\n")
    spoil(tmp_path / name)
    problem = tokens.reload()
    assert isinstance(problem, InvalidSetting)
    assert problem.name in environment
    assert tokens.current() == before
    assert_tells_no_secret(problem)
    with pytest.raises(InvalidSetting):
        read_tokens(environment)


def assert_tells_no_secret(problem: BaseException | None) -> None:
    while problem is not None:
        assert SECRET not in f"{problem} {problem!r} {problem.args}"
        assert SECRET not in "".join(traceback.format_exception(problem))
        problem = problem.__context__


def test_a_rotation_is_read_and_so_is_its_end(environment, tmp_path):
    tokens = read_tokens(environment)
    assert tokens.current() == (Token("current", SECRET.encode()),)
    (tmp_path / "previous").write_text(f"{SECRET}\n{END_TEXT}\n")
    (tmp_path / "current").write_text("new\n")
    assert tokens.current() == (Token("current", SECRET.encode()),)
    assert tokens.reload() is None
    assert tokens.current() == (
        Token("current", b"new"),
        Token("previous", SECRET.encode(), END),
    )
    (tmp_path / "previous").write_text("")
    assert tokens.reload() is None
    assert tokens.current() == (Token("current", b"new"),)


def test_a_file_that_everybody_can_read_is_used_and_warned_of(environment, tmp_path, caplog):
    read_tokens(environment)
    assert not caplog.records
    (tmp_path / "current").chmod(0o444)
    assert read_tokens(environment).current() == (Token("current", SECRET.encode()),)
    (warning,) = caplog.messages
    assert "INGRESS_TOKEN_FILE can be read by every user" in warning
    assert SECRET not in warning


def test_what_the_environment_becomes_later_changes_nothing():
    environment = {"INGRESS_TOKEN": SECRET}
    tokens = read_tokens(environment)
    environment["INGRESS_TOKEN"] = "another"
    assert tokens.reload() is None
    assert tokens.current() == (Token("current", SECRET.encode()),)


def test_no_secret_shows_in_a_repr(environment):
    tokens = read_tokens(environment)
    assert SECRET not in f"{tokens!r} {tokens} {tokens.current()}"
