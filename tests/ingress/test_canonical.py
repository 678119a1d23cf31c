"""JSON.stringify(JSON.parse(body)), checked against Node's recorded answers and against Node."""

import base64
import json
import math
import os
import random
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from ingress import canonical
from ingress.canonical import DEPTH_MAX, stringify
from ingress.errors import NotCanonical

# The random comparison prints its seed; SEED=… in the environment repeats it.
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
VECTORS = json.loads((Path(__file__).parents[1] / "data" / "es_vectors.json").read_bytes())


def shortened(value: object) -> str:
    """Give a test's id from what may be a very long input."""
    return ascii(value)[:40]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_recorded_body_gives_what_node_gave(vector):
    raw = base64.b64decode(vector["raw_b64"])
    if vector.get("node_error"):
        with pytest.raises(NotCanonical):
            stringify(raw)
    else:
        # The vendor's own example is signed as it is, so it is its own canonical text.
        expected = vector.get("node_canonical_b64", vector["raw_b64"])
        assert stringify(raw) == base64.b64decode(expected)


def test_the_literals_stay_and_the_whitespace_goes():
    raw = b'\t[ true ,\nfalse\r,null , { "a" : " " } ] \n'
    assert stringify(raw) == b'[true,false,null,{"a":" "}]'


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("-0.0e-400", "0"),
        ("400.0", "400"),
        ("-1.50", "-1.5"),
        ("1E+2", "100"),
        ("9007199254740993", "9007199254740992"),
        ("9999999999999998", "9999999999999998"),
        ("12345678901234567", "12345678901234568"),
        ("1e16", "10000000000000000"),
        ("99999999999999984", "99999999999999980"),
        ("123456789012345678901", "123456789012345680000"),
        ("-999999999999999900000", "-999999999999999900000"),
        ("999999999999999999999", "1e+21"),
        ("1e21", "1e+21"),
        ("-1.25e100", "-1.25e+100"),
        ("0.0001", "0.0001"),
        ("0.00012345", "0.00012345"),
        ("1.5e-5", "0.000015"),
        ("-1e-6", "-0.000001"),
        ("9.99e-7", "9.99e-7"),
        ("1e-10", "1e-10"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("1.7976931348623159e308", "null"),
        ("-1e400", "null"),
        ("2e-324", "0"),
        ("3e-324", "5e-324"),
        ("1" * 60_000, "null"),
        ("0." + "0" * 30_000 + "1e30001", "1"),
        ("1e" + "9" * 60_000, "null"),
    ],
    ids=shortened,
)
def test_a_number_is_written_as_ecmascript_writes_it(number, expected):
    assert stringify(f"[{number}]".encode()) == f"[{expected}]".encode()


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ('"b":0,"2":0,"10":0,"a":0,"1":0', '"1":0,"2":0,"10":0,"b":0,"a":0'),
        ('"a":0,"4294967295":0,"4294967294":0', '"4294967294":0,"a":0,"4294967295":0'),
        ('"a":0,"01":0,"00":0,"-1":0,"1.0":0,"":0', '"a":0,"01":0,"00":0,"-1":0,"1.0":0,"":0'),
        ('"a":0,"\u00b2":0,"\u0661":0,"0":0', '"0":0,"a":0,"\u00b2":0,"\u0661":0'),
        ('"a":0,"1\u0661":0', '"a":0,"1\u0661":0'),
        ('"a":0,"\\u0031":0,"9\\n":0', '"1":0,"a":0,"9\\n":0'),
        ('"a":1,"b":2,"a":3', '"a":3,"b":2'),
        ('"7":1,"a":2,"7":3', '"7":3,"a":2'),
        ('"a":0,"__proto__":{"b":1},"__proto__":[]', '"a":0,"__proto__":[]'),
        ('"a":0,"' + "1" * 5000 + '":0', '"a":0,"' + "1" * 5000 + '":0'),
    ],
    ids=shortened,
)
def test_array_indices_come_first_and_a_repeated_key_keeps_its_first_place(members, expected):
    assert stringify(("{" + members + "}").encode()) == ("{" + expected + "}").encode()


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        (rb"\u0008\u0009\u000a\u000c\u000d\u0022\u005c\/", rb"\b\t\n\f\r\"\\/"),
        (rb"\u0000\u000B\u001F", rb"\u0000\u000b\u001f"),
        (b"\x7f\xc2\x80\xe2\x80\xa8\xe2\x80\xa9", b"\x7f\xc2\x80\xe2\x80\xa8\xe2\x80\xa9"),
        (rb"\uD83D\uDE0D", "\U0001f60d".encode()),
        (rb"\uD83D\uD83D\uDE0D\uDE0D", rb"\ud83d" + "\U0001f60d".encode() + rb"\ude0d"),
        (rb"\uD83Dx\uDE0D", rb"\ud83dx\ude0d"),
        # A surrogate as three bytes is ill-formed: three replacements, and no pair is made.
        (b"\xed\xa0\xbd\xed\xb8\x8d", b"\xef\xbf\xbd" * 6),
        # The example of the Unicode Standard for replacing maximal subparts (table 3-8).
        (
            bytes.fromhex("61 f1 80 80 e1 80 c2 62 80 63 80 bf 64"),
            "a\ufffd\ufffd\ufffdb\ufffdc\ufffd\ufffdd".encode(),
        ),
    ],
    ids=shortened,
)
def test_a_string_is_decoded_and_quoted_as_node_does(string, expected):
    assert stringify(b'["' + string + b'"]') == b'["' + expected + b'"]'


