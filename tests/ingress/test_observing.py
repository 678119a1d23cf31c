"""What is told of a delivery: one line and one count each, and nothing that is somebody's own."""

import json
import time
from typing import Any

import pytest
from falcon import testing
from falcon.asgi import App, Request, Response

from ingress.app import create_app
from ingress.config import InvalidSetting, read_settings
from ingress.health import Live
from ingress.metrics import Metrics
from ingress.observation import Observation, observation
from ingress.observing import Observer, read_observing_settings
from ledger.database import Pool, Role
from ledger.quarantine import Quarantine
from ledger.tallying import Tally
from ledger.tracing import Facts, Parent
from ledger.writing import Writer
from tests.conftest import Database, Run
from tests.ingress.deliveries import ABSENT, EXAMPLE, PATH, TOKEN, body, signed
from tests.ingress.observed import running, wait_until
from tests.rewards import reward


class Kept:
    """Lines in memory."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


class Webhook:
    """Sees a reward, as the webhook does."""

    def __init__(self, user_id: str = "user-1", reward_id: str = "reward-1") -> None:
        self._reward = reward(reward_id, user_id=user_id)

    async def on_post(self, request: Request, response: Response) -> None:
        seen = observation(request)
        seen.peer = "10.0.0.1"
        seen.is_expected = False
        seen.received(await request.stream.read())
        seen.believed("raw", "current")
        seen.read(self._reward)
        seen.outcome = "credited"


def told_of(webhook: object, key: bytes = b"k" * 32, sink: Any = None) -> dict[str, Any]:
    """The line of one delivery."""
    sink = sink or Kept()
    app = App(middleware=[Observer(Metrics([]), key, sink)])
    app.add_route("/", webhook)
    assert testing.TestClient(app).simulate_post("/", body="12345").status_code == 200
    (line,) = sink.told()
    told: dict[str, Any] = line
    return told


def test_a_line_says_who_what_and_how_long() -> None:
    told = told_of(Webhook())
    times = ["total_ms", "receive_ms", "verify_ms", "post_ms"]
    assert all(told.pop(name) >= 0 for name in times)
    assert told.pop("at").endswith("Z")
    assert len(told.pop("request_id")) == len(told.pop("user_hash")) == 16
    assert told == {
        "outcome": "credited",
        "status_code": 200,
        "peer": "10.0.0.1",
        "is_expected": False,
        "size_bytes": 5,
        "form": "raw",
        "token": "current",
        "reward_id": "reward-1",
    }


def test_a_user_is_the_same_under_one_key_and_unknown_under_another() -> None:
    first = told_of(Webhook("+4915112345678"))["user_hash"]
    assert told_of(Webhook("+4915112345678"))["user_hash"] == first
    assert told_of(Webhook("+4915112345679"))["user_hash"] != first
    assert told_of(Webhook("+4915112345678"), key=b"another" * 4)["user_hash"] != first


@pytest.mark.parametrize("reward_id", ["a\nb", "a\u2028b", "\x9b2J", "\x7f", "😀"])
def test_a_reward_id_can_neither_end_a_line_nor_steer_a_terminal(reward_id: str) -> None:
    kept = Kept()
    assert told_of(Webhook(reward_id=reward_id), sink=kept)["reward_id"] == reward_id
    (line,) = kept.lines
    assert line.isascii()
    assert b"\n" not in line


def test_a_line_that_cannot_be_written_changes_no_answer() -> None:
    class Broken:
        def write(self, line: bytes) -> None:
            raise OSError

    app = App(middleware=[Observer(Metrics([]), b"k" * 32, Broken())])
    app.add_route("/", Webhook())
    assert testing.TestClient(app).simulate_post("/").status_code == 200


def test_probes_are_not_told() -> None:
    kept = Kept()
    app = App(middleware=[Observer(Metrics([]), b"k" * 32, kept)])
    app.add_route("/", Live())
    assert testing.TestClient(app).simulate_get("/").status_code == 200
    assert kept.lines == []


@pytest.mark.parametrize(
    "given", [{"INGRESS_LOG": "text"}, {"INGRESS_LOG_KEY": "short"}, {"INGRESS_LOG_KEY": "x" * 65}]
)
def test_a_setting_that_cannot_be_used_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(given))):
        read_observing_settings(given)


def test_without_a_key_each_process_draws_its_own() -> None:
    assert read_observing_settings({}).key != read_observing_settings({}).key


def test_every_answer_has_one_line_and_one_count(database: Database) -> None:
    with running(database.url()) as ingress:
        text = body()
        told_to_the_sender = set()
        for sent, outcome in (
            (text, "credited"),
            (text, "replayed"),
            (body(rewardAmount=1), "conflict"),
            (body(rewardId="a", rewardAmount=0), "recorded"),
            (body(webhookType="nudge"), "ignored"),
            (body(rewardId=ABSENT), "not-a-reward"),
            (body(rewardId="b", details={"currency": "NOBODY"}), "unknown-currency"),
            (b"{", "not-json"),
            (b"x" * 70_000, "too-large"),
        ):
            _, told = ingress.deliver(sent)
            assert told.get("status") == outcome or told["type"].endswith(f":{outcome}")
            told_to_the_sender |= {told["requestId"]} if "requestId" in told else set()
        ingress.ask("POST", PATH, text=text)
        ingress.ask("POST", PATH, text=text, **{**signed(text), "Content-Type": "text/plain"})
        ingress.ask("GET", PATH)
        ingress.ask("GET", "/nothing")
        ingress.ask("GET", "/livez")
        expected = {
            *("credited", "replayed", "conflict", "recorded", "ignored", "not-a-reward"),
            *("unknown-currency", "not-json", "too-large", "not-believed", "not-json-type"),
            *("method-not-allowed", "not-found"),
        }
        wait_until(lambda: ingress.answered() == len(expected) == len(ingress.lines()))
        assert {line["outcome"] for line in ingress.lines()} == expected
        assert len(told_to_the_sender) == 5
        assert told_to_the_sender < {line["request_id"] for line in ingress.lines()}
        counts = ingress.samples("ingress_deliveries_total")
        assert {dict(labels)["outcome"] for labels in counts} == expected
        assert set(counts.values()) == {1}
        assert ingress.samples("ingress_believed_deliveries_total") == {
            frozenset({("form", "raw"), ("token", "current")}): 8
        }
        assert ingress.complaints() == ""


def test_a_delivery_that_nobody_waits_for_has_a_line_and_no_status() -> None:
    kept, metrics = Kept(), Metrics([])
    seen = Observation(Observer(metrics, b"k" * 32, kept))
    seen.received(b"{}")
    seen.believed("raw", "current")
    assert metrics.counts.tally() == Tally(believed=1, in_flight=1)
    seen.abandoned()
    assert metrics.counts.tally() == Tally(believed=1, abandoned=1)
    (line,) = kept.told()
    assert line["outcome"] == "abandoned"
    assert "status_code" not in line


def test_a_delivery_is_one_span_that_tells_nothing_of_anybodys_own(
    database: Database, run: Run
) -> None:
    spans: list[tuple[str, Facts, int, int, Parent | None]] = []
    observer = Observer(Metrics([]), b"k" * 32, span=lambda *told: spans.append(told))
    texts = [body(rewardId="first", code="SECRET1"), body(rewardId="first", code="SECRET2")]

    async def main() -> None:
        settings = read_settings({"DATABASE_URL": database.url(), "INGRESS_TOKEN": TOKEN})
        async with Pool(database.url(), Role.WRITER, size_max=2) as pool:
            app = create_app(settings, Writer(pool), Quarantine(pool))
            app.add_middleware([observer])
            async with testing.ASGIConductor(app) as client:
                for headers in (signed(texts[0]), {}):
                    await client.simulate_post(PATH, body=texts[0], headers=headers)
                await client.simulate_post(PATH, body=texts[1], headers=signed(texts[1]))

    before = time.time_ns()
    run(main())
    assert [name for name, *_ in spans] == ["delivery"] * 3
    facts = [told for _, told, *_ in spans]
    assert [told["outcome"] for told in facts] == ["credited", "not-believed", "conflict"]
    assert [told["status_code"] for told in facts] == [200, 401, 409]
    assert [told.get("token") for told in facts] == ["current", None, "current"]
    for _, _, started_at, ended_at, parent in spans:
        assert before - 1_000_000_000 < started_at < ended_at <= time.time_ns()
        assert parent is None
    # Exporters take these kinds and no others.
    kinds = (str, int, float, bool)
    assert all(isinstance(value, kinds) for told in facts for value in told.values())
    said = repr(spans)
    for word in ("SECRET", EXAMPLE["userId"], EXAMPLE["rewardName"], EXAMPLE["campaignId"]):
        assert word not in said
    assert signed(texts[0])["X-CG-SIGNATURE"] not in said


def test_a_reward_under_the_transaction_of_another_has_a_line_of_its_own() -> None:
    kept, metrics = Kept(), Metrics([])
    Observer(metrics, b"k" * 32, kept).shares_transaction("second", "first")
    (line,) = kept.told()
    assert line.pop("at").endswith("Z")
    assert line == {
        "alert": "shared-transaction",
        "reward_id": "second",
        "first_reward_id": "first",
    }
    # Also where nothing is logged.
    Observer(metrics, b"k" * 32).shares_transaction("second", "first")
    metrics.publish()
    assert metrics.registry.get_sample_value("ingress_shared_transactions_total") == 2
