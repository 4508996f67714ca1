"""What a Hugging Face config.json says of a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from servecap.engine.shape import FORMATS, Experts, Latent, ModelShape, Weights, Window
from servecap.errors import UsageError

# Families whose block is: RMSNorm, q/k/v/o projections, RMSNorm, gate/up/down projections.
_DENSE = ("llama", "mistral", "qwen2", "qwen3", "internlm", "internlm2", "yi", "phi3",
          "baichuan", "granite", "smollm3", "gemma", "glm")  # fmt: skip
_FOUR_NORMS = ("gemma2", "gemma3_text", "glm4")  # two more norms per layer
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
_LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2")
_FAMILIES = (*_DENSE, *_FOUR_NORMS, *_EXPERTS, *_LATENT)
_TIED = ("gemma", "gemma2", "gemma3_text", "smollm3")  # unless the config.json says otherwise

# What published files of a family leave out. Source: defaults of transformers' Gemma3TextConfig.
_LEFT_OUT: dict[str, dict[str, int]] = {
    "gemma3_text": {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4,
                    "head_dim": 256, "max_position_embeddings": 131_072, "sliding_window": 4096},
}  # fmt: skip
_MOST = 10**9  # of anything that is counted in a config.json


def from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that a config.json describes; of one with a picture's part, the text's.

    Raises:
        UsageError: a key is missing or makes no sense, or the model is of a kind that is not
            modelled.
    """
    if isinstance(config.get("text_config"), dict):
        outer = config.get("quantization_config")
        config = {"quantization_config": outer, **config["text_config"]}
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise UsageError(
            f"model {name!r} is not modelled: model_type {family!r} is not one of "
            f"{', '.join(_FAMILIES)}"
        )
    config = {**_LEFT_OUT.get(family, {}), **config}
    heads = _integer(config, "num_attention_heads", name)
    hidden = _integer(config, "hidden_size", name)
    kv_heads = _integer(config, "num_key_value_heads", name, default=heads)
    if heads % kv_heads:
        raise UsageError(
            f"model {name!r}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    # InternLM 1 says "bias" for q, k, v and o; Llama and others "attention_bias" for the same.
    all_biases = bool(config.get("bias" if family == "internlm" else "attention_bias", False))
    return ModelShape(
        name=name,
        layers=_integer(config, "num_hidden_layers", name),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_integer(config, "head_dim", name, default=hidden // heads),
        intermediate=_integer(config, "intermediate_size", name),
        vocabulary=_integer(config, "vocab_size", name),
        max_context_tokens=_context(config, name),
        tied_embeddings=bool(config.get("tie_word_embeddings", family in _TIED)),
        qkv_biases=family in ("qwen2", "qwen2_moe") or all_biases,
        o_bias=all_biases and family not in ("glm", "glm4"),
        head_norms=family in ("qwen3", "qwen3_moe", "gemma3_text"),
        norms_per_layer=4 if family in _FOUR_NORMS else 2,
        sinks=family == "gpt_oss",
        latent=_latent(config, name) if family in _LATENT else None,
        experts=_experts(config, name),
        window=_window(config, name),
        weights=_weights(config.get("quantization_config"), name),
    )


def _context(config: Mapping[str, Any], name: str) -> int:
    """The longest sequence; YaRN stretches what positions were trained for (Peng et al., 2023)."""
    untold = "max_position_embeddings" not in config and "model_max_length" in config
    tokens = _integer(config, "model_max_length" if untold else "max_position_embeddings", name)
    rope = _object(config.get("rope_scaling") or config.get("rope_parameters"))
    factor = rope.get("factor")
    if rope.get("rope_type", rope.get("type")) != "yarn" or not isinstance(factor, int | float):
        return tokens
    trained = _integer(rope, "original_max_position_embeddings", name, default=tokens)
    return max(tokens, int(trained * min(max(1.0, factor), 1e3)))


def _latent(config: Mapping[str, Any], name: str) -> Latent:
    return Latent(
        q_rank=_integer(config, "q_lora_rank", name) if config.get("q_lora_rank") else None,
        kv_rank=_integer(config, "kv_lora_rank", name),
        rope_dim=_integer(config, "qk_rope_head_dim", name),
        nope_dim=_integer(config, "qk_nope_head_dim", name),
        v_dim=_integer(config, "v_head_dim", name),
    )


def _experts(config: Mapping[str, Any], name: str) -> Experts | None:
    """The experts; None where every layer's feed-forward part is dense."""
    family, hidden = config["model_type"], _integer(config, "hidden_size", name)
    layers = _integer(config, "num_hidden_layers", name)
    count_key = {"qwen2_moe": "num_experts", "qwen3_moe": "num_experts"}.get(
        family, "n_routed_experts" if family in _LATENT else "num_local_experts"
    )
    if family not in (*_EXPERTS, *_LATENT) or not config.get(count_key):
        return None
    count = _integer(config, count_key, name)
    own_width = "intermediate_size" if family in ("mixtral", "gpt_oss") else "moe_intermediate_size"
    width = _integer(config, own_width, name)
    shared = extra = 0
    match family:
        case "qwen2_moe":
            shared = _integer(config, "shared_expert_intermediate_size", name)
            extra = hidden  # the gate of the shared expert
        case "gpt_oss":
            extra = count * (1 + 2 * width + hidden)  # biases of the router and of each expert
        case "deepseek_v2" | "deepseek_v3" | "kimi_k2":
            dense = _integer(config, "first_k_dense_replace", name, default=0, least=0)
            if dense >= layers:
                raise UsageError(f"model {name!r}: first_k_dense_replace {dense} leaves no experts")
            layers -= dense
            shared = width * _integer(config, "n_shared_experts", name, default=0, least=0)
            extra = 0 if family == "deepseek_v2" else count  # the router's correction
    step = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
    if step != 1 or config.get("mlp_only_layers"):
        raise UsageError(f"model {name!r} is not modelled: only some of its layers have experts")
    used_key = "num_experts_per_tok" if "num_experts_per_tok" in config else "experts_per_token"
    return Experts(
        layers=layers,
        count=count,
        used=min(count, _integer(config, used_key, name)),
        intermediate=width,
        shared_intermediate=shared,
        extra_per_layer=extra,
    )


def _window(config: Mapping[str, Any], name: str) -> Window | None:
    """The sliding window; None where no layer has one that is shorter than the context."""
    if not config.get("sliding_window") or not config.get("use_sliding_window", True):
        return None
    tokens = _integer(config, "sliding_window", name)
    if tokens >= _context(config, name):
        return None
    layers = _integer(config, "num_hidden_layers", name)
    types = config.get("layer_types")
    if isinstance(types, list):
        sliding = sum(kind == "sliding_attention" for kind in types)
    elif config["model_type"] in ("gemma2", "gpt_oss"):
        sliding = (layers + 1) // 2
    elif config["model_type"] == "gemma3_text":
        sliding = layers - layers // _integer(config, "sliding_window_pattern", name, default=6)
    elif config["model_type"] in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"):
        # The layers from max_window_layers on slide.
        sliding = layers - min(
            layers, _integer(config, "max_window_layers", name, default=0, least=0)
        )
    else:
        sliding = layers
    return Window(layers=sliding, tokens=tokens) if sliding else None


def _weights(given: Any, name: str) -> Weights:
    """The format that a `quantization_config` stands for."""
    if not given:
        return FORMATS["bf16"]
    if not isinstance(given, dict):
        raise UsageError(f"model {name!r}: quantization_config is no object")
    method = str(given.get("quant_method", given.get("quant_algo", ""))).lower()
    bits = given.get("bits", given.get("w_bit"))
    match method:
        case "fp8" | "fbgemm_fp8":
            return FORMATS["fp8"]
        case "mxfp4":
            return FORMATS["mxfp4"]
        case "modelopt" if str(given.get("quant_algo")).upper() == "FP8":
            return FORMATS["fp8"]
        case "awq" | "gptq" | "auto-round" if bits in (4, 8, None):
            return FORMATS["int8-weights"] if bits == 8 else _in_groups(given, name)
        case "bitsandbytes":
            return FORMATS["int4" if given.get("load_in_4bit") else "int8-weights"]
        case "compressed-tensors":
            return _compressed(given, name)
    algorithm = given.get("quant_algo", "")
    raise UsageError(
        f"model {name!r} is not modelled: its weights are quantised by {method or 'no name'!r}"
        f"{f' to {bits} bits' if bits else ''}{f' ({algorithm})' if algorithm else ''}; known are "
        "fp8, awq, gptq, auto-round, bitsandbytes, compressed-tensors, mxfp4 and modelopt's FP8"
    )


def _in_groups(given: Mapping[str, Any], name: str) -> Weights:
    """4-bit weights with a 16-bit scale and a 4-bit zero for each group of so many."""
    group = given.get("group_size", given.get("q_group_size", 128))
    if group == -1:  # one for each column: next to nothing
        return msgspec.structs.replace(FORMATS["int4"], bits=4.0)
    group = _integer({"group_size": group}, "group_size", name)
    return msgspec.structs.replace(FORMATS["int4"], bits=4 + 20 / group)


def _compressed(given: Mapping[str, Any], name: str) -> Weights:
    """The format of LLM Compressor's checkpoints: that of their first group of layers."""
    groups = _object(given.get("config_groups"))
    group = _object(next(iter(groups.values()), None))
    weights, activations = _object(group.get("weights")), group.get("input_activations")
    match weights.get("type"), weights.get("num_bits"):
        case "float", 8:
            return FORMATS["fp8"]
        case "int", 8:
            return FORMATS["int8" if activations else "int8-weights"]
        case "int", 4:
            return FORMATS["int4"]
        case kind, bits:
            raise UsageError(
                f"model {name!r} is not modelled: its weights are {bits}-bit {kind!r}; known are "
                "8-bit float, 8-bit int and 4-bit int"
            )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _integer(
    config: Mapping[str, Any], key: str, name: str, *, default: int | None = None, least: int = 1
) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise UsageError(f"model {name!r}: config.json has no {key}")
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise UsageError(
            f"model {name!r}: {key} is {value!r}, not a whole number within {least} and {_MOST}"
        )
    return value
