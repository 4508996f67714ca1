"""The library for Parquet files, an extra."""

from __future__ import annotations

import importlib
from typing import Any

from servecap.errors import UsageError


def library(otherwise: str) -> tuple[Any, Any]:
    """pyarrow and its module for Parquet.

    Raises:
        UsageError: it is not installed; *otherwise* is what can be done without it.
    """
    try:  # an extra without types of its own
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            f"Parquet needs pyarrow: pip install 'servecap[parquet]', or {otherwise}"
        ) from None
