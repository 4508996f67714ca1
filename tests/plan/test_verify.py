"""A plan against a simulation of itself: what passes, what fails, what cannot be told."""

from __future__ import annotations

import re

import msgspec
import pytest
from click.testing import CliRunner

from servecap.cell import Capacity, Cell, Modelled
from servecap.cli.plan import command
from servecap.engine import fast
from servecap.engine.fleet import Ended, joined
from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.matrix.files import to_json
from servecap.plan import Demand, Price, Supply, plan, rehearsal
from servecap.plan.answer import Check, Plan
from servecap.plan.demand import Profile
from servecap.plan.rehearsal import FIRST, MOST_SEEDS, figure, levels, rehearse
from servecap.plan.router import PER_ROUTER, Traffic, play, shards
from servecap.plan.verify import verify
from servecap.predict.harness import Lengths
from servecap.report import language
from servecap.report.plan_text import check_line, plan_text
from servecap.slo import Limit, Slo

SPEC = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=2)
LENGTHS = Lengths(prompt_tokens=200, output_tokens=40)
LOOSE = Slo((Limit("ttft", "mean", 60.0),), 0.05)
COMPILED_ONLY = pytest.mark.skipif(
    not fast.COMPILED, reason="so many instances need the compiled engine"
)


def traffic(**changes: object) -> Traffic:
    base = Traffic(
        spec=SPEC, instances=2, users=8, lengths=LENGTHS, think_s=(0.5, 1.5), cycle_s=2.0
    )
    return msgspec.structs.replace(base, **changes)


def seen(instances: int = 2, **changes: object) -> Ended:
    return play(traffic(instances=instances, **changes))


