"""A plan as something to start: vLLM's arguments, a Compose file for a node, or Kubernetes objects.

Only what the plan decides is written: the tensor-parallel degree, how many instances, which GPUs,
and how many users may be in an engine at once. Flags are those of vLLM's OpenAI server.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Literal

import msgspec
import yaml

from servecap.errors import UsageError
from servecap.plan.answer import ModelPlan, Part, Plan

Form = Literal["compose", "k8s", "vllm-args"]
FORMS: tuple[Form, ...] = ("compose", "k8s", "vllm-args")
PORT = 8000
IMAGE = "vllm/vllm-openai:latest"
ROUTER_IMAGE = "nginx:stable"


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """Equal servers on one kind of node."""

    model: str
    gpu: str
    tp: int
    per_node: int
    nodes: int
    users: int  # that the plan gives it at most
    running: int  # requests that run in its engine at once, at most
    predicted: bool

    @property
    def name(self) -> str:
        """A DNS label: lower-case letters, digits and dashes, at most 63 characters."""
        text = f"{self.model}-{self.gpu}-tp{self.tp}".casefold()
        return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:63].rstrip("-")

    @property
    def arguments(self) -> list[str]:
        """vLLM's arguments; no more requests run at once than users, or than was predicted with."""
        return [
            "--model", self.model, "--tensor-parallel-size", str(self.tp),
            "--max-num-seqs", str(self.running), "--host", "0.0.0.0", "--port", str(PORT),
        ]  # fmt: skip


def emit(plan: Plan, form: Form) -> str:
    """The plan's first choice in that form, with what it rests on as comments above.

    Raises:
        UsageError: there is nothing to start: a model has no plan.
    """
    parts = chosen(plan)
    head = _head(plan, parts)
    match form:
        case "vllm-args":
            return head + "".join(_argument_lines(plan, part) for part in parts)
        case "compose":
            return head + "---\n".join(_compose(plan, part) for part in parts)
        case "k8s":
            return head + yaml.safe_dump_all(_objects(plan, parts), sort_keys=False)


def chosen(plan: Plan) -> list[Part]:
    """The nodes that the plan recommends: the shared fleet's, else each model's own.

    Raises:
        UsageError: a model has no plan.
    """
    if plan.fleet is not None:
        return list(plan.fleet.parts)
    found: list[Part] = []
    for model in plan.models:
        found += _of_model(model)
    return found


def _of_model(model: ModelPlan) -> list[Part]:
    if not model.gpus or (model.gpus[0].best.missing_nodes and model.fleet is None):
        raise UsageError(f"{model.model} has no plan, so there is nothing to start for it")
    first, best = model.gpus[0], model.gpus[0].best
    if best.missing_nodes and model.fleet is not None:
        return list(model.fleet.parts)
    return [
        Part(
            gpu=first.gpu,
            interconnect=first.interconnect,
            gpus_per_node=first.gpus_per_node,
            nodes=best.nodes,
            split=((model.model, best.tp, best.instances),),
            usd_per_h=best.usd_per_h,
            predicted=best.origin == "predicted",
        )
    ]


def instances(plan: Plan, part: Part) -> list[Instance]:
    """The servers on a node of that part."""
    found = []
    for model, tp, count in part.split:
        cut = next(
            split
            for m in plan.models if m.model == model
            for g in m.gpus if (g.gpu, g.interconnect) == (part.gpu, part.interconnect)
            for split in g.splits if split.tp == tp
        )  # fmt: skip
        found.append(
            Instance(
                model=model, gpu=part.gpu, tp=tp, per_node=count, nodes=part.nodes,
                users=cut.users_per_instance,
                running=min(cut.users_per_instance, cut.max_running or cut.users_per_instance),
                predicted=part.predicted,
            )
        )  # fmt: skip
    return found


def _head(plan: Plan, parts: list[Part]) -> str:
    out = [f"servecap plan for {plan.demand.text}; scenario {plan.scenario}; SLO {plan.slo}"]
    for part in parts:
        guess = " (PREDICTED, not measured)" if part.predicted else ""
        out.append(
            f"{part.nodes} x node of {part.gpus_per_node} x {part.gpu}: {part.split_text}{guess}"
        )
    out.append("engine flags beyond these are those that the cells were measured with: add yours")
    return "".join(f"# {' '.join(line.split())}\n" for line in out)


def _argument_lines(plan: Plan, part: Part) -> str:
    lines, gpu, number = [], 0, 0
    for one in instances(plan, part):
        for _ in range(one.per_node):
            ids = ",".join(map(str, range(gpu, gpu + one.tp)))
            arguments = [*one.arguments[:-1], str(PORT + number)]
            lines.append(f"CUDA_VISIBLE_DEVICES={ids} vllm serve {_serve(arguments)}\n")
            gpu, number = gpu + one.tp, number + 1
    return f"# on each of {part.nodes} nodes of {part.gpus_per_node} x {part.gpu}\n{''.join(lines)}"


