"""The house rules of `src/servecap`: floors, sizes, names and docstrings (docs/design.md).

Each rule is a function from sources to complaints. It is held against the code base, and first
against a few made-up lines that break it, so that a rule which sees nothing is noticed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

# Modules below `servecap`; a package stands for all that is in it, unless that is named itself.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "",
            "errors",
            "record",
            "sample",
            "slo",
            "scenario",
            "schedule",
            "stats",
            "rand",
            "run",
            "columns",
            "pauses",
            "cell",
        }
    ),
    frozenset(
        {
            "workload",
            "wire",
            "engine",
            "metrics",
            "summarize",
            "verdict",
            "steady",
            "audit",
            "alignment",
            "compare",
            "differing",
            "flow",
            "foreign",
            "gate",
            "kept",
            "stability",
            "surroundings",
        }
    ),
    frozenset({"load"}),
    frozenset(
        {
            "wire.client",
            "preflight",
            "level",
            "living",
            "measure",
            "pipe",
            "guarded",
            "process",
            "pulse",
            "worker",
            "workers",
            "cluster",
            "selftest",
            "nullserver",
            "probe",
            "predict",
            "simulate",
            "emulate",
            "store",
            "telemetry",
        }
    ),
    frozenset({"search"}),
    frozenset({"matrix", "plan"}),
    frozenset({"report", "cli", "api", "demo", "__main__"}),
)
FORBIDDEN = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "factory"}
HEAVY = ("numpy", "matplotlib", "aiohttp")  # each takes a good part of `servecap --help`'s time

Sources = dict[str, str]  # dotted module name -> its text
Rule = Callable[[Sources], list[str]]


def project() -> Sources:
    """The text of every module of the package."""
    return {module_name(path): path.read_text() for path in sorted(SRC.rglob("*.py"))}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(module: str, sources: Sources) -> ast.Module:
    return ast.parse(sources[module], filename=module)  # a syntax error names the module


def imports(module: str, sources: Sources) -> Iterator[tuple[str, int]]:
    """Modules of the package that *module* imports anywhere, with the line it does so."""
    for node in ast.walk(tree_of(module, sources)):
        match node:
            case ast.Import(names=names):
                targets = [name.name for name in names]
            case ast.ImportFrom(module=base, names=names, level=0) if base:
                targets = [f"{base}.{name.name}" for name in names]
            case ast.ImportFrom(module=base, names=names, level=level):
                package = _package(module, level, sources)
                start = f"{package}.{base}" if base else package
                targets = [f"{start}.{name.name}" for name in names]
            case _:
                continue
        for target in targets:
            if target.split(".")[0] == "servecap":
                yield _known(target, sources), node.lineno


def _package(module: str, level: int, sources: Sources) -> str:
    is_package = any(other.startswith(f"{module}.") for other in sources)
    parts = module.split(".")
    return ".".join(parts[: len(parts) - level + is_package])


def _known(target: str, sources: Sources) -> str:
    """*target* without what is a name inside a module."""
    while target not in sources and "." in target:
        target = target.rpartition(".")[0]
    return target


def floor_of(module: str) -> int | None:
    """The floor of a module, by its own name or by that of the nearest package around it."""
    name = module.removeprefix("servecap").removeprefix(".")
    while True:
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
        if "." not in name:
            return None
        name = name.rpartition(".")[0]


def homeless(sources: Sources) -> list[str]:
    """Modules that are on no floor."""
    return [
        f"{module} is on no floor: add it to FLOORS in tests/test_architecture.py and to the table "
        "in docs/design.md, as low as its imports allow"
        for module in sources
        if floor_of(module) is None
    ]


def upward(sources: Sources) -> list[str]:
    """Imports of a higher floor, also those inside functions and for type checking."""
    complaints = []
    for module in sources:
        here = floor_of(module)
        for target, line in imports(module, sources):
            there = floor_of(target)
            if here is not None and there is not None and there > here:
                complaints.append(
                    f"{module}:{line} (floor {here}) imports {target} (floor {there}): move what "
                    "is needed down, or pass it in as an argument"
                )
    return complaints


def cycles(sources: Sources) -> list[str]:
    """The first import cycle, if there is one."""
    graph = {
        module: {target for target, _ in imports(module, sources)} - {module} for module in sources
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        return [f"import cycle {path}: move what both need into a module below them"]
    return []


def long_files(sources: Sources) -> list[str]:
    """Modules with too many lines."""
    return [
        f"{module} has {lines} lines, at most {FILE_LINES_MAX}: split it by what it is about"
        for module, text in sources.items()
        if (lines := len(text.splitlines())) > FILE_LINES_MAX
    ]


def long_functions(sources: Sources) -> list[str]:
    """Functions with too many lines, their docstring not counted."""
    complaints = []
    for module in sources:
        for node in ast.walk(tree_of(module, sources)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines > FUNCTION_LINES_MAX:
                complaints.append(
                    f"{module}:{node.lineno} {node.name} has {lines} lines, at most "
                    f"{FUNCTION_LINES_MAX}: give its steps names of their own"
                )
    return complaints


def vague_names(sources: Sources) -> list[str]:
    """Modules whose name says nothing about what is in them."""
    return [
        f"{module} has a name that fits anything: call it after what it holds"
        for module in sources
        if FORBIDDEN & set(re.split(r"[._]", module))
    ]


def undocumented(sources: Sources) -> list[str]:
    """Public modules, and public functions and classes on their top level, without docstring."""
    complaints = []
    for module, text in sources.items():
        tree = tree_of(module, sources)
        if text.strip() and ast.get_docstring(tree) is None:
            complaints.append(f"{module} has no docstring: say in one line what it is about")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") or ast.get_docstring(node) is not None:
                continue
            complaints.append(
                f"{module}:{node.lineno} {node.name} has no docstring: "
                "say in its first line what is true of the result"
            )
    return complaints


RULES: tuple[Rule, ...] = (
    homeless,
    upward,
    cycles,
    long_files,
    long_functions,
    vague_names,
    undocumented,
)

BROKEN: dict[str, Sources] = {
    "homeless": {"servecap.attic": ""},
    "upward": {
        "servecap.stats": "def f():\n    from servecap.report import html\n",
        "servecap.report": "",
        "servecap.report.html": "",
    },
    "cycles": {
        "servecap.slo": "from servecap import stats",
        "servecap.stats": "from .record import x",
        "servecap.record": "import servecap.slo",
        "servecap": "",
    },
    "long_files": {"servecap.slo": "x = 1\n" * (FILE_LINES_MAX + 1)},
    "long_functions": {"servecap.slo": "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX},
    "vague_names": {"servecap.wire.http_utils": ""},
    "undocumented": {"servecap.slo": '"""Doc."""\nclass Limit:\n    pass\n'},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_rule_sees_what_it_forbids(rule: Rule) -> None:
    assert len(rule(BROKEN[rule.__name__])) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_code_base_keeps_rule(rule: Rule) -> None:
    complaints = rule(project())
    assert not complaints, "\n" + "\n".join(complaints)


def test_docstring_does_not_count_as_length() -> None:
    text = 'def f():\n    """' + "word\n" * FUNCTION_LINES_MAX + '"""\n    return 1\n'
    assert long_functions({"servecap.slo": text}) == []


def test_client_stands_above_the_rest_of_its_package() -> None:
    assert (floor_of("servecap.wire.client"), floor_of("servecap.wire.sse")) == (3, 1)
    assert (floor_of("servecap"), floor_of("servecap.report.html")) == (0, 6)


def test_importing_the_command_line_is_light() -> None:
    if not (SRC / "servecap" / "cli.py").exists() and not (SRC / "servecap" / "cli").exists():
        pytest.skip("servecap.cli does not exist yet")
    code = f"import sys, servecap.cli; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], (
        f"importing servecap.cli also imports {done.stdout.strip()}: "
        "import what needs it inside the command that uses it "
        "(python -X importtime -c 'import servecap.cli' shows the way)"
    )


def test_modules_of_benches_have_names_that_no_test_helper_has() -> None:
    """Tests import both by their bare names: whichever came first would stand for the other."""
    benches = {path.stem for path in (ROOT / "bench").rglob("*.py")} - {"__main__"}
    helpers = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert benches & helpers <= {"llama"}  # the bench of that name is imported by no test
