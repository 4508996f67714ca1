"""Everything of ours that reads what others wrote, and the errors that it may answer with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
import written

from servecap import cli, gate, record, slo, store
from servecap.cli import config, shapes
from servecap.compare import parse_metrics
from servecap.engine import gpu_file, model
from servecap.errors import ServecapError, UsageError
from servecap.foreign import read as foreign
from servecap.foreign.cells import level_of_told
from servecap.foreign.runs import run_of
from servecap.matrix import document, files, journal, schema, spec, table
from servecap.pipe import Bye, Done, Frames, Send, encoded
from servecap.plan import demand
from servecap.predict import profile
from servecap.record import Arrival, Counts, Message, Outcome, Record, Request, Times
from servecap.run import Header, Health
from servecap.scenario import ClosedLoop, Scenario, Target
from servecap.wire import endpoint
from servecap.wire.answer import error_text
from servecap.wire.api import Api
from servecap.wire.chunked import BadChunk, ChunkReader
from servecap.wire.exchange import Exchange
from servecap.wire.http import HttpBroken, ResponseReader
from servecap.wire.openai import OpenAi
from servecap.wire.sse import SseDecoder
from servecap.wire.tgi import Tgi
from servecap.workload import formats, traces

TESTS = Path(__file__).resolve().parents[1]
DECODE = (msgspec.DecodeError, UnicodeDecodeError)


@dataclass(frozen=True)
class Reader:
    """One reader: inputs that it takes, the call, and what it may raise."""

    name: str
    seeds: Sequence[bytes]
    call: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]

    @property
    def weight(self) -> float:
        """Its share of a long run, beside the others: the quick ones get more."""
        return _WEIGHTS.get(self.name, 1.0)


_WEIGHTS = {
    "SSE decoder": 6,
    "chunked bodies": 6,
    "HTTP responses": 2,
    "OpenAI chat": 2,
    "error bodies": 4,
    "worker pipe": 2,
    "records": 6,
    "data sets": 1.5,
    "traces": 1.5,
    "matrix specs": 0.1,
    "matrix CSV": 2,
    "matrix JSON": 1.5,
    "matrix journal": 2,
    "config file": 0.15,
    "model configs": 2,
    "GPU files": 0.3,
    "profiles": 1.5,
    "day profiles": 2,
    "run headers": 2,
    "SLOs": 4,
    "gates": 4,
    "metrics": 3,
    "think options": 3,
    "schedules": 3,
    "URLs": 4,
    "importers": 0.5,
}


def cuts(data: bytes) -> list[bytes]:
    """The input in pieces whose sizes follow from its content."""
    step = 1 + (len(data) * 7 + sum(data[:8])) % 61
    return [data[i : i + step] for i in range(0, len(data), step)]


def sse(data: bytes) -> None:
    whole, cut = SseDecoder(), SseDecoder()
    found = whole.feed(data)
    assert found == [event for piece in cuts(data) for event in cut.feed(piece)]


def chunked(data: bytes) -> None:
    reader, body = ChunkReader(), list[bytes]()
    for piece in cuts(data):
        if reader.complete:
            return
        body += reader.feed(piece)
    assert sum(map(len, body)) <= len(data)


def http(data: bytes) -> None:
    reader, body = ResponseReader(), list[bytes]()
    try:
        for piece in cuts(data):
            body += reader.feed(piece)
        reader.end_of_connection()
        assert sum(map(len, body)) <= len(data)
    finally:
        reader.release()


REQUEST = Request(request_id=7, messages=(Message("user", "Why?"),), max_output_tokens=12)


def exchange(api: Api) -> Callable[[bytes], None]:
    """Whatever a server sends ends as a record that can be kept, with times in their order."""

    def call(data: bytes) -> None:
        ended: list[Exchange] = []
        one = Exchange(Arrival(REQUEST, 3, 1.0), api, ended.append, len)
        one.sent_s = 1.5
        for number, piece in enumerate(cuts(data)):
            if one.record is None:
                one.received(piece, 2.0 + number)
        if one.record is None:
            one.closed(None, 1e6)
        found = one.record
        assert found is not None
        assert len(ended) == 1
        assert found.error is None or (found.error.isprintable() and len(found.error) < 500)
        assert (found.outcome is Outcome.OK) == (found.error is None)
        assert found.sent_s <= (found.first_token_s or 2.0) <= found.end_s
        kept = record.decode(record.encode(found))
        assert kept.outcome is found.outcome
        _ = (found.tpot_s, found.ttft_s, found.gaps_s())

    return call


def frames(data: bytes) -> None:
    found = Frames()
    for piece in cuts(data):
        found.feed(piece)
        for _ in found.take():
            pass


@cache
def folder() -> Path:
    """Where readers of files find them; in memory where that can be had."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))


