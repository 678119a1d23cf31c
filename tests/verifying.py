"""Verifying in tests: by the parts that ``ledger verify`` looks at, whoever asks for them."""

from ledger.database import Connection, Role, conninfo
from ledger.operations.finding import Finding
from ledger.operations.verify_commits import get_end, look_at_counts
from ledger.operations.verifying import _beginning, _Run, verify_in_parts


async def verify(url: str) -> list[Finding]:
    """Every difference in the books of ``url``, as the command finds them with one worker."""
    info = conninfo(url, Role.READER, statement_seconds_max=60, is_service=False)
    return (await verify_in_parts(info, workers=1)).findings


async def look_at_all(connection: Connection) -> list[Finding]:
    """Every difference that ``connection`` sees, also in what it has not committed."""
    end = await get_end(connection)
    beginning = await _beginning(connection, end, reads_again=False)
    whole = _Run(beginning, end, lambda _: None, lambda _, __: None)
    for part in whole.parts([]):
        whole.findings += await part.look(connection)
    return [*whole.findings, *await look_at_counts(connection, whole.brought)]
