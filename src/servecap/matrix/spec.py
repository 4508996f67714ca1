"""What a matrix spec asks for: every cell to fill, checked before the first is started."""

from __future__ import annotations

import itertools
import math
import shlex
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from servecap.cell import Cell
from servecap.emulate.config import EmulatorConfig
from servecap.emulate.config import check as check_emulator
from servecap.engine.hardware import gpu as known_gpu
from servecap.engine.model import model as known_model
from servecap.engine.spec import EngineSpec, build
from servecap.errors import UsageError
from servecap.matrix.document import Document, Path_, read
from servecap.matrix.files import read as read_cells
from servecap.matrix.job import (
    CellJob,
    Command,
    Emulate,
    Predict,
    Source,
    Url,
    imported_place,
)
from servecap.matrix.settings import Settings, api_of, bounds_of, merge, scenario_of
from servecap.matrix.table import Table
from servecap.matrix.texts import check_text, check_texts
from servecap.scenario import WorkloadSpec

VERSION = 1
T = TypeVar("T", str, int)
S = TypeVar("S", EngineSpec, EmulatorConfig)


class Entry(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"import_": "import"},
):
    """One item of `cells`: where lists stand, every combination is a cell."""

    model: str | list[str] | None = None
    gpu: str | list[str] | None = None
    tp: int | list[int] | None = None
    scenario: str | list[str] | None = None
    gpu_memory_gb: float | None = None
    interconnect: str | None = None
    settings: Settings = Settings()
    url: str | None = None
    command: str | list[str] | None = None
    emulate: dict[str, object] | None = None
    predict: dict[str, object] | None = None
    import_: str | None = None
    ready: str | None = None
    host: str | None = None
    port: int | None = None
    env: dict[str, str] | None = None
    folder: str | None = None
    ready_timeout_s: float | None = None
    stop: Literal["SIGTERM", "SIGINT"] | None = None
    stop_timeout_s: float | None = None


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of a spec file."""

    cells: list[Entry]
    version: int = VERSION
    defaults: Settings = Settings()
    scenarios: dict[str, Settings] = msgspec.field(default_factory=dict)
    skip_dominated: bool = False


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The cells to fill and those that are there already."""

    name: str
    jobs: tuple[CellJob, ...]
    imported: tuple[Cell, ...] = ()
    warnings: tuple[str, ...] = ()
    skip_dominated: bool = False


_WAYS = ("url", "command", "emulate", "predict", "import")
_OF_COMMAND = ("ready", "host", "port", "env", "folder", "ready_timeout_s", "stop",
               "stop_timeout_s")  # fmt: skip
_TIMES = ("ready_timeout_s", "stop_timeout_s")


def load(path: Path) -> Spec:
    """The spec in a YAML file; relative paths in it start from the file's folder.

    Raises:
        UsageError: anything in it cannot be meant; the message names file, line and key.
    """
    return from_document(read(path), path.resolve().parent)


def from_document(document: Document, folder: Path) -> Spec:
    """The spec in a parsed YAML file.

    Raises:
        UsageError: as `load`.
    """
    file = _file(document)
    jobs: list[CellJob] = []
    imported: list[Cell] = []
    warnings: list[str] = []
    places: dict[str, Path_] = {}
    for index, entry in enumerate(file.cells):
        path: Path_ = ("cells", index)
        if _way(document, entry, path) == "import":
            table = _import(document, entry, path, folder)
            imported += table.cells
            warnings += table.warnings
            new = [(imported_place(c), f"{c.model} on {c.gpu}, TP{c.tp}") for c in table.cells]
        else:
            found = _jobs(document, file, entry, path, folder)
            jobs += found
            new = [(job.place, job.name) for job in found]
        for place, name in new:
            before = places.setdefault(place, path)
            if before != path or [p for p, _ in new].count(place) > 1:
                line = document.lines[before]
                raise document.error(path, f"{name} is already there (line {line}); keep one")
    if not jobs and not imported:
        raise document.error(("cells",), "there is no cell")
    return Spec(
        name=document.name, jobs=tuple(jobs), imported=tuple(imported), warnings=tuple(warnings),
        skip_dominated=file.skip_dominated,
    )  # fmt: skip


