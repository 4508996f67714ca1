"""What a plan is started with: every GPU once, the planned instances, valid objects."""

from __future__ import annotations

import re
import shlex
from typing import Any

import msgspec
import pytest
import yaml

from servecap.cell import Capacity, Cell, Modelled
from servecap.errors import UsageError
from servecap.plan import Demand, Plan, Price, Supply, plan
from servecap.plan.emit import FORMS, emit

BASE = Cell(
    model="org/Small 13B", gpu="A100-80GB", tp=2, scenario="chat", origin="measured",
    provenance="t", capacity=Capacity(users=45, users_high=None), ttft_s=2.0, tpot_s=0.06,
)  # fmt: skip
LARGE = msgspec.structs.replace(
    BASE, model="large", tp=4, capacity=Capacity(users=30, users_high=None)
)


def one_model(**supply: Any) -> Plan:
    return plan([BASE], Demand(400), Supply(**supply))


def two_models() -> Plan:
    demand = Demand(users=110, users_of={"org/Small 13B": 80, "large": 30})
    return plan([BASE, LARGE], demand, Supply(prices=(Price("A100-80GB", 2.0),)))


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_vllm_is_started_once_for_each_instance_on_gpus_of_its_own() -> None:
    text = emit(two_models(), "vllm-args")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    gpus: list[str] = []
    ports = []
    for line in lines:
        words = shlex.split(line)
        ids = words[0].removeprefix("CUDA_VISIBLE_DEVICES=").split(",")
        assert len(ids) == int(words[words.index("--tensor-parallel-size") + 1])
        assert words[1:3] == ["vllm", "serve"]
        gpus += ids
        ports.append(words[words.index("--port") + 1])
    assert sorted(gpus) == [str(n) for n in range(8)]
    assert len(set(ports)) == len(lines) == 3
    assert "'org/Small 13B'" in text
    assert "--max-num-seqs 45" in text
    assert text.startswith("# servecap plan for 110 users at the same time (80 of org/Small 13B")


def test_an_engine_runs_no_more_at_once_than_it_was_predicted_with() -> None:
    def started(**engine: object) -> str:
        modelled = Modelled(engine=engine, prompt_spread=1.0, output_spread=0.8)
        return emit(plan([msgspec.structs.replace(BASE, modelled=modelled)], Demand(45)), "k8s")

    assert "- '32'" in started(max_running=32)
    assert "- '45'" in started(max_running=256)
    assert "- '16'" in started(
        max_running=256, policy={"kind": "chunked-prefill", "max_running": 16}
    )


def test_a_compose_file_gives_each_service_its_gpus_and_routes_by_load() -> None:
    (document,) = documents(emit(two_models(), "compose"))
    services = document["services"]
    engines = {n: s for n, s in services.items() if not n.startswith("router")}
    ids = [
        i for s in engines.values()
        for d in s["deploy"]["resources"]["reservations"]["devices"] for i in d["device_ids"]
    ]  # fmt: skip
    assert sorted(ids) == [str(n) for n in range(8)]
    routers = {n: s for n, s in services.items() if n.startswith("router")}
    assert len(routers) == 2
    waited = [name for router in routers.values() for name in router["depends_on"]]
    assert sorted(waited) == sorted(engines)
    for name, router in routers.items():
        config = document["configs"][router["configs"][0]["source"]]["content"]
        assert "least_conn;" in config
        assert set(re.findall(r"server ([a-z0-9-]+):8000;", config)) == set(router["depends_on"])
        assert config.count("{") == config.count("}"), name
    for name in engines:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)


def test_kubernetes_objects_are_valid_and_count_what_the_plan_says() -> None:
    found = one_model(spare_nodes=1)
    objects = documents(emit(found, "k8s"))
    assert [o["kind"] for o in objects] == ["Deployment", "PodDisruptionBudget", "Service"]
    deployment, budget, service = objects
    best = found.models[0].gpus[0].best
    assert deployment["spec"]["replicas"] == best.nodes * best.instances == 16
    assert budget["spec"]["maxUnavailable"] == 4  # the instances of the one spare node
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    for value in labels.values():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value)


def test_kubernetes_objects_keep_the_schema_of_their_kind() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for found in (one_model(), two_models()):
        for item in documents(emit(found, "k8s")):
            validator.validate(item, "1.29", strict=True)


def test_a_prediction_is_marked_where_it_is_started() -> None:
    guess = msgspec.structs.replace(BASE, origin="predicted")
    assert "(PREDICTED, not measured)" in emit(plan([guess], Demand(9)), "k8s").splitlines()[1]


def test_names_from_a_file_stay_in_their_comment_and_word() -> None:
    evil = msgspec.structs.replace(BASE, model="a\nb: {}; rm -rf $HOME")
    text = emit(plan([evil], Demand(9)), "vllm-args")
    assert "a\nb: {}; rm -rf $HOME" in shlex.split(text, comments=True)
    for form in FORMS[:2]:
        documents(emit(plan([evil], Demand(9)), form))


def test_without_a_plan_there_is_nothing_to_start() -> None:
    slow = msgspec.structs.replace(BASE, ttft_s=9.0)
    with pytest.raises(UsageError, match="has no plan"):
        emit(plan([slow], Demand(9)), "compose")
    with pytest.raises(UsageError, match="has no plan"):
        emit(one_model(nodes_max_of={"A100-80GB": 1}), "compose")
