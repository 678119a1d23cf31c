"""The README is true: its commands run, and print what it says they print."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ledger.test_run import Place, end, place

__all__ = ["place"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOKEN = "PbTJp694bmgrfJpJPQmrjGfjgq"

TIMES = re.compile(r"20\d\d-\d\d-\d\dT[0-9:.]+(Z|\+00:00)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def at(place: Place, text: str) -> str:
    """`text` with this place's addresses, and the interpreter that runs the tests."""
    return (
        text.replace("127.0.0.1:8080", place.environment["INGRESS_BIND"])
        .replace("127.0.0.1:50051", place.environment["LEDGER_BIND"])
        .replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    )


def output(place: Place, command: list[str] | str) -> str:
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        env=place.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_reward_is_posted_and_asked_for_as_the_readme_says(place: Place) -> None:
    process = place.start(INGRESS_TOKEN=TOKEN)
    for block in blocks("console"):
        for command, printed in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
            found = output(place, at(place, command))
            # The workers write once a second what they have counted.
            for _ in range(10):
                if "believed" in printed and not found.startswith(printed.splitlines()[0]):
                    time.sleep(0.3)
                    found = output(place, at(place, command))
            assert TIMES.sub("T", found).strip() == TIMES.sub("T", printed).strip(), command
    (first, _), *_ = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", blocks("console")[0], re.MULTILINE)
    assert '"status":"replayed"' in output(place, at(place, first))
    line = "believed deliveries 2 = credited 1 + replayed 1"
    assert f"`{line}`" in README
    verified = ""
    for _ in range(20):
        verified = output(place, at(place, ".venv/bin/ledger verify"))
        if line in verified:
            break
        time.sleep(0.3)
    assert line in verified
    end(process)


def test_the_readme_shows_the_examples_that_are_tested() -> None:
    for name in ("ask.py", "ask_async.py", "reverse.py", "watch.py", "ask.mjs"):
        assert (ROOT / "tests/examples" / name).read_text() in README


def test_every_setting_that_is_read_is_in_the_readme_and_the_other_way_round() -> None:
    read = set()
    for package in ("ingress", "ledger"):
        for path in (ROOT / package).rglob("*.py"):
            read |= set(re.findall(r'"((?:INGRESS|LEDGER|DATABASE)_[A-Z_]+)"', path.read_text()))
    # Every token can be given in a file too; those names are put together.
    read |= {"INGRESS_TOKEN_FILE", "INGRESS_TOKEN_PREVIOUS_FILE"}
    told = set(re.findall(r"`((?:INGRESS|LEDGER|DATABASE)_[A-Z_]+)`", README))
    assert told == read


def test_every_file_that_the_readme_names_is_there() -> None:
    for name in set(re.findall(r"`((?:tests|ledger|ingress|proto)/[a-z0-9_/]+\.\w+)`", README)):
        assert (ROOT / name).exists(), name


def test_every_rule_that_the_readme_names_is_in_the_schema() -> None:
    migrations = sorted((ROOT / "ledger/migrations").glob("*.sql"))
    schema = "".join(path.read_text() for path in migrations)
    guarantees = README.split("## Guarantees")[1].split("## Figures")[0]
    rules = re.findall(
        r"`((?:reward|posting|balance|rewards|postings|quarantine)_[a-z_]+)`", guarantees
    )
    assert rules
    for rule in rules:
        assert rule in schema


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)`", README))))
def test_every_target_that_the_readme_names_can_be_made(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
