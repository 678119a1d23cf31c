"""How gunicorn runs the ingress; ``ledger ingress`` starts it with this file."""

from ingress.config import read_listen_settings

_listen = read_listen_settings()

wsgi_app = "ingress.app:from_environment()"
bind = [_listen.bind]
workers = _listen.workers
worker_class = "asgi"
asgi_loop = "uvloop"
asgi_lifespan = "on"
worker_connections = 1000
keepalive = 75
graceful_timeout = 10
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
