"""`ledger` or `ingress` in a process of its own, but one that need not import it all first.

That takes longer than most commands do. So a process that has imported it, and does nothing else,
splits off one for each command: its own arguments, environment, files and end.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_MODULES = {"ledger": "ledger.cli", "ingress": "ingress.__main__"}
_FORKS = """
import json, os, sys
from {module} import main
for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate(told["files"]):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.chdir(told["directory"])
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.argv = told["arguments"]
        main()
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@cache
def _forking(program: str) -> "subprocess.Popen[str]":
    source = _FORKS.format(module=_MODULES[program])
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def end() -> None:
        process.communicate()

    atexit.register(end)
    return process


def run_command(
    program: str, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """What the command said to nobody's terminal, and how it ended; ``environment`` is on top."""
    command = [program, *arguments]
    process = _forking(program)
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory(prefix="ledger-said-") as name:
        files = [Path(name) / kind for kind in ("given", "said", "complained")]
        for file in files:
            file.touch()
        told = {
            "arguments": command,
            "directory": str(Path.cwd()),
            "environment": {**os.environ, **environment},
            "files": [str(file) for file in files],
        }
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        _, said, complained = (file.read_text() for file in files)
    return subprocess.CompletedProcess(command, status, said, complained)
