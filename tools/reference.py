"""Writes the reference of the proto as Markdown: its comments, and the service's errors.

Usage: buf build proto --exclude-imports -o - | python tools/reference.py FILE
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from ledger.client.errors import REASONS
from ledger.errors import Unavailable
from ledger.problems import DOMAIN, PROBLEMS

# Under which numbers protobuf keeps the words about the parts of a file: they are those of the
# fields of FileDescriptorProto and, for all that has members, of what they are members of.
SYNTAX, MESSAGE, ENUM, SERVICE, MEMBER = 12, 4, 5, 6, 2


def reference(file: FileDescriptorProto) -> Iterator[str]:
    """The lines of the reference of ``file``."""
    words = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
    opening = next(at for at in file.source_code_info.location if at.path == [SYNTAX])
    yield from (f"# {file.package}", "")
    yield from (f"Generated from `proto/{file.name}` by `make proto`; never edited.", "")
    yield _text(opening.leading_detached_comments[0])
    for at, service in enumerate(file.service):
        yield from ("", f"## {service.name}", "", _text(words[SERVICE, at]))
        for number, method in enumerate(service.method):
            about = words[SERVICE, at, MEMBER, number]
            yield from ("", f"### {method.name}", "", _text(about), "", _call(method))
    yield from _errors()
    yield from ("", "## Messages")
    for at, message in enumerate(file.message_type):
        if message.nested_type or message.enum_type:
            raise NotImplementedError(f"{message.name} has types of its own")
        yield from ("", f"### {message.name}", "", _text(words[MESSAGE, at]))
        rows = [
            f"| `{field.name}` | {_type(field)} | {_cell(words[MESSAGE, at, MEMBER, number])} |"
            for number, field in enumerate(message.field)
        ]
        yield from ("", "| field | type | |", "| --- | --- | --- |", *rows) if rows else ()
    for at, enum in enumerate(file.enum_type):
        yield from ("", f"### {enum.name}", "", _text(words[ENUM, at]))
        yield from ("", "| value | |", "| --- | --- |")
        for number, value in enumerate(enum.value):
            yield f"| `{value.name}` | {_cell(words[ENUM, at, MEMBER, number])} |"


def _errors() -> Iterator[str]:
    yield from ("", "## Errors", "")
    yield f"The reasons of `google.rpc.ErrorInfo` in the domain `{DOMAIN}`, with what the caller is"
    yield "told, whether asking again may help, and what `ledger.client` raises."
    yield from ("", "| reason | status | | again | in Python |", "| --- | --- | --- | --- | --- |")
    for kind, (status, reason, text) in PROBLEMS.items():
        again = "may help" if issubclass(kind, Unavailable) else "will not help"
        raised = REASONS[reason].__name__
        yield f"| `{reason}` | {status.name} | {text} | {again} | `{raised}` |"


def _call(method: MethodDescriptorProto) -> str:
    asked, told = _link(method.input_type), _link(method.output_type)
    asks = f"a stream of {asked}" if method.client_streaming else asked
    tells = f"a stream of {told}" if method.server_streaming else told
    return f"{asks} → {tells}"


def _type(field: FieldDescriptorProto) -> str:
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.type_name:
        name = _link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str) -> str:
    *package, name = type_name.removeprefix(".").split(".")
    is_ours = package[0] == "ledger"
    return f"[{name}](#{name.lower()})" if is_ours else f"`{'.'.join(package)}.{name}`"


def _text(words: str) -> str:
    return "\n".join(line.strip() for line in words.strip().splitlines())


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


if __name__ == "__main__":
    (described,) = FileDescriptorSet.FromString(sys.stdin.buffer.read()).file
    Path(sys.argv[1]).write_text("\n".join(reference(described)) + "\n")
