"""The order of cells, how long they take, and scenarios side by side."""

from __future__ import annotations

from pathlib import Path

import msgspec

from servecap.cell import Capacity, Cell
from servecap.matrix import spec as specs
from servecap.matrix.compare import conclusions, pairs
from servecap.matrix.document import parse
from servecap.matrix.order import estimate_s, teaching_order

SPEC = """\
scenarios: {chat: {workload: chat-en}}
cells:
  - {model: llama-13b, gpu: a30, tp: [1, 2, 4, 8], command: "serve --port {port}"}
  - {model: llama-13b, gpu: [h100, h200], tp: [2, 4], url: "http://a:8000"}
  - {model: llama-13b, gpu: a40, tp: [2, 4, 8], predict: {}}
"""


def test_predictions_come_first_and_every_gpu_before_any_second_degree() -> None:
    jobs = specs.from_document(parse(SPEC, name="s.yaml"), Path()).jobs
    assert [(job.gpu, job.tp) for job in teaching_order(jobs)] == [
        ("a40", 4), ("a40", 8), ("a40", 2),
        ("h100", 2), ("h200", 2), ("h100", 4), ("h200", 4),
        ("a30", 2), ("a30", 4), ("a30", 1), ("a30", 8),
    ]  # fmt: skip


def test_the_estimate_grows_with_what_is_asked() -> None:
    jobs = specs.from_document(parse(SPEC, name="s.yaml"), Path()).jobs
    command, url, predicted = jobs[0], jobs[4], jobs[-1]
    assert estimate_s(predicted) < 60 < estimate_s(url) < estimate_s(command)
    stop = msgspec.structs.replace(url.scenario.stop, requests=1000)
    longer = msgspec.structs.replace(url, scenario=msgspec.structs.replace(url.scenario, stop=stop))
    assert estimate_s(longer) > estimate_s(url)
    fixed = msgspec.structs.replace(stop, duration_s=10.0)
    short = msgspec.structs.replace(url, scenario=msgspec.structs.replace(url.scenario, stop=fixed))
    # levels of 8, 16, 32, 64 and 128 users, then 5 to halve the bracket to 5%
    assert estimate_s(short) == 100


def cell(scenario: str, users: int, context: float | None, **changes: object) -> Cell:
    base = Cell(
        model="m", gpu="V100", tp=8, scenario=scenario, origin="measured", provenance="t",
        capacity=Capacity(users=users, users_high=None), avg_context_tokens=context,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def test_scenarios_are_held_against_the_one_with_most_cells() -> None:
    chat, long = cell("chat", 320, 480.0), cell("docqa", 234, 1440.0)
    (pair,) = pairs([long, chat, cell("chat", 9, None, tp=4)])
    assert (pair.first, pair.second) == (chat, long)
    assert pair.words == (
        "m on V100, TP8: 320 users in chat, 234 in docqa (-27%) with 3 times the context (480 and "
        "1440 tokens): users change less than the context does"
    )


def test_what_decides_is_told_only_as_far_as_the_figures_go() -> None:
    chat = cell("chat", 300, 100.0)
    told = {
        300: "as many users", 150: "users change as the context does",
        200: "change less than", 50: "change more than", 400: "change against the context",
    }  # fmt: skip
    for users, words in told.items():
        (pair,) = pairs([chat, cell("long", users, 200.0)])
        assert words in pair.words
    (pair,) = pairs([chat, cell("long", 200, None)])
    assert "the contexts are not known" in pair.words
    limited = Capacity(users=200, users_high=201, limited_by="ttft.mean<3s")
    (pair,) = pairs([
        msgspec.structs.replace(chat, capacity=Capacity(users=300, users_high=301,
                                                        limited_by="tpot.mean<100ms")),
        cell("long", 1, 200.0, capacity=limited, origin="measured"),
    ])  # fmt: skip
    assert pair.words.endswith(
        "chat is limited by tpot.mean<100ms, long is limited by ttft.mean<3s"
    )


def test_measured_is_never_held_against_predicted_nor_against_nothing() -> None:
    chat = cell("chat", 300, 100.0)
    assert pairs([chat, cell("long", 200, 200.0, origin="predicted")]) == []
    assert pairs([chat, cell("long", 0, 200.0)]) == []
    assert pairs([chat, cell("long", 5, 200.0, invalid_reason="slow client")]) == []


def test_the_place_that_suffers_least_is_named_first() -> None:
    cells = [
        cell("chat", 320, 480.0), cell("docqa", 234, 1440.0),
        cell("chat", 700, 480.0, gpu="A100"), cell("docqa", 588, 1440.0, gpu="A100"),
    ]  # fmt: skip
    first, *each = conclusions(cells)
    assert first == (
        "m: from chat to docqa, A100 at TP8 keeps most of its users (-16%), V100 at TP8 least "
        "(-27%)"
    )
    assert len(each) == 2
