"""``ledger demo``: everything on free ports, two rewards in, three questions out."""

import http.client
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ledger.config import read_settings
from ledger.operations.run import Running, running
from ledger.operations.welcome import PATH, REWARD, compact, sign
from ledger.v1 import ledger_pb2 as pb
from ledger.v1 import ledger_pb2_grpc as rpc

VENDOR_TOKEN = "PbTJp694bmgrfJpJPQmrjGfjgq"  # noqa: S105 - published with the example
VENDOR_BODY = (
    b'{"campaignId":"6bab1116-ae8e-4644-9cee-7a3d8ee9aff3","type":"direct",'
    b'"userId":"test-8-june-9","rewardId":"acdc71c6-08ad-4cd9-8c1e-3c812487b854",'
    b'"rewardName":"$15","rewardAmount":15,"details":{"currency":"USD","value":15,'
    b'"reward_reason":"got_referred","userAName":"Test Solve 7","userAId":"test-8-june-7"}}'
)
VENDOR_SIGNATURE = "f2719895b483fbf3f98e1936bc88271cbe74f138"
"""The signed example that CustomerGlu published, with its token."""

_OURS = ("DATABASE_", "INGRESS_", "LEDGER_", "OTEL_", "PG", "PROMETHEUS_")
"""Settings that the demo leaves out: with the operator's own spool it would drain that."""

Say = Callable[[str], None]


class NotAsPromised(Exception):
    """An answer was not what the ledger promises."""


def demo(say: Say) -> None:
    """Show the main job on a throw-away database; raises ``NotAsPromised``.

    Never on the database of ``DATABASE_URL``: made-up rewards would stay there for ever.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-demo-") as directory:
        # Whoever runs Postgres, when that is not us, must be able to pass.
        Path(directory).chmod(0o711)
        environment = {
            **{name: os.environ[name] for name in os.environ if not name.startswith(_OURS)},
            "LEDGER_DATA": directory,
            "INGRESS_BIND": f"127.0.0.1:{_free_port()}",
            "LEDGER_BIND": f"127.0.0.1:{_free_port()}",
            "INGRESS_TOKEN": VENDOR_TOKEN,
            "INGRESS_METRICS_BIND": "",
            "INGRESS_LOG": "off",
            "LEDGER_METRICS_BIND": "",
            "LEDGER_LOG": "off",
        }
        with running(read_settings(environment), environment) as started:
            _post_rewards(say, started)
            _ask(say, started)


def _post_rewards(say: Say, started: Running) -> None:
    seed = compact(REWARD)
    vendor = (VENDOR_BODY, VENDOR_SIGNATURE)
    _post(say, started, "the documented example", seed, sign(seed, VENDOR_TOKEN), "credited")
    _post(say, started, "the signed example", *vendor, "credited")
    _post(say, started, "the signed example again", *vendor, "replayed")


def _post(
    say: Say, started: Running, what: str, body: bytes, signature: str, expected: str
) -> None:
    connection = http.client.HTTPConnection(started.ingress, timeout=10)
    headers = {"Content-Type": "application/json", "X-CG-SIGNATURE": signature}
    connection.request("POST", PATH, body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    say(f"POST {what}\n  {response.status} {json.dumps(answer)}")
    _check((response.status, answer.get("status")), (200, expected))


def _ask(say: Say, started: Running) -> None:
    with grpc.insecure_channel(started.service) as channel:
        ledger = rpc.LedgerServiceStub(channel)  # type: ignore[no-untyped-call]
        for user_id, expected in (("testuser1", "400"), ("test-8-june-9", "15")):
            request = pb.GetBalanceRequest(user_id=user_id, currency="USD")
            reply = ledger.GetBalance(request, timeout=10)
            _tell(say, f"GetBalance {user_id} USD", reply)
            _check(reply.balance.amount.value, expected)
        rewards = ledger.ListRewards(pb.ListRewardsRequest(user_id="test-8-june-9"), timeout=10)
        _tell(say, "ListRewards test-8-june-9", rewards)
        _check(len(rewards.rewards), 1)
        reply = ledger.ListCurrencyTotals(pb.ListCurrencyTotalsRequest(), timeout=10)
        _tell(say, "ListCurrencyTotals", reply)
        _check([totals.difference.value for totals in reply.totals], ["0"])


def _tell(say: Say, question: str, answer: Message) -> None:
    told = MessageToDict(answer, preserving_proto_field_name=True)
    say(f"{question}\n" + "\n".join(f"  {line}" for line in json.dumps(told, indent=2).split("\n")))


def _check(found: object, expected: object) -> None:
    if found != expected:
        raise NotAsPromised(f"{found} is not {expected}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
