from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from servecap.engine.model import from_config, model, presets
from servecap.errors import UsageError

# Parameter totals as published by the models' makers (sums over the checkpoints' tensors).
KNOWN_PARAMETERS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("name", presets())
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    if name == "internlm-20b":  # published as "20B" only
        assert model(name).parameters == pytest.approx(20e9, rel=0.01)
    else:
        assert model(name).parameters == KNOWN_PARAMETERS[name]


def test_kv_bytes_of_multi_head_and_grouped_query_attention() -> None:
    assert model("llama2-13b").kv_bytes_per_token == 800 * 1024
    assert model("llama2-70b").kv_bytes_per_token == 320 * 1024
    assert model("llama2-70b").kv_bytes_per_token_per_gpu(8) == 40 * 1024
    # 8 KV heads on 16 GPUs: each GPU keeps a whole head, none keeps half a head.
    assert model("llama2-70b").kv_bytes_per_token_per_gpu(16) == 40 * 1024


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-2-13b-chat-hf", "llama2-13b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2.5-72b"),
        ("LLAMA-13B", "llama-13b"),
    ],
)
def test_hub_names_are_understood(text: str, name: str) -> None:
    assert model(text).name == name


def test_a_config_file_or_its_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": True}))
    shape = model(str(folder))
    assert shape == model(str(folder / "config.json"))
    assert shape.name == "my-model"
    assert shape.head_dim == 32
    block = 4 * 128 * 128 + 3 * 128 * 256 + 2 * 128
    assert shape.parameters == 2 * block + 1000 * 128 + 128


def test_biases_and_norms_that_families_add_are_counted() -> None:
    plain = from_config(LLAMA, name="m").parameters
    qwen2 = from_config({**LLAMA, "model_type": "qwen2"}, name="m").parameters
    assert qwen2 - plain == 2 * 3 * 128
    qwen3 = from_config({**LLAMA, "model_type": "qwen3"}, name="m").parameters
    assert qwen3 - plain == 2 * 2 * 32
    biased = from_config({**LLAMA, "attention_bias": True}, name="m").parameters
    assert biased - plain == 2 * 4 * 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_local_experts": 8}, "not modelled yet: it is a mixture of experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"sliding_window": 128}, "slides over 128 tokens"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not one of llama"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"vocab_size": "many"}, "vocab_size is 'many', not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of"),
    ],
)
def test_what_is_not_modelled_or_makes_no_sense_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        from_config({**LLAMA, **change}, name="m")


def test_a_window_that_is_off_or_as_long_as_the_context_does_not_slide() -> None:
    plain = from_config(LLAMA, name="m")
    assert from_config({**LLAMA, "sliding_window": 512}, name="m") == plain
    off = {**LLAMA, "sliding_window": 64, "use_sliding_window": False}
    assert from_config(off, name="m") == plain


def test_unknown_models_and_unreadable_files_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"near it: llama-13b"):
        model("llama-14b")
    bad = tmp_path / "config.json"
    bad.write_text("[1, 2")
    with pytest.raises(UsageError, match="is not the JSON object of a model"):
        model(str(bad))
    bad.write_text("[1, 2]")
    with pytest.raises(UsageError, match="is not the JSON object of a model"):
        model(str(bad))
