"""How the config.json of a BERT-like encoder is read into an `EncoderConfig`; clear errors where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ConfigurationError
from .layers.encoder import ACTIVATIONS
from .model_config import Fields, checkpoint_dtype, read_labels, refuse_quantised, supported_architecture
from .models.config import EncoderConfig
from .models.registry import ENCODER_FAMILIES, HEADS
from .models.roberta import Roberta


def is_encoder(raw: Mapping[str, Any], where: str) -> bool:
    """Raises ConfigurationError for an architecture that is not supported at all."""
    return supported_architecture(raw, where) in ENCODER_FAMILIES


def parse_encoder_config(raw: Mapping[str, Any], where: str = "config.json") -> EncoderConfig:
    """The typed form of a config.json's content. Raises ConfigurationError naming the key and `where`."""
    fields = Fields(raw, where)
    architecture = supported_architecture(raw, where)
    refuse_quantised(raw, where)
    activation = fields.get("hidden_act", str, "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"{where}: hidden_act {activation!r} is not supported: one of {', '.join(ACTIVATIONS)} is"
        )
    kind = fields.get("position_embedding_type", str, "absolute")
    if kind != "absolute":
        raise ConfigurationError(f"{where}: position_embedding_type {kind!r} is not supported: absolute is")
    if fields.get("is_decoder", bool, False):
        raise ConfigurationError(f"{where}: is_decoder true is not supported for {architecture}")
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden_size % num_heads:
        raise ConfigurationError(
            f"{where}: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}"
        )
    positions = fields.size("max_position_embeddings")
    first = 0
    if ENCODER_FAMILIES[architecture] is Roberta:
        first = fields.get("pad_token_id", int, 1) + 1
    head = HEADS[architecture]
    return EncoderConfig(
        architecture=architecture,
        head=head,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=num_heads,
        activation=activation,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
        type_vocab_size=fields.size("type_vocab_size", 2),
        max_position_embeddings=positions,
        first_position=first,
        derived_max_model_len=positions - first,
        num_labels=len(read_labels(raw, where)) if head == "classify" else 0,
        dtype=checkpoint_dtype(raw, where),
    )