@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b" ", b"{", b"[1", b'{"a"', b'{"a":', b'["', b'["\\', b'["\\u00', b"[1,]", b"[,1]"],
        *[b'{"a":1,}', b"{a:1}", b"{'a':1}", b"{1:1}", b"[1]x", b"[1][", b"[1 2]", b"[/**/1]"],
        *[b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[-NaN]", b"[undefined]", b"[True]"],
        *[b"[+1]", b"[01]", b"[-]", b"[1.]", b"[.5]", b"[1e]", b"[0x1]", b"[1_0]", b"[1n]"],
        *['["\N{FULLWIDTH DIGIT ONE}"'.encode(), "[\N{FULLWIDTH DIGIT ONE}]".encode()],
        *[b'["\\x41"]', b'["\\\'"]', b'["\\u12G4"]', b'["\\ud83d\\u12G4"]', b'["\\U0001f60d"]'],
        *[b'["\x00"]', b'["\n"]', b'["\x1f"]', b"[\x0b1]", b"[\x0c1]", b"[\xc2\xa01]"],
        *[
            b"\xef\xbb\xbf\xef\xbb\xbf[]",
            b" \xef\xbb\xbf[]",
            b"[\xef\xbb\xbf]",
            b"\xff[]",
            b"[\xff]",
        ],
        *[b"1", b'"a"', b"true", b"null", b" 1", b"\xef\xbb\xbf1", b"1" * 65_536],
    ],
    ids=shortened,
)
def test_what_body_parser_refuses_has_no_canonical_text(raw):
    with pytest.raises(NotCanonical) as refusal:
        stringify(raw)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"\\"]}":', "}]")])
def test_the_deepest_nesting_that_is_read_is_the_documented_one(opening, closing):
    levels = DEPTH_MAX // (2 if opening.startswith("[{") else 1)
    innermost = r'"\\\"\t[[{{"'
    fits = opening * levels + innermost + closing * levels
    assert stringify(fits.encode()) == fits.encode()
    with pytest.raises(NotCanonical):
        stringify(f"[{fits}]".encode())


def test_a_string_that_never_ends_is_searched_once_not_from_each_of_its_quotes():
    assert len(canonical._STRING.findall(b'"' + b'\\"' * 1_000)) == 1


def test_many_brackets_beside_one_another_or_in_a_string_are_not_deep():
    wide = b"[" + b"[{}]," * 10_000 + b'"' + b"[{" * 5_000 + b'"]'
    assert stringify(wide) == wide


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"":' * 16_000,
        b'["[[",' * 10_000,
        b"[" * 101 + b'"' + b'\\"' * 32_000,
        b'["' + b"[" * 200 + b"\\" * 60_001,
        b"]" * 60_000 + b"[" * 200,
        b'"' * 65_536 + b"[" * 200,
        b'"' + b"[" * 200 + b'"',
        b'["\\\n",' + b"[" * 60_000,
        b"\xff" * 65_536,
        b"[" + b"[]," * 20_000,
    ],
    ids=shortened,
)
def test_a_hostile_body_is_refused_in_the_one_documented_way(raw):
    with pytest.raises(NotCanonical):
        stringify(raw)


# What body-parser's json() does in its strict mode: iconv-lite decodes with Node's StringDecoder
# and strips one byte order mark.
NODE = """
const { StringDecoder } = require("string_decoder");
const lines = require("fs").readFileSync(0, "latin1").trimEnd().split("\\n");
const answers = lines.map((line) => {
  const decoder = new StringDecoder("utf8");
  let text = decoder.write(Buffer.from(line, "base64")) + decoder.end();
  if (text[0] === "\\uFEFF") text = text.slice(1);
  const first = /^[\\x20\\x09\\x0a\\x0d]*([^\\x20\\x09\\x0a\\x0d])/.exec(text);
  if (!first || !"[{".includes(first[1])) return "refused";
  try {
    return Buffer.from(JSON.stringify(JSON.parse(text))).toString("base64");
  } catch { return "refused"; }
});
console.log(answers.join("\\n"));
"""