def _file(document: Document) -> File:
    root = document.root
    document.check_keys(root, msgspec.structs.fields(File), ())
    settings = msgspec.structs.fields(Settings)
    if "defaults" in root:
        document.check_keys(root["defaults"], settings, ("defaults",))
    scenarios = root.get("scenarios")
    for name, value in scenarios.items() if isinstance(scenarios, dict) else ():
        document.convert(value, Settings, ("scenarios", name))  # msgspec names no dict's key
    cells = root.get("cells")
    for index, value in enumerate(cells if isinstance(cells, list) else ()):
        document.check_keys(value, msgspec.structs.fields(Entry), ("cells", index))
        if "settings" in value:
            document.check_keys(value["settings"], settings, ("cells", index, "settings"))
    file = document.convert(root, File, ())
    if file.version != VERSION:
        raise document.error(("version",), f"{file.version}: this servecap reads {VERSION}")
    return file


def _way(document: Document, entry: Entry, path: Path_) -> str:
    """How the entry's cells are come by; says what does not go together."""
    given = [way for way in _WAYS if _given(entry, way)]
    if given == ["url", "command"]:  # the address of the server that the command starts
        given = ["command"]
    if len(given) != 1:
        raise document.error(
            path, f"needs exactly one of {', '.join(_WAYS)}; it has {' and '.join(given) or 'none'}"
        )
    way = given[0]
    for key in _OF_COMMAND if way != "command" else ():
        if _given(entry, key):
            raise document.error((*path, key), f"{key} only makes sense with command")
    if way == "import":
        others = [
            f.encode_name
            for f in msgspec.structs.fields(Entry)
            if f.encode_name not in ("import", "settings") and _given(entry, f.encode_name)
        ]
        if others or entry.settings != Settings():
            other = others[0] if others else "settings"
            raise document.error((*path, other), f"{other} has no effect on imported cells")
    return way


def _given(entry: Entry, key: str) -> bool:
    return getattr(entry, "import_" if key == "import" else key) is not None


def _import(document: Document, entry: Entry, path: Path_, folder: Path) -> Table:
    assert entry.import_ is not None
    try:
        return read_cells(folder / entry.import_)
    except UsageError as error:
        raise document.error((*path, "import"), str(error)) from None


def _jobs(document: Document, file: File, entry: Entry, path: Path_, folder: Path) -> list[CellJob]:
    """Every combination of the entry's models, GPUs, degrees and scenarios."""
    models = _several(document, entry.model, (*path, "model"))
    gpus = _several(document, entry.gpu, (*path, "gpu"))
    degrees = _several(document, entry.tp, (*path, "tp"))
    for tp in degrees:
        if tp < 1:
            raise document.error((*path, "tp"), f"{tp} is not at least 1")
    if entry.gpu_memory_gb is not None and not 0 < entry.gpu_memory_gb < math.inf:
        raise document.error((*path, "gpu_memory_gb"), f"{entry.gpu_memory_gb:g} is not above 0")
    names = _scenario_names(document, file, entry, path)
    return [
        _job(document, file, entry, path, folder, place)
        for place in itertools.product(models, gpus, degrees, names)
    ]


