"""Bodies made to hurt, each as large as the limit allows: the documented answer, and soon.

Each is sent as it is signed, with a signature that is not its own, and signed by the text that it
has in JavaScript, which costs the most to check. Processor time is measured, of this process
alone, and the least of a few tries: what else the machine does then hardly counts.
"""

import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from falcon.testing import ASGIConductor

from ingress.canonical import DEPTH_MAX, stringify
from ingress.errors import NotCanonical
from tests.conftest import Database, Run
from tests.ingress.deliveries import ABSENT, PATH, TOKEN, body, problem, signed
from tests.ingress.test_webhook import Door

LIMIT = 64 * 1024
"""The largest body that is read by default."""
SECONDS_MAX = 0.05
"""What is promised for each."""
TRIES = 4
TRIES_MAX = 20

CREDITED, NOT_JSON, NOT_A_REWARD = (200, "credited"), (400, "not-json"), (422, "not-a-reward")
NOT_BELIEVED = (401, "not-believed")
DOCUMENTED = {CREDITED, (200, "recorded"), (200, "replayed"), NOT_JSON, NOT_A_REWARD}


class Hostile(NamedTuple):
    """One body, and what is answered when its signature is right."""

    name: str
    text: bytes
    answer: tuple[int, str]


def _put(inner: bytes, answer: tuple[int, str] = CREDITED, **told: object) -> Any:
    """The example, in which ``inner`` stands where its fields say "N"; its name comes later."""
    text = body(**(told or {"details": {"currency": "USD", "a": "N"}}))
    assert text.count(b'"N"') == 1
    return text.replace(b'"N"', inner), answer


