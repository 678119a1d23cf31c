"""What is told of calls: one line and one count for each, and nothing that is somebody's own."""

import asyncio
import base64
import http.client
import json
import random
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from ledger.callers import Caller
from ledger.config import AccessSettings, LogSettings, ServeSettings
from ledger.metrics import Load, Metrics
from ledger.observing import METHODS, OK, STATUSES, Observation, Observer
from ledger.server import POOL_SIZE_MAX
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.certificates import replace
from tests.conftest import Database, Run
from tests.ledger.test_access import caller, token, until
from tests.ledger.test_server import make_slow, status_of
from tests.rewards import reward
from tests.serving import free_port, serving

KEY = b"the key that users are hashed with"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Labels = frozenset[tuple[str, str]]


class Told:
    """The settings of a server that tells, and what it has told."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        path = directory / "callers.toml"
        replace(
            path,
            (caller("app", "balances", "history", "watch") + caller("sums", "totals")).encode(),
        )
        self.metrics_port = free_port()
        self.settings = ServeSettings(
            access=AccessSettings(callers=str(path)),
            log=LogSettings(is_on=True, key=KEY),
            metrics_bind=f"127.0.0.1:{self.metrics_port}",
        )
        self._capture = capture
        self._log = ""

    def log(self) -> str:
        """All that was written so far."""
        self._log += self._capture.readouterr().out
        return self._log

    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        return [json.loads(line) for line in self.log().split("\n") if line]

    async def scraped(self) -> str:
        """What is exported now."""

        def get() -> str:
            client = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
            client.close()
            return text

        return await asyncio.to_thread(get)

    async def samples(self, name: str) -> dict[Labels, float]:
        """The series of this name that are not zero."""
        return samples(await self.scraped(), name)


def samples(scraped: str, name: str) -> dict[Labels, float]:
    return {
        frozenset(sample.labels.items()): sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
        if sample.name == name and sample.value
    }


def labelled(**labels: str) -> Labels:
    return frozenset(labels.items())


@pytest.fixture
def told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Told:
    return Told(tmp_path, capfd)


@asynccontextmanager
async def asking(database: Database, told: Told) -> AsyncIterator[Any]:
    async with database.connected() as connection:
        await post(connection, [reward(code="CODE123", reward_name="A name")])
    async with serving(database.url("ledger_reader"), settings=told.settings) as channel:
        yield channel


def test_each_call_is_one_line(database: Database, run: Run, told: Told) -> None:
    app = token("app")

    async def main() -> None:
        async with asking(database, told) as channel:
            service = LedgerServiceStub(channel)
            traced = (*app, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
            key = {"user_id": "u", "currency": "USD"}
            raw = channel.unary_unary("/ledger.v1.LedgerService/GetBalance")
            for method, request, metadata in (
                (service.GetBalance, pb.GetBalanceRequest(**key), app),
                (service.ListBalances, pb.ListBalancesRequest(user_id="u"), traced),
                (service.GetReward, pb.GetRewardRequest(reward_id="reward-1"), app),
                (service.GetReward, pb.GetRewardRequest(reward_id="unknown"), app),
                (service.BatchGetBalances, pb.BatchGetBalancesRequest(keys=[key] * 3), app),
                (service.BatchGetBalances, pb.BatchGetBalancesRequest(keys=[{}]), app),
                (service.ListCurrencyTotals, pb.ListCurrencyTotalsRequest(), app),
                (service.GetBalance, pb.GetBalanceRequest(**key), ()),
                (raw, b"\xff", app),
            ):
                await status_of(method(request, metadata=metadata))

    run(main())
    lines = told.lines()
    assert len({line.pop("request_id") for line in lines}) == len(lines)
    for line in lines:
        assert line.pop("at").endswith("Z")
        assert line.pop("total_ms") >= 0
        assert line.pop("peer") == "127.0.0.1"
    user_hash = lines[0]["user_hash"]
    known = {"caller": "app"}
    assert lines == [
        {**known, "method": "GetBalance", "status": "OK", "user_hash": user_hash},
        {
            **known,
            "method": "ListBalances",
            "status": "OK",
            "user_hash": user_hash,
            "trace_id": TRACE,
            "parent_id": SPAN,
        },
        {**known, "method": "GetReward", "status": "OK", "reward_id": "reward-1"},
        {**known, "method": "GetReward", "status": "NOT_FOUND", "reason": "REWARD_NOT_FOUND"},
        {**known, "method": "BatchGetBalances", "status": "OK", "keys": 3},
        {
            **known,
            "method": "BatchGetBalances",
            "status": "INVALID_ARGUMENT",
            "reason": "INVALID_ARGUMENT",
            "field": "keys[0].user_id",
        },
        {
            **known,
            "method": "ListCurrencyTotals",
            "status": "PERMISSION_DENIED",
            "reason": "PERMISSION_DENIED",
        },
        {"method": "GetBalance", "status": "UNAUTHENTICATED", "reason": "UNAUTHENTICATED"},
        {
            **known,
            "method": "GetBalance",
            "status": "INVALID_ARGUMENT",
            "reason": "NOT_A_MESSAGE",
        },
    ]


def test_a_call_that_nobody_waits_for_any_more_is_told_as_what_it_is(
    database: Database, run: Run, told: Told
) -> None:
    async def main() -> None:
        async with asking(database, told) as channel:
            make_slow(database, "rewards", 1)
            service = LedgerServiceStub(channel)
            request = pb.GetRewardRequest(reward_id="reward-1")
            late = service.GetReward(request, metadata=token("app"), timeout=0.3)
            assert await status_of(late) == "DEADLINE_EXCEEDED"
            left = service.GetReward(request, metadata=token("app"))
            await asyncio.sleep(0.3)
            left.cancel()
            async with asyncio.timeout(20):
                while len(told.lines()) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    run(main())
    assert [line["status"] for line in told.lines()] == ["DEADLINE_EXCEEDED", "CANCELLED"]


def test_each_call_is_counted_and_so_is_what_it_needed(
    database: Database, run: Run, told: Told
) -> None:
    async def main() -> None:
        async with asking(database, told) as channel:
            service = LedgerServiceStub(channel)
            request = pb.GetBalanceRequest(user_id="user-1", currency="USD")
            calls = [service.GetBalance(request, metadata=token("app")) for _ in range(20)]
            calls += [service.GetBalance(request, metadata=token("sums")) for _ in range(2)]
            calls += [service.GetBalance(request) for _ in range(3)]
            calls += [service.GetReward(pb.GetRewardRequest(), metadata=token("app"))]
            await asyncio.gather(*map(status_of, calls))
            for _ in range(4):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            expected = {
                labelled(method="GetBalance", status="OK"): 20,
                labelled(method="GetBalance", status="PERMISSION_DENIED"): 2,
                labelled(method="GetBalance", status="UNAUTHENTICATED"): 3,
                labelled(method="GetReward", status="INVALID_ARGUMENT"): 1,
            }

            async def is_counted() -> bool:
                return await told.samples("ledger_calls_total") == expected

            await until(is_counted)
            seconds = await told.samples("ledger_call_seconds_count")
            assert seconds == {labelled(method="GetBalance"): 25, labelled(method="GetReward"): 1}
            # Those of the callers, and the health check's own.
            asked = await told.samples("ledger_batch_size_sum")
            assert asked[labelled()] >= 20
            assert (await told.samples("ledger_pool_connections"))[labelled()] >= 1
            # Every series is there from the start.
            scraped = await told.scraped()
            assert 'ledger_calls_total{method="GetReward",status="INTERNAL"} 0.0' in scraped
            assert "ledger_calls_in_flight 0.0" in scraped
            assert "ledger_watchers 0.0" in scraped

    run(main())


def test_gauges_tell_what_is_going_on_now(database: Database, run: Run, told: Told) -> None:
    async def main() -> None:
        app = token("app")
        async with asking(database, told) as channel:
            service = LedgerServiceStub(channel)

            async def gauges_are(**expected: int) -> None:
                async def are_so() -> bool:
                    scraped = await told.scraped()
                    return expected == {
                        name: samples(scraped, f"ledger_{name}").get(labelled(), 0)
                        for name in expected
                    }

                await until(are_so)

            watches = [service.WatchRewards(pb.WatchRewardsRequest(), metadata=app) for _ in "ab"]
            for watch in watches:
                assert await watch.read()
            held = channel.stream_unary("/ledger.v1.LedgerService/GetBalance")(metadata=app)
            await gauges_are(calls_in_flight=1, watchers=2)
            held.cancel()
            watches.pop().cancel()
            await gauges_are(calls_in_flight=0, watchers=1, pool_waiting=0)

            make_slow(database, "rewards", 0.3)
            request = pb.GetRewardRequest(reward_id="reward-1")
            is_seen = asyncio.Event()

            async def keep_asking() -> None:
                while not is_seen.is_set():
                    await status_of(service.GetReward(request, metadata=app))

            # Two more than there are connections, and each of them is always in one or waits.
            asking_on = [asyncio.create_task(keep_asking()) for _ in range(POOL_SIZE_MAX + 2)]
            await gauges_are(
                calls_in_flight=POOL_SIZE_MAX + 2,
                pool_connections=POOL_SIZE_MAX,
                pool_idle_connections=0,
                pool_waiting=2,
            )
            is_seen.set()
            await asyncio.gather(*asking_on)
            await gauges_are(calls_in_flight=0, pool_waiting=0)

    run(main())


def secret_words(chance: random.Random, number: int) -> dict[str, str]:
    """Text that stands nowhere else, for each place of a question that is somebody's own."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    places = ("user", "currency", "reward", "page", "campaign", "type", "token", "header")
    return {place: f"{place}{number}" + "".join(chance.choices(letters, k=12)) for place in places}


