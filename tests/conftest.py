"""What all tests share. The one conftest there is: two would be one module name for mypy."""

from __future__ import annotations

import os

from hypothesis import settings

# As the command line does: threads of a linear algebra library would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# How long an example takes is the machine's affair: a busy one would fail tests that are right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["llama_fixtures", "shell_fixture", "vllm_fixtures"]
