"""Files are read again when they have changed and somebody is done with them: all or none."""

import logging
from pathlib import Path

import pytest

from ledger.config import InvalidSetting
from ledger.files import Followed, read_file
from tests.certificates import replace


def followed(*paths: Path) -> Followed[list[str]]:
    def read() -> list[str]:
        found = [read_file("A_FILE", str(path), size_max_bytes=100).decode() for path in paths]
        if "bad" in found:
            raise InvalidSetting("A_FILE", "is bad")
        return found

    return Followed([str(path) for path in paths], read)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "one", tmp_path / "two"
    for path in paths:
        replace(path, path.name.encode())
    return paths


def test_a_change_is_read_when_it_is_seen_twice(pair: tuple[Path, Path]) -> None:
    files = followed(*pair)
    assert not files.follow()
    replace(pair[0], b"1")
    assert not files.follow()
    # Somebody replaces one after the other, and each may need the other.
    replace(pair[1], b"2")
    assert not files.follow()
    assert files.current() == ["one", "two"]
    assert files.follow()
    assert files.current() == ["1", "2"]
    assert not files.follow()


def test_a_change_in_place_is_seen_as_well(pair: tuple[Path, Path]) -> None:
    files = followed(*pair)
    pair[0].write_bytes(b"eno")
    assert [files.follow(), files.follow()] == [False, True]
    assert files.current() == ["eno", "two"]


def test_a_link_to_another_directory_is_seen_as_well(tmp_path: Path) -> None:
    """As Kubernetes replaces a secret: the path leads over a link, and that is replaced."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        replace(tmp_path / name / "file", name.encode())
    (tmp_path / "data").symlink_to("before")
    files = followed(tmp_path / "data" / "file")
    (tmp_path / "next").symlink_to("after")
    (tmp_path / "next").rename(tmp_path / "data")
    assert [files.follow(), files.follow()] == [False, True]
    assert files.current() == ["after"]


def test_what_cannot_be_used_is_said_once_and_changes_nothing(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    files = followed(*pair)
    replace(pair[0], b"good")
    replace(pair[1], b"bad")
    assert not any(files.follow() for _ in range(5))
    assert files.current() == ["one", "two"]
    assert files.is_behind
    assert caplog.messages == ["A_FILE is bad. What was said before stays."]
    replace(pair[1], b"better")
    assert any(files.follow() for _ in range(2))
    assert files.current() == ["good", "better"]
    assert not files.is_behind


def test_a_file_that_is_gone_changes_nothing(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    files = followed(*pair)
    pair[0].unlink()
    assert not any(files.follow() for _ in range(5))
    assert files.current() == ["one", "two"]
    (line,) = caplog.messages
    assert line.startswith("A_FILE cannot be read: No such file")


def test_a_bad_file_is_refused_at_the_start(pair: tuple[Path, Path]) -> None:
    replace(pair[0], b"bad")
    with pytest.raises(InvalidSetting):
        followed(*pair)


def test_only_a_secret_is_warned_of_when_everybody_can_read_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_file("A_FILE", str(path), size_max_bytes=9, is_secret=False)
        assert not caplog.records
        read_file("A_FILE", str(path), size_max_bytes=9)
    assert caplog.messages == ["A_FILE can be read by every user of this machine: chmod o-r"]
