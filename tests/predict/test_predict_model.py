"""Predicted figures: laws they must obey, the fit on rows that the model made, intervals."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import pstdev

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from servecap import slo as slos
from servecap.cell import Cell
from servecap.cli import cli
from servecap.engine import fast
from servecap.engine.hardware import gpu
from servecap.errors import UsageError
from servecap.predict import calibrate, profile, uncertainty
from servecap.predict.answer import answer
from servecap.predict.calibrate import Measured
from servecap.predict.conclusions import conclusions
from servecap.predict.figures import Case, capacity, most
from servecap.predict.harness import Harness, Lengths, traffic_of
from servecap.predict.place import place
from servecap.predict.rows import Rules

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
SLO = slos.parse("ttft.mean<3s,tpot.mean<100ms")
TGI = profile.prior("tgi")


def case(gpu: str, tp: int, *, model: str = "llama-13b", context: float = 440.0) -> Case:
    return Case(
        place=place(model, gpu, tp),
        lengths=Lengths(prompt_tokens=0.57 * context, output_tokens=0.43 * context),
        harness=Harness(engine="tgi", max_batch_prefill_tokens=32768, max_running=1000),
    )


def row(
    gpu: str, tp: int, users: int, truth: profile.Profile, *, model: str = "llama-13b"
) -> Measured:
    """A row that the model itself has made with the parameters of *truth*."""
    this = Measured(case=case(gpu, tp, model=model), users=users, slo=None)
    made = calibrate.predicted(this, truth)
    return msgspec.structs.replace(this, **made)


@given(st.floats(1, 2000), st.floats(1, 900), st.floats(0, 1.5), st.integers(0, 5))
def test_drawn_lengths_have_the_mean_that_was_asked_for(
    prompt: float, output: float, spread: float, seed: int
) -> None:
    lengths = Lengths(
        prompt_tokens=prompt, output_tokens=output, prompt_spread=spread, output_spread=spread
    )
    traffic = traffic_of(Harness(queue=250), lengths, 10, seed=seed)
    assert traffic.prompt_tokens.min() >= 1
    assert traffic.prompt_tokens.mean() == pytest.approx(prompt, rel=0.03, abs=0.6)
    assert traffic.output_tokens.mean() == pytest.approx(output, rel=0.03, abs=0.6)


@pytest.mark.parametrize("users", [1, 30, 200])
def test_the_steady_state_obeys_littles_law(users: int) -> None:
    figures = case("a100-40gb", 4).figures(
        TGI.tuning(place("llama-13b", "a100-40gb", 4).gpu), users
    )
    assert figures.requests_per_s * (figures.e2e_s + 2.0) == pytest.approx(users, rel=0.05)


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_most_is_the_last_level_that_holds(edge: int, limit: int) -> None:
    assert most(lambda users: users <= edge, limit) == min(edge, limit)


def test_capacity_holds_and_one_more_does_not() -> None:
    this = case("a30", 4)
    tuning = TGI.tuning(this.place.gpu)
    users, there = capacity(this, tuning, SLO, seeds=4)
    assert there.ttft_s <= 3
    assert there.tpot_s <= 0.1
    above = this.figures(tuning, users + 1, seeds=4)
    assert above.ttft_s > 3 or above.tpot_s > 0.1


def test_users_fall_as_the_context_grows_and_rise_with_more_gpus() -> None:
    tuning = TGI.tuning(place("llama-13b", "a100-40gb", 4).gpu)
    short, long = (
        capacity(case("a100-40gb", 4, context=c), tuning, SLO, seeds=2)[0] for c in (300, 900)
    )
    assert long < short
    on_two, on_eight = (capacity(case("a100-40gb", n), tuning, SLO, seeds=2)[0] for n in (2, 8))
    assert on_two < on_eight


def changed(**values: float) -> profile.Profile:
    parameters = {
        name: msgspec.structs.replace(p, value=values.get(name, p.value))
        for name, p in TGI.parameters.items()
    }
    return msgspec.structs.replace(TGI, parameters=parameters)


def test_the_fit_finds_parameters_that_rows_can_tell() -> None:
    truth = changed(layer_floor_s=0.0011, kv_read_share=0.4)
    rows = [row(gpu, tp, users, truth) for gpu, tp, users in
            [("a100-40gb", 8, 5), ("a100-40gb", 8, 50), ("a100-40gb", 1, 20), ("a40", 1, 5),
             ("a40", 1, 25)]]  # fmt: skip
    fit = calibrate.fit(rows, TGI, name="made up")
    floor = fit.profile.parameters["layer_floor_s"]
    assert floor.value == pytest.approx(0.0011, rel=0.08)
    assert floor.identified
    assert fit.profile.parameters["kv_read_share"].value < 0.8  # towards the truth
    assert not fit.profile.parameters["link_latency_pcie"].identified  # no row could tell
    before = calibrate.predicted(rows[1], TGI)["tpot_s"]
    after = calibrate.predicted(rows[1], fit.profile)["tpot_s"]
    measured = rows[1].tpot_s
    assert measured is not None
    assert abs(after - measured) < abs(before - measured) / 4


def test_the_links_of_one_machine_tell_little_of_anothers() -> None:
    """An A30 machine whose PCIe carries a fifth: the A40's is not known by that, and said so."""
    slow = changed(link_bus_pcie=TGI.parameters["link_bus_pcie"].value / 5)
    rows = [row("a30", tp, users, slow) for tp, users in [(4, 10), (4, 60), (8, 10), (8, 80)]]
    known = uncertainty.with_spreads(calibrate.fit(rows, TGI, name="slow"))
    a30, a40 = (place("llama-13b", name, 4).gpu for name in ("a30", "a40"))
    assert known.tuning(a30).efficiency.link_bus < 0.35
    assert known.tuning(a40).efficiency.link_bus > 0.7
    there = [math.log(p.tuning(a30).efficiency.link_bus) for p in known.drawn()]
    elsewhere = [math.log(p.tuning(a40).efficiency.link_bus) for p in known.drawn()]
    assert pstdev(elsewhere) > 3 * pstdev(there)


