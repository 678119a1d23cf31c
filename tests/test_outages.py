"""Everything breaks while rewards come in; then what was answered is compared with the books.

The ingress as it really runs, a Postgres of its own, senders over HTTP. Meanwhile workers, backends
and the postmaster are killed, and the network to Postgres is held, reset, or loses the answer to a
commit. `OUTAGE_SECONDS` says for how long, `SEED` repeats what was drawn.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ingress.spooling import SpoolSettings, status
from ledger.database import Role
from ledger.embedded import EmbeddedPostgres
from tests.conftest import SUPERUSER, Database, Run, throw_away_postgres
from tests.ingress.deliveries import ABSENT, PATH, body, signed
from tests.ingress.observed import Ingress, running
from tests.verifying import verify
from tests.wire import Loss, Wire

SECONDS = int(os.environ.get("OUTAGE_SECONDS") or 8)
SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
SENDERS = 8
WORKERS = 2
WAIT_SECONDS_MAX = 60.0
ANSWER_SECONDS_MAX = 3.0
SLACK_SECONDS = 1.5
"""For a machine that is busy with other tests."""
UNASKED_SECONDS_MAX = 0.02
"""Whoever asks the books in vain tries three times, and waits for 10 ms at least in between."""


class Kind(Enum):
    """What is sent, and so what may become of it."""

    CREDITED = auto()
    RECORDED = auto()
    OTHER_FACTS = auto()
    """Of a reward that was sent before, with another amount."""
    UNREGISTERED = auto()
    NO_REWARD = auto()
    NO_JSON = auto()
    FORGED = auto()


REFUSED = {
    Kind.UNREGISTERED: 422,
    Kind.NO_REWARD: 422,
    Kind.NO_JSON: 400,
    Kind.OTHER_FACTS: 409,
}
POSTABLE = {Kind.CREDITED, Kind.RECORDED, Kind.OTHER_FACTS}


class Sent(NamedTuple):
    """One delivery, as often as it is sent."""

    kind: Kind
    reward_id: str
    user_id: str
    amount: int | None
    text: bytes
    is_resent: bool
    """Whether its sender sends it again until it is answered for good."""


class Answer(NamedTuple):
    """What a sender heard of one try."""

    sent: Sent
    status: int | None
    """``None``: no answer came."""
    told: dict[str, Any]
    retry_after: str | None
    seconds: float

    def is_for_good(self) -> bool:
        return self.status not in {None, 503}


class Sender:
    """Sends one delivery after the other, and some of those that got no answer again."""

    def __init__(self, name: int, port: int) -> None:
        self.name = name
        self.answers: list[Answer] = []
        self._chance = random.Random(f"{SEED} sender {name}")
        self._port = port
        self._client = self._connection()
        self._unanswered: list[Sent] = []
        self._told_before: list[Sent] = []

    def send_until(self, is_over: threading.Event) -> list[Answer]:
        """All answers, after everything that is resent has one."""
        try:
            for number in range(10**9):
                if is_over.wait(self._chance.uniform(0.002, 0.03)):
                    break
                if self._unanswered and self._chance.random() < 0.3:
                    self._send(self._unanswered.pop(0))
                else:
                    self._send(self._delivery(number))
            end = time.monotonic() + WAIT_SECONDS_MAX
            while self._unanswered:
                assert time.monotonic() < end, "nobody answers any more"
                time.sleep(0.05)
                self._send(self._unanswered.pop(0))
        finally:
            self._client.close()
        return self.answers

    def _delivery(self, number: int) -> Sent:
        kind = self._chance.choices(list(Kind), [70, 6, 6, 5, 5, 4, 4])[0]
        reward_id = f"{kind.name}-{self.name}-{number}"
        user_id = f"user-{self.name}-{self._chance.randrange(3)}"
        amount: int | None = self._chance.randint(1, 10**9)
        if kind is Kind.OTHER_FACTS and self._told_before:
            other = self._chance.choice(self._told_before)
            reward_id, user_id, amount = other.reward_id, other.user_id, (other.amount or 0) + 1
        if kind is Kind.RECORDED:
            amount = None
        text = body(
            rewardId=reward_id,
            userId=user_id if kind is not Kind.NO_REWARD else ABSENT,
            rewardAmount=ABSENT if amount is None else amount,
            details={"currency": "NOBODYS" if kind is Kind.UNREGISTERED else "USD"},
        )
        if kind is Kind.NO_JSON:
            text = text[:-1]
        is_resent = self._chance.random() < 0.6
        sent = Sent(kind, reward_id, user_id, amount, text, is_resent)
        if kind is Kind.CREDITED:
            self._told_before.append(sent)
        return sent

    def _send(self, sent: Sent) -> None:
        headers = signed(sent.text, *(["a stranger's"] if sent.kind is Kind.FORGED else []))
        begun = time.monotonic()
        status, retry_after, content = None, None, b"{}"
        try:
            self._client.request("POST", PATH, sent.text, headers)
            response = self._client.getresponse()
            status, retry_after = response.status, response.headers["Retry-After"]
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._client.close()
            self._client = self._connection()
        seconds = time.monotonic() - begun
        answer = Answer(sent, status, json.loads(content), retry_after, seconds)
        self.answers.append(answer)
        if sent.is_resent and not answer.is_for_good():
            self._unanswered.append(sent)

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_SECONDS_MAX)


class Machine(NamedTuple):
    """What can break."""

    postgres: EmbeddedPostgres
    wire: Wire
    ingress: Ingress
    chance: random.Random

    def kill_workers(self) -> None:
        """One of the two, or both."""
        wait_until(lambda: len(self.ingress.workers()) == WORKERS)
        before = self.ingress.workers()
        victims = self.chance.sample(before, self.chance.choice([1, 1, WORKERS]))
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, WAIT_SECONDS_MAX)
        # Senders are promised an answer in time while somebody is there to give it.
        wait_until(lambda: len(self._working()) == WORKERS)

    def _working(self) -> list[psutil.Process]:
        return [worker for worker in self.ingress.workers() if self.wire.port in peers(worker)]

    def kill_a_backend(self) -> None:
        found: list[tuple[int]] = []
        writers = "SELECT pid FROM pg_stat_activity WHERE usename = 'ledger_writer'"
        while not found:
            # The backend that was killed before costs Postgres a recovery.
            with contextlib.suppress(psycopg.OperationalError):
                found = Database(self.postgres, "ledger").rows(writers, SUPERUSER)
            time.sleep(0.02)
        # It may have ended since.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(found)[0], signal.SIGKILL)

    def kill_postgres(self) -> None:
        kill(self.postgres)
        time.sleep(self.chance.uniform(0, 1.5))
        self.postgres.start()

    def hold_the_network(self) -> None:
        self.wire.hold()
        if self.chance.random() < 0.3:
            self.kill_workers()
        time.sleep(self.chance.uniform(0.2, 2))
        self.wire.flow()

    def lose_the_network(self) -> None:
        """As the kernel does it that gets no answer: its own end is gone, the other is not.

        It is away for longer than a sender waits; when it comes back it is not well at first.
        """
        self.wire.hold()
        time.sleep(ANSWER_SECONDS_MAX + SLACK_SECONDS + 0.5)
        self.wire.reset(both_ends=False)
        self.wire.lose(*[Loss.UNSENT] * 6)
        self.wire.flow()

    def reset_the_network(self) -> None:
        self.wire.reset(both_ends=self.chance.random() < 0.5)

    def lose_an_answer(self) -> None:
        """Of a commit that wrote something: surely an unknown outcome."""
        before = len(self.wire.unheard)

        def is_lost() -> bool:
            if not self.wire.to_lose():
                self.wire.lose(Loss.AFTER_COMMIT)
            return len(self.wire.unheard) > before

        wait_until(is_lost)

    def lose_many_answers(self) -> None:
        """More of them than a worker asks before it says that it does not know."""
        self.wire.lose(*self.chance.choices(list(Loss), k=6))
        wait_until(lambda: self.wire.to_lose() == 0)


OUTAGES: list[Callable[[Machine], None]] = [
    Machine.kill_workers,
    Machine.kill_a_backend,
    Machine.kill_postgres,
    Machine.hold_the_network,
    Machine.lose_the_network,
    Machine.reset_the_network,
    Machine.lose_many_answers,
    *[Machine.lose_an_answer] * 4,
]


def break_things(machine: Machine) -> Counter[str]:
    """How often what broke: everything at least once, in an order of chance."""
    broken: Counter[str] = Counter()
    ends_at = time.monotonic() + SECONDS
    while not broken or time.monotonic() < ends_at:
        for outage in machine.chance.sample(OUTAGES, len(OUTAGES)):
            time.sleep(machine.chance.uniform(0.05, 0.5))
            outage(machine)
            broken[outage.__name__] += 1
    return broken


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        # Of a process that ends while it is looked at.
        with contextlib.suppress(psutil.Error):
            if is_so():
                return
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def peers(process: psutil.Process) -> set[int]:
    """The ports that the process is connected to."""
    return {each.raddr.port for each in process.net_connections("tcp") if each.raddr}


def kill(postgres: EmbeddedPostgres) -> None:
    postmaster = int((postgres.data_directory / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    postgres.stop()


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of the test's own."""
    with throw_away_postgres() as server:
        yield server


