"""The report in Chinese: every text is there, no figure differs, nothing foreign is touched."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import synthetic
from test_html import CELLS, Page, found

from servecap import slo as slos
from servecap.cell import Capacity
from servecap.errors import UsageError
from servecap.matrix.table import read_csv
from servecap.metrics import PartFigures
from servecap.plan import Demand, Price, Supply, plan
from servecap.plan.answer import Check
from servecap.plan.outlook import with_outlook
from servecap.record import TokenSource
from servecap.report import canvas, html, language, parts
from servecap.report.language import parse, say
from servecap.report.table import Table, text_column
from servecap.run import LoadNode, Run, Slice, Status
from servecap.sample import Histogram, Sample, Source
from servecap.scenario import (
    ClosedLoop,
    Exponential,
    Load,
    Lognormal,
    Measured,
    OpenLoop,
    Replay,
    WorkloadSpec,
)
from servecap.summarize import summarize
from servecap.workload import source as workloads
from servecap.workload.builtin import BUILTINS

CHAT = Path(__file__).resolve().parents[2] / "../shared/data/matrix_chat.csv"
STEP = (  # parts of a decode step, as `predict.shares` names them
    "host", "weights (bandwidth)", "matrices (compute)", "attention (bandwidth)", "interconnect",
    "norms and activations (bandwidth)",
)  # fmt: skip
Input = dict[str, Any]


def one(run: Run) -> Input:
    return {"runs": [(run, summarize(run))]}


def tried_again(run: Run, tries: int) -> Run:
    """The run with retries, of which so many were made."""
    changed = [
        msgspec.structs.replace(r, attempt=2, first_planned_s=r.planned_s - 1, resent=True)
        if place < tries
        else r
        for place, r in enumerate(reversed(run.records))
    ]
    scenario = msgspec.structs.replace(run.scenario, retries=1)
    header = msgspec.structs.replace(run.header, scenario=scenario)
    return msgspec.structs.replace(run, header=header, records=changed[::-1])


def runs() -> Iterator[Run]:
    """Runs that make the report say all that it can."""
    play = synthetic.run
    limits = "ttft.p99<100ms,e2e.mean<2s,gap.p99<1s,error_rate<1%"
    yield play(end_s=30)
    yield play(error_share=0)
    yield play(server=True, timings="both", slo=limits, end_s=30)
    yield play(server=True, timings="server", error_share=0, end_s=30)
    yield play(streamed=False, end_s=30)
    yield play(users=3, end_s=20, error_share=0, slo="ttft.p99<100ms,tpot.mean<45ms")
    yield play(source="simulated", error_share=0, users=8, end_s=40)
    yield play(source="imported", error_share=0, users=8, end_s=40)
    yield play(status=Status.INTERRUPTED, token_source=TokenSource.ESTIMATE, users=8)
    yield play(token_source=TokenSource.TOKENIZER, error_share=0.5, slo="ttft.p95<3s,tpot.p99<1ms")
    for tries in (0, 1, 2):
        yield tried_again(play(error_share=0), tries)
    yield msgspec.structs.replace(play(), records=[])
    loads: tuple[Load, ...] = (
        OpenLoop(rate_rps=8),
        OpenLoop(rate_rps=8, arrivals="trace"),
        OpenLoop(rate_rps=8, arrivals="gamma", cv=2.0),
        OpenLoop(rate_rps=8, think_s=(1.0, 3.0)),
        OpenLoop(rate_rps=8, arrivals="gamma", cv=2.0, think=Exponential(mean_s=2.0)),
        ClosedLoop(users=64, queue=250),
        ClosedLoop(users=64, each=1),
        ClosedLoop(users=64, think=Exponential(mean_s=2.0)),
        ClosedLoop(users=64, think=Lognormal(mean_s=2.0, cv=1.0)),
        ClosedLoop(users=64, think=Measured(values_s=(1.0, 2.0))),
    )
    for load in loads:
        yield play(load=load, end_s=25)
    yield from clustered(play(end_s=25))
    yield mixed(play(end_s=30))
    yield from watched(play(end_s=30))


def watched(run: Run) -> Iterator[Run]:
    """The run as if much had been seen around it; as the end of a soak, with a burst of errors."""
    for low, kv, error, ttft_s in ((0, 0.99, "HTTP 404", 9.0), (0, 0.5, None, 0.001)):
        samples = []
        for at in range(31):
            counts = (low, at, 40 * at)
            server = {"running": at, "waiting": 2, "kv_used_share": kv,
                      "preemptions": at * kv // 0.9,
                      "prefix_hit_tokens": at, "prefix_asked_tokens": 2 * at, "rss_bytes": at + 9e9,
                      "prompt_tokens": at, "output_tokens": at}  # fmt: skip
            gpu = {"util_share": 1, "memory_used_bytes": 2e9, "power_w": 300, "sm_clock_hz": 1e9,
                   "temperature_c": 80, "throttled_share": 0.5}  # fmt: skip
            bytes_ = dict.fromkeys(
                ("disk_read_bytes", "disk_written_bytes", "received_bytes", "sent_bytes"), at * 1e8
            )
            node = {"idle_s": at, "cpu_s": 4 * at, "memory_free_bytes": 2e9}
            client = {"cpu_share": 0.99, "memory_used_share": 0.5, "load_rss_bytes": 1e9}
            sources: tuple[tuple[Source, dict[str, float]], ...] = (
                ("server", server), ("gpu", gpu), ("node", node | bytes_),
                ("client", client | bytes_),
            )  # fmt: skip
            samples += [
                Sample(
                    at_s=float(at),
                    source=source,
                    took_s=2.0,
                    values=values,
                    histograms={
                        name: Histogram((0.1, 1.0), counts, ttft_s * counts[-1])
                        for name in ("ttft", "tpot", "gap", "e2e", "queue")
                    }
                    if source == "server"
                    else {},
                )
                for source, values in sources
            ]
        if error is not None:
            missing: tuple[Source, ...] = ("server", "gpu", "node")
            samples += [
                Sample(at_s=31.0, source=source, took_s=1.0, error=error, over=True)
                for source in missing
            ]
        slices = tuple(
            Slice(start_s=i, end_s=i + 1, requests=40, failed=30 * (i == 5), ttft_mean_s=99.0)
            for i in range(30)
        )
        yield msgspec.structs.replace(
            run, telemetry=tuple(samples), slices=slices, dropped=1234 if error else 0
        )


def mixed(run: Run) -> Run:
    """The run as if every other request were of another workload."""
    spec = WorkloadSpec(source="mix:70%chat-en,30%long.jsonl")
    scenario = msgspec.structs.replace(run.scenario, workload=spec)
    records = [msgspec.structs.replace(r, part=r.request_id % 2) for r in run.records]
    header = msgspec.structs.replace(run.header, scenario=scenario)
    return msgspec.structs.replace(run, header=header, records=records)


def clustered(run: Run) -> Iterator[Run]:
    """The run as if it came from the nodes of a cluster."""
    clocks = (
        LoadNode(name="10.0.0.1", offset_s=7.0, error_s=5e-5),
        LoadNode(name="10.0.0.2", offset_s=7.0, error_s=5e-5, drift_s=1e-3, drift_error_s=1e-4),
        LoadNode(
            name="10.0.0.3", offset_s=7, error_s=0.03, drift_s=0.01, drift_error_s=0.04, lost=True
        ),
    )
    for loss in ("5 of 10 users were", "1/3 of the load was"):
        failure = f"load process 3 of 3 on node 10.0.0.3 is gone: {loss} lost with it"
        health = msgspec.structs.replace(run.header.health, nodes=clocks, failure=failure)
        header = msgspec.structs.replace(run.header, health=health)
        yield msgspec.structs.replace(run, header=header)


def inputs() -> Iterator[Input]:
    shown = list(runs())
    yield from map(one, shown)
    yield {"runs": [pair for run in shown[:6] for pair in one(run)["runs"]]}
    yield {"search": found()}
    yield {"search": found()} | one(shown[1])
    yield {"cells": CELLS, "plan": plan(CELLS, Demand(10_000))}


def chat_plans() -> Iterator[Input]:
    prices = (Price("a30", 0.5), Price("a40", 1.0), Price("v100", 8.0, "node"), Price("a100", 2.0))
    nodes = {"a40": 4}
    cells = read_csv(CHAT).cells
    for slo, supply in (
        ("ttft.mean<3.2s,tpot.mean<110ms", Supply(gpus_per_node_of=nodes, prices=prices)),
        ("ttft.mean<3s,tpot.mean<100ms", Supply(gpus_per_node_of=nodes)),
    ):
        asked = slos.parse(slo)
        made = plan(cells, Demand(10_000), supply, slo=asked)
        yield {"cells": cells, "plan": with_outlook(made, cells, slo=asked)}


def figures(page: str) -> Counter[str]:
    """Every number of the page, with the unit behind it, as often as it is there."""
    text = " ".join(re.sub(r"<style>.*?</style>|<pre.*?</pre>", "", page, flags=re.DOTALL).split())
    words = " ".join(Page(text).words)
    return Counter(re.findall(r"\d[\d.,]*\d%?(?: (?:ms|us|s|MiB|min)\b)?|\d%?", words))


def hold(given: Input, monkeypatch: pytest.MonkeyPatch, *, drawn: bool = True) -> None:
    """Fails where the Chinese page lacks a text, or has other figures than the English one."""
    missing: list[str] = []
    asked = language.say

    def noted(text: str, lang: str = "en") -> str:
        if piece := language.untold(text, lang):
            missing.append(f"{piece!r} in {text!r}")
        return asked(text, lang)

    with monkeypatch.context() as patch:
        if not drawn:  # the words within charts are the same in all runs
            patch.setattr(canvas, "svg", lambda *_: "<svg></svg>")
        english = html.render(**given)
        patch.setattr(language, "say", noted)
        chinese = html.render(**given, lang="zh")
    assert not missing, "report/zh.txt lacks Chinese for:\n" + "\n".join(dict.fromkeys(missing))
    assert figures(chinese) == figures(english)
    assert chinese.count("<svg") == english.count("<svg")
    assert '<html lang="zh-Hans">' in chinese


def test_every_text_of_runs_searches_and_matrices_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, given in enumerate(inputs()):
        hold(given, monkeypatch, drawn=number < 2 or not given.get("runs"))


@pytest.mark.skipif(not CHAT.is_file(), reason="needs ../shared/data/matrix_chat.csv")
def test_every_text_of_plans_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in chat_plans():
        hold(given, monkeypatch)


def test_every_text_of_a_simulated_plan_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences as `plan.trial` and `plan.rehearsal` write them; their own tests hold them, too."""
    made = plan(CELLS, Demand(10_000))
    means = "mean TTFT 120 ms +- 3.1 ms, mean TPOT 31 ms"
    at_once = "an instance has 34.2 requests at once, 60 at most"
    seen = "; too close to ttft.mean<3s and tpot.mean<100ms to be sure"
    behind = "behind 19 routers of up to 64 instances"
    simulated = (
        "all 12 instances and 960 users behind one router (pip install 'servecap[fast]' to simulate"
        " more), engine model tgi",
        "the one instance and 80 users behind one router, 3 times with different seeds, engine"
        " model vllm",
        f"64 of 1,200 equal instances, {behind}: 4 independent runs, which tell how far the means"
        " may be off; 4 to 8 routers stand for all in 2 of 3 simulations, engine model vllm",
    )
    told = (
        f"at 80 users an instance: {means}, 12.3 requests/s; {at_once}",
        f"with 8 of 96 nodes gone: {means}, 12.3 requests/s; {at_once}{seen}",
        f"with 1 of 3 instances gone: mean TPOT 1.2 s, 12.3 requests/s; {at_once}",
        f"routed at random instead of by least load: nothing was answered, 0 requests/s; {at_once}",
        "3 more levels of the day, 12.5 to 80 users an instance",
        "the engine model gives a mean TTFT of 120 ms where 5 s was measured, at 40 users on one "
        "instance: it does not stand for this server, so the measured cell is what counts",
    )
    broken = ("ttft.mean 5.2 s breaks ttft.mean<3s", "6.0% of the requests fail with nodes gone")
    verdicts: tuple[Literal["pass", "fail", "unknown"], ...] = ("pass", "fail", "unknown")
    checks = tuple(
        Check(
            choice="llama-13b on a100, TP2", verdict=said, simulated=what, told=told,
            broken=broken if said == "fail" else (), requests=1234,
        )
        for said, what in zip(verdicts, simulated, strict=True)
    )  # fmt: skip
    hold({"plan": msgspec.structs.replace(made, checks=checks)}, monkeypatch, drawn=False)


