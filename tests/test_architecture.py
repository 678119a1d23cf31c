"""Who may know whom, who may change the books, and where nothing may be inexact."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingress
import ledger

ROOT = Path(ledger.__file__).parent.parent
PACKAGES = [Path(package.__file__ or "").parent for package in (ledger, ingress)]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in package.rglob("*.py")
    if "v1" not in path.parts
}

# From the ground up; a module imports only what stands below it. A folder stands as one.
FLOORS = [
    {"ledger.errors"},
    {
        "ledger.v1",
        "ledger.money",
        "ledger.account",
        "ledger.posting",
        "ledger.config",
        "ledger.seal",
    },
    {
        "ledger.client",
        "ledger.reward",
        "ledger.correction",
        "ledger.coalescing",
        "ledger.database",
        "ledger.embedded",
        "ledger.callers",
        "ledger.files",
        "ledger.place",
        "ledger.counting",
        "ledger.exporting",
        "ledger.lines",
        "ledger.tracing",
    },
    {
        "ledger.access",
        "ledger.metrics",
        "ledger.writing",
        "ledger.correcting",
        "ledger.quarantine",
        "ledger.history",
        "ledger.sharing",
        "ledger.tallying",
    },
    {"ledger.reading"},
    {
        "ledger.page",
        "ledger.problems",
        "ledger.replies",
        "ledger.requests",
        "ledger.commits",
        "ledger.operations.finding",
        "ledger.operations.migrate",
        "ledger.operations.totals",
        "ledger.operations.verify_finance",
    },
    {"ledger.operations.verify_accounts", "ledger.operations.verify_commits"},
    {"ledger.operations.verify"},
    {"ledger.watching", "ledger.service_finance"},
    {"ledger.service"},
    {"ledger.reversing"},
    {"ledger.observing"},
    {"ledger.calls"},
    {"ledger.probes"},
    {"ledger.listening"},
    {"ledger.server"},
    {"ledger.operations"},
    {"ledger.terminal"},
    {
        "ledger.cli_caller",
        "ledger.cli_correct",
        "ledger.cli_export",
        "ledger.cli_finance",
        "ledger.cli_quarantine",
        "ledger.cli_reconcile",
        "ledger.cli_verify",
    },
    {"ledger.cli"},
    {"ledger.__main__"},
    {"ledger"},
    {"ingress"},
]
NOUNS = [
    f"ledger.{noun}"
    for noun in ("money", "account", "posting", "reward", "correction", "errors", "seal")
]
HARMLESS = {
    "base64",
    "collections",
    "datetime",
    "decimal",
    "enum",
    "hashlib",
    "hmac",
    "re",
    "traceback",
    "typing",
}
"""What a noun may use of the standard library: no I/O, no clock, no environment."""

MAY_CHANGE = {
    "ledger.writing": {"rewards", "postings", "balances", "movements", "period_totals"},
    "ledger.correcting": {
        *("corrections", "proposals", "postings", "balances", "movements", "period_totals"),
    },
    "ledger.operations.migrate": {"currencies"},
    "ledger.quarantine": {"quarantine"},
    "ledger.tallying": {"tallies"},
    "ledger.operations.reconciliations": {"reconciliations"},
    "ledger.operations.close": {"statements"},
}
"""Which of Postgres's tables a module's statements change; all others only read."""

TABLES = {
    table
    for migration in (PACKAGES[0] / "migrations").glob("*.sql")
    for table in re.findall(r"^CREATE TABLE (\w+)", migration.read_text(), re.MULTILINE)
}
EXACT = [
    "ledger.money",
    "ledger.reward",
    "ledger.posting",
    "ledger.correction",
    "ledger.writing",
    "ledger.correcting",
    "ledger.reading",
    "ledger.history",
    "ledger.operations.close",
    "ledger.operations.totals",
    "ledger.requests",
    "ledger.replies",
    "ledger.operations.rows",
    "ledger.operations.report",
    "ledger.operations.comparing",
    "ledger.operations.importing",
    "ledger.operations.cut",
    "ledger.operations.export",
    "ledger.operations.export_state",
    "ledger.operations.exported",
    "ledger.operations.journal",
    "ledger.operations.second_opinion",
    "ledger.operations.sheets",
]


def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def imported(module: str) -> set[str]:
    """Every module that ``module`` imports, wherever in it, by its whole name."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in FILES else node.module or "")
    return names


def of_ours(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in {"ledger", "ingress"}}


