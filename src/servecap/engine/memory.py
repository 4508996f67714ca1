"""What of a GPU's memory is left for keys and values, and whether a model fits at all."""

from __future__ import annotations

from servecap.engine.hardware import GIB, Gpu
from servecap.engine.shape import ModelShape
from servecap.errors import UsageError

# vLLM's default: the share of the memory that the engine may take.
MEMORY_SHARE = 0.9

# CUDA context, kernels, communication buffers and captured graphs. With the activations below it
# leaves 41,320 KV tokens for llama-3.1-8b on an RTX 4090, where vLLM 0.19 reported 41,408.
RUNTIME_BYTES = int(0.75 * GIB)

# A server that cannot hold one sequence of this length is of no use.
_LEAST_CONTEXT_TOKENS = 2048

_DEGREES = (1, 2, 4, 8, 16, 32)


def activation_bytes(model: ModelShape, tp: int, *, step_tokens: int, sequences: int) -> int:
    """The largest working set of a step: hidden states, the feed-forward part and the logits.

    Four vectors of the hidden size (input, residual, q/k/v, output) and the two halves of the
    gated feed-forward part live at once, in 16 bits; logits are sampled in 32 bits, twice.
    """
    width = model.intermediate
    if (e := model.experts) is not None:  # each token passes through several narrow ones
        width = e.used * e.intermediate + e.shared_intermediate
    per_token = (4 * model.hidden + 2 * -(-width // tp)) * 2
    return step_tokens * per_token + sequences * model.vocabulary * 4 * 2


def kv_room_bytes(
    model: ModelShape,
    gpu: Gpu,
    tp: int,
    *,
    step_tokens: int,
    sequences: int,
    memory_share: float = MEMORY_SHARE,
) -> int:
    """Bytes per GPU that are left for keys and values; negative where the weights do not fit."""
    activations = activation_bytes(model, tp, step_tokens=step_tokens, sequences=sequences)
    weights = -(-model.weight_bytes // tp)
    return int(gpu.usable_bytes * memory_share) - weights - activations - RUNTIME_BYTES


def kv_tokens(
    model: ModelShape,
    gpu: Gpu,
    tp: int,
    *,
    step_tokens: int,
    sequences: int,
    memory_share: float = MEMORY_SHARE,
    context_tokens: float | None = None,
) -> int:
    """Tokens whose keys and values fit beside the weights.

    Args:
        step_tokens: most tokens computed in one step.
        sequences: most sequences that run at once.
        memory_share: of the GPU's memory, that the engine may take.
        context_tokens: mean length of the sequences, where the engine frees what has left a
            layer's window; None: it keeps all. (The pool is counted in whole tokens.)
    Raises:
        UsageError: the heads cannot be divided by *tp*, or the model does not fit; the message
            says how much memory is missing and the smallest degree that fits.
    """
    if tp < 1 or model.heads % tp:
        raise UsageError(
            f"tp {tp} does not divide the {model.heads} attention heads of {model.name}; "
            f"possible: {', '.join(str(n) for n in range(1, 33) if model.heads % n == 0)}"
        )
    room = kv_room_bytes(
        model, gpu, tp, step_tokens=step_tokens, sequences=sequences, memory_share=memory_share
    )
    per_token = model.kv_bytes_per_token_per_gpu(tp, context_tokens=context_tokens)
    least = min(_LEAST_CONTEXT_TOKENS, model.max_context_tokens) * per_token
    if room < least:
        smallest = _smallest_tp(model, gpu, step_tokens=step_tokens, sequences=sequences)
        advice = f"the smallest tp that fits is {smallest}" if smallest else "no tp up to 32 fits"
        raise UsageError(
            f"{model.name} ({model.weight_bytes / GIB:.1f} GiB of weights) does not fit on "
            f"{tp} x {gpu.name}: {(least - room) / GIB:.1f} GiB too little per GPU; {advice}"
        )
    return int(room // per_token)


def _smallest_tp(model: ModelShape, gpu: Gpu, *, step_tokens: int, sequences: int) -> int | None:
    for tp in _DEGREES:
        room = kv_room_bytes(model, gpu, tp, step_tokens=step_tokens, sequences=sequences)
        least = min(_LEAST_CONTEXT_TOKENS, model.max_context_tokens)
        if model.heads % tp == 0 and room >= least * model.kv_bytes_per_token_per_gpu(tp):
            return tp
    return None