def test_leaving_rows_out_of_the_fit_is_about_a_fit_without_them() -> None:
    truth = changed(layer_floor_s=0.0011)
    rows = [row(gpu, tp, 10, truth) for gpu, tp in [("a100-40gb", 8), ("a40", 1), ("v100", 4)]]
    fit = calibrate.fit(rows, TGI, name="all")
    again = calibrate.fit(rows[1:], TGI, name="some").profile
    quick = fit.without(rows[:1])
    for name in ("layer_floor_s", "weight_read_share"):
        assert quick.parameters[name].value == pytest.approx(again.parameters[name].value, rel=0.1)


@given(st.lists(st.floats(-3, 3), min_size=9, max_size=60, unique=True))
def test_an_interval_leaves_out_as_many_below_as_above(values: list[float]) -> None:
    spread = uncertainty.interval(values, 0.8)
    assert spread is not None
    below, above = (sum(v < spread.low for v in values), sum(v > spread.high for v in values))
    assert below == above
    assert (len(values) - below - above) / (len(values) + 1) >= 0.8 - 2 / (len(values) + 1)


def test_too_few_rows_give_no_interval() -> None:
    assert uncertainty.interval([0.1] * 8, 0.8) is None


def test_an_answer_says_how_much_is_known() -> None:
    told = answer(case("a100-40gb", 4), TGI, SLO, seeds=2)
    assert told.kind == "spec-only"
    assert told.max_users is not None
    assert told.max_users.low < told.max_users.value < told.max_users.high
    assert math.isclose(sum(told.step_shares.values()), 1.0)
    measured = msgspec.structs.replace(
        TGI, validity=calibrate.validity([row("a30", 4, 5, TGI), row("a30", 2, 5, TGI)])
    )
    elsewhere = answer(case("a100-40gb", 8), measured, SLO, seeds=2)
    assert elsewhere.kind == "transferred"
    assert "nothing was measured on A100-40GB-SXM" in elsewhere.notes
    assert "tp 8; measured up to 4" in elsewhere.notes
    assert answer(case("a30", 4), measured, SLO, seeds=2).kind == "calibrated"