def _several(document: Document, value: T | list[T] | None, path: Path_) -> list[T]:
    """What was given, alone or as a list."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not found or "" in found:
        raise document.error(path, f"{path[-1]} is missing")
    return found


def _scenario_names(document: Document, file: File, entry: Entry, path: Path_) -> list[str]:
    names = [entry.scenario] if isinstance(entry.scenario, str) else entry.scenario
    if names is None:
        workload = entry.settings.workload or file.defaults.workload or WorkloadSpec().source
        names = list(file.scenarios) or [workload]
    for name in names if file.scenarios else ():  # without a list, a name is a workload
        if name not in file.scenarios:
            known = ", ".join(file.scenarios)
            raise document.error(
                (*path, "scenario"), f"{name!r} is not under scenarios (there: {known})"
            )
    return names


def _job(
    document: Document,
    file: File,
    entry: Entry,
    path: Path_,
    folder: Path,
    place: tuple[str, str, int, str],
) -> CellJob:
    """The cell at that model, GPU, degree and scenario."""
    model, gpu, tp, name = place
    named = file.scenarios.get(name)
    settings = merge(file.defaults, named or Settings(workload=name), entry.settings)
    if settings.served_model is not None:
        where = _where(document, path, name, "served_model")
        check_text(document, where, settings.served_model, but=("host", "port"))
    try:
        bounds = bounds_of(settings)
        scenario = scenario_of(settings, bounds, folder)
        api = api_of(settings)
    except ValueError as error:
        key, why = error.args
        raise document.error(_where(document, path, name, key), why) from None
    job = CellJob(
        model=model,
        gpu=gpu,
        tp=tp,
        scenario_name=name,
        scenario=scenario,
        search=bounds,
        source=_source(document, entry, path, folder, (model, gpu, tp)),
        api=api,
        gpu_memory_gb=entry.gpu_memory_gb,
        interconnect=entry.interconnect,
    )
    check_texts(document, job, path)
    if settings.served_model is None:
        return job
    return msgspec.structs.replace(job, served_model=settings.served_model.format(**job.values()))


def _where(document: Document, path: Path_, name: str, key: str) -> Path_:
    """Where the setting was given: innermost first."""
    layers: tuple[Path_, ...] = ((*path, "settings"), ("scenarios", name), ("defaults",))
    return next(((*layer, key) for layer in layers if (*layer, key) in document.lines), path)


def _source(
    document: Document, entry: Entry, path: Path_, folder: Path, on: tuple[str, str, int]
) -> Source:
    if entry.emulate is not None:
        where = (*path, "emulate")
        config = _with_place(document, entry, entry.emulate, EmulatorConfig, where, on)
        return Emulate(_emulator(document, config, where))
    if entry.predict is not None:
        where = (*path, "predict")
        spec = _with_place(document, entry, entry.predict, EngineSpec, where, on)
        return Predict(_engine(document, spec, where))
    if entry.command is None:
        assert entry.url is not None
        return Url(entry.url)
    try:
        words = shlex.split(entry.command) if isinstance(entry.command, str) else entry.command
    except ValueError as error:
        raise document.error((*path, "command"), f"cannot be split into words: {error}") from None
    if not words:
        raise document.error((*path, "command"), "is empty")
    for key in _TIMES:
        value = getattr(entry, key)
        if value is not None and not 0 < value < math.inf:
            raise document.error((*path, key), f"{value:g} is not greater than 0")
    if entry.port is not None and not 1 <= entry.port <= 65_535:
        raise document.error((*path, "port"), f"{entry.port} does not lie within 1 and 65535")
    if entry.host is not None and (":" in entry.host or not entry.host):
        raise document.error((*path, "host"), f"{entry.host!r} is no name or IPv4 address")
    given = {key: getattr(entry, key) for key in ("url", *_OF_COMMAND) if _given(entry, key)}
    given["folder"] = str(folder / (entry.folder or "."))
    if not Path(given["folder"]).is_dir():
        raise document.error((*path, "folder"), f"{given['folder']} is no folder")
    return Command(command=tuple(words), **given)


def _with_place(
    document: Document,
    entry: Entry,
    options: dict[str, object],
    kind: type[S],
    where: Path_,
    on: tuple[str, str, int],
) -> S:
    """The options as a *kind*, completed by the cell's own model, GPUs and memory."""
    for key in ("model", "gpu", "tp", "host", "port"):
        if key in options:
            raise document.error((*where, key), f"{key} is the cell's own; leave it out here")
    document.check_keys(options, msgspec.structs.fields(kind), where)
    memory = {} if entry.gpu_memory_gb is None else {"gpu_memory_gb": entry.gpu_memory_gb}
    place = dict(zip(("model", "gpu", "tp"), on, strict=True))
    return document.convert({**place, **memory, **options}, kind, where)


def _engine(document: Document, spec: EngineSpec, where: Path_) -> EngineSpec:
    """The engine, which can be built."""
    try:
        build(spec)
    except UsageError as error:
        raise document.error(where, str(error)) from None
    return spec


def _emulator(document: Document, config: EmulatorConfig, where: Path_) -> EmulatorConfig:
    """The emulator, whose figures can stand for a server's."""
    if config.speed != 1:
        raise document.error(
            (*where, "speed"), "a cell needs speed 1: at another its latencies are no server's"
        )
    try:
        known_model(config.model)
        known_gpu(config.gpu, memory_gb=config.gpu_memory_gb)
        check_emulator(config)
    except UsageError as error:
        raise document.error(where, str(error)) from None
    return config
