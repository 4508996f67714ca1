"""`find --gpu` against the emulator of that GPU: the first level is the engine model's guess."""

from __future__ import annotations

from pathlib import Path

import msgspec
from commands import started
from raw_http import SMALL

from servecap import slo
from servecap.emulate.launch import running
from servecap.predict.guess import first_level, users_expected
from servecap.scenario import ClosedLoop, Scenario, WorkloadSpec

LIMITS, LENGTHS = "ttft.mean<300ms", "fixed:1024/16"
GONE_S = 120.0


def test_find_begins_where_the_engine_model_expects_the_server_to_be_full(tmp_path: Path) -> None:
    server = msgspec.structs.replace(SMALL, speed=1, model_name=None)
    asked = Scenario(
        load=ClosedLoop(users=1, think_s=(0.1, 0.3)),
        workload=WorkloadSpec(source=LENGTHS),
        slo=slo.parse(LIMITS),
    )
    expected = users_expected(server.spec, asked)
    assert expected is not None
    first = first_level(expected, otherwise=8, most=1000)
    assert 1 < first < 8
    with running(server) as url:
        process = started(
            "find", "--url", url, "--model", server.model, "--gpu", server.gpu,
            "--tp", str(server.tp), "--workload", LENGTHS, "--think", "0.1..0.3",
            "--slo", LIMITS, "--requests", "20", "--budget", "2s", "--no-telemetry",
            "--out", tmp_path / "out",
        )  # fmt: skip
        said, erred = process.communicate(timeout=GONE_S)
    assert f"the engine model expects {expected.low:.0f} to {expected.high:.0f} users" in erred
    levels = sorted(path.name for path in (tmp_path / "out").glob("*-users-*"))
    assert levels[0] == f"01-users-{first}", said