def test_a_model_that_does_not_fit_is_an_answer() -> None:
    told = answer(case("a30", 1), TGI, SLO)
    assert told.max_users is None
    assert "does not fit on 1 x A30" in (told.impossible or "")


def test_profiles_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile.save(TGI, path)
    assert profile.load(path) == TGI
    path.write_text(path.read_text().replace('"gemm"', '"jemm"'))
    with pytest.raises(UsageError, match="gemm, jemm"):
        profile.load(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="is no profile"):
        profile.load(path)


COLUMNS = ["model", "gpu", "gpu_memory_gb", "interconnect", "tp", "scenario",
           "avg_context_tokens", "max_users", "ttft_s", "tpot_ms", "requests_per_s"]  # fmt: skip
ROWS = [
    ["llama-13b", "A40", "48", "pcie", "2", "chat", "460", "120", "2.5", "90", "5.5"],
    ["llama-13b", "A100", "40", "nvlink", "4", "chat", "470", "400", "2.8", "65", "25"],
    ["llama-65b", "A40", "48", "pcie", "4", "chat", "460", "10", "1.0", "90", "0.45"],
]


def write(path: Path, columns: list[str], rows: list[list[str]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def test_from_a_table_to_a_profile_to_predictions(tmp_path: Path) -> None:
    table, kept = write(tmp_path / "cells.csv", COLUMNS, ROWS), str(tmp_path / "p.json")
    done = CliRunner().invoke(cli, ["calibrate", table, "--out", kept])
    assert done.exit_code == 0, done.output
    assert "layer_floor_s" in done.output
    inputs = write(tmp_path / "inputs.csv", COLUMNS[:7], [r[:7] for r in ROWS])  # nothing measured
    done = CliRunner().invoke(cli, ["predict", "--profile", kept, "--cells", inputs, "--json"])
    assert done.exit_code == 0, done.output
    cells = json.loads(done.output)["cells"]
    assert [c["gpu"] for c in cells] == ["A40", "A100-40GB-SXM", "A40"]
    for cell in cells:
        for figure in ("max_users", "ttft_s", "tpot_s", "requests_per_s"):
            assert cell[figure]["low"] < cell[figure]["value"] < cell[figure]["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama-13b"], "either --cells"),
        (["--model", "llama-13b", "--gpu", "a30", "--tp", "two"], "'two' is not a list"),
        (["--model", "llama-13b", "--gpu", "a30", "--scenario", "x"], "none of chat"),
        (["--model", "llama-99b", "--gpu", "a30"], "neither built in"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["predict", *arguments])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_requests_that_no_server_takes_are_told() -> None:
    long = msgspec.structs.replace(
        case("a100-40gb", 4), lengths=Lengths(prompt_tokens=3000, output_tokens=100)
    )
    fixed = msgspec.structs.replace(long.lengths, prompt_spread=0.0)
    told = answer(msgspec.structs.replace(long, lengths=fixed), TGI, SLO, seeds=2)
    assert "llama-13b takes 2048" in (told.impossible or "")
    assert told.max_users is None


def test_documents_are_of_nearly_one_length() -> None:
    """The scenario's spread counts; with that of chats, a quarter would exceed 4096 tokens."""
    arguments = ["--model", "llama2-13b", "--gpu", "a100-40gb", "--tp", "8", "--scenario", "docqa"]
    done = CliRunner().invoke(cli, ["predict", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["max_users"]["value"] > 0


def test_a_prefix_that_is_kept_lets_more_users_in_and_instances_add_up() -> None:
    def users(*more: str) -> float:
        arguments = ["--model", "llama2-13b", "--gpu", "a100-40gb", "--tp", "4", "--json", *more]
        done = CliRunner().invoke(cli, ["predict", "--scenario", "docqa", *arguments])
        assert done.exit_code == 0, done.output
        (cell,) = json.loads(done.stdout)["cells"]
        return float(cell["max_users"]["value"])

    alone = users()
    assert users("--prefix-tokens", "2800") > 1.3 * alone
    assert users("--instances", "3") == pytest.approx(3 * alone, rel=0.12)
    assert users("--instances", "3", "--routing", "random") < users("--instances", "3")


def test_long_prompts_are_bound_by_compute_and_decode_by_bandwidth() -> None:
    short, long = (
        answer(case("a100-40gb", 8, context=c), TGI, SLO, seeds=2) for c in (60.0, 1600.0)
    )
    assert short.prefill_compute_share is not None
    assert long.prefill_compute_share is not None
    assert short.prefill_compute_share < 0.2 < long.prefill_compute_share < 1
    assert long.step_shares["matrices (compute)"] < 0.5


def test_a_start_of_all_users_at_once_shows_in_the_first_tokens() -> None:
    """100 prompts of 250 tokens take seconds to compute; the rate is that of Little's law."""
    steady = case("v100", 4)
    burst = msgspec.structs.replace(
        steady, harness=msgspec.structs.replace(steady.harness, cycles=3)
    )
    tuning = TGI.tuning(steady.place.gpu)
    calm, crowded = (c.figures(tuning, 100, seeds=4) for c in (steady, burst))
    assert crowded.ttft_s > 1.3 * calm.ttft_s
    assert crowded.requests_per_s * (crowded.e2e_s + 2.0) == pytest.approx(100, rel=1e-3)


def test_a_server_that_admits_by_tokens_lets_more_users_in() -> None:
    tight = case("a40", 1)
    shared = msgspec.structs.replace(
        tight, harness=msgspec.structs.replace(tight.harness, reserve_share=0.5)
    )
    tuning = TGI.tuning(tight.place.gpu)
    whole, half = (c.figures(tuning, 90, seeds=2) for c in (tight, shared))
    assert half.ttft_s < 0.8 * whole.ttft_s
    assert half.requests_per_s > whole.requests_per_s


A30 = gpu("a30")


def test_rows_are_read_as_their_columns_tell() -> None:
    cell = Cell(model="llama-13b", gpu="a30", tp=2, scenario="chat", origin="measured",
                provenance="made up", avg_context_tokens=460.0)  # fmt: skip
    newer = msgspec.structs.replace(cell, avg_output_tokens=190.0)
    rules = Rules(slo=SLO)
    older_h, newer_h = rules.harness(cell, A30), rules.harness(newer, A30)
    assert (older_h.queue, older_h.cycles, older_h.max_waiting_tokens) == (None, 5, 20)
    assert (newer_h.queue, newer_h.cycles, newer_h.max_waiting_tokens) == (250, None, 8)
    steady = msgspec.structs.replace(rules, queue=0).harness(cell, A30)
    assert (steady.queue, steady.cycles) == (None, None)
    vllm = msgspec.structs.replace(rules, engine="vllm").harness(cell, A30)
    assert (vllm.queue, vllm.cycles) == (None, None)


def test_more_tp_stops_paying_on_pcie_and_goes_on_paying_on_nvlink() -> None:
    # As the classic tables found: A40 (PCIe) against A100 (NVLink), from data sheets alone.
    for name, said in (("a40", "more than TP2 does not pay"), ("a100-40gb", "goes on paying")):
        row = [answer(case(name, tp), TGI, SLO, seeds=2) for tp in (2, 4, 8)]
        assert said in conclusions(row)[0]


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"max_running": 64}, "places (64 run at once"),
        ({"max_batch_prefill_tokens": 4096}, "prefill budget (4096 tokens of prompts"),
    ],
)
def test_a_scheduler_s_limit_that_binds_is_named(setting: dict[str, int], why: str) -> None:
    this = case("a100-40gb", 8)
    narrow = msgspec.structs.replace(this.harness, **setting)
    said = answer(msgspec.structs.replace(this, harness=narrow), TGI, SLO, seeds=2).binds
    assert said is not None
    assert why in said
