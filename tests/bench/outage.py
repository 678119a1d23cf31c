"""How long a delivery waits while Postgres is away, and when all is as before."""

import http.client
import json
import statistics
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from ledger.embedded import EmbeddedPostgres
from ledger.operations.migrate import migrate
from tests.bench import load

SENDERS = 4
STEADY_SECONDS = 3.0
AWAY_SECONDS = 4.0


class Answer(NamedTuple):
    """One answered delivery."""

    sent_at: float
    seconds: float
    status: str


class Senders:
    """A few senders, each with one delivery after the other, until they are stopped."""

    def __init__(self, port: int, rewards: Path) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._is_over = threading.Event()
        lines = rewards.read_bytes().splitlines()
        self._threads = [
            threading.Thread(target=self._send, args=(lines[place::SENDERS],))
            for place in range(SENDERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, lines: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        for line in lines:
            if self._is_over.wait(0.005):
                break
            signature, _, body = line.partition(b" ")
            headers = {"X-CG-SIGNATURE": signature.decode(), "Content-Type": "application/json"}
            sent_at = time.monotonic()
            connection.request("POST", "/v1/webhooks/customerglu", body, headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            self.answers.append(Answer(sent_at, time.monotonic() - sent_at, str(told["status"])))
        connection.close()


class Outage(NamedTuple):
    """What the senders saw, in milliseconds; and the seconds until all was as before."""

    before_p50: float
    away_p50: float
    away_max: float
    away_status: str
    """The answer that most got while Postgres was away."""
    after_p50: float
    credited_after_seconds: float
    """From Postgres's return to the first answer that a reward sent since was credited."""


def observe(postgres: EmbeddedPostgres, port: int, rewards: Path) -> Outage:
    """Stop Postgres under load, start it again, and look at what the senders saw."""
    with Senders(port, rewards) as senders:
        time.sleep(STEADY_SECONDS)
        away_at = time.monotonic()
        postgres.stop()
        time.sleep(AWAY_SECONDS)
        postgres.start()
        back_at = time.monotonic()
        time.sleep(STEADY_SECONDS + 2)
    answers = senders.answers
    before = [a for a in answers if a.sent_at + a.seconds < away_at]
    away = [a for a in answers if away_at + 0.5 < a.sent_at < back_at - AWAY_SECONDS / 4]
    credited = [a for a in answers if a.sent_at > back_at and a.status == "credited"]
    after = [a for a in credited if a.sent_at > back_at + 2]
    return Outage(
        _median_ms(before),
        _median_ms(away),
        max(a.seconds for a in answers if a.sent_at >= away_at - 0.1) * 1000,
        statistics.mode(a.status for a in away),
        _median_ms(after),
        min(a.sent_at + a.seconds for a in credited) - back_at,
    )


def _median_ms(answers: list[Answer]) -> float:
    return statistics.median(a.seconds for a in answers) * 1000


def books_of_its_own(directory: Path) -> EmbeddedPostgres:
    """A migrated Postgres that may be stopped."""
    directory.mkdir(mode=0o711)
    postgres = EmbeddedPostgres(directory / "postgres")
    postgres.start()
    migrate(postgres.url("ledger_owner"))
    return postgres


def rewards_for(directory: Path, seed: int) -> Path:
    """More deliveries than the senders can send meanwhile."""
    path = directory / "rewards"
    load.write_rewards(path, 20_000, seed)
    return path
