"""A real vLLM server on a random-weight model that is made on the spot.

`build_model` writes the model as a Hugging Face folder (nothing is downloaded), `running_vllm`
serves it with the Python that `SERVECAP_VLLM_PYTHON` names, for vLLM wants an environment of its
own. The weights are noise; the scheduler, the HTTP and the histograms are vLLM's.

Run as a script, by that Python, this file *is* the server process: it ends when its standard input
is closed, so that it cannot outlive whoever started it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START_S = 600.0  # 30 to 40 s on two idle cores, 180 s on busy ones
STOP_S = 20.0
PYTHON = "SERVECAP_VLLM_PYTHON"

HIDDEN, LAYERS, HEAD_DIM, FEED_FORWARD = 256, 4, 64, 768  # on CPU, vLLM refuses a head_dim of 16
VOCABULARY = 1024
CONTEXT_TOKENS = 2048
SPECIAL = ["<s>", "</s>", "<pad>"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Vllm:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def metrics(self) -> str:
        """Its Prometheus page."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=START_S) as answer:
            text: bytes = answer.read()
        return text.decode()


def build_model(folder: Path) -> Path:
    """The folder, filled with a random Llama of 15 MB and a tokenizer trained on built-in texts.

    It says nothing but whole characters and never ends an answer by itself, so that each token is
    text: the client stamps texts, vLLM's histograms tokens.
    """
    import numpy as np
    import numpy.typing as npt
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)

    def noise(rows: int, columns: int) -> npt.NDArray[np.float32]:
        scale = np.float32(columns**-0.5)  # keeps the size of what passes through
        return (random.standard_normal((rows, columns), dtype=np.float32) * scale).astype("f4")

    ones = np.ones(HIDDEN, dtype=np.float32)
    head = noise(VOCABULARY, HIDDEN)
    head[_without_text(_train_tokenizer(folder / "tokenizer.json"))] = 0  # never the likeliest
    tensors = {
        "model.embed_tokens.weight": noise(VOCABULARY, HIDDEN),
        "lm_head.weight": head,
        "model.norm.weight": ones,
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        tensors |= {
            f"{block}.{part}_layernorm.weight": ones for part in ("input", "post_attention")
        }
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{block}.self_attn.{part}.weight"] = noise(HIDDEN, HIDDEN)
        for part in ("gate_proj", "up_proj"):
            tensors[f"{block}.mlp.{part}.weight"] = noise(FEED_FORWARD, HIDDEN)
        tensors[f"{block}.mlp.down_proj.weight"] = noise(HIDDEN, FEED_FORWARD)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config()))
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config()))
    return folder


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD_DIM,
        "num_key_value_heads": HIDDEN // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": TEMPLATE,
    }


def _without_text(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are no whole characters by themselves."""
    texts = [tokenizer.decode([i]) for i in range(VOCABULARY)]
    return [i for i, text in enumerate(texts) if not text.strip() or "\ufffd" in text]


def _train_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from servecap.workload import builtin

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [s.text for name in ("chat-en", "chat-zh") for s in builtin.load(name).samples]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return tokenizer


@contextmanager
def running_vllm(model: Path, log: Path, *options: str) -> Iterator[Vllm]:
    """A vLLM server of *model* until the block is left, in a process group of its own.

    Args:
        log: where its output goes.
        options: further arguments of vLLM's server.
    Raises:
        RuntimeError: it did not start; with the last lines of its output.
    """
    port = _free_port()
    words = [
        f"--model={model}", "--served-model-name=tiny", "--host=127.0.0.1", f"--port={port}",
        "--enforce-eager", "--dtype=float32", "--max-num-seqs=16",
        f"--max-model-len={CONTEXT_TOKENS}", "--distributed-executor-backend=uni", *options,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [os.environ[PYTHON], __file__, *words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment | QUIET,
            cwd=log.parent,
        )
    vllm = Vllm(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_healthy(vllm)
        yield vllm
    finally:
        stop(vllm)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_healthy(vllm: Vllm) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{vllm.url}/health", timeout=START_S):
                return
        except urllib.error.URLError as error:
            if vllm.process.poll() is not None or time.monotonic() > deadline:
                last = vllm.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"vLLM did not start ({error}); it said:\n{last}") from None
            time.sleep(0.2)


def stop(vllm: Vllm) -> None:
    """End the server and all it started; a second call does nothing."""
    process = vllm.process
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, kind)
        try:
            process.wait(STOP_S)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.stdin is not None
    process.stdin.close()


def _serve() -> None:
    def end_with_starter() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_starter, daemon=True).start()
    sys.path.pop(0)  # this folder
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    _serve()
