"""The embedded server's process: begun, waited for, and ended by whoever holds the data's lock."""

import os
import signal
import subprocess
import time

import psycopg

from ledger.embedded.errors import DidNotStart
from ledger.embedded.home import Home
from ledger.embedded.settings import SETTINGS_NAME

# Recovery after a crash reads the log since the last checkpoint, which may take minutes.
START_SECONDS_MAX = 600.0
# A server that says it is ready and still refuses its own supervisor will go on refusing.
READY_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 60.0
IMMEDIATE_SECONDS_MAX = 10.0
LOG_BYTES_MAX = 16 * 1024 * 1024
LAST_WORDS_LINES = 12


class Server:
    """One running server on the data of `home`, which is initialised and has its settings."""

    def __init__(self, home: Home) -> None:
        self._data_directory = home.data_directory
        self._log = home.data_directory / "server.log"
        self._log_offset = self._rotate_log()
        # The shell opens the log as the server's user and then becomes the server.
        command = [
            *("/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh", str(self._log)),
            *(str(home.binaries / "postgres"), "-D", str(self._data_directory)),
            *("-c", f"config_file={self._data_directory / SETTINGS_NAME}"),
        ]
        # In a session of its own: Ctrl-C is for the supervisor, which stops the server in order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **home.user.child_options(),
        )

    def connect_when_ready(self, url: str) -> psycopg.Connection:
        """Return a connection as soon as the server gives one, or raise `DidNotStart`."""
        deadline = time.monotonic() + START_SECONDS_MAX
        ready = False
        while True:
            try:
                return psycopg.connect(url, autocommit=True, connect_timeout=10)
            except psycopg.OperationalError as error:
                if not ready and self._says_that_it_is_ready():
                    ready = True
                    deadline = time.monotonic() + READY_SECONDS_MAX
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise DidNotStart(
                        f"The embedded Postgres in {self._data_directory} did not start; mend what"
                        f" its log {self._log} ends with:\n{self._last_words()}"
                    ) from error
            time.sleep(0.01)

    def end(self) -> None:
        """Ask for a fast shutdown, then for an immediate one, then kill, and wait for the end."""
        for request, seconds in (
            (signal.SIGINT, STOP_SECONDS_MAX),
            (signal.SIGQUIT, IMMEDIATE_SECONDS_MAX),
            (signal.SIGKILL, None),
        ):
            self._process.send_signal(request)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            return

    def _rotate_log(self) -> int:
        """Put a long log aside, and say where in the log the new server's words will begin."""
        if not self._log.exists():
            return 0
        length = self._log.lstat().st_size
        if length <= LOG_BYTES_MAX:
            return length
        self._log.replace(self._log.with_suffix(".log.1"))
        return 0

    def _says_that_it_is_ready(self) -> bool:
        try:
            text = (self._data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except OSError:
            return False
        # The eighth line is the status that pg_ctl waits for.
        return [line.strip() for line in text.splitlines()][7:8] == ["ready"]

    def _last_words(self) -> str:
        try:
            descriptor = os.open(self._log, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            return f"(it cannot be read: {error})"
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as log:
            log.seek(self._log_offset)
            return "\n".join(log.read().splitlines()[-LAST_WORDS_LINES:])