def _serve(arguments: list[str]) -> str:
    """`vllm serve MODEL ...` takes the model without its flag."""
    return shlex.join(arguments[1:])


def _compose(plan: Plan, part: Part) -> str:
    """The services of one node; the same file runs on every node of the part."""
    services: dict[str, Any] = {}
    gpu = 0
    for one in instances(plan, part):
        for number in range(one.per_node):
            services[f"{one.name}-{number}"] = _service(one, range(gpu, gpu + one.tp))
            gpu += one.tp
    for port, (model, names) in enumerate(_by_model(plan, part, list(services)), start=PORT):
        services[f"router-{port}"] = {
            "image": ROUTER_IMAGE,
            "ports": [f"{port}:{PORT}"],
            "configs": [{"source": f"router-{port}", "target": "/etc/nginx/nginx.conf"}],
            "depends_on": {name: {"condition": "service_healthy"} for name in names},
            "restart": "unless-stopped",
            "labels": {"servecap.model": model},
        }
    configs = {
        f"router-{port}": {"content": _nginx(names)}
        for port, (_, names) in enumerate(_by_model(plan, part, list(services)), start=PORT)
    }
    document = {"services": services, "configs": configs}
    return f"# on each of {part.nodes} nodes of {part.gpus_per_node} x {part.gpu}\n" + (
        yaml.safe_dump(document, sort_keys=False)
    )


def _by_model(plan: Plan, part: Part, services: list[str]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for one in instances(plan, part):
        names = {f"{one.name}-{number}" for number in range(one.per_node)}
        found.setdefault(one.model, []).extend(s for s in services if s in names)
    return list(found.items())


def _nginx(names: list[str]) -> str:
    """Routes to the instance with the fewest requests; streams pass unbuffered."""
    servers = "".join(f"    server {name}:{PORT};\n" for name in names)
    return (
        "events { worker_connections 65536; }\n"
        f"http {{\n  upstream engines {{\n    least_conn;\n{servers}  }}\n"
        f"  server {{\n    listen {PORT};\n    location / {{\n"
        "      proxy_pass http://engines;\n      proxy_http_version 1.1;\n"
        '      proxy_set_header Connection "";\n      proxy_buffering off;\n'
        "      proxy_read_timeout 600s;\n    }\n  }\n}\n"
    )


def _service(one: Instance, gpus: range) -> dict[str, Any]:
    return {
        "image": IMAGE,
        "command": one.arguments,
        "ipc": "host",  # tensor parallelism shares memory between processes
        "restart": "unless-stopped",
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [
                        {"driver": "nvidia", "device_ids": [str(gpu) for gpu in gpus],
                         "capabilities": ["gpu"]}
                    ]
                }
            }
        },
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", f"http://localhost:{PORT}/health"],
            "interval": "10s", "timeout": "5s", "retries": 3, "start_period": "15m",
        },
    }  # fmt: skip


def _objects(plan: Plan, parts: list[Part]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    models: list[str] = []
    for part in parts:
        for one in instances(plan, part):
            if one.model not in models:
                models.append(one.model)
            found += [_deployment(one), _disruption(one, plan)]
    return [*found, *(_kube_service(model) for model in models)]


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:63].rstrip("-")


def _deployment(one: Instance) -> dict[str, Any]:
    labels = {"app": one.name, "servecap-model": _label(one.model)}
    probe = {"httpGet": {"path": "/health", "port": PORT}}
    container = {
        "name": "vllm",
        "image": IMAGE,
        "args": one.arguments,
        "ports": [{"containerPort": PORT, "name": "http"}],
        "resources": {
            "limits": {"nvidia.com/gpu": str(one.tp)}, "requests": {"nvidia.com/gpu": str(one.tp)}
        },
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 90},
        "readinessProbe": {**probe, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": 20, "failureThreshold": 5},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": one.name, "labels": labels},
        "spec": {
            "replicas": one.per_node * one.nodes,
            "selector": {"matchLabels": {"app": one.name}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": {"servecap-gpu": _label(one.gpu)},
                    "terminationGracePeriodSeconds": 120,
                    "containers": [container],
                    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
                },
            },
        },
    }


def _disruption(one: Instance, plan: Plan) -> dict[str, Any]:
    """So many instances may be taken down on purpose as the plan keeps in reserve."""
    spare = min(plan.supply.spare_nodes, one.nodes) * one.per_node
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": one.name},
        "spec": {
            "maxUnavailable": spare,
            "selector": {"matchLabels": {"app": one.name}},
        },
    }


def _kube_service(model: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _label(model)},
        "spec": {
            "selector": {"servecap-model": _label(model)},
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT}],
        },
    }
