"""``python -m ingress mapping-check``, as a process: what would be booked, without any books."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ingress
from tests.forked import run_command
from tests.ingress.deliveries import ABSENT, EXAMPLE, body

EXAMPLE_FILE = Path(ingress.__file__).with_name("mapping.toml")


@pytest.fixture
def check(tmp_path):
    def check(
        text: bytes, *options: str, mapping: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        body_file, mapping_file = tmp_path / "body.json", tmp_path / "mapping.toml"
        body_file.write_bytes(text)
        mapping_file.write_text(mapping or EXAMPLE_FILE.read_text())
        command = ["mapping-check", str(mapping_file), str(body_file), *options]
        # An address at which no database is.
        nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/none"}
        return run_command("ingress", *command, **{**nowhere, **environment})

    return check


def test_it_shows_the_posting_and_where_each_field_was_found(check):
    shown = check(body())
    lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    assert shown.returncode == 0
    assert lines[0] == ["would", "be", "credited"]
    assert ["debit_account", f"campaign:{EXAMPLE['campaignId']}"] in lines
    assert ["credit_account", "user:testuser1"] in lines
    assert ["amount", "400"] in lines
    assert ["user_id", "userId", "testuser1"] in lines
    assert ["currency", "details.currency", "USD"] in lines
    assert ["status", "status", "-"] in lines
    assert "checked against the books only on posting" in shown.stdout


def test_programs_are_told_the_same_in_json(check):
    mapping = '[fields]\ntype = { constant = "direct" }\n'
    shown = check(body(rewardExpiry=0, details=ABSENT), "--json", mapping=mapping)
    told = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert told["outcome"] == "credited"
    assert told["refusal"] is None
    assert told["posting"] == {
        "debit_account": f"campaign:{EXAMPLE['campaignId']}",
        "credit_account": "user:testuser1",
        "currency": "POINTS",
        "amount": "400",
    }
    assert told["reward"]["reward_expires_at"] == "1970-01-01T00:00:00+00:00"
    assert told["reward"]["type"] == "direct"
    assert told["found_at"]["type"] == "a constant"
    assert told["found_at"]["currency"] == "a default"
    assert told["found_at"]["reward_id"] == "rewardId"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_code_is_never_shown(check, options):
    shown = check(body(), *options)
    assert str(EXAMPLE["code"]) not in shown.stdout + shown.stderr
    assert "7 characters, not shown" in shown.stdout


@pytest.mark.parametrize(
    ("text", "outcome"),
    [(body(rewardAmount=0), "recorded"), (body(webhookType="nudge"), "ignored")],
)
def test_what_posts_nothing_is_no_refusal(check, text, outcome):
    assert check(text).stdout.startswith(f"would be {outcome}\n")
    shown = check(text, "--json")
    assert (shown.returncode, json.loads(shown.stdout)["posting"]) == (0, None)
    assert json.loads(shown.stdout)["outcome"] == outcome


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (body(userId=ABSENT), "userId", "is missing"),
        (body(details={"currency": "$"}), "details.currency", "is not a currency's code"),
        (b"[]", "", "is not an object"),
        (b"{", "", "is not JSON"),
    ],
)
def test_a_refusal_is_told_with_its_field_and_exits_with_1(check, text, field, reason):
    shown = check(text)
    assert shown.returncode == 1
    assert shown.stdout == f"would be refused: {field or 'the body'} {reason}\n"
    told = check(text, "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["refusal"] == {"field": field, "reason": reason}


def test_what_the_sender_wrote_cannot_command_the_terminal(check):
    shown = check(body(userId="\x1b[2J\x9b2J", rewardName="a\nuser_id"))
    assert r"\x1b[2J\x9b2J" in shown.stdout
    assert r"a\nuser_id" in shown.stdout
    assert all(line.isprintable() for line in shown.stdout.splitlines())


def test_a_bad_mapping_or_no_file_is_said_in_one_sentence(check, tmp_path):
    shown = check(body(), mapping="[fields]\nuser = 1\n")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("INGRESS_MAPPING line 2: fields.user is not known; what is: ")
    assert shown.stderr.count("\n") == 1
    command = ["mapping-check", str(EXAMPLE_FILE), str(tmp_path / "none")]
    missing = subprocess.run(
        [sys.executable, "-m", "ingress", *command], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert missing.stderr == "BODY cannot be read: No such file or directory\n"


def test_the_default_currency_of_the_environment_counts(check):
    shown = check(body(details=None), INGRESS_DEFAULT_CURRENCY="EUR")
    assert "  currency           EUR\n" in shown.stdout