@pytest.fixture
def wire(postgres: EmbeddedPostgres) -> Iterator[Wire]:
    given = conninfo_to_dict(postgres.url(SUPERUSER))
    with Wire(Path(str(given["host"])) / f".s.PGSQL.{given['port']}") as wire:
        yield wire


@pytest.mark.parametrize("has_spool", [False, True], ids=["without a spool", "with a spool"])
def test_whatever_breaks_every_200_is_in_the_books_once(
    postgres: EmbeddedPostgres, wire: Wire, tmp_path: Path, run: Run, has_spool: bool
) -> None:
    print(f"SEED={SEED} OUTAGE_SECONDS={SECONDS}")
    spool = SpoolSettings(tmp_path / "spool", 2**30)
    settings = {"INGRESS_WORKERS": str(WORKERS), "INGRESS_LOG": "off"}
    if has_spool:
        settings["INGRESS_SPOOL"] = str(spool.directory)
    url = f"postgresql://{Role.WRITER}@127.0.0.1:{wire.port}/ledger"
    is_over = threading.Event()
    with running(url, **settings) as ingress, ThreadPoolExecutor(SENDERS) as threads:
        senders = [Sender(name, ingress.port) for name in range(SENDERS)]
        sending = [threads.submit(sender.send_until, is_over) for sender in senders]
        try:
            machine = Machine(postgres, wire, ingress, random.Random(f"{SEED} outages"))
            broken = break_things(machine)
        finally:
            is_over.set()
        answers = [answer for sent in sending for answer in sent.result()]
        if has_spool:
            wait_until(lambda: status(spool).depth == 0)
            assert status(spool).set_aside == 0
    outcomes = Counter(
        f"{answer.sent.kind.name} {answer.status} {answer.told.get('status')}" for answer in answers
    )
    print(f"{dict(broken)}, {len(wire.unheard)} commits unheard of")
    print(f"{len(answers)} answers: {dict(sorted(outcomes.items()))}")
    print(f"the slowest took {max(answer.seconds for answer in answers):.2f} s")
    check_that_it_broke(answers, wire, broken, has_spool=has_spool)
    check_answers(answers)
    database = Database(postgres, "ledger")
    check_books(database, answers)
    check_quarantine(database, answers)
    if has_spool:
        check_order(database, answers)

    assert run(verify(database.url())) == []


