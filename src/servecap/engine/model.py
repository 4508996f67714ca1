"""Models by name: the built-in ones, and those whose config.json is there."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from servecap.engine.config import from_config
from servecap.engine.shape import FORMATS, ModelShape
from servecap.errors import UNREADABLE, UsageError

KvDtype = Literal["fp8", "int8"]  # of keys and values, where it is not 16 bits


@functools.cache
def presets() -> tuple[str, ...]:
    """Names of the built-in models."""
    return tuple(_configs())


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    file = importlib.resources.files("servecap.engine").joinpath("data/models.json")
    return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, Any]])


# How hubs name quantised checkpoints, at the end of the name; the first that fits counts.
_SUFFIXES = (
    (r"-(gptq-?int8|quantized\.w8a16|w8a16)", "int8-weights"),
    (r"-(quantized\.w8a8|w8a8|int8)", "int8"),
    (r"-((awq|gptq)(-?int4)?|quantized\.w4a16|w4a16|int4|4bit)", "int4"),
    (r"-fp8(-dynamic|-kv)?", "fp8"),
    (r"-(bf16|fp16)", "bf16"),
)
# Checkpoints that are another one's shape with other weights, by the base that their hub cards or
# config.json name (numbers of layers, heads and sizes are equal; a few differ in the vocabulary by
# less than a hundredth).
_SHAPES = {
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-llama-70b": "llama-3.3-70b",
    "deepseek-r1-distill-qwen-1.5b": "qwen2.5-1.5b",
    "deepseek-r1-distill-qwen-7b": "qwen2.5-7b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "deepseek-v3.1": "deepseek-v3",
    "llama-3.1-nemotron-70b": "llama-3.1-70b",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-small-3.1-24b": "mistral-small-24b",
    "mistral-small-3.2-24b": "mistral-small-24b",
    "qwen2-0.5b": "qwen2.5-0.5b",
    "qwen2-1.5b": "qwen2.5-1.5b",
    "qwen2-7b": "qwen2.5-7b",
    "qwen2-72b": "qwen2.5-72b",
    "qwen2.5-coder-7b": "qwen2.5-7b",
    "qwen2.5-coder-14b": "qwen2.5-14b",
    "qwen2.5-coder-32b": "qwen2.5-32b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
    "qwq-32b": "qwen2.5-32b",
    "vicuna-7b": "llama2-7b",
    "vicuna-13b": "llama2-13b",
    "yi-1.5-34b": "yi-34b",
}
WEIGHT_NAMES = {**{name: name for name in FORMATS}, "fp16": "bf16", "awq": "int4", "gptq": "int4"}


def model(name: str, *, weights: str | None = None, kv_dtype: KvDtype | None = None) -> ModelShape:
    """The built-in model with that name, or the one whose config.json (or folder) *name* is.

    Names as on model hubs are understood: "meta-llama/Llama-2-13b-chat-hf" is llama2-13b, and
    "Qwen/Qwen2.5-72B-Instruct-AWQ" qwen2.5-72b with 4-bit weights.

    Args:
        weights: one of WEIGHT_NAMES, instead of what the name or the config.json says.
        kv_dtype: of keys and values; None: 16 bits.
    Raises:
        UsageError: neither a built-in model nor a readable config.json, or no such format.

    >>> model("llama-13b").parameters, model("Qwen/Qwen2.5-7B-Instruct").name
    (13015864320, 'qwen2.5-7b')
    >>> model("Qwen/Qwen2.5-72B-Instruct-AWQ").weights.bits
    4.15625
    >>> model("google/gemma-2-9b-it").name, model("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B").layers
    ('gemma2-9b', 28)
    """
    shape = _named(name)
    if weights is not None:
        if weights not in WEIGHT_NAMES:
            raise UsageError(f"weights {weights!r} is none of {', '.join(WEIGHT_NAMES)}")
        shape = _stored(shape, WEIGHT_NAMES[weights])
    if kv_dtype is not None:
        shape = msgspec.structs.replace(shape, kv_bytes_each=1)
    return shape


def _named(name: str) -> ModelShape:
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return _from_file(path)
    stem, stored = _split(name)
    known = {_plain(name): (name, preset) for name, preset in _known().items()}
    found = known.get(_plain(stem)) or known.get(_plain(_undated(stem)))
    if found is not None:
        shape = from_config(_configs()[found[1]], name=found[0])
        return shape if stored is None else _stored(shape, stored)
    near = difflib.get_close_matches(name.lower(), presets(), n=3, cutoff=0.5) or presets()
    raise UsageError(
        f"model {name!r} is neither built in (near it: {', '.join(near)}) nor a config.json"
    )


def _known() -> dict[str, str]:
    """Names, and the built-in model whose shape each means."""
    return {name: name for name in presets()} | _SHAPES


def _undated(name: str) -> str:
    """Without a version or a date at the end: v0.3, 2507."""
    return re.sub(r"-(v\d\.\d|\d{4})$", "", name)


def _stored(shape: ModelShape, form: str) -> ModelShape:
    """The same model with its weights in that format; its name says so."""
    if shape.weights.name == form:
        return shape
    return msgspec.structs.replace(shape, weights=FORMATS[form], name=f"{shape.name}-{form}")


def _split(name: str) -> tuple[str, str | None]:
    """The name without what it says of the weights' format, and that format."""
    for pattern, form in _SUFFIXES:
        if found := re.search(pattern + "$", name, re.IGNORECASE):
            return name[: found.start()], form
    return name, None


def _from_file(path: Path) -> ModelShape:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except UNREADABLE as error:
        raise UsageError(f"{path} is not the JSON object of a model: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    named = path.resolve().parent.name if path.name == "config.json" else path.stem
    return from_config(config, name=named)


def _plain(name: str) -> str:
    """Lower case, without owner, variant and separators."""
    last = name.lower().rsplit("/", 1)[-1].removeprefix("meta-")
    last = re.sub(r"-(hf|chat|instruct|thinking|base|it|pt)\b", "", last)
    return re.sub(r"[^a-z0-9.]", "", last)
