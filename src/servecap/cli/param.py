"""What types of options share: a base class, and the engines' names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """Base of the types of options; only since 8.4 does click's take the type of its value."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls


# As `engine.spec` has them, which costs the start of a command 60 ms; a test holds them equal.
ENGINE = click.Choice(
    ["vllm", "vllm-2025", "vllm-2024", "vllm-2023", "tgi", "sglang", "llama.cpp", "static"]
)
