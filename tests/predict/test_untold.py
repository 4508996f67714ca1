"""Settings that a table does not tell: averaged by what the rows make of them."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine import fast
from servecap.engine.hardware import gpu
from servecap.predict import calibrate, profile, untold
from servecap.predict.answer import answer
from servecap.predict.calibrate import Measured
from servecap.predict.figures import Case
from servecap.predict.figures import capacity as capacity_of
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import place
from servecap.predict.profile import Member
from servecap.predict.rows import Rules

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
SLO = slos.parse("ttft.mean<3s,tpot.mean<100ms")
TGI = profile.prior("tgi")
LOGS = [math.log(p.value) for p in TGI.parameters.values()]


def case(tp: int = 4, **settings: object) -> Case:
    harness = Harness(engine="tgi", cycles=5, start_s=1.0, max_batch_prefill_tokens=32768)
    return Case(
        place=place("llama-13b", "a40", tp),
        lengths=Lengths(prompt_tokens=260, output_tokens=190),
        harness=msgspec.structs.replace(harness, **({"untold": True} | settings)),
    )


def member(weight: float, cycles: int, start_s: float) -> Member:
    return Member(weight=weight, cycles=cycles, start_s=start_s, logs=tuple(LOGS))


def test_rows_make_the_settings_likely_under_which_they_were_measured() -> None:
    rows = []
    for tp, users in ((1, 30), (2, 60), (4, 120)):
        here = Measured(case=case(tp, cycles=8, start_s=0.0), users=users, slo=None)
        rows.append(msgspec.structs.replace(here, **calibrate.predicted(here, TGI)))
    fit = untold.fit(rows, TGI, name="made up")
    members = fit.profile.members
    assert (members[0].cycles, members[0].start_s) == (8, 0.0)
    assert members[0].weight == max(m.weight for m in members)
    assert sum(m.weight for m in members) == pytest.approx(1, abs=0.1)
    own = [p.value for p in fit.profile.parameters.values()]
    heaviest = [p.value for p in fit.profile.with_logs(members[0].logs).parameters.values()]
    assert heaviest == pytest.approx(own, rel=1e-4)
    assert fit.rows[0].case == untold.as_fitted(rows[0].case, fit.profile)


def test_what_a_row_tells_is_left_as_it_is() -> None:
    told = case(untold=False)
    assert untold.under(told, member(1.0, 8, 0.0)) == told
    queue = case(cycles=None, queue=250)
    assert untold.under(queue, member(1.0, 8, 0.0)).harness.cycles is None
    row = Measured(case=told, users=20, slo=None)
    row = msgspec.structs.replace(row, **calibrate.predicted(row, TGI))
    assert untold.fit([row], TGI, name="one").profile.members == ()


def test_a_figure_is_the_weighted_median_of_what_all_settings_say() -> None:
    of = {
        (cycles, start_s): untold.under(case(), member(1.0, cycles, start_s)).figures(
            TGI.tuning(case().place.gpu), 100, seeds=2
        )
        for cycles, start_s in untold.SETTINGS
    }
    plain = untold.figures(case(), TGI, 100, seeds=2)  # without rows: all weigh the same
    assert plain.ttft_s == sorted(f.ttft_s for f in of.values())[4]
    assert plain.requests_per_s == sorted(f.requests_per_s for f in of.values())[4]
    known = msgspec.structs.replace(TGI, members=(member(0.6, 3, 0.0), member(0.4, 8, 2.0)))
    assert untold.figures(case(), known, 100, seeds=2).ttft_s == pytest.approx(of[3, 0.0].ttft_s)
    assert of[3, 0.0].ttft_s > 1.1 * of[8, 2.0].ttft_s


def test_a_capacity_is_the_median_too_and_the_answer_tells_it() -> None:
    known = msgspec.structs.replace(TGI, members=(member(0.6, 3, 0.0), member(0.4, 8, 2.0)))
    heavy = untold.under(case(), known.members[0])
    alone, _ = capacity_of(heavy, TGI.tuning(heavy.place.gpu), SLO, seeds=2)
    assert untold.capacity(case(), known, SLO, seeds=2)[0] == pytest.approx(alone, rel=0.02)
    told = answer(case(), known, SLO, seeds=2)
    assert told.max_users is not None
    assert told.max_users.value == pytest.approx(alone, rel=0.02)


def test_a_profile_keeps_its_settings(tmp_path: Path) -> None:
    known = msgspec.structs.replace(TGI, members=(member(0.6, 3, 0.0), member(0.4, 8, 2.0)))
    profile.save(known, tmp_path / "p.json")
    assert profile.load(tmp_path / "p.json") == known


@pytest.mark.parametrize(
    ("rules", "newer", "is_untold"),
    [({}, False, True), ({}, True, True), ({"queue": 250}, False, False),
     ({"queue": 0}, True, False), ({"engine": "vllm"}, False, False)],
)  # fmt: skip
def test_tables_tell_their_settings_or_not(
    rules: dict[str, object], newer: bool, is_untold: bool
) -> None:
    cell = Cell(
        model="llama-13b", gpu="A40", tp=1, scenario="chat", avg_context_tokens=440,
        avg_output_tokens=180 if newer else None, origin="measured", provenance="t.csv:2",
    )  # fmt: skip
    assert Rules(slo=SLO, **rules).harness(cell, gpu("a40")).untold is is_untold  # type: ignore[arg-type]
