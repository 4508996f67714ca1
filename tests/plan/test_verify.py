"""A plan against a simulation of itself: what passes, what fails, what cannot be told."""

from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from servecap.cell import Capacity, Cell
from servecap.cli.plan import command
from servecap.engine.spec import EngineSpec, build
from servecap.errors import UsageError
from servecap.matrix.files import to_json
from servecap.plan import Demand, Price, Supply, plan
from servecap.plan.answer import Plan
from servecap.plan.demand import Profile
from servecap.plan.router import Lengths, Seen, Traffic, play
from servecap.plan.verify import figure, verify
from servecap.report.plan_text import plan_text
from servecap.slo import Limit

SPEC = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=2)
LENGTHS = Lengths(prompt_tokens=200, output_tokens=40)


def traffic(**changes: object) -> Traffic:
    base = Traffic(users=8, lengths=LENGTHS, think_s=(0.5, 1.5), cycle_s=2.0)
    return msgspec.structs.replace(base, **changes)


def seen(count: int = 2, **changes: object) -> Seen:
    return play([build(SPEC) for _ in range(count)], traffic(**changes))


def cell(users: int = 40, **changes: object) -> Cell:
    base = Cell(
        model="llama-13b", gpu="a100", gpu_memory_gb=40, tp=2, scenario="chat",
        origin="predicted", provenance="engine model", avg_context_tokens=240.0,
        avg_output_tokens=40.0, capacity=Capacity(users=users, users_high=users + 2),
        ttft_s=0.1, tpot_s=0.03, slo="ttft.mean<3s,tpot.mean<100ms",
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def verified(cells: list[Cell], users: int, supply: Supply | None = None, **how: object) -> Plan:
    return verify(plan(cells, Demand(users), supply), cells, workers=1, **how)  # type: ignore[arg-type]


def test_the_seed_decides_everything() -> None:
    assert seen() == seen()
    assert seen() != seen(seed=1)


def test_users_answers_and_rates_keep_littles_law() -> None:
    found = seen(users=30)
    response_s = sum(found.e2e_s) / len(found.e2e_s)
    assert found.requests / found.window_s * (response_s + 1.0) == pytest.approx(30, rel=0.1)
    assert found.failed == 0


def test_random_routing_is_slower_than_least_load_where_load_is_uneven() -> None:
    def mean(routing: str) -> float:
        values = seen(4, users=240, routing=routing, cycle_s=4.0).tpot_s
        return sum(values) / len(values)

    assert mean("least-load") <= mean("random")
    assert mean("least-load") <= mean("sticky") * 1.02


def test_requests_that_no_engine_takes_are_failures_and_the_users_come_back() -> None:
    found = seen(users=4, lengths=Lengths(prompt_tokens=10**7, output_tokens=10))
    assert found.failed > 4
    assert found.ttft_s == ()


def test_percentiles_are_by_nearest_rank_and_count_failures() -> None:
    base = Seen(ttft_s=(3.0, 1.0, 2.0), tpot_s=(), e2e_s=(), failed=0, window_s=1.0)
    assert figure(base, Limit("ttft", "mean", 1)) == 2
    assert figure(base, Limit("ttft", "p50", 1)) == 2
    assert figure(base, Limit("tpot", "mean", 1)) is None
    assert figure(base, Limit("gap", "mean", 1)) is None
    failing = msgspec.structs.replace(base, failed=1)
    assert figure(failing, Limit("ttft", "max", 1)) == float("inf")


def test_a_plan_that_holds_passes_with_its_evidence() -> None:
    found = verified([cell()], 300, Supply(spare_nodes=1), profile=Profile("users", (1, 3, 9)))
    (check,) = found.checks
    assert check.verdict == "pass"
    assert check.broken == ()
    text = plan_text(found)
    assert "simulated, llama-13b on a100-40GB, TP2 keeps the SLO" in text
    assert "2 levels of the day" in text
    assert "with 1 of 3 nodes gone" in text


def test_a_choice_that_fails_is_not_the_first_and_the_next_is_tried() -> None:
    good = cell(30, gpu="h100", gpu_memory_gb=80.0)
    lied = cell(1200, gpu="a100")
    prices = Supply(gpus_per_node=2, prices=(Price("a100", 1.0), Price("h100", 90.0)))
    assert plan([lied, good], Demand(100), prices).models[0].gpus[0].gpu == "a100-40GB"
    found = verified([lied, good], 1200, prices)
    assert [check.verdict for check in found.checks] == ["fail", "pass"]
    assert [gpu.gpu for gpu in found.models[0].gpus] == ["h100-80GB", "a100-40GB"]
    text = plan_text(found)
    assert "of 2 x h100-80GB" in text.split("FAILS ITS OWN SIMULATION")[0]


def test_where_every_choice_fails_nothing_is_recommended() -> None:
    found = verified([cell(1200)], 1200, Supply(gpus_per_node=2))
    assert found.models[0].gpus == ()
    assert "llama-13b: no plan, every cell is left out" in plan_text(found)
    assert any("fails its own simulation" in x.reason for x in found.models[0].left_out)


def test_a_measured_cell_that_the_model_does_not_reproduce_is_not_judged() -> None:
    slow = cell(origin="measured", ttft_s=2.5, tpot_s=0.09)
    (check,) = verified([slow], 300).checks
    assert check.verdict == "unknown"
    assert "it does not stand for this server" in " ".join(check.told)


def test_a_shared_fleet_is_checked_by_its_kinds_of_instances() -> None:
    other = cell(30, model="llama-7b", tp=1)
    cells = [cell(), other]
    demand = Demand(users=150, users_of={"llama-13b": 100, "llama-7b": 50})
    found = verify(plan(cells, demand), cells, workers=1)
    assert sorted(c.choice for c in found.checks) == [
        "llama-13b on a100-40GB, TP2", "llama-7b on a100-40GB, TP1",
    ]  # fmt: skip
    assert {c.verdict for c in found.checks} == {"pass"}


def test_what_cannot_be_simulated_is_told() -> None:
    with pytest.raises(UsageError, match="avg_context_tokens is not known"):
        verified([cell(avg_context_tokens=None)], 10)
    with pytest.raises(UsageError, match="nonesuch"):
        verified([cell(model="nonesuch")], 10)


def test_the_command_ends_with_1_where_a_choice_fails(tmp_path: object) -> None:
    path = f"{tmp_path}/m.json"
    with open(path, "w") as file:
        file.write(to_json([cell(1200)]))
    done = CliRunner().invoke(
        command,
        [path, "--users", "1200", "--verify", "vllm", "--gpus-per-node", "2"],
        standalone_mode=False,
    )
    assert done.exception is None, done.exception
    assert done.return_value == 1