def check_that_it_broke(
    answers: list[Answer], wire: Wire, broken: Counter[str], *, has_spool: bool
) -> None:
    assert broken.keys() == {outage.__name__ for outage in OUTAGES}
    # The unknown outcome: rewards were committed, and the ingress did not hear of it.
    lost = {text for unheard in wire.unheard for text in unheard}
    assert len(wire.unheard) >= 4
    assert any(answer.sent.text in lost for answer in answers if answer.status == 200)
    if has_spool:
        assert any(answer.told.get("status") == "spooled" for answer in answers)
    else:
        assert any(answer.status == 503 for answer in answers)


def check_answers(answers: list[Answer]) -> None:
    """Each answer is one that this delivery may have, in time."""
    for kind, _, _, _, _, _ in {answer.sent for answer in answers}:
        assert any(answer.sent.kind is kind and answer.is_for_good() for answer in answers)
    for sent, code, told, retry_after, seconds in answers:
        if code is None:
            continue
        assert seconds < ANSWER_SECONDS_MAX + SLACK_SECONDS
        allowed = {503}
        if sent.kind is Kind.FORGED:
            allowed = {401, 429}
        if sent.kind in REFUSED:
            allowed |= {REFUSED[sent.kind]}
        if sent.kind in POSTABLE or told.get("status") == "spooled":
            allowed |= {200}
        if sent.kind is Kind.CREDITED:
            # The other facts may have come first.
            allowed |= {409}
        assert code in allowed, (sent, told)
        if sent.kind in {Kind.NO_JSON, Kind.NO_REWARD}:
            assert code != 200, told
        if code == 503:
            assert 1 <= int(retry_after or 0) <= 5