def cell(users: int = 40, **changes: object) -> Cell:
    base = Cell(
        model="llama-13b", gpu="a100", gpu_memory_gb=40, tp=2, scenario="chat",
        origin="predicted", provenance="engine model", avg_context_tokens=240.0,
        avg_output_tokens=40.0, capacity=Capacity(users=users, users_high=users + 2),
        ttft_s=0.1, tpot_s=0.03, slo="ttft.mean<3s,tpot.mean<100ms",
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def verified(cells: list[Cell], users: int, supply: Supply | None = None, **how: object) -> Plan:
    found = verify(plan(cells, Demand(users), supply), cells, workers=1, **how)  # type: ignore[arg-type]
    in_chinese(found)
    return found


def in_chinese(found: Plan) -> None:
    """What a simulation tells is in the Chinese catalogue, whichever simulation it is."""
    for check in found.checks:
        what = f"{check.simulated}, {check.requests} requests"
        for text in (what, f"{check_line(check)}.", *check.told):
            lost = language.untold(text, "zh")
            assert not lost, f"report/zh.txt lacks Chinese for {lost!r} in {text!r}"


def test_the_seed_decides_everything() -> None:
    assert seen().sums_s == seen().sums_s
    assert seen().sums_s != seen(seed=1).sums_s


def test_users_answers_and_rates_keep_littles_law() -> None:
    found = seen(users=30)
    response_s = found.mean("e2e")
    assert response_s is not None
    assert found.answered / found.window_s * (response_s + 1.0) == pytest.approx(30, rel=0.1)
    assert found.failed == 0


def test_random_routing_is_slower_than_least_load_where_load_is_uneven() -> None:
    def mean(routing: str) -> float:
        value = seen(4, users=240, routing=routing, cycle_s=4.0).mean("tpot")
        assert value is not None
        return value

    assert mean("least-load") <= mean("random")
    assert mean("least-load") <= mean("sticky") * 1.02


def test_requests_that_no_engine_takes_are_failures_and_the_users_come_back() -> None:
    found = seen(users=4, lengths=Lengths(prompt_tokens=10**7, output_tokens=10))
    assert found.failed > 4
    assert found.answered == 0


def test_long_prompts_are_cut_to_what_the_model_takes() -> None:
    found = seen(users=40, lengths=Lengths(prompt_tokens=1500, output_tokens=100), cycle_s=20.0)
    assert found.failed == 0


def test_percentiles_are_those_of_the_simulation_and_count_failures() -> None:
    base = seen(users=30)
    assert figure(base, Limit("ttft", "mean", 1)) == base.mean("ttft")
    assert figure(base, Limit("ttft", "p50", 1)) == base.quantile("ttft", 0.5)
    assert figure(base, Limit("gap", "mean", 1)) is None
    failing = msgspec.structs.replace(base, failed=1)
    assert figure(failing, Limit("ttft", "max", 1)) == float("inf")


def test_a_large_fleet_is_cut_into_routers_that_hold_all_of_it() -> None:
    large = traffic(instances=2 * PER_ROUTER + 3, users=1_307)
    parts = shards(large)
    assert sum(part.instances for part in parts) == large.instances
    assert sum(part.users for part in parts) == large.users
    assert max(part.instances for part in parts) <= PER_ROUTER
    ratios = [part.users / part.instances for part in parts]
    assert max(ratios) - min(ratios) < 0.05


@COMPILED_ONLY
def test_routers_give_what_they_give_alone_in_whatever_process() -> None:
    large = traffic(instances=PER_ROUTER + 8, users=900)
    (one,), (two,) = rehearse([large], LOOSE, workers=1), rehearse([large], LOOSE, workers=2)
    assert one.whole
    assert one.seen.sums_s == two.seen.sums_s
    assert joined(one.runs[:2]).sums_s == play(large).sums_s
    assert one.in_flight == pytest.approx(
        900 / large.instances - one.requests_per_s / large.instances, rel=0.1
    )


@COMPILED_ONLY
def test_four_routers_stand_for_a_large_fleet_that_is_clear_of_its_limits() -> None:
    large = traffic(instances=8 * PER_ROUTER, users=6_400)
    told: list[tuple[int, int]] = []
    (some,) = rehearse([large], LOOSE, workers=2, watch=lambda *of: told.append(of))
    assert (len(some.runs), some.instances, some.whole) == (FIRST, FIRST * PER_ROUTER, False)
    assert told[-1] == (FIRST, FIRST)
    (all_,) = rehearse([large], LOOSE, workers=2, whole=True)
    assert (all_.instances, all_.whole) == (8 * PER_ROUTER, True)
    half, mean = some.half_width(LOOSE.limits[0]), some.seen.mean("ttft")
    assert half is not None
    assert mean == pytest.approx(all_.seen.mean("ttft"), abs=2 * half)
    assert some.requests_per_s == pytest.approx(all_.requests_per_s, rel=0.02)
    text = rehearsal.described([all_, some], "vllm")
    assert text.startswith("all 512 instances and 6,400 users behind 8 routers of up to 64")
    assert "4 routers stand for all in 1 of 2 simulations" in text
    assert rehearsal.described([some], "vllm").startswith("256 of 512 equal instances")


@COMPILED_ONLY
def test_more_routers_are_simulated_while_the_interval_holds_the_limit() -> None:
    large = traffic(instances=8 * PER_ROUTER, users=6_400)
    (all_,) = rehearse([large], LOOSE, workers=2, whole=True)
    mean = all_.seen.mean("ttft")
    assert mean is not None
    close = Slo((Limit("ttft", "mean", mean),), 0.05)
    (found,) = rehearse([large], close, workers=2)
    assert len(found.runs) > FIRST


@COMPILED_ONLY
def test_a_small_fleet_is_simulated_with_several_seeds() -> None:
    (clear,) = rehearse([traffic()], LOOSE, workers=1)
    assert (len(clear.runs), clear.routers, clear.whole) == (FIRST, 1, True)
    assert len({run.sums_s["ttft"] for run in clear.runs}) == FIRST
    mean = clear.seen.mean("ttft")
    assert mean is not None
    (close,) = rehearse([traffic()], Slo((Limit("ttft", "mean", mean),), 0.05), workers=1)
    assert FIRST < len(close.runs) <= MOST_SEEDS
    assert "4 times with different seeds" in rehearsal.described([clear], "vllm")


def test_without_compiler_a_few_instances_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "COMPILED", False)
    played = rehearse([traffic(instances=100, users=400)], LOOSE, workers=1)
    assert played[0].instances == 4
    text = rehearsal.described(played, "vllm")
    assert "4 of 100 equal instances" in text
    assert "servecap[fast]" in text


