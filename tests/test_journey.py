"""The whole way, as a newcomer goes it."""

import json
import os
import subprocess
import sys


def test_the_demo_shows_the_main_job_and_cleans_up_after_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "demo"],
        env={**os.environ, "DATABASE_URL": "postgresql://nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [
        line.split('"')[3] for line in done.stdout.splitlines() if line.startswith("  200")
    ] == [
        "credited",
        "credited",
        "replayed",
    ]
    assert '"value": "400"' in done.stdout
    assert '"value": "15"' in done.stdout
    totals = json.loads(done.stdout.split("ListCurrencyTotals\n")[1])["totals"]
    assert [(total["debits"]["value"], total["difference"]["value"]) for total in totals] == [
        ("415", "0")
    ]
