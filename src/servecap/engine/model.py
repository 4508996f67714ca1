"""Shapes of dense decoder-only models, read from a Hugging Face config.json."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from servecap.errors import UsageError

# Families whose block is: RMSNorm, q/k/v/o projections, RMSNorm, gate/up/down projections.
_GATED_BLOCKS = ("llama", "mistral", "qwen2", "qwen3", "internlm", "internlm2", "yi")
_MOE_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


class ModelShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dense transformer with multi-head or grouped-query attention, in 16-bit numbers.

    `qkv_biases`: whether the q, k and v projections have a bias (they are counted, as memory);
    `head_norms`: whether q and k are normalised per head (Qwen 3).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_context_tokens: int
    tied_embeddings: bool = False
    qkv_biases: bool = False
    o_bias: bool = False
    head_norms: bool = False
    weight_bytes_each: int = 2
    kv_bytes_each: int = 2

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices: each is multiplied with every token."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the output layer: multiplied with the tokens that are sampled only."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights, biases and norms."""
        norms = self.layers * 2 * self.hidden + self.hidden
        if self.head_norms:
            norms += self.layers * 2 * self.head_dim
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_biases else 0
        biases += self.hidden if self.o_bias else 0
        embeddings = self.head_parameters * (1 if self.tied_embeddings else 2)
        return self.linear_parameters + embeddings + norms + self.layers * biases

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.weight_bytes_each

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, over all GPUs (no head is stored twice).

        Source: 2 x layers x kv_heads x head_dim x bytes (FlashAttention, PagedAttention papers).
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes_each

    def kv_bytes_per_token_per_gpu(self, tp: int) -> int:
        """The share of one GPU of *tp*; with more GPUs than KV heads, heads are copied."""
        heads = -(-self.kv_heads // tp)
        return 2 * self.layers * heads * self.head_dim * self.kv_bytes_each


def from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that a config.json describes.

    Raises:
        UsageError: a key is missing or makes no sense, or the model is of a kind that is not
            modelled yet (mixture of experts, latent attention, sliding window, quantised).
    """
    _refuse_unmodelled(config, name)
    heads = _integer(config, "num_attention_heads", name)
    hidden = _integer(config, "hidden_size", name)
    kv_heads = _integer(config, "num_key_value_heads", name, default=heads)
    head_dim = _integer(config, "head_dim", name, default=hidden // heads)
    if heads % kv_heads:
        raise UsageError(
            f"model {name!r}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    family = config["model_type"]
    # InternLM 1 says "bias" for q, k, v and o; Llama and Qwen 3 "attention_bias" for the same.
    all_biases = bool(config.get("bias" if family == "internlm" else "attention_bias", False))
    return ModelShape(
        name=name,
        layers=_integer(config, "num_hidden_layers", name),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_integer(config, "intermediate_size", name),
        vocabulary=_integer(config, "vocab_size", name),
        max_context_tokens=_integer(config, "max_position_embeddings", name),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_biases=family == "qwen2" or all_biases,
        o_bias=all_biases,
        head_norms=family == "qwen3",
    )


def _refuse_unmodelled(config: Mapping[str, Any], name: str) -> None:
    reason = _unmodelled(config)
    if reason:
        raise UsageError(f"model {name!r} is not modelled yet: {reason}")


def _unmodelled(config: Mapping[str, Any]) -> str | None:
    if any(config.get(key) for key in _MOE_KEYS):
        return "it is a mixture of experts"
    if config.get("kv_lora_rank"):
        return "it has latent attention (MLA)"
    if config.get("quantization_config"):
        return "its weights are quantised"
    family = config.get("model_type")
    if family not in _GATED_BLOCKS:
        return f"model_type {family!r} is not one of {', '.join(_GATED_BLOCKS)}"
    window = config.get("sliding_window")
    sliding = window and config.get("use_sliding_window", True)
    if sliding and window != config.get("max_position_embeddings"):  # if equal, it never slides
        return f"its attention slides over {window} tokens"
    return None


def _integer(config: Mapping[str, Any], key: str, name: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise UsageError(f"model {name!r}: config.json has no {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"model {name!r}: {key} is {value!r}, not a whole number of at least 1")
    return value


@functools.cache
def presets() -> tuple[str, ...]:
    """Names of the built-in models."""
    return tuple(_configs())


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    file = importlib.resources.files("servecap.engine").joinpath("data/models.json")
    return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, Any]])


def model(name: str) -> ModelShape:
    """The built-in model with that name, or the one whose config.json (or folder) *name* is.

    Names as on model hubs are understood: "meta-llama/Llama-2-13b-chat-hf" is llama2-13b.

    Raises:
        UsageError: neither a built-in model nor a readable config.json.

    >>> model("llama-13b").parameters, model("Qwen/Qwen2.5-7B-Instruct").name
    (13015864320, 'qwen2.5-7b')
    """
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return _from_file(path)
    key = _plain(name)
    for preset, config in _configs().items():
        if _plain(preset) == key:
            return from_config(config, name=preset)
    near = difflib.get_close_matches(name.lower(), presets(), n=3, cutoff=0.5) or presets()
    raise UsageError(
        f"model {name!r} is neither built in (near it: {', '.join(near)}) nor a config.json"
    )


def _from_file(path: Path) -> ModelShape:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not the JSON object of a model: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return from_config(config, name=path.resolve().parent.name)


def _plain(name: str) -> str:
    """Lower case, without owner, variant and separators."""
    last = name.lower().rsplit("/", 1)[-1].removeprefix("meta-")
    last = re.sub(r"-(hf|chat|instruct|base)\b", "", last)
    return re.sub(r"[^a-z0-9.]", "", last)