def test_a_day_has_its_levels_and_no_more_than_24_which_are_never_too_low() -> None:
    assert levels(Profile("users", (1, 3, 9, 9)), 90) == [90, 30, 10]
    day = Profile("users", tuple(range(1, 289)))
    found = levels(day, 2880)
    assert (len(found), found[0]) == (24, 2880)
    assert all(any(10 * v <= level for level in found) for v in day.values)
    assert found[-1] >= 10


def test_joined_routers_have_the_mean_of_all() -> None:
    a, b = seen(users=30), seen(users=10)
    both = joined([a, b])
    total = a.sums_s["ttft"] + b.sums_s["ttft"]
    assert both.mean("ttft") == pytest.approx(total / (a.answered + b.answered))


def test_a_plan_that_holds_passes_with_its_evidence() -> None:
    found = verified([cell()], 300, Supply(spare_nodes=1), profile=Profile("users", (1, 3, 9)))
    (check,) = found.checks
    assert check.verdict == "pass"
    assert check.broken == ()
    text = plan_text(found)
    assert "simulated, llama-13b on a100-40GB, TP2 keeps the SLO" in text
    assert "2 more levels of the day" in text
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


@COMPILED_ONLY
def test_a_predicted_cell_with_a_little_too_many_users_is_planned_with_those_that_hold() -> None:
    near = cell(140, slo="ttft.mean<60s", ttft_s=0.1)
    demand = Demand(4 * 140)
    (loose,) = verify(plan([near], demand, slo=LOOSE), [near], workers=1).checks
    limit_s = 0.98 * _means_s(loose)[0]
    slo = Slo((Limit("ttft", "mean", limit_s),), 0.05)
    near = msgspec.structs.replace(near, ttft_s=limit_s)
    first = plan([near], demand, slo=slo)
    words: list[str] = []
    found = verify(first, [near], workers=1, watch=words.append)
    (check,) = found.checks
    assert check.verdict == "pass", check
    best, before = found.models[0].gpus[0].best, first.models[0].gpus[0].best
    assert before.users_per_instance * 0.8 <= best.users_per_instance < before.users_per_instance
    assert best.nodes >= before.nodes
    assert any("its own simulation shows ttft.mean" in note for note in best.notes)
    assert any("how many users hold" in text for text in words)


@COMPILED_ONLY
def test_a_predicted_cell_is_simulated_on_the_engine_that_it_was_predicted_on() -> None:
    """With 432 users, 256 of whom run at once: not 432, which is another engine."""
    job = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4)
    modelled = Modelled(engine=msgspec.to_builtins(job), prompt_spread=1.0, output_spread=0.8)
    full = cell(
        432, tp=4, modelled=modelled, avg_context_tokens=425.0, avg_output_tokens=188.0,
        ttft_s=2.98, tpot_s=0.0392,
    )  # fmt: skip
    demand, supply = Demand(432), Supply(gpus_per_node=4)
    slo = Slo((Limit("ttft", "mean", 6.0), Limit("tpot", "mean", 0.1)), 0.05)
    asked = plan([full], demand, supply, slo=slo)
    (check,) = verify(asked, [full], workers=1).checks
    assert check.verdict == "pass"
    ttft_s, tpot_s = _means_s(check)
    assert ttft_s == pytest.approx(2.98, rel=0.25)
    assert tpot_s == pytest.approx(0.0392, rel=0.1)


def _means_s(check: Check) -> tuple[float, float]:
    """Mean TTFT and TPOT at the busiest time, as the check tells them."""
    (ttft, unit), (tpot, _) = (
        re.findall(rf"mean {x} ([0-9.]+) (m?s)", check.told[0])[0] for x in ("TTFT", "TPOT")
    )
    return float(ttft) * (1e-3 if unit == "ms" else 1.0), float(tpot) * 1e-3


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