def test_the_verdict_reads_as_a_sentence() -> None:
    run = synthetic.run(error_share=0)
    page = Page(html.render(**one(run), lang="zh")).text
    assert "服务在目标之内承载了 64 个并发用户：平均 0.19 s 后开始回答" in page
    assert "服务等级目标 (SLO)" in page
    assert "首字时延 TTFT (first_token_latency)" in page


def test_nothing_from_outside_becomes_markup_in_chinese_either() -> None:
    run = synthetic.run(text=synthetic.HOSTILE, server=True, end_s=20)
    cell = msgspec.structs.replace(CELLS[0], gpu=synthetic.HOSTILE, model=synthetic.HOSTILE)
    for given in (one(run), {"cells": [cell], "plan": plan([cell], Demand(100))}):
        page = Page(html.render(**given, lang="zh", title=synthetic.HOSTILE))
        assert page.count("script") == 0
        assert "<script>alert(1)</script>\\x1b[31m" in page.text
        assert "\u202e" not in page.text
        assert "\x1b" not in page.text


def test_names_are_not_translated() -> None:
    named = Table("", (text_column("model"), text_column("verdict")), (("load", "PASS"),))
    assert language.table(named, "zh").rows == (("load", "通过"),)
    facts = Table("", (text_column(""), text_column("")), (("model", "load"), ("load", "8 users")))
    assert language.table(facts, "zh").rows == (("模型", "load"), ("负载", "8 个用户"))
    facts = Table("", (text_column(""), text_column("")), (("server", "n/a (not told)"),))
    assert language.table(facts, "zh").rows == (("服务端", "n/a（未告知）"),)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("64 users (think 1 to 3 s)", "64 个用户（思考 1 至 3 s）"),
        ("{n} users", "{n} users"),  # a foreign text with braces is no hole
        ("What no one wrote.", "What no one wrote."),
        ("The search ended because it was cut off after 3 levels.",
         "搜索结束，因为它在 3 级负载之后被中断。"),
        ("One dot for each request. 3 slower requests above the chart.",
         "每点一个请求。另有 3 个更慢的请求在图外。"),
        ("WORSE in tpot.mean, qps and e2e.p95; better in output_tps.",
         "tpot.mean、qps、e2e.p95 更差；output_tps 更好。"),
        ("WORSE in tpot.mean.", "tpot.mean 更差。"),
        ("Better in tpot.mean and qps.", "tpot.mean、qps 更好。"),
        ("At 24 users (think 1 to 3 s), m keeps qps: fast; over 7 requests in 3 s.",
         "在 24 个用户（思考 1 至 3 s）下，m 满足 qps：fast；共 7 个请求，历时 3 s。"),
        ("m on a40, TP2, chat: it is predicted, not measured; at 9 users the choice would be "
         "a40 as 4 x TP2: measure it before you buy",
         "m，a40, TP2, chat：这是预测值，而非实测；"
         "若为 9 个用户，则应选 a40（4 x TP2）：购买前请先实测"),
        ("", ""),
    ],
)  # fmt: skip
def test_sentences(english: str, chinese: str) -> None:
    assert say(english, "zh") == chinese
    assert say(english, "en") == english


