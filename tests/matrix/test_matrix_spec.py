"""Matrix specs: which cells they mean, and every mistake told before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from servecap import slo as slos
from servecap.errors import UsageError
from servecap.matrix.document import parse
from servecap.matrix.job import Command, Emulate, SearchBounds, Url
from servecap.matrix.spec import Spec, from_document, load
from servecap.scenario import ClosedLoop

ONE = """
cells:
  - model: llama-13b
    gpu: A30
    tp: 4
    url: http://gpu-box:8000
"""


def spec(text: str, folder: Path = Path()) -> Spec:
    return from_document(parse(text, name="t.yaml"), folder)


def test_the_shortest_spec_is_one_cell_with_the_defaults() -> None:
    (job,) = spec(ONE).jobs
    assert job.name == "llama-13b on A30, TP4, chat-en"
    assert job.source == Url("http://gpu-box:8000")
    assert job.scenario.slo == slos.DEFAULT
    assert job.scenario.load == ClosedLoop(users=8, think_s=(1.0, 3.0))
    assert (job.api, job.search, job.origin) == ("auto", SearchBounds(), "measured")


def test_lists_are_multiplied_and_settings_come_from_the_innermost_layer() -> None:
    found = spec("""
defaults: {seed: 7, slo: "ttft.mean<2s", think_s: [0, 1], max_users: 500}
scenarios:
  chat: {workload: chat-en}
  docqa: {workload: docqa-en, slo: "ttft.p99<9s", seed: 8}
cells:
  - model: [llama-13b, llama-65b]
    gpu: [a30, a40]
    tp: [4, 8]
    settings: {seed: 0, requests: 99, served_model: "org/{model}"}
    gpu_memory_gb: 24
    interconnect: pcie
    url: "http://{model}.{gpu}.tp{tp}:8000/{scenario}"
""").jobs
    assert len({job.key for job in found}) == len({job.place for job in found}) == 16
    last = found[-1]
    assert last.name == "llama-65b on a40, TP8, docqa"
    assert last.scenario.workload.source == "docqa-en"
    assert str(last.scenario.slo).startswith("ttft.p99<9s")
    assert (last.scenario.seed, last.scenario.stop.requests) == (0, 99)
    assert last.scenario.load == ClosedLoop(users=8, think_s=(0.0, 1.0))
    assert last.served_model == "org/llama-65b"
    assert (last.search.max_users, last.interconnect, last.gpu_memory_gb) == (500, "pcie", 24)


def test_a_command_may_be_a_text_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    text = """
cells:
  - {model: m, gpu: g, tp: [1, 2], folder: here, stop: SIGINT, env: {CARDS: "{tp}"},
     command: "serve --name '{model} {gpu}' --tp {tp} --port {port} --json '{{}}'"}
  - {model: m, gpu: h, tp: 1, command: [serve, "--port", "{port}"], port: 8000,
     url: "http://{host}:{port}/v1", ready: "http://{host}:{port}/ok"}
"""
    one, two, other = spec(text, tmp_path).jobs
    assert isinstance(one.source, Command)
    assert one.source.command == (
        "serve", "--name", "{model} {gpu}", "--tp", "{tp}", "--port", "{port}", "--json", "{{}}",
    )  # fmt: skip
    assert (one.source.folder, one.source.stop) == (str(tmp_path / "here"), "SIGINT")
    assert one.key != two.key
    assert isinstance(other.source, Command)
    assert (other.source.port, other.source.url) == (8000, "http://{host}:{port}/v1")


def test_the_emulator_takes_the_cells_own_model_and_is_a_prediction() -> None:
    (job,) = spec("""
cells:
  - {model: llama-13b, gpu: a100, gpu_memory_gb: 40, tp: 4, emulate: {engine: tgi, seed: 3}}
""").jobs
    assert isinstance(job.source, Emulate)
    config = job.source.config
    assert (config.model, config.gpu, config.tp, config.gpu_memory_gb) == (
        "llama-13b", "a100", 4, 40,
    )  # fmt: skip
    assert (config.engine, config.seed, job.origin) == ("tgi", 3, "predicted")


def test_paths_start_from_the_folder_of_the_spec(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("model,gpu,tp,max_users,colour\nm,g,1,5,red\n")
    (tmp_path / "spec.yaml").write_text(
        "defaults: {workload: prompts.jsonl, tokenizer: t.json}\n"
        "cells:\n- {model: m, gpu: g, tp: 2, url: 'http://h:1'}\n- import: cells.csv\n"
    )
    found = load(tmp_path / "spec.yaml")
    (job,) = found.jobs
    assert job.scenario.workload.source == str(tmp_path / "prompts.jsonl")
    assert job.scenario.workload.tokenizer == str(tmp_path / "t.json")
    assert job.scenario_name == "prompts.jsonl"
    assert [cell.provenance for cell in found.imported] == ["cells.csv, line 2"]
    assert "'colour' is not known" in found.warnings[0]


def test_the_key_depends_on_what_changes_the_answer_only() -> None:
    command = """
cells:
  - {model: m, gpu: g, tp: 1, command: serve, ready_timeout_s: TIMEOUT,
     settings: {seed: SEED}}
