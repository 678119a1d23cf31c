"""What `openapi.yaml` says is what the running ingress answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ingress
from tests.conftest import Database
from tests.ingress.deliveries import TOKEN
from tests.ingress.observed import running

SCHEMA = Path(ingress.__file__).parent / "openapi.yaml"
SEED = 20261123

SIGNING = '''
"""Signs what Schemathesis sends: unsigned, everything would end at the door."""

import hmac
import os

import requests
import schemathesis


class Signed(requests.auth.AuthBase):
    def __call__(self, request):
        body = request.body or b""
        text = body.encode() if isinstance(body, str) else body
        token = os.environ["SIGNING_TOKEN"].encode()
        request.headers["X-CG-SIGNATURE"] = hmac.new(token, text, "sha1").hexdigest()
        return request


schemathesis.auth.set_from_requests(Signed())
'''

# A reward may keep to the schema and still be refused: another one has its rewardId, its currency
# has fewer decimals or was never registered.
CONFIGURATION = """
hooks = "signing.py"
[warnings]
fail-on = true
[generation]
allow-x00 = false
database = "none"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 409, 422]
"""


def test_schemathesis_finds_nothing_that_the_running_ingress_answers_otherwise(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "signing.py").write_text(SIGNING)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    with running(database.url()) as answering:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(SCHEMA)),
                *("--url", f"http://127.0.0.1:{answering.port}"),
                *("--seed", str(SEED), "--max-examples", "20", "--no-color"),
                *("--phases", "examples,coverage,fuzzing", "--checks", "all"),
                *("--max-failures", "3", "--request-timeout", "10"),
            ],
            cwd=tmp_path,
            env={**os.environ, "SIGNING_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"
        assert not re.search("warning", done.stdout, re.IGNORECASE), done.stdout
        outcomes = {line["outcome"] for line in answering.lines()}
        assert answering.complaints() == ""
    # It was inside, not only at the door.
    assert {"credited", "recorded", "not-a-reward", "not-believed"} <= outcomes
    assert database.rows("SELECT count(*) > 0 FROM postings") == [(True,)]