def _list(item: bytes, answer: tuple[int, str] = CREDITED) -> Any:
    """As many of ``item`` as there is room for, in a list."""
    room = LIMIT - len(_put(b"[]")[0])
    return _put(b"[" + b",".join([item] * (room // (len(item) + 1))) + b"]", answer)


def _string(piece: bytes, answer: tuple[int, str] = CREDITED, **told: object) -> Any:
    """As many of ``piece`` as there is room for, in a string."""
    room = LIMIT - len(_put(b'""', **told)[0])
    return _put(b'"' + piece * (room // len(piece)) + b'"', answer, **told)


def _object(key: Callable[[int], str], answer: tuple[int, str] = CREDITED) -> Any:
    """As many members as there is room for, the keys by their number."""
    room = LIMIT - len(_put(b"{}")[0])
    members: list[bytes] = []
    while room > len(member := f'"{key(len(members))}":0'.encode()):
        members.append(member)
        room -= len(member) + 1
    return _put(b"{" + b",".join(members) + b"}", answer)


ROOM = LIMIT - len(body()) - 100
AMOUNT = {"rewardAmount": "N"}
NAME = {"rewardName": "N"}
DEEPEST = DEPTH_MAX - 3
NOISE = random.Random(20261123).randbytes(LIMIT)

HOSTILE = [
    Hostile(name, *made)
    for name, made in {
        # Nesting
        "brackets": (b"[" * LIMIT, NOT_JSON),
        "brackets, closed": (b"[" * (LIMIT // 2) + b"]" * (LIMIT // 2), NOT_JSON),
        "brackets, closed first": (b"]" * (LIMIT // 2) + b"[" * (LIMIT // 2), NOT_JSON),
        "objects": (b'{"a":' * (LIMIT // 5), NOT_JSON),
        "brackets in the details": _put(b"[" * (ROOM // 2) + b"]" * (ROOM // 2), NOT_JSON),
        "brackets behind quotes": (b"[" * 101 + b'"' + b'\\"' * (LIMIT // 2 - 51), NOT_JSON),
        "as deep as allowed, many times": _list(b"[" * DEEPEST + b"]" * DEEPEST),
        "one deeper, many times": _list(b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), NOT_JSON),
        "empty lists": _list(b"[]"),
        "empty objects": _list(b"{}"),
        "empty strings": _list(b'""'),
        "literals": _list(b"null"),
        # Numbers
        "digits": _put(b"9" * ROOM),
        "digits as the amount": _put(b"9" * ROOM, NOT_A_REWARD, **AMOUNT),
        "digits behind the point": _put(b"0." + b"9" * ROOM),
        "digits behind the point of the amount": _put(b"0." + b"9" * ROOM, NOT_A_REWARD, **AMOUNT),
        "digits and an exponent that are 1": _put(
            b"1" + b"0" * 60_000 + b"e-60000", CREDITED, **AMOUNT
        ),
        "digits of an exponent": _put(b"1e" + b"9" * ROOM),
        "digits of the amount's exponent": _put(b"1e" + b"9" * ROOM, NOT_A_REWARD, **AMOUNT),
        "digits of the expiry": _put(b"9" * ROOM, CREDITED, rewardExpiry="N"),
        "minus": _put(b"-" * ROOM, NOT_JSON, **AMOUNT),
        "1e999999999 as the amount": _put(b"1e999999999", NOT_A_REWARD, **AMOUNT),
        "1e-999999999 as the amount": _put(b"1e-999999999", NOT_A_REWARD, **AMOUNT),
        "1e999999999": _list(b"1e999999999"),
        "1e-999999999": _list(b"1e-999999999"),
        "1e99999999999999999999": _list(b"1e99999999999999999999"),
        "1e20": _list(b"1e20"),
        "5e-6": _list(b"5e-6"),
        "1": _list(b"1"),
        "-0": _list(b"-0"),
        "1.5": _list(b"1.5"),
        "the smallest doubles": _list(b"2.2250738585072011e-308"),
        "65 bits": _list(b"18446744073709551616"),
        "as many digits as Python reads": _list(b"9" * 4300),
        "more digits than Python reads": _list(b"9" * 4301),
        "NaN": _list(b"NaN", NOT_JSON),
        "Infinity": _list(b"-Infinity", NOT_JSON),
        # Keys
        "keys": _object(lambda number: f"k{number}"),
        "array indices, descending": _object(lambda number: str(10**9 - number)),
        "long digits as keys": _object(lambda number: f"{number}" + "1" * 4400),
        "NUL in keys": _object(lambda number: f"\\u0000{number}"),
        "lone surrogates in keys": _object(lambda number: f"\\ud800{number}"),
        "a key again and again": _object(lambda number: "a", NOT_A_REWARD),
        "a key, escaped, again and again": _object(lambda number: "\\u0061", NOT_A_REWARD),
        "a key twice in many objects": _list(b'{"a":1,"a":1}', NOT_A_REWARD),
        "the amount again and again": (
            body(rewardAmount=ABSENT)[:-1] + b',"rewardAmount":1' * 3_800 + b"}",
            NOT_A_REWARD,
        ),
        # Strings
        "escapes": _string(b"\\u0041"),
        "escaped newlines": _string(b"\\n"),
        "escaped slashes": _string(b"\\/"),
        "escaped quotes": _string(b'\\"'),
        "escaped backslashes": _string(b"\\\\"),
        "escaped control characters": _string(b"\\u001f"),
        "NUL": _string(b"\\u0000"),
        "NUL in a name": _string(b"\\u0000", CREDITED, **NAME),
        "NUL in many objects": _list(b'{"\\u0000":"\\u0000"}'),
        "NUL in the terms": _put(b",".join([b'"\\u0000"'] * (ROOM // 9)), CREDITED, tnc=["N"]),
        "NUL in the rewardId": _string(b"\\u0000", NOT_A_REWARD, rewardId="N"),
        "NUL in the code": _string(b"\\u0000", NOT_A_REWARD, code="N"),
        "NUL, not escaped": _string(b"\0", NOT_JSON),
        "high surrogates": _string(b"\\ud800"),
        "low surrogates": _string(b"\\udfff"),
        "surrogate pairs": _string(b"\\ud83d\\ude00"),
        "lone surrogates in a name": _string(b"\\ud800", CREDITED, **NAME),
        "surrogates as bytes": _string(b"\xed\xa0\x80", NOT_JSON),
        "no UTF-8": _string(b"\xff", NOT_JSON),
        "overlong UTF-8": _string(b"\xc0\x80", NOT_JSON),
        "cut UTF-8": _string(b"\xf0\x9f\x98", NOT_JSON),
        "emoji": _string("\U0001f600".encode()),
        "not printable": _string(b"\x7f"),
        "a long name": _string(b"n", CREDITED, **NAME),
        "a long transactionId": _string(b"t", CREDITED, transactionId="N"),
        "a transactionId that no index could hold": _put(
            b'"' + NOISE.hex().encode()[: ROOM - 2] + b'"', CREDITED, transactionId="N"
        ),
        "a code that no index could hold": _put(
            b'"' + NOISE.hex().encode()[: ROOM - 2] + b'"', CREDITED, code="N"
        ),
        "a long rewardId": _string(b"r", NOT_A_REWARD, rewardId="N"),
        "a long currency": _string(b"U", NOT_A_REWARD, details={"currency": "N"}),
        "a string without end": (b'["' + b'\\"' * (LIMIT // 2 - 1), NOT_JSON),
        "backslashes": (b'["' + b"\\" * (LIMIT - 2), NOT_JSON),
        "quotes": (b'"' * LIMIT, NOT_JSON),
        # The rest
        "white space": (b" " * LIMIT, NOT_JSON),
        "white space behind": (body() + b" " * (LIMIT - len(body())), CREDITED),
        "white space before": (b"\n" * (LIMIT - len(body())) + body(), CREDITED),
        "byte order marks": (b"\xef\xbb\xbf" * (LIMIT // 3), NOT_JSON),
        "noise": (NOISE, NOT_JSON),
        "zeros": (b"\0" * LIMIT, NOT_JSON),
    }.items()
]
SMALL = {"1e999999999 as the amount", "1e-999999999 as the amount"}


@pytest.fixture
def door(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setenv("DATABASE_URL", database.url())
    monkeypatch.setenv("INGRESS_TOKEN", TOKEN)
    monkeypatch.setenv("INGRESS_LOG", "off")
    # Else most of them would not be looked at: that is what the limit is for.
    monkeypatch.setenv("INGRESS_FAILURES_PER_MINUTE", "0")
    return Door(database, run)


class Sent(NamedTuple):
    answer: tuple[int, str]
    cpu_seconds: float


async def _send(conductor: ASGIConductor, text: bytes, vouched: bytes) -> Sent:
    """The first answer to ``text`` under the signature of ``vouched``, and the least time."""
    answers, times = [], []
    # The processor may have been somebody else's too: what is slow is slow each time.
    while len(times) < TRIES or (min(times) > SECONDS_MAX and len(times) < TRIES_MAX):
        begun = time.process_time()
        result = await conductor.simulate_post(PATH, body=text, headers=signed(vouched))
        times.append(time.process_time() - begun)
        status = result.status_code
        if status == 200:
            answers.append((status, result.json["status"]))
        else:
            answers.append((status, problem(status, result.headers, result.content)))
    assert set(answers[1:]) <= {answers[0]} or set(answers[1:]) == {(200, "replayed")}
    return Sent(answers[0], min(times))


def test_each_hostile_body_is_as_large_as_it_may_be() -> None:
    for name, text, _ in HOSTILE:
        assert len(text) <= LIMIT, name
        assert len(text) > LIMIT * 0.9 or name in SMALL, name


def test_hostile_bodies_have_the_documented_answer_and_soon(door: Door) -> None:
    wrong: list[tuple[str, str, Sent]] = []
    stood: dict[bytes, tuple[int, str]] = {}
    times: list[tuple[float, str, str]] = []

    async def act(conductor: ASGIConductor) -> None:
        for number, (name, text, expected) in enumerate(HOSTILE):
            # Each is a reward of its own, where it is one.
            text = text.replace(b"xyzbb3ca", b"%08d" % number)

            def judge(way: str, sent: Sent, *allowed: tuple[int, str], name: str = name) -> None:
                times.append((sent.cpu_seconds, name, way))
                if sent.answer not in allowed or sent.cpu_seconds > SECONDS_MAX:
                    wrong.append((name, way, sent))

            judge("forged", await _send(conductor, text, b"another text"), NOT_BELIEVED)
            sent = await _send(conductor, text, text)
            judge("signed", sent, expected)
            stood[text] = sent.answer
            try:
                canonical = stringify(text)
            except NotCanonical:
                continue
            # Numbers are rounded there, and what was too large for them is null.
            judge("canonical", await _send(conductor, text, canonical), *DOCUMENTED)

    door.within(act)
    for seconds, name, way in sorted(times, reverse=True)[:5]:
        print(f"{seconds * 1000:.1f} ms for {name}, {way}")
    assert not wrong, wrong
    # What was believed is in the books or in the quarantine, byte for byte; nothing else is.
    booked = {bytes(row[0]) for row in door.database.rows("SELECT believed_bytes FROM rewards")}
    kept = {bytes(row[0]) for row in door.database.rows("SELECT believed_bytes FROM quarantine")}
    for text, (status, _) in stood.items():
        assert text in (booked if status == 200 else kept)
        assert text not in (kept if status == 200 else booked)
