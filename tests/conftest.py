"""What all tests share. The one conftest there is: two would be one module name for mypy."""

from __future__ import annotations

import os

# As the command line does: threads of a linear algebra library would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

pytest_plugins = ["llama_fixtures", "shell_fixture", "vllm_fixtures"]
