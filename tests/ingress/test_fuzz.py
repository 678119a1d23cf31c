"""Random bytes and mutated good bodies, signed and unsigned, through the whole ingress.

Hypothesis makes the deliveries; ``tests.fuzz.door`` judges the answers and reads the tables.
``make fuzz`` does the same for long, and has Atheris look for new paths where it is installed.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from ingress.canonical import stringify
from ingress.errors import NotCanonical
from tests.conftest import Database
from tests.fuzz.door import LIMIT, UNHEARD, FuzzedDoor, Sent, environment
from tests.ingress.deliveries import EXAMPLE, PATH, PREVIOUS_TOKEN, TOKEN, body

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 800)
SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))

HARD = st.sampled_from(
    [
        *("", "a", "\0", "\x7f", "\ud800", "\udfff", "\U0001f600", "\u0131", "\u2028", "u" * 200),
        *("u" * 201, "USD", "usd", "POINTS", "JPY", "STARS", "noReward", "nudge", "points"),
    ]
)
TEXT = st.one_of(HARD, st.text(st.characters(codec=None), max_size=12))
NUMBER = st.sampled_from(
    [
        *["0", "-0", "1", "15", "12.5", "12.50", "400.0", "1e2", "1E+2", "0.01", "25e-1"] * 4,
        *("-5", "0.001", "1e30", "1e-31", "1e999999999", "-1e999999999", "1e99999999999999999999"),
        *("9" * 30, "9" * 31, "9" * 400, "0." + "0" * 29 + "1", "1." + "0" * 300, "1e400"),
        *("18446744073709551615", "18446744073709551616", "9007199254740993", "253402300800"),
        *("NaN", "-Infinity", "01", "+1", "1.", ".5", "1e", "0x1", "--1"),
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
PLACE = st.floats(0, 1)
PIECE = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [
            *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"e9", b".", b" "),
            *(b"\\u0000", b"\\ud800", b"\\udfff", b"\\u", b"\0", b"\xff", b"\xed\xa0\x80"),
            *(b"\xef\xbb\xbf", b"\xc0\x80", b"\xf0\x9f\x98", b'"userId":"x",', b"null", b"NaN"),
            *(b'"rewardId":"r1",', b'"rewardAmount":7,', b"[" * 99, b"[" * 300, b'{"a":' * 99),
        ]
    ),
)


FIELDS = st.sampled_from(
    [
        *(*EXAMPLE, "rewardType", "status", "transactionId", "tnc", "rewardExpiry", "body"),
        *("webhookType", "somethingElse"),
    ]
)
DETAILS = st.one_of(
    st.just(EXAMPLE["details"]),
    st.sampled_from([{"currency": code} for code in ("usd", "JPY", "POINTS", "STARS", "", "\0")]),
    st.dictionaries(TEXT, JSON, max_size=4),
)
IDENTIFIERS = st.one_of(
    st.sampled_from([f"r{number}" for number in range(20)]),
    *[st.uuids().map(str)] * 3,
)
SEPARATORS = st.sampled_from([(",", ":"), (",", ":"), (", ", ": "), (" ,\n", "\t:")])


@st.composite
def rewards(draw: st.DrawFn) -> bytes:
    """The text of a reward: mostly one that can be booked, often one that was sent before."""
    told = EXAMPLE | {"rewardId": draw(IDENTIFIERS), "userId": draw(st.sampled_from(["u1", "u2"]))}
    told["details"] = draw(DETAILS)
    match draw(st.integers(0, 9)):
        case 0 | 1:
            told[draw(FIELDS)] = draw(JSON)
        case 2:
            told[draw(FIELDS)] = draw(TEXT)
        case 3:
            del told[draw(st.sampled_from(sorted(told)))]
        case 4:
            told["webhookType"] = "nudge"
        case 5:
            told["rewardType"] = "noReward"
    text = json.dumps(told, separators=draw(SEPARATORS), ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text.replace("400", draw(NUMBER), 1)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A reward's text of which some bytes were put in, left out or written over."""
    text = draw(rewards())
    for _ in range(draw(st.integers(1, 3))):
        start = int(draw(PLACE) * len(text))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 5, 40, LIMIT])))
        text = text[:start] + draw(PIECE) + text[end:]
    return text


def _grown(text: bytes) -> st.SearchStrategy[bytes]:
    """``text``, with white space behind it that brings it to about the limit."""
    return st.integers(-1, 1).map(lambda over: text + b" " * (LIMIT + over - len(text)))


BODIES = st.sampled_from(
    [
        *[rewards()] * 8,
        *[mutated()] * 3,
        rewards().flatmap(_grown),
        st.binary(max_size=64),
        st.binary(min_size=LIMIT - 2, max_size=LIMIT + 2),
        JSON.map(lambda value: json.dumps(value).encode()),
    ]
).flatmap(lambda bodies: bodies)
SIGNATURES = st.one_of(
    st.none(),
    st.binary(max_size=48),
    st.sampled_from([b"0" * 40, b"sha1=" + b"0" * 40, b"", b"\xff" * 40, b"0" * 39]),
)
TYPES = st.sampled_from(
    [
        ((), True),
        (((b"content-type", b"application/json"),), True),
        (((b"content-type", b"application/json; charset=UTF-8"),), True),
        (((b"content-type", b"application/json"), (b"content-encoding", b"identity")), True),
        (((b"content-type", b"text/plain"),), False),
        (((b"content-type", b"application/json; charset=utf-16"),), False),
        (((b"content-type", b"\xff\xfe"),), False),
        (((b"content-encoding", b"gzip"),), False),
    ]
)
GOOD_TYPE = st.just((((b"content-type", b"application/json"),), True))


