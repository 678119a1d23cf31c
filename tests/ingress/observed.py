"""The ingress as it really runs, with all that it tells: its log, its metrics, its answers."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.ingress.deliveries import PATH, TOKEN, signed
from tests.serving import free_port

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 30.0
KEY = "the key that users are hashed with"

Labels = frozenset[tuple[str, str]]


class Ingress:
    """A running ingress of its own processes, in a directory of its own."""

    def __init__(self, url: str, directory: Path, **settings: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.directory = directory
        ours = ("INGRESS_", "LEDGER_", "DATABASE_URL", "GUNICORN_", "PROMETHEUS_", "OTEL_")
        inherited = {n: value for n, value in os.environ.items() if not n.startswith(ours)}
        environment = {
            "PYTHONWARNINGS": "error",
            "TMPDIR": str(directory),
            "DATABASE_URL": url,
            "INGRESS_TOKEN": TOKEN,
            "INGRESS_BIND": f"127.0.0.1:{self.port}",
            "INGRESS_METRICS_BIND": f"127.0.0.1:{self.metrics_port}",
            "INGRESS_LOG_KEY": KEY,
        }
        with (directory / "log").open("wb") as log, (directory / "complaints").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:ingress.gunicorn_conf"],
                cwd=ROOT,
                env=inherited | environment | settings,
                stdout=log,
                stderr=said,
            )

    def ask(self, method: str, path: str, *, text: bytes = b"", **headers: str) -> tuple[int, Any]:
        """The status and the JSON that are answered on a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS_MAX)
        with contextlib.closing(client):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            client.request(method, path, text, given)
            response = client.getresponse()
            return response.status, json.loads(response.read() or b"null")

    def deliver(self, text: bytes) -> tuple[int, Any]:
        """The answer to one signed delivery."""
        return self.ask("POST", PATH, text=text, **signed(text))

    def scraped(self) -> str:
        """What is exported now."""
        client = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
        with contextlib.closing(client):
            client.request("GET", "/metrics")
            return client.getresponse().read().decode()

    def samples(self, name: str) -> dict[Labels, float]:
        """The series of this name that are not zero, by their labels."""
        return {
            frozenset(sample.labels.items()): sample.value
            for family in text_string_to_metric_families(self.scraped())
            for sample in family.samples
            if sample.name == name and sample.value
        }

    def answered(self) -> int:
        """How many answers were counted."""
        return int(sum(self.samples("ingress_deliveries_total").values()))

    def workers(self) -> list[psutil.Process]:
        """The processes that answer, oldest first."""
        children = psutil.Process(self.process.pid).children()
        workers = [child for child in children if "ingress.exporting" not in child.cmdline()]
        return sorted(workers, key=lambda worker: worker.create_time())

    def log(self) -> str:
        """All that was written to standard output."""
        return (self.directory / "log").read_text()

    def complaints(self) -> str:
        """All that was written to standard error."""
        return (self.directory / "complaints").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        return [json.loads(line) for line in self.log().split("\n") if line]

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, and wait until all of it is gone."""
        if self.process.poll() is not None:
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        self.process.wait(WAIT_SECONDS_MAX)
        _, alive = psutil.wait_procs(family, timeout=WAIT_SECONDS_MAX)
        for process in alive:
            process.kill()
        assert not alive, "somebody stayed"


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns when ``is_so``; fails when it does not come."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, psutil.Error):
            if is_so():
                return
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def running(url: str, **settings: str) -> Iterator[Ingress]:
    """An ingress that answers and is scraped, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="ingress-") as name:
        ingress = Ingress(url, Path(name), **settings)
        try:
            wait_until(lambda: ingress.ask("GET", "/readyz")[0] == 200)
            wait_until(lambda: ingress.scraped() != "")
            yield ingress
        finally:
            ingress.end()
