"""The embedded server's settings, as texts: how it stores, who may connect, what it logs."""

from collections.abc import Iterable
from pathlib import Path

SETTINGS_NAME = "ledger.conf"

# There is no password to steal: the kernel says which user of the system is at the other end.
HOST_BASED_AUTHENTICATION = "local all all peer map=ledger\n"


def user_map(system_user: str, roles: Iterable[str]) -> str:
    """Return the pg_ident.conf that lets one user of the system be each of `roles`."""
    quoted = system_user.replace('"', '""')
    return "".join(f'ledger "{quoted}" {role}\n' for role in roles)


def settings(socket_directory: Path, port: int) -> str:
    """Return the server's configuration, laid over what initdb found out about the machine."""
    return f"""\
# Written at each start; changes made here are lost.
include 'postgresql.conf'

# Reached over one socket, by one user.
listen_addresses = ''
port = {port}
unix_socket_directories = '"{socket_directory}"'
unix_socket_permissions = 0700
max_connections = 100

# An answered commit is a promise.
fsync = on
synchronous_commit = on
full_page_writes = on

# After each checkpoint the log carries whole pages: rare checkpoints keep it six times smaller.
checkpoint_timeout = 30min
max_wal_size = 8GB
min_wal_size = 32MB
shared_buffers = 256MB
jit = off

timezone = 'UTC'
log_timezone = 'UTC'

# Statements, parameters and details hold personal data, which must not reach the log.
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] '
log_statement = none
log_min_duration_statement = -1
log_min_error_statement = panic
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_error_verbosity = terse
"""
