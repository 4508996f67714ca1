"""Speed of the engine model: compiled against reference, and what searches take.

`python bench/engine/bench.py`: ratios first, since the machine differs; one core.
"""

from __future__ import annotations

import heapq
import time
from itertools import product

import numpy as np

from servecap import slo as slos
from servecap.engine import fast
from servecap.engine.engine import Engine, EngineRequest
from servecap.engine.scheduler import ChunkedPrefill, Policy, PrefillFirst
from servecap.predict import profile
from servecap.predict.answer import answer
from servecap.predict.figures import Case, capacity
from servecap.predict.harness import Harness
from servecap.predict.place import place
from servecap.predict.rows import SCENARIOS

SLO = slos.parse(slos.DEFAULT_SLO_TEXT)
USERS = 100
MODELS = ("llama-13b", "llama-65b", "llama2-70b", "internlm-20b", "llama-3.1-8b")
GPUS = ("a30", "a40", "v100", "a100-40gb", "h100")


def traffic(count: int) -> fast.Traffic:
    """100 users with chat lengths and 1 to 3 s to think."""
    rng = np.random.default_rng(0)
    prompt = np.clip(rng.lognormal(5.1, 0.8, count), 1, 1000).astype(np.int64)
    output = np.clip(rng.lognormal(5.0, 0.7, count), 1, 512).astype(np.int64)
    start_s = np.linspace(0, 8, USERS)
    return fast.Traffic(start_s, prompt, output, output, rng.uniform(1, 3, count))


def reference(engine: Engine, load: fast.Traffic) -> None:
    """The same traffic step by step."""
    due = [(float(s), u) for u, s in enumerate(load.start_s)]
    sent, now_s, users, count = 0, 0.0, {}, len(load.prompt_tokens)
    while True:
        while due and sent < count and due[0][0] <= now_s:
            users[sent] = heapq.heappop(due)[1]
            tokens = int(load.output_tokens[sent])
            engine.submit(EngineRequest(sent, int(load.prompt_tokens[sent]), tokens))
            sent += 1
        step = engine.step(now_s)
        if step is None:
            if sent == count or not due:
                return
            now_s = due[0][0]
            continue
        now_s = step.end_s
        for i in step.finished:
            heapq.heappush(due, (now_s + float(load.think_s[i]), users[i]))


def engines() -> None:
    """Requests per second of both engines, interleaved."""
    where = place("llama-13b", "a100-40gb", 4)
    policies: dict[str, Policy] = {
        "chunked prefill": ChunkedPrefill(),
        "prefill first": PrefillFirst(max_batch_prefill_tokens=32768),
    }
    for name, policy in policies.items():
        kind = "vllm" if isinstance(policy, ChunkedPrefill) else "tgi"
        cost = where.coefficients(profile.prior(kind).tuning(where.gpu))
        small, large = traffic(3000), traffic(200_000)
        fast.serve(cost, policy, small, kv_tokens=100_000, max_context_tokens=2048)  # compile
        ratios, rates = [], []
        for _ in range(3):
            begin = time.perf_counter()
            reference(Engine(cost, policy, kv_tokens=100_000, max_context_tokens=2048), small)
            middle = time.perf_counter()
            fast.serve(cost, policy, large, kv_tokens=100_000, max_context_tokens=2048)
            end = time.perf_counter()
            rates.append(200_000 / (end - middle))
            ratios.append(rates[-1] / (3000 / (middle - begin)))
        print(f"{name:<16} {np.median(ratios):6.0f} times the reference, "
              f"{np.median(rates) / 1e6:.2f} million requests/s")  # fmt: skip


def searches() -> None:
    """One answer of 16 seeds, and a matrix of 200 cells."""
    known = profile.prior("vllm")
    one = Case(place=place("llama-13b", "a100-40gb", 4), lengths=SCENARIOS["chat"],
               harness=Harness())  # fmt: skip
    tuning = known.tuning(one.place.gpu)
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        users, _ = capacity(one, tuning, SLO)
        took.append(time.perf_counter() - begin)
    print(f"most users of one cell ({users}), 16 seeds: first {took[0]:.2f} s, "
          f"again {took[-1]:.2f} s")  # fmt: skip
    begin = time.perf_counter()
    cells = list(product(MODELS, GPUS, (1, 2, 4, 8), ("chat", "docqa")))
    for model, gpu, tp, scenario in cells:
        case = Case(place=place(model, gpu, tp), lengths=SCENARIOS[scenario], harness=Harness())
        answer(case, known, SLO, seeds=4)
    print(f"matrix of {len(cells)} cells, 4 seeds: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    engines()
    searches()