def place(module: str) -> tuple[int, str]:
    """The floor on which ``module`` stands, and under which name."""
    name = module
    while name:
        for number, floor in enumerate(FLOORS):
            # A new module of the ledger is to be given a place of its own.
            if name in floor and (name != "ledger" or module == "ledger"):
                return number, name
        name = name.rpartition(".")[0]
    pytest.fail(f"{module} has no floor: say in FLOORS where it stands")


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    floor, name = place(module)
    for other in of_ours(imported(module)):
        below, its_name = place(other)
        assert below < floor or its_name == name, f"{module} imports {other}"


def test_no_module_imports_itself_over_others() -> None:
    open_: list[str] = []
    done = set()

    def visit(module: str) -> None:
        assert module not in open_, " → ".join([*open_, module])
        if module not in done:
            open_.append(module)
            for other in sorted(of_ours(imported(module)) & FILES.keys()):
                visit(other)
            done.add(open_.pop())

    for module in FILES:
        visit(module)


def test_the_ledger_does_not_know_the_ingress() -> None:
    for module in FILES:
        if module.startswith("ledger"):
            assert not any(name.startswith("ingress") for name in imported(module)), module


def reached(module: str) -> set[str]:
    """Every module of ours that importing ``module`` loads."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = (of_ours(imported(waiting.pop())) & FILES.keys()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize(
    ("module", "stranger"),
    [
        ("ledger.writing", "ledger.reading"),
        ("ledger.reading", "ledger.writing"),
        ("ledger.service", "ledger.writing"),
        ("ledger.server", "ledger.writing"),
        ("ledger.operations.verify", "ledger.writing"),
        ("ledger.service", "ledger.correcting"),
        ("ledger.operations.verify", "ledger.correcting"),
        ("ledger.operations.totals", "ledger.writing"),
        ("ledger.operations.comparing", "ledger.writing"),
        ("ledger.operations.export", "ledger.writing"),
        ("ledger.operations.second_opinion", "ledger.writing"),
        ("ledger.coalescing", "ledger.database"),
        ("ingress.payload", "ledger.database"),
        ("ingress.signature", "ledger.database"),
        ("ingress.webhook", "ledger.reading"),
    ],
)
def test_some_do_not_know_each_other_even_over_others(module: str, stranger: str) -> None:
    assert stranger not in reached(module)


def test_of_the_service_only_what_corrects_knows_a_door_into_the_books() -> None:
    doors = {"ledger.correcting", "ledger.writing"}
    of_the_service = {"ledger.server", *reached("ledger.server")} - doors
    assert {(module, door) for module in of_the_service for door in imported(module) & doors} == {
        ("ledger.reversing", "ledger.correcting")
    }
    assert [name for name in FILES if "ledger.reversing" in imported(name)] == ["ledger.server"]


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun_touches_nothing_of_the_world(noun: str) -> None:
    for name in imported(noun):
        if name.startswith("ledger."):
            assert name in NOUNS
        else:
            assert name.partition(".")[0] in HARMLESS | {"iso4217"}


CHANGE = re.compile(
    r"(?:INSERT INTO|DELETE FROM|MERGE INTO|TRUNCATE(?: TABLE)?|COPY|(?<!DO )(?<!FOR )UPDATE)"
    r"\s+(?:ONLY\s+)?(\w+)"
)


def docstrings(module: ast.Module) -> Iterator[ast.Constant]:
    """Every text that stands alone, for a reader."""
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


@pytest.mark.parametrize("module", FILES)
def test_only_one_module_changes_a_table(module: str) -> None:
    parsed = tree(module)
    for_readers = set(docstrings(parsed))
    changed = {
        table
        for node in ast.walk(parsed)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node not in for_readers
        for table in CHANGE.findall(node.value)
    }
    assert changed & TABLES == MAY_CHANGE.get(module, set())


@pytest.mark.parametrize("module", EXACT)
def test_no_amount_is_ever_a_float(module: str) -> None:
    lines = FILES[module].read_text().splitlines()
    for text in docstrings(tree(module)):
        for number in range(text.lineno - 1, text.end_lineno or text.lineno):
            lines[number] = ""
    assert not re.search(r"\bfloat\b", "\n".join(lines))


@pytest.mark.parametrize("module", [*NOUNS, "ingress.payload"])
def test_no_literal_near_an_amount_is_a_float(module: str) -> None:
    for node in ast.walk(tree(module)):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))


def test_the_only_float_that_reading_a_body_knows_is_infinity() -> None:
    """It stands for a number too big for a decimal, and is no amount."""
    for node in ast.walk(tree("ingress.payload")):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "float":
            assert [ast.unparse(argument) for argument in node.args] == ["'inf'"]
