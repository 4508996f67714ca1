"""A real llama.cpp server on a random-weight model that is made on the spot.

`build_model` writes the model (nothing is downloaded), `running_llama` serves it. The weights are
noise, so the answers are too; the server, its HTTP and its batching are the real thing.

Run as a script this file *is* the server process: it ends when its standard input is closed, so
that it cannot outlive whoever started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

START_S = 60.0
STOP_S = 10.0


@dataclass(frozen=True)
class Size:
    """The shape of a model; `head_dim` of 16 or less is avoided, some engines refuse it."""

    hidden: int
    layers: int
    head_dim: int
    feed_forward: int


SIZES = {
    "tiny": Size(hidden=128, layers=2, head_dim=32, feed_forward=384),  # < 2 MB, ~0.5 ms/token
    "slow": Size(hidden=512, layers=8, head_dim=64, feed_forward=2048),  # 68 MB, ~6 ms/token
}

SPECIAL = ["<s>", "</s>", "<pad>"]
VOCABULARY = 1024
WORDS = """
the of and to in a is that for it was on are as with they be at one have this from or had by not
but what some we can out other were all there when up use your how said an each she which do their
time if will way about many then them write would like so these her long make thing see him two has
look more day could go come did number sound no most people my over know water than call first who
may down side been now find any new work part take get place made live where after back little only
round man year came show every good me give our under name very through just form sentence great
think say help low line before turn cause same mean differ move right boy old too does tell set want
air well also play small end put home read hand port large spell add even land here must big high
such follow act why ask men change went light kind off need house picture try us again animal point
mother world near build self earth father head stand own page should country found answer question
explain describe compare list summarise server user request token model memory speed please between
example system data language code function difference important because however during without
"""
CHARACTERS = """
的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发
后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开
但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物
手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通
教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受
目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白
却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观
清今切院让识候带导争运请解释回答问题写介绍服务器并发用户
"""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_model(path: Path, size: str, *, cut_characters: bool = False) -> Path:
    """The path of a new GGUF file with a random Llama of that size (a key of `SIZES`).

    Every token is a whole piece of text, so that each of the server's chunks carries one token.
    With *cut_characters* the model also says single bytes of longer characters; the server holds
    those back until the character is whole, and then one chunk carries several tokens.
    """
    import gguf

    shape = SIZES[size]
    tokens, merges = _vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(f"random {size}")
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.hidden // shape.head_dim)
    writer.add_head_count_kv(shape.hidden // shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t in SPECIAL else normal for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in _tensors(shape, tokens, cut_characters):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(
    shape: Size, tokens: list[str], cut_characters: bool
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    random = np.random.default_rng(0)
    hidden, wide = shape.hidden, shape.feed_forward

    def noise(rows: int, columns: int) -> npt.NDArray[np.float16]:
        scale = np.float32(columns**-0.5)  # keeps the size of what passes through
        return (random.standard_normal((rows, columns), dtype=np.float32) * scale).astype("f2")

    ones = np.ones(hidden, dtype=np.float32)
    yield "token_embd.weight", noise(len(tokens), hidden)
    output = noise(len(tokens), hidden)
    if not cut_characters:
        # A row of zeros is a logit of 0, never among the 40 best that the sampler chooses from.
        output[[not _whole(token) for token in tokens]] = 0
    yield "output.weight", output
    yield "output_norm.weight", ones
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", ones
        yield f"{block}.ffn_norm.weight", ones
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{part}.weight", noise(hidden, hidden)
        yield f"{block}.ffn_gate.weight", noise(wide, hidden)
        yield f"{block}.ffn_up.weight", noise(wide, hidden)
        yield f"{block}.ffn_down.weight", noise(hidden, wide)


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(0x100)]


ALPHABET = _byte_alphabet()


def _spell(text: str) -> tuple[str, ...]:
    return tuple(ALPHABET[byte] for byte in text.encode())


def _whole(token: str) -> bool:
    """Whether the token is text by itself: no control token, no part of a character."""
    if token in SPECIAL:
        return token == "</s>"  # the end of an answer may be said
    try:
        bytes(ALPHABET.index(letter) for letter in token).decode()
    except UnicodeDecodeError:
        return False
    return True


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a byte-pair encoding learnt from WORDS and CHARACTERS."""
    texts = [*(f" {word}" for word in WORDS.split()), *sorted(set("".join(CHARACTERS.split())))]
    words = [_spell(text) for text in texts]
    tokens, merges = [*SPECIAL, *ALPHABET], list[tuple[str, str]]()
    while len(tokens) < VOCABULARY:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = [_merge(word, best) for word in words]
    return tokens, merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


@contextmanager
def running_llama(
    model: Path, slots: int, *, context_tokens: int = 2048, prompt_cache: bool = True
) -> Iterator[str]:
    """The URL of a llama.cpp server that serves *model* until the block is left.

    It runs on one thread, in a process group of its own and on a port that the system chose.

    Args:
        slots: requests that are decoded together; the others queue.
        context_tokens: prompt + output tokens of one slot.
        prompt_cache: take over the longest known prefix of a prompt, llama.cpp's default.
    Raises:
        RuntimeError: the server did not start; its own words are on standard error.
    """
    settings = {
        "model": str(model),
        "slots": slots,
        "context_tokens": context_tokens,
        "prompt_cache": prompt_cache,
    }
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        url = _address(process.stdout)
        _wait_until_healthy(url)
        yield url
    finally:
        _stop(process)


def _address(stdout: IO[bytes]) -> str:
    ready, _, _ = select.select([stdout], [], [], START_S)
    line = stdout.readline().decode().strip() if ready else ""
    if not line.startswith("http://"):
        raise RuntimeError(f"llama.cpp did not start within {START_S:g} s: {line or 'no address'}")
    return line


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=START_S):
                return
        except urllib.error.URLError as error:  # also 503: the model is being loaded
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url}/health is not well: {error}") from None
            time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, kind)
        try:
            process.wait(STOP_S)
            break
        except subprocess.TimeoutExpired:
            continue
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _serve(model: str, slots: int, context_tokens: int, prompt_cache: bool) -> None:
    """Serves until standard input ends, which it does when the starter is gone."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {Path(model).stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * context_tokens
    params.cache_prompt = prompt_cache
    params.cache_ram_mib = 0  # keeps no prompts beside the slots: memory stays small
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.endpoint_props = True
    params.verbosity = 1  # errors only
    params.cpuparams.n_threads = 1  # two threads on busy cores are ten times slower
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # do not wait for streams that nobody reads any more


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
