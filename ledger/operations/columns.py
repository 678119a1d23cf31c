"""Where a report holds what: in which of its columns, or as a constant for all of its lines."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.operations.rows import DELIMITERS

FILE_SIZE_MAX_BYTES = 64 * 1024

KNOWN: dict[str, tuple[str, ...]] = {
    "reward_id": ("rewardid",),
    "user_id": ("userid", "user"),
    "campaign_id": ("campaignid", "campaign"),
    "amount": ("rewardamount", "amount"),
    "currency": ("currency", "currencycode", "rewardcurrency", "detailscurrency"),
    "reward_type": ("rewardtype",),
    "code": ("code", "couponcode", "rewardcode"),
    "type": ("type", "campaigntype"),
    "reward_name": ("rewardname",),
    "issued_at": ("issuedat", "rewardedat", "createdat", "timestamp", "date"),
}
"""Each field of a line, and the names that its column may have without being told: of a name only
the letters and digits count, capital or not. The first that the report has is taken."""

REQUIRED = ("reward_id", "amount")
COMPARED = ("amount", "currency", "user_id", "campaign_id")
"""What is held against the books, where the report has it."""
IMPORTED = ("user_id", "campaign_id", "amount", "currency", "reward_type", "code")
"""What the fingerprint covers: a reward can be posted from a report that has all of it."""


class BadColumns(Exception):
    """A report cannot be read with these columns; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What an operator says of a report's columns; nothing, unless a file says otherwise."""

    named: Mapping[str, str] = field(default_factory=dict)
    """The column of a field; of NDJSON, keys joined by dots."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """What every line says for a field."""
    delimiter: str | None = None
    """What stands between two cells of CSV; ``None``: what the header has most of."""
    quarantined_reward_id: str = "rewardId"
    """Where a body in the quarantine holds its rewardId: keys joined by dots."""

    def find(self, names: Sequence[str]) -> dict[str, str]:
        """The column among ``names`` of each field that has one; raises ``BadColumns``."""
        by_letters: dict[str, list[str]] = {}
        for name in names:
            by_letters.setdefault(_letters(name), []).append(name)
        found = {}
        for wanted, known in KNOWN.items():
            if wanted in self.constants:
                continue
            if wanted in self.named:
                if self.named[wanted] in names:
                    found[wanted] = self.named[wanted]
                continue
            fitting = next((by_letters[name] for name in known if name in by_letters), None)
            if fitting is None:
                continue
            if len(fitting) > 1:
                raise BadColumns(
                    f"{' and '.join(map(repr, fitting))} could both be {wanted}: say which in a"
                    " file for --columns."
                )
            found[wanted] = fitting[0]
        return found

    def told(self) -> dict[str, Any]:
        """All of it as JSON can hold it: it decides what a file says."""
        return {
            "named": dict(self.named),
            "constants": dict(self.constants),
            "delimiter": self.delimiter,
            "quarantined_reward_id": self.quarantined_reward_id,
        }


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def read_columns(file: Path) -> Columns:
    """What the TOML ``file`` says; raises ``BadColumns`` with what is wrong in it."""
    try:
        with file.open("rb") as opened:
            text = opened.read(FILE_SIZE_MAX_BYTES + 1)
    except OSError as error:
        raise BadColumns(f"{file} cannot be read: {error.strerror}.") from None
    if len(text) > FILE_SIZE_MAX_BYTES:
        raise BadColumns(f"{file} is over {FILE_SIZE_MAX_BYTES} bytes: is it the report?")
    try:
        told = tomllib.loads(text.decode())
        return _columns(told)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError and UnicodeDecodeError are such, and so is what `_columns` raises.
        raise BadColumns(f"{file} cannot be used: {error}.") from None


def _columns(told: dict[str, Any]) -> Columns:
    _only(told, "the file", ("delimiter", "columns", "quarantine"))
    delimiter = told.get("delimiter")
    if delimiter is not None and not (isinstance(delimiter, str) and delimiter in [*DELIMITERS]):
        raise ValueError("delimiter must be one of , ; | or a tab")
    columns = _only(told.get("columns", {}), "[columns]", tuple(KNOWN))
    named, constants = {}, {}
    for name, value in columns.items():
        match value:
            case str() if value:
                named[name] = value
            case {"constant": str(constant), **rest} if not rest and name not in REQUIRED:
                constants[name] = constant
            case _:
                raise ValueError(f"{name} must be the name of a column{_or_constant(name)}")
    quarantine = _only(told.get("quarantine", {}), "[quarantine]", ("reward_id",))
    path = quarantine.get("reward_id", "rewardId")
    if not isinstance(path, str) or not path:
        raise ValueError("reward_id of [quarantine] must be keys joined by dots")
    return Columns(named, constants, delimiter, path)


def _only(table: object, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table")
    for key in table:
        if key not in known:
            raise ValueError(f"{key} is not known in {name}; what is: {', '.join(known)}")
    return table


def _or_constant(name: str) -> str:
    return "" if name in REQUIRED else ', or { constant = "…" }'
