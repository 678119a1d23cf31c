"""Nothing that is somebody's own leaves by the log, the metrics or the complaints."""

import base64
import json
import random
import urllib.parse

from tests.conftest import Database
from tests.ingress.deliveries import PATH, TOKEN, body, signed
from tests.ingress.observed import KEY, running, wait_until


def secret_words(chance: random.Random, number: int) -> dict[str, str]:
    """Text that stands nowhere else, for each place of a delivery that is somebody's own."""
    places = ("userId", "rewardName", "code", "transactionId", "body", "userAName", "campaignId")
    letters = "abcdefghijklmnopqrstuvwxyzäß漢😀+@"
    return {
        place: f"{place}-{number}-" + "".join(chance.choices(letters, k=12)) for place in places
    }


def random_delivery(chance: random.Random, words: dict[str, str], number: int) -> bytes:
    """A delivery that holds the words: good, or wrong in one of many ways."""
    fields: dict[str, object] = {
        "userId": words["userId"],
        "campaignId": words["campaignId"],
        "rewardName": words["rewardName"],
        "code": words["code"],
        "transactionId": words["transactionId"],
        "body": words["body"],
        "details": {"userAName": words["userAName"], "currency": "USD"},
        "rewardId": f"reward-{chance.randrange(number + 1)}",
    }
    fields |= chance.choice(
        [
            {},
            {},
            {"rewardAmount": chance.choice([-1, "x", 1.234, words["body"], [words["code"]]])},
            {"rewardId": chance.choice(["", 7, words["userId"] * 20])},
            {"details": {"currency": words["userAName"]}},
            {"details": words["userAName"]},
            {"code": {words["code"]: 1}},
            {"rewardType": [words["rewardName"]]},
            {words["code"]: words["body"]},
        ]
    )
    text = body(**fields)
    return chance.choice([text, text, text, text[:-1], text + text, json.dumps([words]).encode()])


def spellings(word: str) -> set[str]:
    """The ways in which a text could be hidden in what is told."""
    raw = word.encode()
    return {
        *(word, json.dumps(word)[1:-1], repr(raw)[2:-1], raw.hex(), urllib.parse.quote(word)),
        base64.b64encode(raw).decode().rstrip("=")[:-2],
    }


def test_nothing_of_anybodys_own_is_ever_told(database: Database) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    secrets = {TOKEN, KEY, KEY.encode().hex()}
    answers = set()
    with running(database.url()) as ingress:
        for number in range(200):
            words = secret_words(chance, number)
            text = random_delivery(chance, words, number)
            headers = signed(text, chance.choice([TOKEN, TOKEN, TOKEN, TOKEN + "?"]))
            status, _ = ingress.ask("POST", PATH, text=text, **headers)
            answers.add(status)
            secrets |= {spelling for word in words.values() for spelling in spellings(word)}
            secrets.add(headers["X-CG-SIGNATURE"])
        wait_until(lambda: ingress.answered() == 200 == len(ingress.lines()))
        told = "\n".join([ingress.log(), ingress.scraped(), ingress.complaints()])
    assert {200, 400, 401, 409, 422} <= answers
    assert [secret for secret in secrets if secret in told] == []