def check_books(database: Database, answers: list[Answer]) -> None:
    """Everything that was answered 200 is there once, as it was told, and nothing else."""
    believed: defaultdict[str, set[tuple[str, int | None]]] = defaultdict(set)
    for sent in {answer.sent for answer in answers}:
        if sent.kind in POSTABLE:
            believed[sent.reward_id].add((sent.user_id, sent.amount))
    rewards = database.rows("SELECT reward_id, user_id, reward_amount::bigint FROM rewards")
    postings = database.rows(
        "SELECT reward_id, user_id, amount::bigint, version, posted_at FROM postings"
    )
    booked = {reward_id: (user_id, amount) for reward_id, user_id, amount in rewards}
    posted = {reward_id: rest for reward_id, *rest in postings}
    assert (len(booked), len(posted)) == (len(rewards), len(postings))
    for reward_id, facts in booked.items():
        assert facts in believed[reward_id]
        if facts[1] is None:
            assert reward_id not in posted
        else:
            assert tuple(posted[reward_id][:2]) == facts
    assert posted.keys() <= booked.keys()

    news = Counter[str]()
    for sent, code, told, _, _ in answers:
        if code != 200 or sent.kind is Kind.UNREGISTERED:
            continue
        assert sent.reward_id == told["rewardId"]
        assert sent.reward_id in booked, sent
        if told["status"] == "spooled":
            continue
        # Whoever was told of a posting was told of the one that stands there.
        assert booked[sent.reward_id] == (sent.user_id, sent.amount)
        news[sent.reward_id] += told["status"] in {"credited", "recorded"}
        if sent.amount is not None:
            _, _, version, posted_at = posted[sent.reward_id]
            assert told["posting"]["version"] == version
            assert datetime.fromisoformat(told["postedAt"]) == posted_at
    # The news of a credit can be lost with its connection; the sender then hears of a replay.
    assert set(news.values()) <= {0, 1}

    owed: defaultdict[str, Decimal] = defaultdict(Decimal)
    for user_id, amount in booked.values():
        if amount is not None:
            owed[f"user:{user_id}"] += amount
    balances = database.rows("SELECT account, credits - debits FROM balances WHERE account ~ '^u'")
    assert dict(balances) == owed
    house = database.rows("SELECT sum(debits - credits) FROM balances WHERE account !~ '^u'")
    assert house == [(sum(owed.values()),)]


def check_quarantine(database: Database, answers: list[Answer]) -> None:
    """Everything that was refused is there, once and whole, with who vouched for it."""
    rows = database.rows("SELECT believed_bytes, token, form, reason, state FROM quarantine")
    kept = {bytes(text): tuple(rest) for text, *rest in rows}
    believed = {answer.sent.text for answer in answers if answer.sent.kind is not Kind.FORGED}
    assert len(kept) == len(rows)
    assert kept.keys() <= believed
    assert {(token, form, state) for token, form, _, state in kept.values()} == {
        ("current", "raw", "open")
    }
    reasons = {
        Kind.UNREGISTERED: "UnknownCurrency",
        Kind.NO_REWARD: "NotAReward",
        Kind.NO_JSON: "NotJson",
    }
    for sent, code, told, _, _ in answers:
        is_refused_later = sent.kind is Kind.UNREGISTERED and told.get("status") == "spooled"
        if code in {400, 409, 422} or is_refused_later:
            assert kept[sent.text][2] == reasons.get(sent.kind, "IdempotencyConflict")


def check_order(database: Database, answers: list[Answer]) -> None:
    """What one sender had spooled for one user is posted in the order in which it was sent."""
    tries = Counter(answer.sent.text for answer in answers)
    rows = database.rows("SELECT reward_id, amount::bigint, version FROM postings")
    versions = {(reward_id, amount): version for reward_id, amount, version in rows}
    last: defaultdict[str, int] = defaultdict(int)
    compared = 0
    for sent, _, told, _, seconds in answers:
        version = versions.get((sent.reward_id, sent.amount))
        # What was sent twice may have been put by the try that was not answered, and what comes
        # with other facts later may be credited first.
        if told.get("status") != "spooled" or tries[sent.text] > 1 or version is None:
            continue
        # Of one that was asked for first, and so took its time, the outcome was not known: it may
        # have been posted at once.
        if seconds < UNASKED_SECONDS_MAX:
            assert version > last[sent.user_id], sent
            compared += 1
        last[sent.user_id] = max(version, last[sent.user_id])
    assert compared
