from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from servecap.engine.config import from_config
from servecap.engine.model import model, presets
from servecap.engine.shape import Window
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
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "codellama-34b": 33_743_970_304,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
    # The published 1,026,470,731,056 hold a 32-bit scale for each block of 128 x 128 in fp8.
    "kimi-k2": 1_026_408_232_448,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-4b": 3_880_263_168,
    "gemma3-12b": 11_766_034_176,
    "gemma3-27b": 27_009_346_304,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "phi-4": 14_659_507_200,
    "yi-34b": 34_388_917_248,
    "internlm2-20b": 19_861_149_696,
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
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b-v0.1"),
        ("google/gemma-2-9b-it", "gemma2-9b"),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", "qwen3-30b-a3b"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
    ],
)
def test_hub_names_are_understood(text: str, name: str) -> None:
    assert model(text).name == name


@pytest.mark.parametrize(
    ("text", "name", "same"),
    [
        (
            "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
            "deepseek-r1-distill-llama-70b",
            "llama-3.3-70b",
        ),
        ("Qwen/QwQ-32B", "qwq-32b", "qwen2.5-32b"),
        ("lmsys/vicuna-13b-v1.5", "vicuna-13b", "llama2-13b"),
    ],
)
def test_checkpoints_with_the_shape_of_another_model(text: str, name: str, same: str) -> None:
    assert model(text).name == name
    assert model(text).parameters == model(same).parameters


def test_a_config_file_or_its_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": True}))
    shape = model(str(folder))
    assert shape == model(str(folder / "config.json"))
    assert shape.name == "my-model"
    (folder / "config.json").rename(folder / "other.json")
    assert model(str(folder / "other.json")).name == "other"
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
        ({"quantization_config": {"quant_method": "quip"}}, "quantised by 'quip'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "'gptq' to 3 bits"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "None-bit None"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not one of llama"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"vocab_size": "many"}, "vocab_size is 'many', not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 10**30}, "not a whole number within 1 and 1000000000"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
         r"'modelopt' \(NVFP4\)"),
        ({"quantization_config": {"quant_method": "awq", "group_size": 0}}, "group_size is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of"),
        ({"sliding_window": "long"}, "sliding_window is 'long'"),
        ({"model_type": "deepseek_v3"}, "has no kv_lora_rank"),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 64,
             "decoder_sparse_step": 2},
            "only some of its layers have experts",
        ),
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({}, 12),
        ({"layer_types": ["sliding_attention", "full_attention"] * 6}, 6),
        ({"model_type": "gemma2"}, 6),
        ({"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}, 6),
        ({"model_type": "gemma3_text"}, 10),  # every sixth layer sees all
        ({"model_type": "qwen2", "max_window_layers": 8}, 4),
    ],
)
def test_the_layers_that_slide_are_counted(change: dict[str, Any], layers: int) -> None:
    twelve = {**LLAMA, "num_hidden_layers": 12, "sliding_window": 128}
    assert from_config({**twelve, **change}, name="m").window == Window(layers=layers, tokens=128)


def test_kv_bytes_of_latent_attention_are_the_same_on_every_gpu() -> None:
    shape = model("deepseek-v3")
    assert shape.kv_bytes_per_token == 61 * (512 + 64) * 2 == 70_272
    assert shape.kv_bytes_per_token_per_gpu(8) == 70_272


def test_a_window_saves_memory_beyond_its_length_where_the_engine_frees_it() -> None:
    shape = model("gpt-oss-20b")  # 12 of 24 layers see 128 tokens; 8 KV heads of 64
    each = 2 * 8 * 64 * 2
    assert shape.kv_bytes_per_token_per_gpu(1) == 24 * each
    assert shape.kv_bytes_per_token_per_gpu(1, context_tokens=128) == 24 * each
    assert shape.kv_bytes_per_token_per_gpu(1, context_tokens=1280) == pytest.approx(13.2 * each)
    assert shape.kv_bytes_per_token_per_gpu(8, context_tokens=1280) == pytest.approx(1.65 * each)


def test_keys_and_values_in_eight_bits_take_half() -> None:
    assert model("llama2-70b", kv_dtype="fp8").kv_bytes_per_token == 160 * 1024


