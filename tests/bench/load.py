"""Load from `wrk` and `h2load`, and the CPU that it costs."""

import contextlib
import hmac
import json
import random
import re
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import psutil

TOKEN = "bench"
CAMPAIGNS = 5
USERS = 100_000

_SCRIPT = """
local requests, place = {}, 0
function init(arguments)
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", "/v1/webhooks/customerglu", {
      ["Content-Type"] = "application/json", ["X-CG-SIGNATURE"] = line:sub(1, 40)
    }, line:sub(42))
  end
end
function request() place = place % #requests + 1; return requests[place] end
function done(summary, latency)
  print(string.format("RESULT %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


class Tools(NamedTuple):
    """The load generators that are on this machine, by name."""

    wrk: str | None
    h2load: str | None


def find_tools() -> Tools:
    """Look for them on PATH."""
    return Tools(shutil.which("wrk"), shutil.which("h2load"))


class Result(NamedTuple):
    """One run of load."""

    per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    requests: int
    failed: int
    server_microseconds: float
    """CPU of the server's processes, for each request."""
    postgres_microseconds: float
    """CPU of Postgres's processes, for each request."""


def write_rewards(path: Path, count: int, seed: int) -> None:
    """`count` signed deliveries of different rewards, one a line: signature, space, body."""
    chance = random.Random(seed)
    campaigns = [str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(CAMPAIGNS)]
    with path.open("wb") as file:
        for _ in range(count):
            body = json.dumps(
                {
                    "campaignId": chance.choice(campaigns),
                    "type": "scratchcard",
                    "userId": f"user-{chance.randrange(USERS)}",
                    "rewardId": str(uuid.UUID(int=chance.getrandbits(128))),
                    "rewardName": "200 Coins",
                    "rewardAmount": chance.randrange(1, 1000),
                    "code": "CODE123",
                    "details": {
                        "userBName": "testuser2",
                        "userBId": "testuser2",
                        "userAName": "testuser0",
                        "userAId": "testuser0",
                        "rewardCategory": "RM",
                        "currency": "USD",
                    },
                },
                separators=(",", ":"),
            ).encode()
            signature = hmac.new(TOKEN.encode(), body, "sha1").hexdigest()
            file.write(signature.encode() + b" " + body + b"\n")


class Meter:
    """The CPU seconds of the servers and of Postgres between two moments."""

    def __init__(self, servers: list[psutil.Process], postmaster: psutil.Process | None) -> None:
        self._servers = [p for server in servers for p in _family(server)]
        self._postgres = _family(postmaster) if postmaster else []
        self._start = (_seconds(self._servers), _seconds(self._postgres))

    def microseconds(self, requests: int) -> tuple[float, float]:
        """For each of `requests`: the servers', then Postgres's."""
        spent = (_seconds(self._servers), _seconds(self._postgres))
        server, postgres = (
            (now - then) * 1e6 / max(requests, 1)
            for now, then in zip(spent, self._start, strict=True)
        )
        return server, postgres


def post_load(
    wrk: str, port: int, connections: int, seconds: int, rewards: Path, meter: Meter
) -> Result:
    """POST the deliveries of `rewards` for some seconds."""
    script = rewards.with_suffix(".lua")
    script.write_text(_SCRIPT)
    output = subprocess.run(
        [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout=10s",
            f"-s{script}",
            f"http://127.0.0.1:{port}",
            "--",
            str(rewards),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    requests, duration, p50, p99, failed = map(int, output.split("RESULT ")[1].split())
    server, postgres = meter.microseconds(requests)
    return Result(
        requests / (duration / 1e6), p50 / 1000, p99 / 1000, requests, failed, server, postgres
    )


def call_load(
    h2load: str, port: int, path: str, message: bytes, seconds: int, meter: Meter, directory: Path
) -> Result:
    """Call the gRPC method at `path` with `message`, 32 calls in flight, for some seconds."""
    frame = directory / "frame"
    frame.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    arguments = ["-c4", "-m8", "-t1", f"-D{seconds}", "--warm-up-time=1", f"-d{frame}"]
    headers = ["-Hcontent-type: application/grpc", "-Hte: trailers"]
    output = subprocess.run(
        [h2load, *arguments, *headers, f"http://127.0.0.1:{port}{path}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    done = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed", output)
    rate = re.search(r"([\d.]+) req/s", output)
    if done is None or rate is None:
        raise RuntimeError(output)
    requests = int(done[1])
    # The warm-up second is work too, but is not counted as requests.
    server, postgres = meter.microseconds(requests * (seconds + 1) // seconds)
    return Result(float(rate[1]), 0, 0, requests, int(done[3]), server, postgres)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when `process` takes connections on `port` and has settled."""
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError("the server did not start")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                # Gunicorn listens before its worker can answer: wait for an answer, of any kind.
                probe.settimeout(10)
                probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
                probe.recv(1)
        except OSError:
            time.sleep(0.05)
        else:
            time.sleep(0.5)
            return
    raise RuntimeError("the server did not listen")


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        # A worker of autovacuum that has ended meanwhile is no part of the load.
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
