"""What types of options share: a base class, finite numbers, and the engines' names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """Base of the types of options; only since 8.4 does click's take the type of its value."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls


class Finite(click.FloatRange):
    """A number within a range; click's own takes "nan", which is within every range, and "inf"."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


# As `engine.spec` has them, which costs the start of a command 60 ms; a test holds them equal.
ENGINE = click.Choice(
    ["vllm", "vllm-2025", "vllm-2024", "vllm-2023", "tgi", "sglang", "llama.cpp", "static"]
)