def test_experts_weigh_all_and_compute_some() -> None:
    shape = model("mixtral-8x7b")
    expert = 3 * 4096 * 14336
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert shape.expert_parameters == 32 * 8 * expert
    assert shape.active_parameters == 32 * (attention + 4096 * 8 + 2 * expert)
    assert model("deepseek-v3").active_parameters / 1e9 == pytest.approx(37, rel=0.05)  # "37B"
    assert model("qwen3-30b-a3b").active_parameters / 1e9 == pytest.approx(3, rel=0.1)  # "A3B"


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", 4 + 20 / 128),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", 4 + 20 / 128),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8", 8),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", 8),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8-dynamic", 8),
        ("llama2-70b-fp16", 16),
        ("deepseek-v3", 8),
    ],
)
def test_names_tell_how_weights_are_stored(name: str, bits: float) -> None:
    shape = model(name)
    assert shape.weights.bits == bits
    whole = 2 * shape.parameters
    assert shape.weight_bytes == pytest.approx(
        whole - shape.linear_parameters * (2 - bits / 8), abs=1
    )


def test_only_the_experts_of_gpt_oss_are_in_four_bits() -> None:
    shape = model("gpt-oss-120b")
    assert shape.weight_bytes / 1024**3 == pytest.approx(60.8, abs=0.1)  # as its makers say


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8-weights"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
            "weights": {"num_bits": 8, "type": "int"},
            "input_activations": {"num_bits": 8}}}}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
            "weights": {"num_bits": 8, "type": "float"}}}}, "fp8"),
    ],
)  # fmt: skip
def test_a_config_tells_how_weights_are_stored(given: dict[str, Any], name: str) -> None:
    config = {**LLAMA, "quantization_config": given}
    assert from_config(config, name="m").weights.name == name


@pytest.mark.parametrize(("group", "bits"), [(128, 4 + 20 / 128), (32, 4 + 20 / 32), (-1, 4)])
def test_scales_and_zeros_of_small_groups_weigh_more(group: int, bits: float) -> None:
    given = {"quant_method": "gptq", "bits": 4, "group_size": group}
    shape = from_config({**LLAMA, "quantization_config": given}, name="m")
    assert shape.weights.bits == bits
    assert shape.weight_bytes == round(
        shape.linear_parameters * bits / 8 + 2 * (shape.parameters - shape.linear_parameters)
    )


# Parameters as published, of configs that leave out what their family's defaults say.
@pytest.mark.parametrize(
    ("config", "parameters", "kv_bytes", "context"),
    [
        ({"model_type": "gemma3", "text_config": {  # gemma-3-4b-it's own file says no more
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024}},
         3_880_263_168, 34 * 2 * 4 * 256 * 2, 131_072),
        ({"model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "head_dim": 256,
          "num_attention_heads": 16, "num_hidden_layers": 28, "vocab_size": 256000,
          "max_position_embeddings": 8192}, 8_537_680_896, 28 * 2 * 16 * 256 * 2, 8192),
        ({"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008,
          "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 36,
          "vocab_size": 128256, "max_position_embeddings": 65536},
         3_075_098_624, 36 * 2 * 4 * 128 * 2, 65536),
        ({"model_type": "baichuan", "hidden_size": 5120, "intermediate_size": 13696,
          "num_attention_heads": 40, "num_hidden_layers": 40, "vocab_size": 64000,
          "model_max_length": 4096}, 13_264_901_120, 40 * 2 * 5120 * 2, 4096),
        ({"model_type": "glm4", "hidden_size": 4096, "intermediate_size": 13696, "head_dim": 128,
          "num_attention_heads": 32, "num_key_value_heads": 2, "num_hidden_layers": 40,
          "vocab_size": 151552, "attention_bias": True, "max_position_embeddings": 32768},
         9_400_279_040, 40 * 2 * 2 * 128 * 2, 32768),
    ],
)  # fmt: skip
def test_published_configs_of_more_families(
    config: dict[str, Any], parameters: int, kv_bytes: int, context: int
) -> None:
    shape = from_config(config, name="m")
    assert shape.parameters == parameters
    assert shape.kv_bytes_per_token == kv_bytes
    assert shape.max_context_tokens == context


def test_a_context_that_yarn_stretches_is_as_long_as_that() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert from_config({**LLAMA, "rope_scaling": yarn}, name="m").max_context_tokens == 2048
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}
    assert from_config({**LLAMA, "rope_scaling": llama3}, name="m").max_context_tokens == 512


def test_the_format_may_be_said_apart_and_must_be_known() -> None:
    assert model("llama2-70b", weights="awq") == model("llama2-70b-awq")
    assert model("llama2-70b", weights="bf16") == model("llama2-70b")
    with pytest.raises(UsageError, match="weights 'int3' is none of bf16, fp8"):
        model("llama2-70b", weights="int3")


def test_the_text_part_of_a_model_that_sees_is_taken() -> None:
    text = {**LLAMA, "model_type": "gemma3_text"}
    seeing = {"model_type": "gemma3", "text_config": text}
    assert from_config(seeing, name="m") == from_config(text, name="m")


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