WORKLOADS = [
    *((name, {}) for name in (*BUILTINS, "fixed:40/50", "sessions:4x100/60", "own.jsonl")),
    *((name, {"sessions": True}) for name in ("chat-en", "own.jsonl")),
    ("trace.csv", {"replay": Replay()}),
]


@pytest.mark.parametrize(("source", "more"), WORKLOADS)
def test_what_is_said_of_a_workload_is_there(
    source: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    turn = [
        {"from": "human", "value": "Why is the sky blue at noon?"},
        {"from": "gpt", "value": "Because the air scatters blue light the most."},
    ]
    lines: list[dict[str, Any]] = [{"conversations": 2 * turn}, {"conversations": []}]
    Path("own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Path("trace.csv").write_text("time_s,prompt_tokens,output_tokens\n0,9,9\n1.5,9,9\n")
    note = workloads.load(WorkloadSpec(source=source, **more)).note
    assert language.untold(f"{source}, answer length: data ({note})", "zh") == ""
    assert figures(say(note, "zh")) == figures(note)


def test_what_is_said_of_predicted_cells_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each note once for one cell, for two and for three; what binds as `answer` writes it."""
    why = (
        "KV memory (newcomers wait for it)",
        "places (256 run at once, the rest waits)",
        "prefill budget (4096 tokens of prompts, then up to 20 decode steps)",
        *(f"waiting for a prefill and computing it; steps: {x}" for x in STEP),
        *(f"{x}, 47% of a decode step" for x in STEP),
    )
    notes = (
        *(f"what binds: ttft.mean<3s: {x}" for x in why),
        "predicted from data sheets, with no measured rows: calibrate the engine model to narrow "
        "the 80% interval",
        "not even one user is served within the SLO: there are no figures",
        "0.14% of the requests are too long and refused",
        "of 2 instances together, routed by least load",
        "all prompts begin with the same 100 tokens, kept in a cache",
        "the search ended at 500 users; it carries at least these",
        "250 requests in all never keep more than 250 users at work; it carries at least these",
    )
    capacity = Capacity(users=83, users_low=21, users_high=1370)
    cell = msgspec.structs.replace(CELLS[0], origin="predicted", notes=notes, capacity=capacity)
    cells = [msgspec.structs.replace(cell, tp=tp) for tp in (1, 2, 4)]
    for many in (1, 2, 3):
        hold({"cells": cells[:many]}, monkeypatch, drawn=False)


def test_parts_of_a_mix_are_told_with_their_own_names() -> None:
    made = summarize(synthetic.run(end_s=20, error_share=0))
    part = PartFigures(
        name="chat", share=0.5, requests=3, requests_ok=3, qps=1.0,
        error_rate=0.0, client=made.client,
    )  # fmt: skip
    for told in parts.part_tables(msgspec.structs.replace(made, parts=(part,))):
        shown = language.table(told, "zh")
        texts = (shown.title, *(c.name for c in shown.columns if c.name != "QPS"), *shown.notes)
        assert all(re.search("[一-鿿]|^p[0-9]+$", text) for text in texts), texts
        assert shown.rows[0][0] == "chat"


def test_a_hostile_text_is_read_in_bounded_steps() -> None:
    pieces = [": ", "; ", ". A", ", ", " and ", " at ", " on ", "(", ")"]
    for piece in pieces:
        language._say.cache_clear()
        say(("x" + piece) * 150, "zh")
        assert language._say.cache_info().misses < 20_000


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        ("a\n", "without its partner"),
        ("a {x}\nb\n", "different holes"),
        ("a {x#}\nb {x} {x}\n", "different holes"),
        ("a\nb\na\nc\n", "twice"),
    ],
)
def test_mistakes_in_a_catalogue_are_told(catalogue: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(catalogue)


def test_another_language_is_an_error() -> None:
    with pytest.raises(UsageError, match="--lang fr: give one of en, zh"):
        html.render(cells=CELLS, lang="fr")
