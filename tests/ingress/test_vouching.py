"""Which token vouched, and for which form of the body, is counted: also while one is rotated."""

import json
import os
import signal
from pathlib import Path

from tests.conftest import Database
from tests.ingress.deliveries import PATH, PREVIOUS_TOKEN, TOKEN, body, signed
from tests.ingress.observed import Ingress, running, wait_until


def post(ingress: Ingress, reward_id: str, token: str, *, is_reformatted: bool = False) -> int:
    """The status of the answer to a delivery for which ``token`` vouches."""
    text = body(rewardId=reward_id)
    sent = json.dumps(json.loads(text), indent=1).encode() if is_reformatted else text
    status, _ = ingress.ask("POST", PATH, text=sent, **signed(text, token))
    return status


def counted(ingress: Ingress) -> dict[tuple[str, str], float]:
    """How many deliveries were believed, by form and token."""
    samples = ingress.samples("ingress_believed_deliveries_total")
    return {(dict(key)["form"], dict(key)["token"]): value for key, value in samples.items()}


def write(directory: Path, current: str, previous: str) -> None:
    for name, content in (("current", f"{current}\n"), ("previous", previous)):
        (directory / name).touch(0o600)
        (directory / name).write_text(content)


def reload(ingress: Ingress) -> None:
    """SIGHUP, and until every worker is a new one."""
    before = {worker.pid for worker in ingress.workers()}
    os.kill(ingress.process.pid, signal.SIGHUP)
    wait_until(
        lambda: (
            len(after := {worker.pid for worker in ingress.workers()}) == len(before)
            and not before & after
        )
    )


def test_an_operator_sees_by_the_counts_when_the_old_token_is_no_longer_used(
    database: Database, tmp_path: Path
) -> None:
    write(tmp_path, PREVIOUS_TOKEN, "")
    files = {
        "INGRESS_TOKEN": "",
        "INGRESS_TOKEN_FILE": str(tmp_path / "current"),
        "INGRESS_TOKEN_PREVIOUS_FILE": str(tmp_path / "previous"),
    }
    with running(database.url(), **files) as ingress:
        assert post(ingress, "a", PREVIOUS_TOKEN) == 200
        assert post(ingress, "b", PREVIOUS_TOKEN, is_reformatted=True) == 200
        assert post(ingress, "c", TOKEN) == 401
        before = {("raw", "current"): 1, ("canonical", "current"): 1}
        wait_until(lambda: counted(ingress) == before)
        write(tmp_path, TOKEN, f"{PREVIOUS_TOKEN}\n2999-01-01T00:00:00Z\n")
        reload(ingress)
        assert post(ingress, "d", PREVIOUS_TOKEN) == 200
        assert post(ingress, "e", PREVIOUS_TOKEN, is_reformatted=True) == 200
        assert post(ingress, "f", TOKEN) == 200
        # What the workers before had counted stays.
        meanwhile = {
            ("raw", "current"): 2,
            ("canonical", "current"): 1,
            ("raw", "previous"): 1,
            ("canonical", "previous"): 1,
        }
        wait_until(lambda: counted(ingress) == meanwhile)
        write(tmp_path, TOKEN, "")
        reload(ingress)
        assert post(ingress, "g", PREVIOUS_TOKEN) == 401
        assert post(ingress, "h", TOKEN, is_reformatted=True) == 200
        wait_until(
            lambda: counted(ingress) == {**meanwhile, ("canonical", "current"): 2},
        )
        wait_until(lambda: len(ingress.lines()) == 8)
        told = {
            line["reward_id"]: (line["form"], line["token"])
            for line in ingress.lines()
            if "token" in line
        }
    assert told == {
        "a": ("raw", "current"),
        "b": ("canonical", "current"),
        "d": ("raw", "previous"),
        "e": ("canonical", "previous"),
        "f": ("raw", "current"),
        "h": ("canonical", "current"),
    }
