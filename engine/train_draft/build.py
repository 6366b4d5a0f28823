"""From a job and its target to a head with its first weights: sizes, the layers it reads, its vocabulary."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import ConfigurationError
from .eagle3 import Eagle3Head
from .heads import DraftHead
from .job import TrainJob
from .layer import LayerShape
from .mtp import MTPHead
from .target import FrozenTarget
from .token_sets import TokenSet

# What published heads for vocabularies of 128k to 200k tokens have.
LARGEST_DRAFT_VOCAB = 32_000
NUM_AUX = 3


def build_head(job: TrainJob, target: FrozenTarget, texts: TokenSet) -> DraftHead:
    """The head on the target's device, float32. Raises ConfigurationError for options that do not fit the target."""
    config = target.config
    if job.method == "mtp":
        names = target.layer_tensors
        shape = LayerShape(
            in_size=config.hidden_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            qkv_bias="self_attn.q_proj.bias" in names,
            output_bias="self_attn.o_proj.bias" in names,
            mlp_bias="mlp.down_proj.bias" in names,
            qk_norm="self_attn.q_norm.weight" in names,
        )
        mtp = MTPHead(shape, target.lm_head, target.cos_sin, seed=job.seed).to(target.device)
        mtp.start_from(target.norm, target.last_layer(job.model_dir))
        return mtp
    shape = LayerShape(
        in_size=2 * config.hidden_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
    )
    size = draft_vocab_size(job.draft_vocab_size, config.vocab_size)
    ids = frequent_tokens(texts, config.vocab_size, size).to(target.device)
    aux = aux_layers(job.aux_layers, config.num_layers)
    eagle = Eagle3Head(shape, aux, ids, target.cos_sin, seed=job.seed).to(target.device)
    eagle.start_from(target.norm, target.lm_head)
    return eagle


def aux_layers(asked: list[int], num_layers: int) -> tuple[int, ...]:
    """The three layers whose inputs the head reads: what was asked for, vLLM's own choice, or a spread over few layers.

    vLLM reads 2, n // 2 and n - 3 of n layers where a checkpoint names none; these collide below 10 layers.
    """
    if not asked:
        if num_layers >= 10:
            return (2, num_layers // 2, num_layers - 3)
        spread = (1, num_layers // 2, num_layers - 1)
        if len(set(spread)) == NUM_AUX:
            return spread
        asked = [index % num_layers for index in range(NUM_AUX)]
        return tuple(sorted(asked))
    if len(asked) != NUM_AUX or not all(0 <= index < num_layers for index in asked):
        raise ConfigurationError(
            f"--aux-layers {' '.join(map(str, asked))}: give {NUM_AUX} numbers from 0 (the embedding) to "
            f"{num_layers - 1} (what enters the last layer)"
        )
    return tuple(asked)


def draft_vocab_size(asked: int, vocab_size: int) -> int:
    if asked > vocab_size:
        raise ConfigurationError(
            f"--draft-vocab-size {asked} is more than the model's vocabulary of {vocab_size}"
        )
    return asked or min(vocab_size, LARGEST_DRAFT_VOCAB)


def frequent_tokens(texts: TokenSet, vocab_size: int, count: int) -> torch.Tensor:
    """(count,) int64 ascending: the tokens that are wanted most often, lower ids first among equals."""
    counts = np.bincount(texts.tokens[texts.wanted.astype(bool)], minlength=vocab_size)[:vocab_size]
    most = np.argsort(-counts, kind="stable")[:count]
    return torch.from_numpy(np.sort(most).astype(np.int64))
