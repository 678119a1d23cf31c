"""``python -m tests.fuzz``: Atheris looks for bytes that take a new path through the ingress.

Atheris (libFuzzer for Python) is the optional extra ``fuzz``: 130 MB, for Linux, and slow to follow
new versions of Python, so it is not among what is pinned. Without it this says so and ends well.
``make fuzz`` runs it after Hypothesis, and the tests do for seconds. FUZZ_SECONDS is how long;
FUZZ_CORPUS names a directory that keeps what was found, for the next time.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ledger.embedded import EmbeddedPostgres
from ledger.operations.migrate import migrate
from tests.fuzz.door import environment

OWNER = "ledger_owner"


def main() -> int:
    """The exit status: 0 when nothing was found, or nobody could look."""
    if find_spec("atheris") is None:
        print("Atheris is not installed (the extra `fuzz`): only Hypothesis has looked.")
        return 0
    seconds = os.environ.get("FUZZ_SECONDS") or "60"
    with tempfile.TemporaryDirectory(prefix="ledger-fuzz-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        corpus = os.environ.get("FUZZ_CORPUS") or f"{name}/corpus"
        Path(corpus).mkdir(exist_ok=True)
        with EmbeddedPostgres(Path(name) / "postgres") as postgres:
            url = postgres.url(OWNER)
            migrate(url)
            # In a process of its own: libFuzzer ends the one that it runs in.
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.fuzz.target", corpus),
                    *(f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={corpus}/"),
                ],
                env=os.environ | environment(url),
                check=False,
            )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
