"""What the emulator pretends to be."""

from __future__ import annotations

import math

import msgspec

from servecap.engine.model import KvDtype
from servecap.engine.spec import EngineKind, EngineSpec
from servecap.errors import UsageError


class EmulatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One emulated server.

    `speed`: emulated seconds per real second; at 10 a client sees a server ten times as fast.
    `prefix_cache`: prompts that begin alike are computed once; answers tell of hits, as vLLM's do
    with `--enable-prompt-tokens-details`.
    `output_mean_tokens`: mean length of answers to requests that leave the length to the model.
    `max_queue`: with that many requests waiting for a place, new ones get HTTP 429.
    `fail_share`: share of requests that get HTTP 500. `cut_share`: share of streams whose
    connection breaks in the middle. `freeze_at_s`, `freeze_s`: once, so long after the start (in
    real seconds), the server stands still for so long.
    """

    model: str
    gpu: str
    tp: int = 1
    engine: EngineKind = "vllm"
    gpu_memory_gb: float | None = None
    weights: str | None = None
    kv_dtype: KvDtype | None = None
    max_running: int | None = None  # the engine's own
    host: str = "127.0.0.1"
    port: int = 0
    model_name: str | None = None  # as clients call it; None: `model`
    seed: int = 0
    speed: float = 1.0
    output_mean_tokens: float = 200.0
    max_queue: int | None = None
    prefix_cache: bool = False
    api_key: str | None = None
    tgi_prefill_header: bool = False
    fail_share: float = 0.0
    cut_share: float = 0.0
    freeze_at_s: float = 0.0
    freeze_s: float = 0.0

    @property
    def served_name(self) -> str:
        return self.model_name or self.model

    @property
    def spec(self) -> EngineSpec:
        """The engine behind it."""
        return EngineSpec(
            model=self.model,
            gpu=self.gpu,
            tp=self.tp,
            engine=self.engine,
            max_running=self.max_running,
            gpu_memory_gb=self.gpu_memory_gb,
            prefix_cache=self.prefix_cache,
            weights=self.weights,
            kv_dtype=self.kv_dtype,
        )


def check(config: EmulatorConfig) -> None:
    """Returns if every number of *config* makes sense by itself.

    Raises:
        UsageError: one does not; the message names it, its value and what is allowed.
    """
    allowed = (
        ("port", config.port, 0, 65_535),
        ("speed", config.speed, 1e-3, 1e3),
        ("output_mean_tokens", config.output_mean_tokens, 1, 1e6),
        ("max_queue", config.max_queue, 0, math.inf),
        ("fail_share", config.fail_share, 0, 1),
        ("cut_share", config.cut_share, 0, 1),
        ("freeze_at_s", config.freeze_at_s, 0, math.inf),
        ("freeze_s", config.freeze_s, 0, math.inf),
    )
    for name, value, low, high in allowed:
        if value is not None and not low <= value <= high:
            between = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UsageError(f"{name} is {value:g}; it must be {between}")
