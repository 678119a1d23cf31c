"""`make bench`: print how fast it is, beside what it is compared with."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from ledger.embedded import EmbeddedPostgres
from ledger.operations.migrate import migrate
from tests.bench import load, outage, reads

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
CONNECTIONS = (1, 16, 64, 256)
REWARDS_A_SECOND_MAX = 16_000

FILLED = tuple(map(int, os.environ.get("BENCH_REWARDS", "100000,1000000").split(",")))
"""How many rewards stand in the books that are read."""
DUPLICATED = 1000
"""How many rewards a storm of duplicates sends again and again."""
UNSEEN = {"INGRESS_METRICS_BIND": "", "INGRESS_LOG": "off"}
SEEN = {"INGRESS_METRICS_BIND": "127.0.0.1:0", "INGRESS_LOG": "json"}

FACTORIES = {
    "door alone": "tests.bench.apps:door_alone()",
    "ledger": "ingress.app:from_environment()",
    "one by one": "tests.bench.apps:one_by_one()",
    "books alone": "tests.bench.apps:books_alone()",
}
COMPARED = ("door alone", "ledger", "one by one")


def main() -> None:
    """Run every comparison that the machine has the tools for."""
    tools = load.find_tools()
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    print(f"seed {seed}, {ROUNDS} rounds of {SECONDS} s, {os.cpu_count()} cores, medians of rounds")
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        with EmbeddedPostgres(directory / "postgres") as postgres:
            migrate(postgres.url("ledger_owner"))
            if tools.wrk is None:
                print("wrk is missing: rewards per second are not measured (apt install wrk)")
            else:
                measure_posting(tools.wrk, postgres, directory, seed)
                measure_promises(tools.wrk, postgres, directory, seed + 1000)
                measure_outages(directory, seed + 2000)
            if tools.h2load is None:
                print("h2load is missing: calls are not measured (apt install nghttp2-client)")
            else:
                measure_calls(tools.h2load, postgres, directory)


def measure_posting(wrk: str, postgres: EmbeddedPostgres, directory: Path, seed: int) -> None:
    """Signed rewards committed per second, with one worker, three ways at once."""
    rewards = directory / "rewards"
    results: dict[tuple[str, int], list[load.Result]] = {}
    for round_ in range(ROUNDS):
        for connections in CONNECTIONS:
            for name in COMPARED:
                seed += 1
                load.write_rewards(rewards, SECONDS * REWARDS_A_SECOND_MAX, seed)
                with ingress(FACTORIES[name], postgres) as (port, process):
                    meter = load.Meter([process], postmaster(postgres))
                    result = load.post_load(wrk, port, connections, SECONDS, rewards, meter)
                results.setdefault((name, connections), []).append(result)
        print(f"round {round_ + 1} of {ROUNDS} done", file=sys.stderr)
    print("\nsigned rewards, one worker (CPU in µs a reward)")
    print(
        f"{'connections':>11}  {'':<10}{'a second':>9}{'p50 ms':>8}{'p99 ms':>8}"
        f"{'ingress':>9}{'Postgres':>9}{'failed':>7}  of the door"
    )
    for connections in CONNECTIONS:
        door = median(results["door alone", connections])
        for name in COMPARED:
            row = median(results[name, connections])
            print(
                f"{connections:>11}  {name:<10}{row.per_second:>9.0f}{row.p50_milliseconds:>8.2f}"
                f"{row.p99_milliseconds:>8.2f}{row.server_microseconds:>9.0f}"
                f"{row.postgres_microseconds:>9.0f}{row.failed:>7}"
                f"{row.per_second / door.per_second:>11.2f}"
            )
    for connections in CONNECTIONS:
        ledger, one = (median(results[name, connections]) for name in ("ledger", "one by one"))
        print(
            f"at {connections} connections the ledger posts "
            f"{ledger.per_second / one.per_second:.1f} times what one by one does"
        )


def measure_promises(wrk: str, postgres: EmbeddedPostgres, directory: Path, seed: int) -> None:
    """What quarantine, sums and sight cost together; what becomes of a storm of duplicates."""
    rewards = directory / "rewards"
    kinds = {
        "nothing besides": (FACTORIES["books alone"], UNSEEN),
        "quarantine and sums": (FACTORIES["ledger"], UNSEEN),
        "metrics and log lines too": (FACTORIES["ledger"], SEEN),
        "duplicates only, so seen": (FACTORIES["ledger"], SEEN),
    }
    results: dict[str, list[load.Result]] = {}
    for _ in range(ROUNDS):
        for words, (factory, told) in kinds.items():
            seed += 1
            is_storm = words.startswith("duplicates")
            load.write_rewards(
                rewards, DUPLICATED if is_storm else SECONDS * REWARDS_A_SECOND_MAX, seed
            )
            with ingress(factory, postgres, told) as (port, process):
                meter = load.Meter([process], postmaster(postgres))
                result = load.post_load(wrk, port, 64, SECONDS, rewards, meter)
            results.setdefault(words, []).append(result)
    print("\n64 connections, one worker (CPU in µs a reward)")
    print(f"{'':<26}{'a second':>9}{'p99 ms':>8}{'ingress':>9}{'Postgres':>9}{'failed':>7}  ratio")
    base = median(results["nothing besides"])
    for words in kinds:
        row = median(results[words])
        print(
            f"{words:<26}{row.per_second:>9.0f}{row.p99_milliseconds:>8.2f}"
            f"{row.server_microseconds:>9.0f}{row.postgres_microseconds:>9.0f}{row.failed:>7}"
            f"{row.per_second / base.per_second:>7.2f}"
        )


def measure_outages(directory: Path, seed: int) -> None:
    """What senders wait while Postgres is away for some seconds, with a spool and without."""
    print(f"\n{outage.SENDERS} senders, Postgres away for {outage.AWAY_SECONDS:.0f} s (ms)")
    print(
        f"{'':<14}{'p50 before':>11}{'p50 away':>10}{'longest':>9}{'p50 after':>10}"
        "  credited again after  answer while away"
    )
    for name in ("with a spool", "without"):
        place = directory / name.replace(" ", "-")
        postgres = outage.books_of_its_own(place)
        try:
            told = UNSEEN | ({"INGRESS_SPOOL": str(place / "spool")} if "with " in name else {})
            with ingress(FACTORIES["ledger"], postgres, told) as (port, _):
                seen = outage.observe(postgres, port, outage.rewards_for(place, seed))
        finally:
            postgres.stop()
        print(
            f"{name:<14}{seen.before_p50:>11.2f}{seen.away_p50:>10.2f}{seen.away_max:>9.0f}"
            f"{seen.after_p50:>10.2f}{seen.credited_after_seconds:>20.2f} s  {seen.away_status}"
        )


def measure_calls(h2load: str, postgres: EmbeddedPostgres, directory: Path) -> None:
    """GetBalance and its sisters beside an empty call of the same server, 32 calls in flight.

    Small books and large ones take turns, so that a slow minute is not held against one of them.
    """
    places = [reads.filled(postgres, rewards) for rewards in FILLED]
    results: dict[tuple[int, str], list[load.Result]] = {}
    singles: dict[tuple[int, str], list[float]] = {}
    for _ in range(ROUNDS):
        for place in places:
            port = load.free_port()
            with process(reads.command(place, port), port) as server:
                for name, question in reads.questions(place).items():
                    result = reads.ask(
                        h2load, server, port, question, SECONDS, directory, postmaster(postgres)
                    )
                    results.setdefault((place.rewards, name), []).append(result)
                for name, p50 in reads.singles_p50_milliseconds(place, port).items():
                    singles.setdefault((place.rewards, name), []).append(p50)
    for place in places:
        rows = {name: median(row) for (of, name), row in results.items() if of == place.rewards}
        print_calls(place.rewards, rows)
        for (of, name), p50s in singles.items():
            if of == place.rewards:
                print(f"{name}: p50 {statistics.median(p50s):.2f} ms")
        print(f"ledger verify: {reads.verify_seconds(place):.1f} s, nothing found")
    least, most = min(FILLED), max(FILLED)
    ratio = _cost(median(results[most, reads.SINGLE])) / _cost(median(results[least, reads.SINGLE]))
    print(f"\n{reads.SINGLE} costs {ratio:.2f} times as much in {most:,} rewards as in {least:,}")


def print_calls(rewards: int, rows: Mapping[str, load.Result]) -> None:
    """What the calls on books of `rewards` cost."""
    print(
        f"\ncalls, {rewards:,} rewards, one process with metrics and log lines, 32 in flight"
        " (CPU in µs a call)"
    )
    print(f"{'':<24}{'a second':>9}{'server':>8}{'Postgres':>9}{'failed':>7}  of the empty call")
    for name, row in rows.items():
        print(
            f"{name:<24}{row.per_second:>9.0f}{row.server_microseconds:>8.0f}"
            f"{row.postgres_microseconds:>9.0f}{row.failed:>7}"
            f"{row.per_second / rows['empty call'].per_second:>12.2f}"
        )
    each = rows[f"BatchGetBalances of {reads.KEYS}"].server_microseconds / reads.KEYS
    print(f"BatchGetBalances: {each:.1f} µs of server CPU a balance")


def _cost(result: load.Result) -> float:
    return result.server_microseconds + result.postgres_microseconds


def median(results: list[load.Result]) -> load.Result:
    """Each figure's median by itself; failures are added up."""
    columns = [statistics.median(column) for column in zip(*results, strict=True)]
    return load.Result(*columns)._replace(failed=sum(result.failed for result in results))


