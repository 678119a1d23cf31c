"""What ``ledger run`` says when everything is up: what runs where, and what to try next."""

import hmac
import json
import shlex

from ledger.operations.run import Running

PATH = "/v1/webhooks/customerglu"

REWARD = {
    "campaignId": "xyz41c29-bb0d-4fe6-8260-1403d1c0e964",
    "type": "scratchcard",
    "userId": "testuser1",
    "rewardId": "xyzbb3ca-093f-43f2-84ba-8d5ed0d6c1b4",
    "rewardName": "200 Coins",
    "rewardAmount": 400,
    "code": "CODE123",
    "details": {
        "userBName": "testuser2",
        "userBId": "testuser2",
        "userAName": "testuser0",
        "userAId": "testuser0",
        "rewardCategory": "RM",
        "currency": "USD",
    },
}
"""The example of CustomerGlu's page on the rewards webhook."""


def compact(told: dict[str, object]) -> bytes:
    """``told`` as the sender writes it: JSON without spaces."""
    return json.dumps(told, separators=(",", ":")).encode()


def sign(body: bytes, token: str) -> str:
    """What ``X-CG-SIGNATURE`` says of ``body``."""
    return hmac.new(token.encode(), body, "sha1").hexdigest()


def welcome(started: Running) -> str:
    """What is up, and commands to copy.

    They hold a signature, never the token: that stays in its file or in the environment.
    """
    # A command of another terminal does not know what this one was told.
    given = f"LEDGER_DATA={shlex.quote(str(started.data_directory))} "
    ledger = f"{given if started.data_directory else ''}.venv/bin/ledger"
    text = f"""
The ledger is up. Stop it with Ctrl-C.

  ingress    http://{started.ingress}{PATH}
  service    {started.service} (gRPC, ledger.v1.LedgerService)
  Postgres   {started.database}
  token      {started.token}
"""
    if started.made_up_token is None:
        return text + f"\nTry next: {ledger} totals; {ledger} verify\n"
    body = compact(REWARD)
    signature = sign(body, started.made_up_token.read_text())
    return (
        text
        + f"""
Post the documented example, then ask for the balance, from another terminal:

  curl -s http://{started.ingress}{PATH} \\
    -H 'Content-Type: application/json' -H 'X-CG-SIGNATURE: {signature}' \\
    -d {shlex.quote(body.decode())}

  {ledger} balance testuser1
  {ledger} history testuser1
  {ledger} verify
"""
    )
