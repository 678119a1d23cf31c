"""What the README shows of clients works: in Python, on the command line, and in Node."""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from ledger.config import AccessSettings, ServeSettings
from ledger.database import Role
from ledger.writing import post
from tests.conftest import Database, Run
from tests.rewards import reward
from tests.serving import free_port, serving
from tests.watches import posted

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "tests/examples"
ADDRESS = "127.0.0.1:50051"

USER = "test-8-june-9"
REWARD_ID = "acdc71c6-08ad-4cd9-8c1e-3c812487b854"
REWARD = reward(REWARD_ID, "15", user_id=USER, reward_name="$15")
FOUND = f"15 USD after 1 postings\n{REWARD_ID} 15\n"


def output(
    database: Database,
    run: Run,
    command: list[str],
    settings: ServeSettings | None = None,
    **environment: str,
) -> tuple[str, str]:
    """What ``command`` prints and what it complains of, while a server has that one reward."""
    role = Role.CORRECTOR if settings is not None and settings.corrects else Role.READER

    async def main() -> tuple[str, str]:
        async with database.connected() as connection:
            await post(connection, [REWARD])
        port = free_port()
        here = [part.replace(ADDRESS, f"127.0.0.1:{port}") for part in command]
        async with serving(database.url(role), port=port, settings=settings):
            process = await asyncio.create_subprocess_exec(
                *here,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            printed, complained = await asyncio.wait_for(process.communicate(), 60)
        return printed.decode(), complained.decode()

    found: tuple[str, str] = run(main())
    return found


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ask.py", FOUND + "REWARD_NOT_FOUND\n"),
        ("ask_async.py", f"15 USD and 0 POINTS\n{REWARD_ID} $15 TODAY\n"),
    ],
)
def test_python_asks(database: Database, run: Run, name: str, printed: str) -> None:
    example = (EXAMPLES / name).read_text()
    found, complained = output(database, run, [sys.executable, "-W", "error", "-c", example])
    ((today,),) = database.rows("SELECT (recorded_at AT TIME ZONE 'UTC')::date FROM rewards")
    assert (found, complained) == (printed.replace("TODAY", str(today)), "")


def test_python_takes_back(database: Database, run: Run, tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    scopes = '["reverse", "history"]'
    callers.write_text(f'[support]\ntoken_sha256 = "{digest}"\nscopes = {scopes}\n')
    settings = ServeSettings(AccessSettings(None, str(callers)), corrects=True)
    command = [sys.executable, "-W", "error", "-c", (EXAMPLES / "reverse.py").read_text()]
    found, complained = output(database, run, command, settings, TOKEN="secret")
    assert complained == ""
    assert found.splitlines() == [
        "5 taken back by support leaves 10",
        "reversal 5 credited by mistake",
        "reward 15 less 5",
        "TOO_MUCH_TO_REVERSE 10",
    ]


def test_python_watches_and_goes_on_where_it_was(
    database: Database, run: Run, tmp_path: Path
) -> None:
    example = (EXAMPLES / "watch.py").read_text()

    printed: list[str] = []

    async def main() -> None:
        port = free_port()
        command = [sys.executable, "-c", example.replace(ADDRESS, f"127.0.0.1:{port}")]
        async with serving(database.url("ledger_reader"), port=port):
            for names in ("abc", "def"):
                process = await asyncio.create_subprocess_exec(
                    *command,
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                )
                assert process.stdout is not None
                try:
                    for name in names:
                        await posted(database, reward(name, "15"))
                        while not printed or printed[-1] != f"{name} 15\n":
                            line = await asyncio.wait_for(process.stdout.readline(), 30)
                            printed.append(line.decode())
                finally:
                    process.kill()
                    await process.wait()

    run(main())
    assert list(dict.fromkeys(printed)) == [f"{name} 15\n" for name in "abcdef"]
    assert printed.count("a 15\n") == 1


def buf_curl(call: str, request: dict[str, Any], *options: str) -> list[str]:
    buf = [f"{Path(sys.executable).parent}/buf", "curl", "--protocol", "grpc"]
    address = f"http://{ADDRESS}/ledger.v1.LedgerService/{call}"
    return [*buf, "--http2-prior-knowledge", *options, "-d", json.dumps(request), address]


# By the proto that is here, and by reflection.
@pytest.mark.parametrize("options", [["--schema", "proto"], []])
def test_the_command_line_asks(database: Database, run: Run, options: list[str]) -> None:
    asked = {"user_id": USER, "currency": "usd"}
    found, complained = output(database, run, buf_curl("GetBalance", asked, *options))
    assert complained == ""
    balance = json.loads(found)["balance"]
    assert (balance["amount"], balance["version"]) == ({"currency": "USD", "value": "15"}, "1")


def test_the_command_line_shows_why_it_was_refused(database: Database, run: Run) -> None:
    asked = {"reward_id": "no-such-reward"}
    found, complained = output(database, run, buf_curl("GetReward", asked, "--schema", "proto"))
    assert found == ""
    told = json.loads(complained)
    assert (told["code"], told["message"]) == ("not_found", "no reward has this reward_id")
    values = {detail["type"]: detail["value"] for detail in told["details"]}
    info = base64.b64decode(values["google.rpc.ErrorInfo"] + "==")
    assert ErrorInfo.FromString(info).reason == "REWARD_NOT_FOUND"


@pytest.fixture
def node_packages(pytestconfig: pytest.Config) -> Path:
    """A folder with the packages that the example in Node needs, kept from run to run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    assert pytestconfig.cache is not None
    lock = (EXAMPLES / "package-lock.json").read_bytes()
    folder = pytestconfig.cache.mkdir(f"node-{hashlib.sha256(lock).hexdigest()[:16]}")
    if not (folder / "installed").exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(EXAMPLES / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip("npm could not install the packages in 90 seconds")
        if done.returncode != 0:
            pytest.skip(f"npm could not install the packages: it ended with {done.returncode}")
        (folder / "installed").touch()
    return folder


def test_node_asks(database: Database, run: Run, node_packages: Path) -> None:
    # Node looks for packages beside the file.
    file = node_packages / "ask.mjs"
    example = (EXAMPLES / "ask.mjs").read_text()
    file.write_text(example.replace(f'"{ADDRESS}"', "process.argv[2]"))
    found, complained = output(database, run, ["node", str(file), ADDRESS])
    assert (found, complained) == (
        FOUND + f"told of {REWARD_ID}\nNOT_FOUND no reward has this reward_id\n",
        "",
    )
