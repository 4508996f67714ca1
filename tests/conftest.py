"""What all tests share. The one conftest there is: two would be one module name for mypy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# As the command line does: threads of a linear algebra library would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# How long an example takes is the machine's affair: a busy one would fail tests that are right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["llama_fixtures", "shell_fixture", "vllm_fixtures"]

# Where real time passes: servers, load, processes, a browser. These tests have the machine alone.
_TIMED = {"api", "browser", "cli", "emulate", "engines", "faults", "load", "loop", "package"}
_TIMED |= {"telemetry", "vllm", "wire"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what must not share the machine; `make test` runs all else on several cores."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in _TIMED:
            item.add_marker(pytest.mark.timed)
