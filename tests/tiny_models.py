"""Tiny random checkpoints of every family, with a byte-level tokenizer and a ChatML template, ready to be served."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 320  # 3 special tokens, 256 bytes, and some ids that no text has
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DEEPSEEK_SIZES = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
}
FAMILIES = {
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3-body": (Qwen3Config, Qwen3Model),
    "qwen3-classifier": (Qwen3Config, Qwen3ForSequenceClassification),
}


def make_checkpoint(
    family: str,
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> PreTrainedModel:
    """Write a checkpoint of `family` to `path` and return it as a transformers model in float32, the reference.

    `overrides` go to the configuration class. Special tokens are all but impossible to generate, so greedy output
    does not end early.
    """
    config_class, model_class = FAMILIES[family]
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "qwen2":
        del sizes["head_dim"]
    if family == "deepseek_v3":
        del sizes["head_dim"]
        sizes |= DEEPSEEK_SIZES
    config = config_class(**{**sizes, **overrides})
    model: PreTrainedModel = model_class(config)
    randomise(model, seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    # A copy, because the frequencies of the rotary embedding would be rounded along with the weights.
    copy.deepcopy(model).to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    write_tokenizer(path)
    return model.eval()


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Weights that make every part matter: norms and biases too, activations and logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("bias"):
                noise = 0.2 * noise
            elif "embed_tokens" in name or "lm_head" in name:
                noise *= 3 / noise.shape[-1] ** 0.5
                noise[: len(SPECIAL_TOKENS)] *= 0.05
            else:
                noise *= 1 / noise.shape[-1] ** 0.5
            weight.copy_(noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


def write_tokenizer(path: Path) -> None:
    """tokenizer.json, tokenizer_config.json with the chat template, generation_config.json."""
    tokens = SPECIAL_TOKENS + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(path / "tokenizer.json"))
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0},
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2))
