"""Shapes of decoder-only transformers: what they weigh, compute and keep per token."""

from __future__ import annotations

from typing import Literal

import msgspec

Numbers = Literal["fp16", "fp8", "int8"]  # what the matrix units multiply


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the layers' matrices are stored and multiplied; all else is in 16 bits.

    `bits`: per weight, with its share of the scales. `numbers`: what is multiplied, where the GPU
    can; else they are widened to 16 bits on the way. `experts_only`: attention stays in 16 bits.
    """

    name: str
    bits: float
    numbers: Numbers
    experts_only: bool = False


# Scales: AWQ and GPTQ keep a 16-bit scale and a 4-bit zero per group of 128 weights (Lin et al.,
# 2023; Frantar et al., 2022); MXFP4 an 8-bit one per 32 (OCP Microscaling Formats 1.0); one per
# channel or per block of 128 x 128 is next to nothing.
FORMATS = {
    "bf16": Weights(name="bf16", bits=16, numbers="fp16"),
    "fp8": Weights(name="fp8", bits=8, numbers="fp8"),
    "int8": Weights(name="int8", bits=8, numbers="int8"),
    "int8-weights": Weights(name="int8-weights", bits=8, numbers="fp16"),
    "int4": Weights(name="int4", bits=4 + 20 / 128, numbers="fp16"),
    "mxfp4": Weights(name="mxfp4", bits=4 + 8 / 32, numbers="fp16", experts_only=True),
}


class Latent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multi-head latent attention: one compressed vector per token stands for all heads' KV.

    Source: DeepSeek-V2 (2024), section 2.1; the names are those of its config.json.
    """

    q_rank: int | None  # None: queries are not compressed
    kv_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int