def file(name: str, call: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A reader of a file of that name."""

    def on(data: bytes) -> None:
        path = folder() / name
        path.write_bytes(data)
        call(path)

    return on


def text(call: Callable[[str], object]) -> Callable[[bytes], None]:
    return lambda data: void(call(data.decode("utf-8", "replace")))


def void(_: object) -> None:
    return None


def run_header(path: Path) -> None:
    records = path.parent / store.RECORDS
    if not records.exists():
        records.write_bytes(b"")
    store.read_run(path.parent)


def imported(path: Path) -> None:
    for found in foreign.read(path):
        level_of_told(found, slo.DEFAULT, name="fuzz", think_mean_s=0.0)
        made = run_of(found, name="fuzz", slo=slo.DEFAULT)
        for item in made.records:
            assert record.decode(record.encode(item)).outcome is item.outcome
        msgspec.json.encode(made.header)


def config_of(path: Path) -> None:
    config.read(str(path), list(cli.COMMANDS), cli._command)


def split(line: str) -> None:
    parts = endpoint._split(line)
    endpoint._port(line, parts)


HELLO = b'{"choices":[{"delta":{"content":"hi"},"index":0}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}'
STOP = b'{"choices":[{"delta":{},"finish_reason":"length"}]}'
EVENTS = b"".join(b"data: %b\n\n" % e for e in (HELLO, HELLO, STOP, USAGE, b"[DONE]"))


def in_chunks(events: bytes) -> bytes:
    made = b"".join(b"%x\r\n%b\n\n\r\n" % (len(e) + 2, e) for e in events.split(b"\n\n")[:-1])
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    return head + b"\r\n" + made + b"0\r\n\r\n"


def whole(body: bytes, more: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(body), more) + body


CHAT = b"""{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}],
"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}},
"timings":{"prompt_n":5,"prompt_ms":3.5,"predicted_n":2,"predicted_ms":7}}"""
PLAIN = b'{"choices":[{"text":"hi","finish_reason":"stop"}],"usage":{"prompt_tokens":5}}'
GENERATED = b'{"generated_text":"x","details":{"finish_reason":"length","generated_tokens":9}}'
TGI = b"x-inference-time: 3600\r\nx-time-per-token: 35\r\nx-queue-time: 250\r\n"
ERROR = whole(b'{"error":{"message":"overloaded","code":503}}', status=b"503 No")


def streams(prefix: str) -> list[bytes]:
    return [path.read_bytes()[-6000:] if path.stat().st_size > 60_000 else path.read_bytes()
            for path in sorted((TESTS / "wire/streams").glob(f"{prefix}*.http"))]  # fmt: skip


def wire() -> list[Reader]:
    chat = [in_chunks(EVENTS), whole(CHAT), whole(PLAIN), ERROR, *streams("llamacpp-chat"),
            *streams("vllm"), *streams("sglang")]  # fmt: skip
    completions = [whole(PLAIN), in_chunks(EVENTS), *streams("llamacpp-completions")]
    tgi = [*streams("tgi"), whole(GENERATED, TGI), ERROR]
    bodies = [response.partition(b"\r\n\r\n")[2] for response in (in_chunks(EVENTS), *tgi[:1])]
    done = Record(
        request_id=3, user=1, planned_s=0.25, sent_s=0.5, end_s=2.0, outcome=Outcome.OK,
        chunk_s=Times([0.125, 1 / 3]), chunk_tokens=Counts([1, 2]), error="x",
    )  # fmt: skip
    told = encoded(Send(Arrival(REQUEST, 4, 0.75)))
    told += encoded(Done(done)) + encoded(Bye(Health(cpu_share=0.5)))
    return [
        Reader("SSE decoder", [EVENTS, b": x\r\nid: 7\rdata: a\ndata\n\n"], sse, ()),
        Reader("chunked bodies", bodies, chunked, (BadChunk,)),
        Reader("HTTP responses", [*chat, *tgi], http, (HttpBroken,)),
        Reader("OpenAI chat", chat, exchange(OpenAi(chat=True)), ()),
        Reader("OpenAI completions", completions, exchange(OpenAi(chat=False)), ()),
        Reader("TGI streams", tgi, exchange(Tgi(stream=True)), ()),
        Reader("TGI whole", tgi, exchange(Tgi(stream=False)), ()),
        Reader("error bodies", [CHAT, b'{"detail":[{"msg":"no"}]}'], error_text, ()),
        Reader("worker pipe", [told], frames, DECODE),
        Reader("records", [record.encode(done)], record.decode, DECODE),
    ]


ALPACA = {"instruction": "Why?", "input": "", "output": "So."}
DATA: tuple[Any, ...] = (
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    {"prompt": "Why?", "output_tokens": 7},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    {"custom_id": "1", "body": {"messages": [{"role": "user", "content": "x"}]}},
    ALPACA,
    [ALPACA, ALPACA],
    {"input": "Why?", "context": "Long ago.", "answers": ["So."], "length": 2},
    {"data": [{"paragraphs": [{"context": "Then.", "qas": [{"question": "Q", "answers": []}]}]}]},
    {"question": "Why?", "documents": [{"paragraphs": ["Long ago."]}], "answers": []},
    {"turns": ["Why?", "And then?"], "question_id": 81},
)


def shape_of(path: Path) -> None:
    shape = model._from_file(path)
    assert shape.weight_bytes > 0
    assert shape.kv_bytes_per_token > 0


def workloads() -> list[Reader]:
    sets = [*(json.dumps(d).encode() for d in DATA), b"a question\nanother one\n"]
    sets.append(b"".join(json.dumps(d).encode() + b"\n" for d in (ALPACA, ALPACA, ALPACA)))
    kept = sorted((TESTS / "workload/traces").glob("*.[cj]s*"))
    rows = [b"\n".join(path.read_bytes().split(b"\n")[:12]) + b"\n" for path in kept]
    return [
        Reader("data sets", sets, file("set.json", lambda p: formats.load(str(p))), (UsageError,)),
        Reader(
            "traces", rows, file("trace.csv", lambda p: traces.load(str(p))), (UsageError,)
        ),
        Reader("think times", [b"1\n2.5\n3\n"],
               file("think.txt", lambda p: shapes._values(str(p))), (UsageError,)),
    ]  # fmt: skip


SPEC = b"""version: 1
defaults: {slo: "ttft.mean<3s,tpot.mean<100ms"}
scenarios: {chat: {workload: chat-en}, fix: {workload: "fixed:8/2", think_s: [0, 1]}}
cells:
  - {model: llama-13b, gpu: a30, tp: [2, 4], scenario: chat, predict: {engine: tgi}}
  - {model: llama-13b, gpu: a30, tp: 8, scenario: chat, url: "http://gpu7:8000"}
  - {model: m, gpu: g, tp: 1, scenario: fix, command: "serve --port {port}", env: {A: "1"}}
