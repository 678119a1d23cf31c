"""What Atheris calls with each input: the first bytes say how it is sent, the rest is its body."""

import os
import sys

import atheris

with atheris.instrument_imports(include=["ingress", "json"]):
    import ingress.app  # noqa: F401
    from ingress.canonical import stringify
    from ingress.errors import NotCanonical

from tests.fuzz.door import FuzzedDoor, Sent
from tests.ingress.deliveries import body

EXAMPLES = [body(), body(rewardAmount=12.5), body(details={"currency": "POINTS", "a": [1, {}]})]


def _sent(data: bytes) -> Sent:
    way, cut, text = data[:1], data[1:2], data[2:]
    pieces = (text[: cut[0]], text[cut[0] :]) if cut else (text,)
    if way < b"\x40":
        return Sent(pieces)
    vouched = text
    if way > b"\xa0":
        try:
            vouched = stringify(text)
        except NotCanonical:
            vouched = text
    return Sent(pieces, vouched=vouched)


def main() -> None:
    """Fuzz until libFuzzer's time is over or something is wrong."""
    corpus = sys.argv[1]
    for number, example in enumerate(EXAMPLES):
        with open(f"{corpus}/example-{number}", "wb") as file:
            file.write(b"\x80\x05" + example)
    with FuzzedDoor(os.environ["DATABASE_URL"]) as door:
        atheris.Setup(sys.argv, lambda data: door.check(_sent(data)) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
