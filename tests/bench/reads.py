"""How fast questions are answered, from small books and from large ones."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import psycopg

from ledger import page
from ledger.embedded import EmbeddedPostgres
from ledger.history import RewardFilter
from ledger.operations.migrate import migrate
from ledger.seal import Seal
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from tests.bench import books, load

KEYS = 100
PAGE_SIZE = 50
CALLS = 100
SINGLE = "GetBalance of one user"
EMPTY = "/bench.Empty/Call"
GET_BALANCE = "/ledger.v1.LedgerService/GetBalance"
BATCH_GET_BALANCES = "/ledger.v1.LedgerService/BatchGetBalances"


class Filled(NamedTuple):
    """A database of its own with so many rewards."""

    url: str
    rewards: int


def filled(postgres: EmbeddedPostgres, rewards: int) -> Filled:
    """Make and fill it."""
    name = f"filled_{rewards}"
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER ledger_owner")
    migrate(postgres.url("ledger_owner", name))
    books.fill(postgres.url("ledger_owner", name), rewards)
    return Filled(postgres.url("ledger_reader", name), rewards)


def command(place: Filled, port: int) -> list[str]:
    """How the server on `place` is started."""
    return [sys.executable, "-m", "tests.bench.empty", place.url, str(port)]


def questions(place: Filled) -> dict[str, tuple[str, bytes]]:
    """Method and message of each question that h2load asks again and again.

    It sends one message for the whole of its run, so a single balance is always the same user's,
    whose rows are all in memory.
    """
    users = [f"user-{n * 7 % max(place.rewards // 10, 10)}" for n in range(KEYS)]
    keys = [pb.BalanceKey(user_id=user, currency=books.CURRENCY) for user in users]
    one = pb.GetBalanceRequest(user_id=users[1], currency=books.CURRENCY)
    many = pb.BatchGetBalancesRequest(keys=keys)
    return {
        "empty call": (EMPTY, b""),
        SINGLE: (GET_BALANCE, one.SerializeToString()),
        f"BatchGetBalances of {KEYS}": (BATCH_GET_BALANCES, many.SerializeToString()),
    }


def singles_p50_milliseconds(place: Filled, port: int) -> dict[str, float]:
    """How long one call after the other takes, of each question that is asked seldom."""
    totals = pb.ListCurrencyTotalsRequest()
    totals.as_of.FromJsonString("2025-07-01T12:34:56.789Z")
    movements = pb.ListMovementsRequest(
        start_day="2025-03-01", end_day="2025-10-01", group=pb.MOVEMENT_GROUP_CAMPAIGN
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        service = LedgerServiceStub(channel)
        found = {
            f"ListRewards, {PAGE_SIZE} rewards, {name}": _p50(service.ListRewards, request)
            for name, request in _pages(place).items()
        }
        found["ListCurrencyTotals as of a time"] = _p50(service.ListCurrencyTotals, totals)
        found["ListMovements of seven months"] = _p50(service.ListMovements, movements)
        found["GetTrialBalance"] = _p50(service.GetTrialBalance, pb.GetTrialBalanceRequest())
    return found


def _pages(place: Filled) -> dict[str, pb.ListRewardsRequest]:
    """The first page of the frequent user's history, and the last whole one."""
    chosen = RewardFilter(books.FREQUENT_USER)
    with psycopg.connect(place.url) as connection:
        ((key,),) = connection.execute("SELECT key FROM sealing_keys").fetchall()
        numbers = connection.execute(
            "SELECT number FROM rewards WHERE user_id = %s ORDER BY number LIMIT 1 OFFSET %s",
            (books.FREQUENT_USER, PAGE_SIZE),
        )
        ((number,),) = numbers.fetchall()
        ((count,),) = connection.execute(
            "SELECT count(*) FROM rewards WHERE user_id = %s", (books.FREQUENT_USER,)
        ).fetchall()
    token = page.token(Seal(bytes(key)), number, chosen)
    return {
        name: pb.ListRewardsRequest(
            user_id=books.FREQUENT_USER, page_size=PAGE_SIZE, page_token=page_token
        )
        for name, page_token in (("page 1", ""), (f"page {count // PAGE_SIZE:,}", token))
    }


def _p50(method: Callable[[Any], Any], request: Any) -> float:
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        method(request)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def verify_seconds(place: Filled) -> float:
    """How long `ledger verify` takes, which must find nothing."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ledger", "verify"],
        env={**os.environ, "DATABASE_URL": place.url},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def ask(
    h2load: str, server: psutil.Process, port: int, question: tuple[str, bytes], seconds: int,
    directory: Path, postmaster: psutil.Process,
) -> load.Result:  # fmt: skip
    """One run of one question, 32 calls in flight."""
    meter = load.Meter([server], postmaster)
    return load.call_load(h2load, port, *question, seconds, meter, directory)