"""

    def key(timeout: int, seed: int) -> str:
        text = command.replace("TIMEOUT", str(timeout)).replace("SEED", str(seed))
        return spec(text).jobs[0].key

    assert key(5, 1) == key(600, 1)
    assert key(5, 1) != key(5, 2)


def cell(fields: str) -> str:
    """A spec of one cell with those further fields."""
    return f"cells:\n- model: m\n  gpu: g\n  tp: 1\n  {fields}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cells: []\n", "line 1, cells: there is no cell"),
        ("cell: []\n", "line 1, cell: key 'cell' is not known; did you mean 'cells'?"),
        ("version: 2\ncells: []\n", "line 1, version: 2: this servecap reads 1"),
        (cell("uri: http://h:1"), "line 5, cells[0].uri: key 'uri' is not known; did you mean"),
        (cell("emulate: {engin: tgi}"), "key 'engin' is not known; did you mean 'engine'?"),
        (cell("settings: {see: 1}"), "cells[0].settings.see: key 'see' is not known"),
        (cell("interconnect: pcie"), "line 2, cells[0]: needs exactly one of url, command"),
        (cell("{url: 'http://h:1', emulate: {}}").replace("{url", "url").replace(", emu", "\n  emu")
         .replace("}}", "}"), "it has url and emulate"),
        (cell("url: 'http://h:1'\n  port: 5"), "line 6, cells[0].port: port only makes sense with"),
        (cell("url: localhost:8000"), "'localhost:8000' is no URL like http://host:8000"),
        (cell("url: 'http://h:99999'"), "is no URL"),
        (cell("url: 'http://h:{port}'"), "holds {port}; known: model, gpu, tp, scenario"),
        (cell("command: 'serve {modle}'"), "holds {modle}; known: model, gpu, tp, scenario, host"),
        (cell("command: 'serve {model.x}'"), "holds {model.x}"),
        (cell("command: 'serve {'"), "(write {{ for a brace)"),
        (cell("command: serve 'x"), "cannot be split into words"),
        (cell("command: ''"), "cells[0].command: is empty"),
        (cell("command: serve\n  port: 0"), "0 does not lie within 1 and 65535"),
        (cell("command: serve\n  ready_timeout_s: 0"), "0 is not greater than 0"),
        (cell("command: serve\n  folder: nowhere"), "nowhere is no folder"),
        (cell("command: serve\n  host: '::1'"), "'::1' is no name or IPv4 address"),
        (cell("command: serve\n  stop: SIGKILL"), "cells[0].stop: Invalid enum value"),
        (cell("emulate: {tp: 3}"), "tp is the cell's own; leave it out here"),
        (cell("emulate: {speed: 10}"), "a cell needs speed 1"),
        (cell("emulate: {}"), "cells[0].emulate: "),  # no such model
        (cell("url: 'http://h:1'\n  settings: {slo: fast}"), "line 6, cells[0].settings.slo: SLO"),
        (cell("url: 'http://h:1'\n  settings: {served_model: '{port}'}"),
         "settings.served_model: '{port}' holds {port}"),
        (cell("url: 'http://h:1'\n  settings: {api: soap}"), "'soap' is not one of auto"),
        (cell("url: 'http://h:1'\n  settings: {think_s: [3, 1]}"), "[3, 1] is no range"),
        (cell("url: 'http://h:1'\n  settings: {requests: 0}"), "settings.requests: 0 is not"),
        (cell("url: 'http://h:1'\n  settings: {start: 9, max_users: 5}"), "settings.start: 9 does"),
        (cell("url: 'http://h:1'\n  settings: {precision: 5}"), "5 does not lie within 0 and 1"),
        ("defaults: {seed: x}\n" + cell("url: 'http://h:1'"), "line 1, defaults.seed: Expected"),
        ("defaults: {slo: x}\n" + cell("url: 'http://h:1'"), "line 1, defaults.slo: SLO term 'x'"),
        ("scenarios:\n  a:\n    seed: x\ncells: []\n", "line 3, scenarios.a.seed: Expected `int"),
        ("scenarios: {a: {}}\n" + cell("scenario: b\n  url: 'http://h:1'"),
         "'b' is not under scenarios (there: a)"),
        (cell("url: 'http://h:1'\n  scenario: [a, a]"), "m on g, TP1, a is already there"),
        (cell("url: 'http://h:1'").replace("tp: 1", "tp: [1, 0]"), "tp: 0 is not at least 1"),
        (cell("url: 'http://h:1'").replace("tp: 1", "tp: []"), "cells[0].tp: tp is missing"),
        (cell("url: 'http://h:1'").replace("  gpu: g\n", ""), "line 2, cells[0]: gpu is missing"),
        (cell("url: 'http://h:1'\n  gpu_memory_gb: 0"), "gpu_memory_gb: 0 is not above 0"),
        ("cells:\n- import: no.csv\n", "line 2, cells[0].import: no.csv: cannot be read"),
        ("cells:\n- import: no.csv\n  tp: 1\n", "tp has no effect on imported cells"),
        ("cells:\n- import: no.csv\n  settings: {seed: 1}\n", "settings has no effect"),
        (cell("url: 'http://h:1'") + cell("url: 'http://h:2'").removeprefix("cells:\n"),
         "line 6, cells[1]: m on g, TP1, chat-en is already there (line 2)"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_its_line_and_key(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec(text)
    assert told in str(caught.value)
    assert str(caught.value).startswith("t.yaml, line ")
    assert "\n" not in str(caught.value)
