"""servecap: how many users can this LLM service carry, and what must I buy to carry more?"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`servecap.api`, imported when it is first asked for: `import servecap` stays light."""
    if name == "api":
        return importlib.import_module("servecap.api")
    raise AttributeError(f"module 'servecap' has no attribute {name!r}")