@contextmanager
def ingress(
    factory: str, postgres: EmbeddedPostgres, told: Mapping[str, str] = UNSEEN
) -> Iterator[tuple[int, psutil.Process]]:
    """Gunicorn with one worker and the app of `factory`."""
    port = load.free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "python:ingress.gunicorn_conf", factory]
    environment = {
        "DATABASE_URL": postgres.url("ledger_writer"),
        "INGRESS_TOKEN": load.TOKEN,
        "INGRESS_BIND": f"127.0.0.1:{port}",
        "INGRESS_WORKERS": "1",
        **told,
    }
    with process(command, port, environment) as server:
        yield port, server


@contextmanager
def process(
    command: list[str], port: int, environment: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """The process of `command`, listening on `port`."""
    ours = ("INGRESS_", "LEDGER_", "PG")
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(ours)}
    # Log lines go to a file, as with many a supervisor: writing them is part of the cost.
    with tempfile.TemporaryFile() as lines:
        started = subprocess.Popen(command, env={**kept, **(environment or {})}, stdout=lines)
    try:
        load.wait_for(port, started)
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait()


def postmaster(postgres: EmbeddedPostgres) -> psutil.Process:
    """The server's first process, as its own pid file says."""
    pid_file = postgres.data_directory / "postmaster.pid"
    return psutil.Process(int(pid_file.read_text().split()[0]))


if __name__ == "__main__":
    main()
