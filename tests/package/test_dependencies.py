"""Each dependency is declared, bounded from above, and within its bounds here."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES_OF = {"pynvml": "nvidia-ml-py"}  # of extras that need not be installed here
NOT_INSTALLED_FOR_TESTS = {"bench"}  # extras whose absence here is no fault


def _requirements() -> list[tuple[str, Requirement]]:
    """Where it is declared, and what."""
    project = PROJECT["project"]
    groups = {"core": project["dependencies"], "build": PROJECT["build-system"]["requires"]}
    groups |= project["optional-dependencies"]
    found = [(group, Requirement(line)) for group, lines in groups.items() for line in lines]
    return [(group, r) for group, r in found if r.name != "servecap"]


def unbounded(requirement: Requirement) -> str | None:
    """What its specifier lacks, if anything: a floor, or a ceiling."""
    operators = {s.operator for s in requirement.specifier}
    if not operators & {">=", ">", "==", "~="}:
        return f"{requirement} has no lower bound"
    if not operators & {"<", "<=", "==", "~="}:
        return f"{requirement} has no upper bound"
    return None


@pytest.mark.parametrize("line", ["numpy", "numpy>=1", "numpy<3", "numpy!=2.0"])
def test_a_missing_bound_is_seen(line: str) -> None:
    assert unbounded(Requirement(line)) is not None


@pytest.mark.parametrize("line", ["numpy>=1,<3", "numpy==2.0", "numpy~=2.0"])
def test_a_bounded_requirement_passes(line: str) -> None:
    assert unbounded(Requirement(line)) is None


def test_every_dependency_is_bounded_on_both_sides() -> None:
    lacking = [why for _, r in _requirements() if (why := unbounded(r))]
    assert not lacking


def test_what_is_installed_here_is_within_the_bounds() -> None:
    """Else what was tested is not what the bounds allow."""
    for group, requirement in _requirements():
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            assert group in NOT_INSTALLED_FOR_TESTS, f"{requirement} is not installed"
            continue
        assert requirement.specifier.contains(here, prereleases=True), f"{requirement}: {here}"


def _imported(path: Path) -> set[str]:
    """Top-level names of other projects that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"servecap"}


def test_every_import_of_the_package_is_declared_and_each_core_dependency_is_imported() -> None:
    groups = {canonicalize_name(r.name): group for group, r in _requirements() if group != "dev"}
    homes = packages_distributions()
    used: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for name in _imported(path):
            # A name space such as opentelemetry is shared by several distributions.
            if name == "opentelemetry":
                continue
            projects = {
                canonicalize_name(home) for home in homes.get(name, [MODULES_OF.get(name, name)])
            }
            assert projects & set(groups), f"{path.name} imports {name}, not in pyproject.toml"
            used |= projects
    core = {name for name, group in groups.items() if group == "core"}
    assert core <= used, "declared, but never imported"


def test_the_python_versions_that_are_named_agree() -> None:
    project = PROJECT["project"]
    named = [
        match[1]
        for line in project["classifiers"]
        if (match := re.search(r"Python :: (3\.\d+)", line))
    ]
    assert project["requires-python"] == f">={named[0]}"
    minors = [int(name.partition(".")[2]) for name in named]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PROJECT["tool"]["mypy"]["python_version"] == named[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + named[0].replace(".", "")
