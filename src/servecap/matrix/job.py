"""A cell that is to be filled: what is asked, and where the answer comes from."""

from __future__ import annotations

import hashlib
import string
from typing import Literal

import msgspec

from servecap.cell import Cell, Origin
from servecap.emulate.config import EmulatorConfig
from servecap.engine.spec import EngineSpec
from servecap.scenario import Scenario

# What a command or URL may hold in braces. Port and host are known only when the server starts.
PLACEHOLDERS = ("model", "gpu", "tp", "scenario", "host", "port")
_START = 8  # users


class Url(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="url"):
    """A server that runs already."""

    url: str


class Command(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="command",
):
    """A server that is started for the cell and stopped after it; texts hold placeholders.

    It is ready when `ready` answers with a status of 2xx, and is stopped by `stop`, and after
    `stop_timeout_s` by SIGKILL, each to its whole process group.
    """

    command: tuple[str, ...]
    folder: str  # where it runs
    url: str = "http://{host}:{port}"
    ready: str = "http://{host}:{port}/health"
    host: str = "127.0.0.1"
    port: int | None = None  # None: a free one
    env: dict[str, str] = msgspec.field(default_factory=dict)  # beside servecap's own
    ready_timeout_s: float = 600.0
    stop: Literal["SIGTERM", "SIGINT"] = "SIGTERM"
    stop_timeout_s: float = 30.0


class Emulate(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="emulate"
):
    """The embedded emulator: the engine model behind HTTP, so its figures are predictions."""

    config: EmulatorConfig


class Predict(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="predict"
):
    """No server at all: the engine model in virtual time."""

    spec: EngineSpec


Source = Url | Command | Emulate | Predict


class SearchBounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the search for the capacity starts and ends, and how narrow its interval shall be.

    `start` None: where the engine model says, else at `_START` users.
    """

    start: int | None = None
    max_users: int = 10_000
    precision: float = 0.05

    @property
    def plain_start(self) -> int:
        """Users of the first level where nothing is expected of the server."""
        return min(_START, self.max_users) if self.start is None else self.start


class CellJob(msgspec.Struct, frozen=True, kw_only=True):
    """One cell to fill. `scenario.load.users` is where the search starts."""

    model: str
    gpu: str
    tp: int
    scenario_name: str
    scenario: Scenario
    search: SearchBounds
    source: Source
    api: str = "auto"
    served_model: str | None = None  # the model's name in requests; None: asked from the server
    gpu_memory_gb: float | None = None
    interconnect: str | None = None

    @property
    def origin(self) -> Origin:
        """Whether its figures will be measured or predicted."""
        return "predicted" if isinstance(self.source, Emulate | Predict) else "measured"

    @property
    def name(self) -> str:
        """The place in words: "llama-13b on A30, TP4, chat"."""
        return f"{self.model} on {self.gpu}, TP{self.tp}, {self.scenario_name}"

    @property
    def place(self) -> str:
        """Which cell of the matrix it is, whatever the settings."""
        return place_text(
            self.model, self.gpu, self.gpu_memory_gb, self.interconnect, self.tp,
            self.scenario_name, self.origin,
        )  # fmt: skip

    @property
    def key(self) -> str:
        """A hash of all that can change the answer: the same key need not be asked again."""
        source = self.source
        if isinstance(source, Command):  # how it is waited for and stopped changes no figure
            plain = Command(command=(), folder="")
            source = msgspec.structs.replace(
                source, ready=plain.ready, ready_timeout_s=plain.ready_timeout_s,
                stop=plain.stop, stop_timeout_s=plain.stop_timeout_s,
            )  # fmt: skip
        # A start that was left open is a guess, which shall not change the key.
        search = msgspec.structs.replace(self.search, start=self.search.plain_start)
        return digest(msgspec.structs.replace(self, source=source, search=search))

    @property
    def slug(self) -> str:
        """A folder name that people can read and no other cell has."""
        words = f"{self.model}-{self.gpu}-tp{self.tp}-{self.scenario_name}".casefold()
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "-" for c in words)
        return f"{plain[:80].lstrip('.-')}-{self.key[:8]}"

    def values(self, host: str = "", port: int = 0) -> dict[str, str]:
        """What the placeholders stand for."""
        return {
            "model": self.model,
            "gpu": self.gpu,
            "tp": str(self.tp),
            "scenario": self.scenario_name,
            "host": host,
            "port": str(port),
        }


def imported_place(cell: Cell) -> str:
    """The same as `CellJob.place`, for a cell that is there already."""
    return place_text(
        cell.model, cell.gpu, cell.gpu_memory_gb, cell.interconnect, cell.tp, cell.scenario,
        cell.origin,
    )  # fmt: skip


def place_text(*parts: str | float | None) -> str:
    """The parts of a place as one string."""
    return "|".join("" if part is None else f"{part}".casefold() for part in parts)


def digest(thing: msgspec.Struct) -> str:
    """A hash of the whole content of *thing*, the same in every process."""
    return hashlib.sha256(msgspec.json.encode(thing, order="sorted")).hexdigest()


def placeholders(text: str) -> set[str]:
    """The names in braces in *text*; `{{` and `}}` stand for braces.

    Raises:
        ValueError: a brace has no partner.
    """
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
