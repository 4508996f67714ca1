"""`ParamType` for any click: only since 8.4 does click's own take the type of its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """Base of the types of options."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls
