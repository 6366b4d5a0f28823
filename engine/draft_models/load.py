"""A drafter with its weights in place, joined to its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from msgspec.structs import replace as replace_struct

from ...kernels.attention.interface import AttentionBackend
from ...kernels.interface import Ops
from ...scheduler.messages import EngineConfig
from ..choices import Choices
from ..layers.decoder import Decoder
from ..layers.parts import LayerParts, Weights
from ..layers.rope import rope_table
from ..loading import load_weights
from ..parallel.shard import whole
from .config import EagleConfig, MTPConfig, target_ids
from .eagle import Eagle3Module, EagleModule
from .model import DraftModel, DraftModule, moved
from .mtp import MTPModule

Embed = Callable[[torch.Tensor], torch.Tensor]


def load_draft(
    draft: EagleConfig | MTPConfig,
    config: EngineConfig,
    choices: Choices,
    ops: Ops,
    target: Decoder,
    attention: Sequence[AttentionBackend],  # one per module
    max_model_len: int,
    max_tokens: int,  # of a step
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[DraftModel, int]:
    """The drafter and its size in bytes; from now on `target` hands over the states that it reads.

    Raises ConfigurationError for what is wrong with its checkpoint.
    """
    build = build_mtp if isinstance(draft, MTPConfig) else build_eagle
    cos_sin = rope_table(draft.layer, max_model_len, choices.device)

    def make(weights: Weights, ops: Ops) -> DraftModel:
        parts = [
            LayerParts(
                config=draft.layer,
                index=index,
                name="layers.0",
                weights=weights,
                ops=ops,
                attention=each,
                cos_sin=moved(cos_sin, index + 1),
                shard=whole(draft.layer),
            )
            for index, each in enumerate(attention)
        ]
        return build(draft, parts, target)  # type: ignore[arg-type]

    model, num_bytes = load_weights(
        replace_struct(config, model_dir=draft.model_dir), choices, make, ops, draft.names, progress
    )
    if isinstance(draft, EagleConfig) and draft.aux_layers:
        model = read_layers(model, draft, choices, target, max_tokens)
    return model, num_bytes


def build_eagle(draft: EagleConfig, parts: list[LayerParts], target: Decoder) -> DraftModel:
    (part,) = parts
    weights, ops, hidden = part.weights, part.ops, draft.layer.hidden_size
    embed = own_or_shared(draft, part, target)
    if not draft.aux_layers:
        module: DraftModule = EagleModule(part, embed, draft.options, fc_bias=draft.fc_bias)
        assert target.head is not None
        return DraftModel([module], [target.head], hidden, target.embedding.dtype, ops)
    fc = ops.linear(
        weights.tensor("fc.weight", (hidden, len(draft.aux_layers) * target.config.hidden_size)),
        weights.tensor("fc.bias", (hidden,)) if draft.fc_bias else None,
    )
    module = Eagle3Module(
        part,
        embed,
        draft.options,
        norm_before_residual=draft.norm_before_residual,
        norm_output=draft.norm_output,
    )
    head: Callable[[torch.Tensor], torch.Tensor]
    if draft.stored is None or draft.has("lm_head.weight"):
        head = ops.linear(weights.tensor("lm_head.weight", (draft.draft_vocab_size, hidden)), is_head=True)
    else:
        assert target.head is not None
        head = target.head
    return DraftModel([module], [head], hidden, target.embedding.dtype, ops, fuse=fc)


def build_mtp(draft: MTPConfig, parts: list[LayerParts], target: Decoder) -> DraftModel:
    assert target.head is not None
    assert target.embed is not None
    modules: list[DraftModule] = []
    for index, part in enumerate(parts):
        number = draft.first + index
        named = replace(part, name=draft.layout.block.format(n=number))
        modules.append(MTPModule(named, draft.layout, number, target.embed, target.layer))
    heads = [target.head] * len(modules)
    return DraftModel(modules, heads, draft.layer.hidden_size, target.embedding.dtype, parts[0].ops)


def own_or_shared(draft: EagleConfig, part: LayerParts, target: Decoder) -> Embed:
    """The embedding: the head's own, unless it is none or a copy of the target's."""
    if not draft.has("embed_tokens.weight"):
        assert target.embed is not None
        return target.embed
    table = part.weights.tensor("embed_tokens.weight", (draft.layer.vocab_size, draft.layer.hidden_size))
    if table.is_meta:
        return partial(part.ops.embedding, table)
    shared = target.embedding
    if table.shape == shared.shape and table.dtype == shared.dtype and torch.equal(table, shared):
        table = shared
    return partial(part.ops.embedding, table)


def read_layers(
    model: DraftModel, draft: EagleConfig, choices: Choices, target: Decoder, max_tokens: int
) -> DraftModel:
    """From now on the target puts what enters these layers beside each other."""
    hidden, count = target.config.hidden_size, len(draft.aux_layers)
    captured = torch.zeros((max_tokens, count * hidden), dtype=choices.dtype, device=choices.device)
    for index, layer in enumerate(draft.aux_layers):
        tapped = target.layers[layer] if layer < len(target.layers) else target
        tapped.tap = captured[:, index * hidden : (index + 1) * hidden]
    ids = target_ids(draft)
    return replace(
        model,
        captured=captured,
        target_ids=None if ids is None else ids.to(choices.device),
        reads_last=len(target.layers) in draft.aux_layers,
    )