def _rarely(usual: st.SearchStrategy[object], odd: st.SearchStrategy[object]) -> object:
    return st.integers(0, 19).flatmap(lambda number: odd if number == 7 else usual)


@st.composite
def deliveries(draw: st.DrawFn) -> Sent:
    """A request: mostly a delivery to the right place, mostly signed."""
    text = draw(BODIES)
    vouched, signature = None, None
    match draw(st.integers(0, 9)):
        case 0:
            signature = draw(SIGNATURES)
        case 1:
            # A stranger's, and one that was made for another body.
            vouched = draw(st.sampled_from([text + b" ", b"", b"{}"]))
        case 2 | 3 | 4:
            try:
                vouched = stringify(text)
            except NotCanonical:
                vouched = text
        case _:
            vouched = text
    cuts = sorted(int(draw(PLACE) * len(text)) for _ in range(draw(st.integers(0, 3))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, is_json = draw(_rarely(GOOD_TYPE, TYPES))
    size = len(text)
    lengths = [size + 1, max(0, size - 1), LIMIT, LIMIT + 1, 10**30, "two", "-2"]
    announced = draw(
        _rarely(
            st.sampled_from([None, size]),
            st.sampled_from(lengths),
        )
    )
    return Sent(
        pieces=tuple(pieces),
        vouched=vouched,
        token=draw(st.sampled_from([TOKEN, TOKEN, PREVIOUS_TOKEN])),
        signature=signature,
        content=content,
        is_json=is_json,
        announced=None if announced is None else str(announced).encode(),
        is_cut=draw(_rarely(st.just(False), st.booleans())),
        method=draw(_rarely(st.just("POST"), st.sampled_from(["POST", "GET", "PUT", UNHEARD]))),
        path=draw(
            _rarely(st.just(PATH), st.one_of(st.just(PATH), st.text(max_size=8).map("/{}".format)))
        ),
    )


GOOD = body(rewardId="good")


def _signed(text: bytes) -> Sent:
    return Sent((text,), vouched=text)


ONE_OF_EACH = [
    ("credited", _signed(GOOD)),
    ("replayed", _signed(GOOD)),
    ("credited", _signed(body(rewardId="decimals", rewardAmount=12.5))),
    ("conflict", _signed(body(rewardId="good", rewardAmount=5))),
    ("recorded", _signed(body(rewardId="nothing", rewardType="noReward"))),
    ("ignored", _signed(body(webhookType="nudge"))),
    ("not-json", _signed(GOOD[:-1])),
    ("not-a-reward", _signed(b"[]")),
    ("unknown-currency", _signed(body(rewardId="star", details={"currency": "STARS"}))),
    ("invalid-amount", _signed(body(rewardId="cent", rewardAmount=0.001))),
    ("not-believed", Sent((GOOD,))),
    ("not-believed", Sent((GOOD,), vouched=GOOD, token="a stranger's token")),
    ("credited", Sent((b" " + body(rewardId="b"),), vouched=body(rewardId="b"))),
    ("credited", Sent((b"", body(rewardId="p"), b""), body(rewardId="p"), PREVIOUS_TOKEN)),
    ("too-large", _signed(GOOD + b" " * LIMIT)),
    ("incomplete", Sent((GOOD,), vouched=GOOD, is_cut=True)),
    (
        "not-json-type",
        Sent((GOOD,), GOOD, content=((b"content-encoding", b"gzip"),), is_json=False),
    ),
    ("bad-request", Sent((GOOD,), vouched=GOOD, announced=b"two")),
    ("not-found", Sent((GOOD,), vouched=GOOD, path="/")),
    ("method-not-allowed", Sent((), method="GET")),
]


@pytest.fixture
def door(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[FuzzedDoor]:
    for name, value in environment(database.url()).items():
        monkeypatch.setenv(name, value)
    with FuzzedDoor(database.url()) as door:
        yield door


def test_the_judge_knows_every_answer(door: FuzzedDoor) -> None:
    assert [door.check(sent) for _, sent in ONE_OF_EACH] == [outcome for outcome, _ in ONE_OF_EACH]
    door.check_books()


def test_whatever_is_sent_is_answered_as_documented_and_nothing_believed_is_lost(
    door: FuzzedDoor,
) -> None:
    print(f"SEED={SEED}")
    outcomes: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        print_blob=True,
        # Nothing is made smaller: sent again to the same books, a delivery is another case.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(deliveries())
    def check(sent: Sent) -> None:
        note(repr(sent))
        outcomes[door.check(sent)] += 1

    check()
    door.check_books()
    print(dict(outcomes))
    # It was inside, not only at the door.
    assert {"credited", "replayed", "not-json", "not-a-reward", "not-believed"} <= outcomes.keys()


@pytest.mark.skipif(find_spec("atheris") is None, reason="Atheris is not installed: extra `fuzz`")
def test_what_atheris_finds_in_seconds_is_answered_as_documented_too(
    database: Database, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.target", str(tmp_path), "-max_total_time=3"),
            *("-max_len=4096", f"-seed={SEED}", f"-artifact_prefix={tmp_path}/"),
        ],
        env=os.environ | environment(database.url()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"SEED={SEED}\n{done.stdout}\n{done.stderr}"
    assert re.search(r"Done [1-9][0-9]* runs", done.stderr), done.stderr