class Experts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The feed-forward part of `layers` layers: `used` of `count` experts for each token.

    `shared_intermediate`: width of what every token goes through besides.
    """

    layers: int
    count: int
    used: int
    intermediate: int
    shared_intermediate: int = 0
    extra_per_layer: int = 0  # the router's biases, a shared expert's gate, experts' biases


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`layers` layers attend to the last `tokens` tokens only."""

    layers: int
    tokens: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder-only transformer whose feed-forward parts have three matrices (gate, up, down).

    `qkv_biases`: whether the q, k and v projections have a bias (they are counted, as memory);
    `head_norms`: whether q and k are normalised per head (Qwen 3, Gemma 3).
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
    norms_per_layer: int = 2
    sinks: bool = False  # a learned number per head (gpt-oss)
    latent: Latent | None = None
    experts: Experts | None = None
    window: Window | None = None
    weights: Weights = FORMATS["bf16"]
    kv_bytes_each: int = 2

    @property
    def attention_parameters(self) -> int:
        """Weights of all layers' attention matrices."""
        if (a := self.latent) is None:
            each = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
            return self.layers * each
        head = a.nope_dim + a.rope_dim
        queries = self.hidden * self.heads * head
        if a.q_rank is not None:
            queries = a.q_rank * (self.hidden + self.heads * head)
        keys = self.hidden * (a.kv_rank + a.rope_dim)
        keys += a.kv_rank * self.heads * (a.nope_dim + a.v_dim)
        return self.layers * (queries + keys + self.heads * a.v_dim * self.hidden)

    @property
    def always_parameters(self) -> int:
        """Weights that are multiplied with every token; routed experts are not among them."""
        dense, own = self.layers, 0
        if (e := self.experts) is not None:
            dense -= e.layers
            own = e.layers * self.hidden * (3 * e.shared_intermediate + e.count)  # and the router
        return self.attention_parameters + dense * 3 * self.hidden * self.intermediate + own

    @property
    def expert_parameters(self) -> int:
        """Weights of all routed experts."""
        e = self.experts
        return 0 if e is None else e.layers * e.count * 3 * self.hidden * e.intermediate

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices."""
        return self.always_parameters + self.expert_parameters

    @property
    def active_parameters(self) -> float:
        """Weights of the layers' matrices that one token is multiplied with."""
        e = self.experts
        return self.always_parameters + (self.expert_parameters * e.used / e.count if e else 0)

    @property
    def head_parameters(self) -> int:
        """Weights of the output layer: multiplied with the tokens that are sampled only."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights, biases and norms."""
        norms = self.norms_per_layer * self.hidden
        if self.head_norms:
            norms += 2 * self.head_dim
        if self.latent:
            norms += self.latent.kv_rank + (self.latent.q_rank or 0)
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_biases else 0
        biases += self.hidden if self.o_bias else 0
        biases += self.heads if self.sinks else 0
        extra = self.experts.layers * self.experts.extra_per_layer if self.experts else 0
        embeddings = self.head_parameters * (1 if self.tied_embeddings else 2)
        small = self.layers * (norms + biases) + self.hidden + extra
        return self.linear_parameters + embeddings + small

    @property
    def always_bytes(self) -> float:
        """Bytes of `always_parameters`."""
        bits = 16 if self.weights.experts_only else self.weights.bits
        return self.always_parameters * bits / 8

    @property
    def expert_bytes(self) -> float:
        """Bytes of `expert_parameters`."""
        return self.expert_parameters * self.weights.bits / 8

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters; embeddings, norms and biases are in 16 bits."""
        rest = 2 * (self.parameters - self.linear_parameters)
        return round(self.always_bytes + self.expert_bytes + rest)

    @property
    def gated_elements(self) -> int:
        """Elements of one token's gated feed-forward vectors, over all layers."""
        if (e := self.experts) is None:
            return self.layers * self.intermediate
        narrow = e.layers * (e.used * e.intermediate + e.shared_intermediate)
        return (self.layers - e.layers) * self.intermediate + narrow

    @property
    def rotated_elements(self) -> int:
        """Elements of one token's queries and keys, over all layers."""
        if (a := self.latent) is not None:
            return self.layers * (self.heads + 1) * a.rope_dim
        return self.layers * (self.heads + self.kv_heads) * self.head_dim

    @property
    def pair_multiplications(self) -> int:
        """Multiply-adds for one query, one key and its value in one layer of a prompt's attention.

        Latent attention computes prompts with whole heads (DeepSeek-V2, section 2.1.2).
        """
        if (a := self.latent) is not None:
            return self.heads * (a.nope_dim + a.rope_dim + a.v_dim)
        return self.heads * 2 * self.head_dim

    @property
    def cached_pair_multiplications(self) -> int:
        """The same for a decoding query and a cached token, in one layer.

        Latent attention decodes on the compressed vectors themselves: fewer bytes, more work.
        """
        if (a := self.latent) is not None:
            return self.heads * (2 * a.kv_rank + a.rope_dim)
        return self.heads * 2 * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, over all GPUs (no head is stored twice).

        Source: 2 x layers x kv_heads x head_dim x bytes (FlashAttention, PagedAttention papers);
        latent attention: layers x (kv_rank + rope_dim) x bytes (DeepSeek-V2, section 2.1.4).
        """
        return self.layers * self.kv_bytes_per_layer(1)

    def kv_bytes_per_layer(self, tp: int) -> int:
        """Of one token, on each GPU of *tp*; with more GPUs than KV heads, heads are copied.

        A compressed vector belongs to all heads: every GPU keeps the whole of it.
        """
        if (a := self.latent) is not None:
            return (a.kv_rank + a.rope_dim) * self.kv_bytes_each
        return 2 * -(-self.kv_heads // tp) * self.head_dim * self.kv_bytes_each

    def kv_bytes_per_token_per_gpu(self, tp: int, *, context_tokens: float | None = None) -> float:
        """The share of one GPU of *tp*, on average over a sequence of *context_tokens*.

        Layers with a window keep no more than that many tokens, where the engine frees the rest;
        None: it does not, every layer keeps all.
        """
        share = 1.0
        if self.window is not None and context_tokens is not None:
            kept = min(1.0, self.window.tokens / max(1.0, context_tokens))
            share = 1 - self.window.layers / self.layers * (1 - kept)
        return self.layers * self.kv_bytes_per_layer(tp) * share
