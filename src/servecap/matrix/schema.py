"""The JSON schema of a matrix spec, for editors, and a commented spec to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from servecap.emulate.config import EmulatorConfig
from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.matrix.spec import File
from servecap.scenario import Timeouts
from servecap.wire.api import API_NAMES
from servecap.workload import builtin

SCHEMA_NAME = "matrix.schema.json"

# What a person needs to know of a key beyond its name and type.
_ENTRY = {
    "model": "model's name, or a list of them: every combination is a cell",
    "gpu": "GPU's name, or a list",
    "tp": "tensor-parallel degree, or a list",
    "scenario": "name under scenarios, or a list; left out: all of them",
    "gpu_memory_gb": "where the GPU's name leaves its memory open",
    "interconnect": "how the GPUs are linked, for example nvlink or pcie",
    "settings": "settings of these cells only",
    "url": "a server that runs already; with command: the address of the one started",
    "command": "starts the server; may hold {model} {gpu} {tp} {scenario} {host} {port}",
    "emulate": "the embedded emulator, in real time; its figures are predictions",
    "predict": "the engine model alone, in virtual time; its figures are predictions",
    "import": "a CSV or JSON table of cells, from the spec's folder",
    "ready": "URL that answers 2xx once the server is ready",
    "host": "host that the server listens on",
    "port": "port that the server listens on; left out: a free one",
    "env": "environment variables beside servecap's own",
    "folder": "where the command runs, from the spec's folder",
    "ready_timeout_s": "seconds until the server must be ready",
    "stop": "signal that ends the server's process group",
    "stop_timeout_s": "seconds until SIGKILL follows",
}
_SETTINGS = {
    "workload": f"{', '.join(builtin.BUILTINS)}, fixed:IN/OUT, or a data set's path",
    "format": "format of the data set; left out: told from its content",
    "output": "answer length: data, natural, or a number of tokens",
    "unique": "make each prompt unique, so that no prefix cache answers",
    "tokenizer": "path of a tokenizer.json to count tokens with",
    "think_s": "the users' think time, [least, most] seconds",
    "slo": "limits, for example ttft.mean<3s,tpot.p99<100ms,error_rate<1%",
    "requests": "requests that must end in the measured window",
    "duration_s": "measure exactly so long",
    "max_duration_s": "the longest that one level may take",
    "timings": "whose clock the SLO is held against",
    "seed": "seed of all random numbers",
    "retries": "how often a request that was turned away is sent again; each try is counted",
    "start": "users that the search starts with; else 8, or what the engine model expects",
    "max_users": "most users that the search tries",
    "precision": "how narrow the bracket shall be: 0.05 is 5%",
    "served_model": "the model's name in requests; may hold {model} {gpu} {tp} {scenario}",
}
_SKIP = "predict a cell instead of measuring it where a measured sibling is surely better"
_CELLS_OWN = ("model", "gpu", "tp", "host", "port")


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a spec file. What it allows may still contradict itself."""
    (whole,), kinds = msgspec.json.schema_components(
        [File], schema_hook=lambda _: {"description": "any"}, ref_template="#/$defs/{name}"
    )  # fmt: skip
    entry, settings = kinds["Entry"]["properties"], kinds["Settings"]["properties"]
    for described, texts in ((entry, _ENTRY), (settings, _SETTINGS)):
        for key, text in texts.items():
            described[key]["description"] = text
    kinds["File"]["properties"]["skip_dominated"]["description"] = _SKIP
    settings["api"] = {"enum": [*API_NAMES, None], "default": None, "description": "API to speak"}
    entry["emulate"]["anyOf"] = [_options(EmulatorConfig), {"type": "null"}]
    entry["predict"]["anyOf"] = [_options(EngineSpec), {"type": "null"}]
    kinds["Entry"]["oneOf"] = [
        {"required": ["command"]},
        *(
            {"required": [way], "not": {"required": ["command"]}}
            for way in ("url", "emulate", "predict", "import")
        ),
    ]
    for name in ("File", "Entry", "Settings", Timeouts.__name__):
        kinds[name].pop("title", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "servecap matrix spec",
        **whole,
        "$defs": kinds,
    }


def _options(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys that `emulate` or `predict` may hold; their values are checked when read."""
    names = [f.encode_name for f in msgspec.structs.fields(kind)]
    return {
        "type": "object",
        "properties": {name: {} for name in names if name not in _CELLS_OWN},
        "additionalProperties": False,
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=2) + "\n"


STARTER = """\
# yaml-language-server: $schema=matrix.schema.json
# A servecap matrix: every cell is model x GPU x tensor-parallel degree x scenario.
#
#   servecap matrix {name} --dry-run     what would be run, and about how long it takes
#   servecap matrix {name}               run it; stopped, it goes on where it was
#   servecap plan {folder} --users 10000   what to buy
version: 1
# skip_dominated: true   # measure no degree that is surely worse than one that was measured

defaults:
  slo: ttft.mean<3s,tpot.mean<100ms   # what a user accepts; also .p50 .p90 .p95 .p99 .max
  think_s: [1, 3]                     # a user's pause between answer and next question
  max_users: 2000                     # the search for the capacity ends here
  seed: 0

scenarios:
  chat: {{workload: chat-en}}
  # long: {{workload: "fixed:3000/200"}}                 # prompt tokens / answer tokens
  # own: {{workload: questions.jsonl, slo: ttft.p95<5s}}  # your data set, a limit of its own

cells:
  # Predicted by the engine model, in seconds and without any GPU. Where a list stands, every
  # combination is a cell.
  - {{model: llama-13b, gpu: [a30, a100-40gb], tp: [2, 4, 8], scenario: chat, predict: {{}}}}

  # A server that runs already:
  # - {{model: llama-13b, gpu: l40s, tp: 2, scenario: chat, url: "http://gpu7:8000"}}

  # A server that is started for each cell, and stopped with its whole process group. The command
  # may be ssh or kubectl as well, then with a url of its own.
  # - model: llama-13b
  #   gpu: h100
  #   tp: [1, 2, 4]
  #   scenario: chat
  #   command: vllm serve /models/{{model}} -tp {{tp}} --host {{host}} --port {{port}}
  #   ready_timeout_s: 900

  # Cells that were measured elsewhere; columns by name: model, gpu, tp, max_users, ttft_ms, ...
  # - import: measured.csv
"""


def write_starter(path: Path) -> tuple[Path, Path]:
    """A commented spec at *path*, and the schema beside it so that editors complete its keys.

    Raises:
        UsageError: the spec is there already, or cannot be written.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path}: end the name of a spec in .yaml")
    beside = path.with_name(SCHEMA_NAME)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER.format(name=path.name, folder=path.stem))
        beside.write_text(schema_text(), encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{path}: is there already; name another file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path, beside