def spellings(word: str) -> set[str]:
    """The ways in which a text could be hidden in what is told."""
    raw = word.encode()
    encoded = base64.b64encode(raw).decode().rstrip("=")[:-2]
    return {word, raw.hex(), urllib.parse.quote(word), encoded}


def test_nothing_of_anybodys_own_is_ever_told(database: Database, run: Run, told: Told) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    secrets = {KEY.decode(), "CODE123", "A name", "user-1"}
    scraped = ""

    async def main() -> None:
        nonlocal scraped
        async with asking(database, told) as channel:
            service = LedgerServiceStub(channel)
            for number in range(100):
                words = secret_words(chance, number)
                secrets.update(*(spellings(word) for word in words.values()))
                calls: list[tuple[Any, Any]] = [
                    (
                        service.GetBalance,
                        pb.GetBalanceRequest(
                            user_id=words["user"],
                            currency=chance.choice(["USD", words["currency"]]),
                        ),
                    ),
                    (
                        service.GetReward,
                        pb.GetRewardRequest(reward_id=chance.choice([words["reward"], "reward-1"])),
                    ),
                    (
                        service.ListRewards,
                        pb.ListRewardsRequest(
                            user_id=words["user"],
                            campaign_id=words["campaign"],
                            type=words["type"],
                            page_token=chance.choice(["", words["page"]]),
                        ),
                    ),
                    (service.ListRewards, pb.ListRewardsRequest(user_id="user-1")),
                    (
                        service.BatchGetBalances,
                        pb.BatchGetBalancesRequest(
                            keys=[{"user_id": words["user"], "currency": words["currency"]}]
                        ),
                    ),
                ]
                method, request = chance.choice(calls)
                metadata = (
                    *chance.choice([token("app"), token("sums"), token(words["token"]), ()]),
                    ("x-request-id", words["header"]),
                    ("traceparent", chance.choice([words["header"], f"00-{TRACE}-{SPAN}-01"])),
                )
                await status_of(method(request, metadata=metadata))
            await asyncio.sleep(1.5)
            scraped = await told.scraped()

    run(main())
    lines = told.lines()
    assert len(lines) == 100
    assert {line["status"] for line in lines} >= {OK, "UNAUTHENTICATED", "INVALID_ARGUMENT"}
    assert [secret for secret in secrets if secret in told.log() + scraped] == [], f"seed {seed}"


