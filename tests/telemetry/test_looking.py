"""Whole runs that are looked at: the emulator's metrics, and a real llama.cpp's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from servecap.emulate.config import EmulatorConfig
from servecap.emulate.launch import running
from servecap.probe import Around, TargetSpec, open_bench
from servecap.scenario import ClosedLoop, Scenario, StopRule, WorkloadSpec
from servecap.store import read_run
from servecap.summarize import summarize

SMALL = EmulatorConfig(model="llama-13b", gpu="a100-40gb", tp=4, model_name="tiny")
ASKED = Scenario(
    load=ClosedLoop(users=6, think_s=(0.0, 0.1)),
    workload=WorkloadSpec(source="fixed:20/30"),
    stop=StopRule(duration_s=4.0),
)


def test_client_and_emulator_agree(tmp_path: Path) -> None:
    with running(SMALL) as url:
        bench = open_bench(TargetSpec(url=url), ASKED.workload, ASKED.timeouts, around=Around())
        try:
            run = bench.run(ASKED, tmp_path / "run")
        finally:
            bench.close()
    told = summarize(run).telemetry
    assert told is not None
    assert 0 < (told.readings["server.running"].mean or 0) <= 6
    assert 0 < (told.readings["server.kv_used_share"].high or 0) <= 1
    own = summarize(run).client
    assert told.server["tpot"].mean_s == pytest.approx(own["tpot"].mean, rel=0.2, abs=0.005)
    assert told.server["ttft"].mean_s <= own["ttft_sent"].mean + 0.02
    assert read_run(tmp_path / "run").telemetry == run.telemetry, "a stored run is the same run"


@pytest.mark.engine
def test_llama_cpp_is_looked_at(llama_url: str, tmp_path: Path) -> None:
    """It may stall while it is busy: then that is told instead."""
    bench = open_bench(TargetSpec(url=llama_url), ASKED.workload, ASKED.timeouts, around=Around())
    try:
        run = bench.run(ASKED, tmp_path / "run")
    finally:
        bench.close()
    looks = [s for s in run.telemetry if s.source == "server"]
    assert looks
    assert any(s.values.get("output_tokens") for s in looks)
    assert not any(s.over for s in looks)


def test_a_killed_client_leaves_no_sampler(tmp_path: Path) -> None:
    """SIGKILL in mid-run: the samples so far can be read, and nothing goes on."""
    with running(SMALL) as url:
        words = f"run --url {url} --users 2 --duration 60 --workload fixed:8/8 --quiet".split()
        client = subprocess.Popen(
            [sys.executable, "-m", "servecap", *words, "--out", str(tmp_path / "run")]
        )
        deadline = time.monotonic() + 30
        children: list[psutil.Process] = []
        while time.monotonic() < deadline:
            children = psutil.Process(client.pid).children()
            if (tmp_path / "run" / "telemetry.jsonl").exists() and children:
                break
            threading.Event().wait(0.02)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        gone, left = psutil.wait_procs(children, 20)
        assert gone
        assert not left
    for line in (tmp_path / "run" / "telemetry.jsonl").read_bytes().split(b"\n")[:-1]:
        assert json.loads(line)["source"] in ("server", "client", "gpu")
