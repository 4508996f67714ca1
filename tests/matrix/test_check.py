"""`servecap audit` on tables: what cannot be, and what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from servecap import slo
from servecap.cell import Capacity, Cell
from servecap.cli import cli
from servecap.matrix import files
from servecap.matrix.check import Finding, check
from servecap.matrix.journal import JOURNAL, Entry, append

SHARED = Path(__file__).resolve().parents[2] / "../shared/data/matrix_chat.csv"
HEAD = (
    "model,gpu,tp,scenario,max_users,ttft_s,tpot_ms,avg_context_tokens,avg_output_tokens,"
    "requests_per_s,tokens_per_s"
)
# 100 users, 1 s + 2 s think + 199 x 50 ms: a cycle of 12.95 s, 7.72 requests/s, 400 tokens each
GOOD = "m,A,1,chat,100,1,50,400,200,7.72,3088"


def found(*rows: str, queue: int | None = None) -> list[Finding]:
    return check("\n".join([HEAD, *rows]), name="t.csv", queue=queue)[1]


def test_figures_that_agree_are_left_alone() -> None:
    assert found(GOOD) == []


def test_exchanged_columns_are_told_once_for_the_whole_table() -> None:
    rows = [f"m,{gpu},1,chat,100,1,50,400,200,3088,7.72" for gpu in "ABC"]
    (one,) = found(*rows)
    assert (one.kind, one.line) == ("swapped", None)
    assert "3 of 3" in one.said


def test_one_exchanged_row_is_told_by_itself() -> None:
    kinds = [(x.kind, x.line) for x in found(GOOD, "m,B,1,chat,100,1,50,400,200,3088,7.72",
                                             GOOD.replace("A", "C", 1))]  # fmt: skip
    assert kinds == [("swapped", 3)]


def test_a_cycle_shorter_than_waiting_is_impossible_and_what_it_should_be_is_told() -> None:
    (one,) = found("m,A,1,chat,100,1,50,400,200,50,3088")
    assert one.kind == "impossible"
    assert "7.72" in one.should_be


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ("m,A,1,chat,100,1,50,400,200,9.5,3088", "7.72 requests/s"),
        ("m,A,1,chat,100,1,50,400,200,7.72,6176", "3,088 tokens/s"),
    ],
)
def test_of_two_figures_that_contradict_the_one_that_fits_littles_law_stays(
    row: str, right: str
) -> None:
    (one,) = found(row)
    assert one.kind == "contradiction"
    assert right in one.should_be


def test_more_requests_than_littles_law_allows_is_impossible() -> None:
    (one,) = found("m,A,1,chat,100,1,50,400,200,14.5,3088")  # as tokens/s of answers it would fit
    assert (one.kind, one.should_be) == ("impossible", "7.72 requests/s")


def test_rounding_is_no_contradiction() -> None:
    assert [
        x for x in found("m,A,1,chat,4,1,50,400,200,0.3,140") if x.kind == "contradiction"
    ] == []


def test_the_tail_of_a_finite_queue_is_seen_in_its_rate() -> None:
    (one,) = found("m,A,1,chat,100,1,50,400,200,5,2000")
    assert one.kind == "tail"
    assert "7.72" in one.should_be
    kinds = [x.said for x in found(GOOD, queue=80)]
    assert kinds == [
        "80 requests for 100 users: not even one for each, so there was no steady state"
    ]


def test_a_broken_slo_is_told_with_how_much() -> None:
    text = f"{HEAD}\n{GOOD}"
    _, findings = check(text, name="t", slo=slo.parse("ttft.mean<800ms,tpot.mean<40ms"))
    assert [x.kind for x in findings] == ["slo", "slo"]
    assert "25.0% over" in findings[0].said


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_times_under_each_others_headings_are_told_and_the_rest_is_judged() -> None:
    rows = [f"m,{gpu},1,chat,100,0.05,1000,400,200,7.72,3088" for gpu in "ABC"]
    (one,) = found(*rows)
    assert (one.kind, one.said) == ("swapped", "TPOT is far above TTFT in 3 of 3 rows")
    one, *rest = found(GOOD, rows[1], GOOD.replace("A", "C", 1))
    assert (one.line, one.should_be) == (3, "TTFT 1 s and TPOT 0.05 s: exchanged")
    assert not rest


@pytest.mark.parametrize(
    ("ttft", "tpot", "right"),
    [
        ("1000", "50", "under a heading of milliseconds: ttft_ms"),
        ("1", "0.05", "under a heading of seconds: tpot_s"),
        ("2000", "50000", "under a heading of milliseconds: tpot_ms"),
    ],
)
def test_values_in_another_unit_than_the_heading_are_told_once(
    ttft: str, tpot: str, right: str
) -> None:
    row = f"m,A,1,chat,100,{ttft},{tpot},400,200,7.72,3088"
    whole = [f for f in found(*(row.replace("A", gpu) for gpu in "ABC")) if f.line is None]
    assert right in [f.should_be for f in whole]


def test_late_first_tokens_that_littles_law_bears_out_are_no_wrong_unit() -> None:
    kinds = [f.kind for f in found("m,A,1,chat,100,90,50,400,200,0.98,392")]
    assert kinds == ["slo"]


def test_a_value_that_cannot_be_is_a_finding_and_the_other_rows_are_judged() -> None:
    wrong = GOOD.replace(",1,50,", ",-1,50,")
    first, second, *rest = found(wrong, GOOD.replace("100", "many"), GOOD.replace("50", "150"))
    assert (first.kind, first.line) == ("impossible", 2)
    assert first.said == "column 'ttft_s': '-1' is not greater than 0"
    assert "'many' is not a number" in second.said
    assert {f.line for f in rest} == {4}


def test_units_in_brackets_and_chinese_headings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "Model Name,GPU,TP,并发用户数,首字时延（ms）,Avg Token Latency [ms],colour\n"
        "m,A,1,100,4000,50,red\n",
        encoding="utf-8",
    )
    done = CliRunner().invoke(cli, ["audit", str(path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 cell, 1 finding\n")
    assert "breaks ttft.mean<3s: 4 s is 33.3% over" in done.stdout
    assert "column 'colour' is not known" in done.stderr


def test_a_matrix_and_its_json_are_audited_like_a_table(tmp_path: Path) -> None:
    cell = Cell(model="m", gpu="A", tp=1, scenario="chat", origin="measured", provenance="here",
                capacity=Capacity(users=100, users_high=None), ttft_s=4.0, tpot_s=0.05)  # fmt: skip
    files.write(tmp_path / "m.json", [cell])
    append(tmp_path / JOURNAL, Entry(key="k", place="p", name="m", at_utc="", cell=cell))
    for path in (tmp_path / "m.json", tmp_path):
        done = CliRunner().invoke(cli, ["audit", str(path)])
        assert done.exit_code == 0, done.output
        assert "breaks ttft.mean<3s: 4 s is 33.3% over" in done.output


def test_a_row_that_tells_no_users_is_held_against_the_rest_of_itself() -> None:
    _, found = check(
        "model,gpu,tp,ttft_s,tpot_ms,qps,tps,tokens_counted,avg_context_tokens\n"
        "m,g,1,4,50,2,1800,total,450\n",
        name="t.csv",
    )
    (slo, apart) = sorted(found, key=lambda f: f.kind, reverse=True)
    assert apart.kind == "contradiction"
    assert (slo.kind, slo.should_be) == ("slo", "listed with fewer users")


def test_the_published_chat_table() -> None:
    count, findings = check(SHARED.read_text(encoding="utf-8"), name="chat")
    by_place = {(x.where, x.kind): x for x in findings}
    assert count == 22
    assert by_place["whole table", "swapped"].line is None
    v100 = by_place["llama-13b V100 TP4, chat", "contradiction"]
    assert "14.5" in v100.said
    assert v100.should_be.startswith("7.18 requests/s")
    a100 = by_place["llama-13b A100 TP1, chat-zh", "impossible"]
    assert "36" in a100.said
    assert "24.8" in a100.should_be
    wrong_tokens = [
        x.where for x in findings if x.should_be.endswith("(requests/s fits Little's law)")
    ]
    assert [w.split(",")[0] for w in wrong_tokens] == [
        "llama-13b A100 TP4", "llama-13b A100 TP8", "llama-65b A100 TP8",
    ]  # fmt: skip
    tails = [x for x in findings if x.kind == "tail"]
    assert len(tails) == 5
    assert all(x.where.startswith("llama2-70b") for x in tails)
    assert len({x.line for x in findings if x.kind == "slo"}) == 11


def test_the_command_prints_findings_and_exits_with_4(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"{HEAD}\nm,A,1,chat,100,1,50,400,200,50,3088\n")
    done = CliRunner().invoke(cli, ["audit", str(table)], standalone_mode=False)
    assert done.return_value == 4
    assert "impossible" in done.output
    table.write_text(f"{HEAD}\n{GOOD}\n")
    done = CliRunner().invoke(cli, ["audit", str(table), "--json"], standalone_mode=False)
    assert done.return_value == 0
    assert '"findings": []' in done.output
