"""The roles and the database that an embedded server has after each start."""

import psycopg

ROLES = ("ledger_owner", "ledger_writer", "ledger_reader", "ledger_corrector", "ledger_closer")

FIND_ROLES = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%(names)s)"

# No role has a password: the only way in is the socket, where the kernel names the caller. An
# error's text quotes the values that were refused: it goes to the one who asked, not to the log.
MAKE_ROLES_AS_THEY_SHOULD_BE = """
ALTER ROLE ledger_owner LOGIN NOSUPERUSER CREATEDB CREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD NULL;
ALTER ROLE ledger_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD NULL;
ALTER ROLE ledger_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD NULL;
ALTER ROLE ledger_corrector LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD NULL;
ALTER ROLE ledger_closer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD NULL;
ALTER ROLE ledger_owner SET log_min_messages = 'log';
ALTER ROLE ledger_writer SET log_min_messages = 'log';
ALTER ROLE ledger_reader SET log_min_messages = 'log';
ALTER ROLE ledger_corrector SET log_min_messages = 'log';
ALTER ROLE ledger_closer SET log_min_messages = 'log';
GRANT ledger_writer, ledger_reader, ledger_corrector, ledger_closer
    TO ledger_owner WITH ADMIN OPTION, INHERIT FALSE, SET TRUE;
-- A service that corrects reads, too.
GRANT ledger_reader TO ledger_corrector WITH INHERIT FALSE, SET TRUE;
"""

FIND_DATABASE = "SELECT 1 FROM pg_database WHERE datname = 'ledger'"

CREATE_DATABASE = """
CREATE DATABASE ledger OWNER ledger_owner TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'
"""

LET_ONLY_THE_ROLES_IN = """
REVOKE ALL ON DATABASE ledger FROM PUBLIC;
GRANT CONNECT ON DATABASE ledger
    TO ledger_writer, ledger_reader, ledger_corrector, ledger_closer;
"""


def prepare_roles_and_database(connection: psycopg.Connection) -> None:
    """Make the roles and the database, or mend them; what they hold is left alone.

    `connection` is a superuser's, in autocommit mode.
    """
    with connection.transaction():
        found = {name for (name,) in connection.execute(FIND_ROLES, {"names": list(ROLES)})}
        for role in ROLES:
            if role not in found:
                connection.execute(f"CREATE ROLE {role}")
        connection.execute(MAKE_ROLES_AS_THEY_SHOULD_BE)
    if connection.execute(FIND_DATABASE).fetchone() is None:
        connection.execute(CREATE_DATABASE)
    connection.execute(LET_ONLY_THE_ROLES_IN)
