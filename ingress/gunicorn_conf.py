"""How gunicorn runs the ingress; ``ledger ingress`` starts it with this file."""

from contextlib import suppress
from dataclasses import astuple
from typing import Any

from ingress import exporting
from ingress.config import read_listen_settings, read_settings
from ingress.connections import bound_connections
from ingress.ending import announce_at_sigterm
from ingress.observing import read_observing_settings
from ingress.spool import Spool
from ingress.spool_file import SpoolUnavailable, UnusableSpool
from ledger.config import InvalidSetting

try:
    _listen = read_listen_settings()
    # Read here, and inherited by the workers: a wrong one ends gunicorn with one sentence; a
    # worker that cannot start would end it with a traceback.
    _settings = read_settings()
    read_observing_settings()
    _metrics_bind = exporting.read_metrics_bind()
    if _settings.spool is not None:
        with suppress(SpoolUnavailable), Spool(*astuple(_settings.spool)):
            """A damaged spool is told here, and left as it is."""
except (InvalidSetting, UnusableSpool) as error:
    raise SystemExit(f"The ingress cannot start: {error}.") from None

if _metrics_bind is not None:
    exporting.prepare()

STOP_SECONDS_MAX = 10

wsgi_app = "ingress.gunicorn_conf:worker_app()"
bind = [_listen.bind]
workers = _listen.workers
worker_class = "asgi"
asgi_loop = "uvloop"
asgi_lifespan = "on"
# `ingress.connections` keeps it; gunicorn's own worker of this class does not. Many times what a
# sender or a proxy has open, and below the 1024 files that a process may usually have.
worker_connections = 1000
# How long a connection may be kept without a request: longer than proxies keep theirs (60 s), so
# that it is not we who close it while a delivery is on its way.
keepalive = 75
graceful_timeout = STOP_SECONDS_MAX
limit_request_line = 2048
limit_request_fields = 50
limit_request_field_size = 8190
# Whoever speaks to us directly is the peer: no header of theirs changes that.
forwarded_allow_ips = ""
proc_name = "reward-ingress"
accesslog = None
errorlog = "-"
loglevel = "warning"
# A second way to steer the process that nobody asked for.
control_socket_disable = True


def worker_app() -> Any:  # noqa: ANN401 - imported in the worker, not in the master
    """What a worker runs: the app with the settings that the master has read."""
    from ingress.app import from_environment

    return from_environment(_settings)


def post_fork(_server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
    """Gives a worker less time to stop than the master gives it before it kills it.

    A worker waits for every connection, also for those that are kept open without a request. It
    must be done with that while there is still time to empty its books.
    """
    worker.cfg.set("graceful_timeout", STOP_SECONDS_MAX - 3)


def post_worker_init(worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
    """Bounds a worker's connections; has it announce its end on each before it closes one."""
    bound_connections(worker)
    announce_at_sigterm(worker)


def on_reload(server: Any) -> None:  # noqa: ANN401 - gunicorn's arbiter
    """Reads the token files again at SIGHUP, before the new workers are started.

    A bad file must not reach them: gunicorn ends altogether when a new worker cannot start.
    """
    problem = _settings.tokens.reload()
    if problem is not None:
        server.log.error("SIGHUP: %s. The tokens from before stay.", problem)


def when_ready(server: Any) -> None:  # noqa: ANN401 - gunicorn's arbiter
    """Starts what serves ``/metrics``."""
    if _metrics_bind is not None:
        exporting.start(_metrics_bind, server)


def child_exit(_server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn's worker
    """Keeps what an ended worker had counted."""
    if _metrics_bind is not None:
        exporting.worker_ended(worker.pid)


def on_exit(_server: object) -> None:
    """Ends what serves ``/metrics``."""
    exporting.stop()