def random_number(chance: random.Random) -> str:
    """Give the text of a number, mostly where rounding or the choice of form is delicate."""
    edge = chance.choice([1e21, 1e20, 1e16, 2.0**53, 1.0, 1e-4, 1e-6, 1e-7, 1e-9, 5e-324, 2e-308])
    double = chance.choice([edge, math.ldexp(chance.random(), chance.randint(-1074, 1023))])
    for _ in range(chance.randrange(3)):
        double = math.nextafter(double, chance.choice([0.0, math.inf]))
    halfway = (Decimal(double) + Decimal(math.nextafter(double, math.inf))) / 2
    digits = "".join(chance.choices("0123456789", k=chance.randint(1, 25))).lstrip("0") or "0"
    text = chance.choice(
        [
            f"{double!r}",
            f"{Decimal(double):f}",
            f"{Decimal(double):.{chance.randint(0, 20)}E}",
            f"{halfway:f}",
            f"{halfway:e}",
            f"{halfway:f}" + ("1" if "." in f"{halfway:f}" else ".000001"),
            digits,
            f"{digits}.{digits}e{chance.randint(-340, 340):+d}",
            f"{digits}e{chance.randint(-30, 30)}",
            chance.choice(["0", "0.0", "0e5", "1e400", "1e-400", "9" * 5000]),
        ]
    )
    return chance.choice(["", "-"]) + text


def random_string(chance: random.Random) -> bytes:
    """Give a quoted string: escapes of either case, lone surrogates, ill-formed bytes."""
    blocks = [(0, 0x20), (0x20, 0x7F), (0x7F, 0x800), (0xD800, 0xDC00), (0xDC00, 0xE000)]
    blocks += [(0xE000, 0x10000), (0x10000, 0x110000)]
    pieces = []
    for _ in range(chance.choice([0, 1, 3, 12])):
        code = chance.randrange(*chance.choice(blocks))
        escaped = chance.choice(["\\u{:04x}", "\\u{:04X}"]).format(code & 0xFFFF).encode()
        short = chance.choice([b"\\n", b"\\/", b'\\"', b"\\\\", b"[", b"{", b"\xef\xbb\xbf"])
        plain = escaped if code < 0x20 else chr(code).encode("utf-8", "surrogatepass")
        plain = b"\\" + plain if plain in b'"\\' else plain
        cut = plain[:-1] if code >= 0x80 else b""
        loose = bytes(byte | 0x80 for byte in chance.randbytes(3))
        kinds = [escaped, short, plain, plain, chance.choice([plain, cut, loose])]
        pieces.append(chance.choice(kinds))
    return b'"' + b"".join(pieces) + b'"'


KEYS = ["0", "1", "2", "10", "01", "-0", "4294967294", "4294967295", "a", "b", "", "__proto__"]


def random_value(chance: random.Random, depth: int) -> bytes:
    """Give one JSON text; at the top an object or an array."""
    kind = chance.choice(["array", "object", "number", "number", "string", "literal"])
    if depth == 0:
        kind = chance.choice(["array", "object"])
    if kind == "string":
        return random_string(chance)
    if kind == "literal":
        return chance.choice([b"true", b"false", b"null"])
    if kind == "number" or depth == 5:
        return random_number(chance).encode()
    space = chance.choice([b"", b"", b" ", b"\n\t", b"\r\n "])
    items = [random_value(chance, depth + 1) for _ in range(chance.randrange(6))]
    if kind == "array":
        return b"[" + space + (b"," + space).join(items) + space + b"]"
    keys = [f'"{chance.choice(KEYS)}"'.encode() for _ in items]
    keys = [random_string(chance) if chance.random() < 0.3 else key for key in keys]
    members = [key + space + b":" + item for key, item in zip(keys, items, strict=True)]
    return space + b"{" + (space + b",").join(members) + b"}" + space


def damaged(chance: random.Random, raw: bytes) -> bytes:
    """Cut the body, or put something in, out or over at one place."""
    place = chance.randrange(len(raw))
    junk = [b",", b"]", b"}", b'"', b"\\", b"0", b".", b"-", b"e", b"NaN", b"\x00", b"\x0b", b" "]
    junk += [b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe0\x9f\x80", b"\xf4\x90", chance.randbytes(1)]
    kept = chance.choice([len(raw), place + 1, place + 1, place])
    return raw[:place] + chance.choice([b"", chance.choice(junk)]) + raw[kept:]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on PATH")
def test_thousands_of_random_bodies_give_what_node_gives():
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    bodies = [random_value(chance, 0) for _ in range(6_000)]
    bodies = [damaged(chance, raw) if chance.random() < 0.4 else raw for raw in bodies]
    bodies += [b"\xef\xbb\xbf" + raw for raw in bodies[:50]] + [b"\xe4" + bodies[0]]
    bodies += [f"[{random_number(chance)}]".encode() for _ in range(6_000)]
    lines = b"\n".join(base64.b64encode(raw) for raw in bodies)
    node = subprocess.run(
        ["node", "-e", NODE], input=lines, capture_output=True, check=True, timeout=120
    )
    answers = node.stdout.decode().split()
    assert len(answers) == len(bodies)
    refused = 0
    for raw, answer in zip(bodies, answers, strict=True):
        try:
            ours = base64.b64encode(stringify(raw)).decode()
        except NotCanonical:
            ours = "refused"
            refused += 1
        assert ours == answer, f"SEED={SEED} {raw!r}"
    assert 1_000 < refused < len(bodies) - 7_000, f"SEED={SEED}: one outcome is hardly tested"