"""
CSV = b"""model,gpu,gpu_memory_gb,tp,scenario,max_users,ttft_s,tpot_s,requests_per_s,error_rate
llama-13b,a30,24,2,chat,45,1.5,0.05,3.5,0%
llama-13b,a30,24,4,chat,120,1.2,0.04,9,0.5%
"""
GPU = b"""name: own
memory_gib: 80
memory: hbm
bandwidth_gb_per_s: 2000
fp16_tflops: 312.5
"""
SLOS = (b"ttft.p95<2s,tpot.mean<80ms,error_rate<1%", b"e2e.p99<=3s", b"ttft<1us")


def header() -> bytes:
    made = Header(
        scenario=Scenario(load=ClosedLoop(users=4)),
        target=Target(url="http://h:1", api="tgi"),
        source="measured",
        servecap_version="0",
        started_utc="2026-01-01",
    )
    return msgspec.json.encode(made)


def models() -> list[bytes]:
    return [msgspec.json.encode(found) for found in model._configs().values()][:40]


def specs() -> list[Reader]:
    started, _ = schema.write_starter(folder() / "seed.yaml")
    entry = journal.Entry(key="k", place="p", name="n", at_utc="2026", error="no")
    cells = table.parse_csv(CSV.decode(), name="seed").cells
    filled = msgspec.structs.replace(entry, cell=cells[0], error=None)
    lines = b"".join(msgspec.json.encode(e) + b"\n" for e in (entry, filled))
    profile.save(profile.prior("tgi"), folder() / "seed.json")
    usage = (UsageError,)

    def of_spec(said: str) -> None:
        spec.from_document(document.parse(said, name="fuzz.yaml"), folder() / "nowhere")

    def think(said: str) -> None:
        shapes.ThinkTime().convert(said, None, None)

    def schedule(said: str) -> None:
        shapes.ScheduleText().convert(said, None, None)

    return [
        Reader("matrix specs", [SPEC, started.read_bytes()], text(of_spec), usage),
        Reader("matrix CSV", [CSV], text(lambda t: table.parse_csv(t, name="f")), usage),
        Reader("matrix JSON", [files.to_json(cells).encode()], file("m.json", files.read), usage),
        Reader("matrix journal", [lines], file("cells.jsonl", journal.read_journal), usage),
        Reader("config file", [b"run: {users: 64, slo: ttft<2s}\nfind:\n  header: [a, b]\n"],
               file("config.yaml", config_of), (UsageError, click.UsageError)),
        Reader("model configs", models(), file("config.json", shape_of), usage),
        Reader("GPU files", [GPU], file("gpu.yaml", gpu_file.read), usage),
        Reader("profiles", [(folder() / "seed.json").read_bytes()],
               file("profile.json", profile.load), usage),
        Reader("day profiles", [b"hour,users\n0,5\n1,10\n"],
               file("day.csv", demand.read_profile), usage),
        Reader("run headers", [header()], file("run.json", run_header), usage),
        Reader("SLOs", SLOS, text(slo.parse), usage),
        Reader("gates", [b"ttft.p95>+5%", b"capacity<-3%,qps"],
               text(lambda t: gate.parse_gates([t])), usage),
        Reader("metrics", [b"ttft.p95,tpot.mean"], text(parse_metrics), usage),
        Reader("think options", [b"1..3", b"exp:2", b"lognormal:2,1.5"], text(think),
               (UsageError, click.BadParameter)),
        Reader("schedules", [b"ramp:20/120", b"steps:1,2,3/60", b"day:1,2/86400"], text(schedule),
               (UsageError, click.BadParameter)),
        Reader("URLs", [b"http://h:80/v1", b"https://[::1]:8/x?y#z", b"http://u:p@h"],
               text(split), (ServecapError,)),
    ]  # fmt: skip


def importers() -> list[Reader]:
    asked = written.asked(6, failed=1)
    lines, aggregate = written.aiperf(asked)
    sources = [
        written.vllm(asked), written.sglang(asked), written.guidellm(asked),
        written.guidellm(asked, old=True), aggregate, written.genai_perf(asked),
    ]  # fmt: skip
    seeds = [json.dumps(source).encode() for source in sources]
    seeds.append(lines.encode())
    return [Reader("importers", seeds, file("foreign.json", imported), (UsageError,))]


def readers() -> list[Reader]:
    """All of them."""
    return [*wire(), *workloads(), *specs(), *importers()]