class Call:
    """A call as the observer sees it."""

    def __init__(self, peer: str = "ipv4:10.0.0.1:4711") -> None:
        self._peer = peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return self._peer

    def peer_identities(self) -> None:
        return None

    def time_remaining(self) -> None:
        return None


class Sink:
    """Keeps lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, line: bytes) -> None:
        assert line.isascii()
        self.lines.append(json.loads(line))


def observed(seen: Observation, call: Call | None = None, key: bytes = KEY) -> dict[str, Any]:
    sink: Any = Sink()
    Observer(sink=sink, key=key).observe(seen, call or Call())
    (line,) = sink.lines
    return dict(line)


def seen(request: Any, status: str = OK) -> Observation:
    found = Observation(type(request).__name__.removesuffix("Request"))
    found.request, found.status = request, status
    found.caller = Caller("app", frozenset())
    return found


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::1%eth0"),
        ("unix:", ""),
    ],
)
def test_a_peer_is_told_by_its_address_alone(peer: str, address: str) -> None:
    assert observed(seen(None), Call(peer))["peer"] == address


def test_a_user_has_the_hash_that_the_ingress_tells() -> None:
    """With the same key a user can be followed from a delivery to a question."""
    import hashlib

    one = observed(seen(pb.GetBalanceRequest(user_id="user-1")))
    ours = hashlib.blake2b(b"user-1", key=KEY, digest_size=8).hexdigest()
    assert one["user_hash"] == ours
    other = observed(seen(pb.GetBalanceRequest(user_id="user-1")), key=b"another key of ours")
    assert other["user_hash"] != ours


def test_what_would_end_a_line_or_steer_a_terminal_does_neither() -> None:
    line = observed(seen(pb.GetRewardRequest(reward_id="a\u2028\u009b31mb\nc")))
    assert line["reward_id"] == "a\u2028\u009b31mb\nc"


def test_a_reward_that_the_books_do_not_know_is_not_told() -> None:
    assert "reward_id" not in observed(seen(pb.GetRewardRequest(reward_id="x"), "NOT_FOUND"))


def test_whoever_cannot_be_told_does_not_stop_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sink):
        def write(self, line: bytes) -> None:
            raise OSError("tell-nobody")

    sink: Any = Broken()
    Observer(sink=sink, key=KEY).observe(seen(None), Call())
    assert "a call was not observed: OSError at " in caplog.text
    assert "tell-nobody" not in caplog.text


def test_a_count_is_published_once() -> None:
    counted = Metrics(METHODS, STATUSES)
    counted.call("GetBalance", OK, 0.001)
    counted.call("GetBalance", OK, 60.0)
    counted.batch(512)
    counted.dropped_line()
    load = Load(1, 2, 3, 4, 5, is_behind=True)
    for _ in range(3):
        counted.publish(load)
    value = counted.registry.get_sample_value
    assert value("ledger_calls_total", {"method": "GetBalance", "status": OK}) == 2
    ends = [
        value("ledger_call_seconds_bucket", {"method": "GetBalance", "le": end})
        for end in ("0.0005", "0.001", "5.0", "+Inf")
    ]
    assert ends == [0, 1, 1, 2]
    assert value("ledger_batch_size_bucket", {"le": "512.0"}) == 1
    assert value("ledger_dropped_log_lines_total") == 1
    gauges = [
        value(f"ledger_{name}")
        for name in (
            "calls_in_flight",
            "watchers",
            "pool_connections",
            "pool_idle_connections",
            "pool_waiting",
            "files_not_usable",
        )
    ]
    assert gauges == [1, 2, 3, 4, 5, 1]
