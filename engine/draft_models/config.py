"""What a drafter's checkpoint is: its kind, its sizes and what it reads of the target, checked against the target.

EAGLE heads have a directory of their own. `eagle_config.eagle_aux_hidden_state_layer_ids` (SpecForge, NVIDIA) names
layers by their output, so that id i is what enters layer i + 1; the same key beside the others (speculators, vLLM) names
what enters layer i. Without either it is what the paper's own heads read: layers 2, n/2 and n-3 of n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...scheduler.messages import EngineConfig, SpeculativeConfig
from ..errors import ConfigurationError
from ..model_config import Fields, parse_model_config, read_raw_config
from ..models.config import ModelConfig
from ..weights import Names, Shape, checkpoint_files
from .eagle import LayerOptions
from .model import DraftShape
from .mtp import DEEPSEEK, MIMO, QWEN, MTPLayout

PLACE = "--speculative-config"
EAGLE_NAMES = Names(
    renames=(("model.", ""), ("midlayer.", "layers.0.")),
    unused=("d2t", "t2d", "embed_tokens.", "lm_head.", "verifier_"),
)
MTP_NAMES = Names(unused=("",))  # the rest of the target is beside it
UNSUPPORTED = ("norm_before_fc", "fc_norm")


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """`stored` are the names and shapes in the checkpoint; None: there is none, weights are random."""

    model_dir: str
    layer: ModelConfig  # of the head's decoder layer; its vocab_size is the target's
    options: LayerOptions
    stored: Mapping[str, Shape] | None
    fc_bias: bool = False
    # EAGLE-3; no `aux_layers`: EAGLE-1 and EAGLE-2
    aux_layers: tuple[int, ...] = ()
    draft_vocab_size: int = 0
    norm_before_residual: bool = False
    norm_output: bool = False

    names = EAGLE_NAMES
    num_modules = 1

    def has(self, name: str) -> bool:
        return self.stored is not None and name in self.stored

    @property
    def shape(self) -> DraftShape:
        return shape_of(self.layer, self.num_modules)


@dataclass(frozen=True, slots=True)
class MTPConfig:
    """The first of the layers has the number `first`."""

    model_dir: str
    layer: ModelConfig
    layout: MTPLayout
    num_modules: int
    first: int

    names = MTP_NAMES

    @property
    def shape(self) -> DraftShape:
        return shape_of(self.layer, self.num_modules)


def shape_of(layer: ModelConfig, num_modules: int) -> DraftShape:
    return DraftShape(
        num_modules,
        layer.num_heads,
        layer.num_kv_heads,
        layer.head_dim,
        feature_size=layer.hidden_size,
        has_values=layer.latent is None,
    )


def read_draft_config(
    config: EngineConfig, raw: Mapping[str, Any], where: str, target: ModelConfig
) -> EagleConfig | MTPConfig | None:
    """The drafter that `config` asks for beside the target of config.json `raw`; None where it has no weights.

    Raises ConfigurationError with one line, if there is none or it was made for another model.
    """
    asked = config.speculative
    if asked is None or asked.method == "ngram":
        return None
    if target.head != "lm":
        raise ConfigurationError(
            f"{PLACE}: method {asked.method}: the model has no output head, so there is nothing to draft: leave it out"
        )
    if asked.method == "mtp":
        return read_mtp(config, asked, raw, where, target)
    if asked.method in ("eagle", "eagle3"):
        return read_eagle(config, asked, target)
    raise ConfigurationError(
        f"{PLACE}: method {asked.method!r} is not available: use one of ngram, eagle, eagle3, mtp"
    )


# --------------------------------------------------------------------------------------------------------------- MTP


def mtp_prefixes(raw: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
    """What the names of next-token layers begin with, which a model without speculation does not read."""
    count = raw.get("num_nextn_predict_layers")
    behind = range(num_layers, num_layers + count) if isinstance(count, int) else ()
    return ("model.mtp_layers.", "mtp.", *(f"model.layers.{number}." for number in behind))


def read_mtp(
    config: EngineConfig,
    asked: SpeculativeConfig,
    raw: Mapping[str, Any],
    where: str,
    target: ModelConfig,
) -> MTPConfig:
    layout, first = MIMO, 0
    if config.load_format != "dummy":
        stored = stored_tensors(config.model_dir)
        starts = {
            "model.mtp_layers.": MIMO,
            "mtp.": QWEN,
            f"model.layers.{target.num_layers}.": DEEPSEEK,
        }
        found = [each for start, each in starts.items() if any(name.startswith(start) for name in stored)]
        if not found:
            raise ConfigurationError(
                f"{PLACE}: method mtp: {config.model_dir} holds no next-token layers (model.mtp_layers.*, mtp.* or "
                f"model.layers.{target.num_layers}.*): use another method"
            )
        layout = found[0]
    first = target.num_layers if layout is DEEPSEEK else 0
    fields = Fields(raw, where)
    key = next((key for key in layout.num_layers_keys if raw.get(key) is not None), layout.num_layers_keys[0])
    count = fields.size(key, 1)
    # Layers that no draft reaches are left out; with more tokens than layers the last one goes on.
    count = min(count, asked.num_nextn_predict_layers or count, asked.num_speculative_tokens)
    return MTPConfig(config.model_dir, replace(target, windows=(None,)), layout, count, first)


# ------------------------------------------------------------------------------------------------------------- EAGLE


def read_eagle(config: EngineConfig, asked: SpeculativeConfig, target: ModelConfig) -> EagleConfig:
    if asked.model is None:
        raise ConfigurationError(
            f"{PLACE}: model is missing: method {asked.method} needs the drafter's directory"
        )
    if not Path(asked.model).is_dir():
        raise ConfigurationError(f"{PLACE}: model {asked.model}: no such directory: name a checkpoint's")
    raw, where = read_raw_config(asked.model)
    body = raw.get("transformer_layer_config")
    if isinstance(body, dict):  # speculators' way to write it
        raw = {**body, **{key: value for key, value in raw.items() if key != "transformer_layer_config"}}
    fields = Fields(raw, where)
    stored = None if config.load_format == "dummy" else eagle_tensors(asked.model)
    if stored is not None and "fc.weight" not in stored and not is_eagle3(stored):
        raise ConfigurationError(
            f"{PLACE}: model {asked.model} is no EAGLE head (fc.weight is missing): name a head made for this model"
        )
    is_third = asked.method == "eagle3" if stored is None else is_eagle3(stored)
    if is_third != (asked.method == "eagle3"):
        is_a = (
            "an EAGLE-3 head (it has hidden_norm)" if is_third else "no EAGLE-3 head (hidden_norm is missing)"
        )
        raise ConfigurationError(
            f"{PLACE}: method {asked.method}: {asked.model} is {is_a}: use method {'eagle3' if is_third else 'eagle'}"
        )
    if fields.size("num_hidden_layers", 1) != 1:
        raise ConfigurationError(
            f"{where}: num_hidden_layers {raw['num_hidden_layers']}: a head of one layer is supported"
        )
    layer = parse_model_config({**raw, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}, where)
    layer = replace(layer, windows=(None,))
    if layer.vocab_size != target.vocab_size:
        raise other_model(asked.model, f"vocab_size {layer.vocab_size}", f"{target.vocab_size}")
    options = layer_options(layer, stored)
    if not is_third:
        if layer.hidden_size != target.hidden_size:
            raise other_model(asked.model, f"hidden_size {layer.hidden_size}", f"{target.hidden_size}")
        has_bias = bool(fields.get("bias", bool, False)) if stored is None else "fc.bias" in stored
        return EagleConfig(asked.model, layer, options, stored, fc_bias=has_bias)
    return read_eagle3(asked.model, fields, layer, options, stored, target)


def read_eagle3(
    model_dir: str,
    fields: Fields,
    layer: ModelConfig,
    options: LayerOptions,
    stored: Mapping[str, Shape] | None,
    target: ModelConfig,
) -> EagleConfig:
    raw, where = fields.raw, fields.where
    for key in UNSUPPORTED:
        if raw.get(key):
            raise ConfigurationError(f"{where}: {key} {raw[key]!r} is not supported: use a head without it")
    aux_layers = read_aux_layers(raw, where, target.num_layers)
    reads = fields.size("target_hidden_size", target.hidden_size)
    if stored is not None and "fc.weight" in stored:
        reads = stored["fc.weight"][1] // len(aux_layers)
    if reads != target.hidden_size:
        raise other_model(model_dir, f"a target's hidden size of {reads}", f"{target.hidden_size}")
    draft_vocab_size = fields.size("draft_vocab_size", target.vocab_size)
    if draft_vocab_size > target.vocab_size:
        raise other_model(model_dir, f"draft_vocab_size {draft_vocab_size}", f"{target.vocab_size} tokens")
    if stored is not None:
        if "lm_head.weight" not in stored and draft_vocab_size != target.vocab_size:
            raise ConfigurationError(
                f"{model_dir} has no lm_head.weight for its {draft_vocab_size} tokens: repair or convert it again"
            )
        if "d2t" not in stored and draft_vocab_size != target.vocab_size:
            raise ConfigurationError(
                f"{model_dir} has no d2t, which says what its {draft_vocab_size} tokens are to the model: repair or "
                "convert it again"
            )
        shared = [
            name for name in ("embed_tokens.weight", "lm_head.weight") if name not in stored
        ]  # taken from the target
        if shared and layer.hidden_size != target.hidden_size:
            raise other_model(
                model_dir,
                f"hidden_size {layer.hidden_size} and no {shared[0]}",
                f"{target.hidden_size}",
            )
    return EagleConfig(
        model_dir,
        layer,
        options,
        stored,
        fc_bias=stored is not None and "fc.bias" in stored,
        aux_layers=aux_layers,
        draft_vocab_size=draft_vocab_size,
        norm_before_residual=fields.get("norm_before_residual", bool, False),
        norm_output=fields.get("norm_output", bool, False),
    )


def read_aux_layers(raw: Mapping[str, Any], where: str, num_layers: int) -> tuple[int, ...]:
    """The target's layers whose inputs the head reads; `num_layers` means what leaves the last one."""
    nested = raw.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    key, by = "eagle_aux_hidden_state_layer_ids", 0
    if nested.get("use_aux_hidden_state") is False:
        raise ConfigurationError(f"{where}: eagle_config.use_aux_hidden_state false is not supported")
    ids = raw.get(key)
    if ids is None:
        ids, key, by = nested.get(key), f"eagle_config.{key}", 1
    if ids is None:
        ids, by = [2, num_layers // 2, num_layers - 3], 0
        if num_layers < 7:
            raise ConfigurationError(
                f"{where}: {key} is missing: for a model of {num_layers} layers it must say which of them the head reads"
            )
    if (
        not isinstance(ids, list)
        or not ids
        or len(set(map(str, ids))) < len(ids)
        or not all(isinstance(each, int) and 0 <= each + by <= num_layers for each in ids)
    ):
        raise ConfigurationError(
            f"{where}: {key} {ids!r} must name different ones of the model's {num_layers} layers: is the head made for "
            "another model?"
        )
    return tuple(each + by for each in ids)


def layer_options(layer: ModelConfig, stored: Mapping[str, Shape] | None) -> LayerOptions:
    """By what is there; configurations leave much of it unsaid."""
    if stored is None:
        return LayerOptions(layer.attention_bias, layer.attention_bias, layer.mlp_bias)
    return LayerOptions(
        qkv_bias="layers.0.self_attn.q_proj.bias" in stored,
        output_bias="layers.0.self_attn.o_proj.bias" in stored,
        mlp_bias="layers.0.mlp.up_proj.bias" in stored,
        qk_norm="layers.0.self_attn.q_norm.weight" in stored,
    )


def is_eagle3(stored: Mapping[str, Shape]) -> bool:
    return "layers.0.hidden_norm.weight" in stored


def other_model(model_dir: str, has: str, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"{PLACE}: model {model_dir} has {has}, the model to serve {wanted}: it was made for another model"
    )


def eagle_tensors(model_dir: str) -> Mapping[str, Shape]:
    directory = Path(model_dir)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    if pickled and not any(directory.glob("*.safetensors")):
        raise ConfigurationError(
            f"{PLACE}: model {model_dir} holds {pickled[0]} alone, a format that can run code when it is read: convert "
            "it to safetensors (the Hugging Face space safetensors/convert does), or take a copy that is"
        )
    return stored_tensors(model_dir, EAGLE_NAMES)


def stored_tensors(model_dir: str, names: Names | None = None) -> dict[str, Shape]:
    """Names, as models ask for them, and shapes of all that a checkpoint holds."""
    shapes: dict[str, Shape] = {}
    for path in checkpoint_files(Path(model_dir)):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if names is None:
        return shapes
    return {name: shapes[stored] for name, stored in names.expected(shapes).items()}


def target_ids(config: EagleConfig) -> torch.Tensor | None:
    """int32 (draft vocabulary, 1) of the target's ids, if they are not the drafter's own. `d2t` holds the differences.

    Raises ConfigurationError where they are no ids of the target.
    """
    if config.stored is None or "d2t" not in config.stored:
        return None
    (stored,) = [path for path in checkpoint_files(Path(config.model_dir)) if "d2t" in tensor_names(path)]
    with safe_open(stored, framework="pt", device="cpu") as file:
        differences: torch.Tensor = file.get_tensor("d2t")
    if differences.shape != (config.draft_vocab_size,) or differences.is_floating_point():
        raise ConfigurationError(
            f"{config.model_dir}: d2t is {list(differences.shape)} of {differences.dtype}, draft_vocab_size "
            f"{config.draft_vocab_size} whole numbers are needed: repair or convert it again"
        )
    ids = differences.long() + torch.arange(len(differences))
    if int(ids.min()) < 0 or int(ids.max()) >= config.layer.vocab_size:
        raise ConfigurationError(
            f"{config.model_dir}: d2t leads to ids {int(ids.min())} to {int(ids.max())}, the model has "
            f"{config.layer.vocab_size} tokens: it was made for another model"
        )
    return ids.to(torch.int32)[:, None].contiguous()


def tensor_names(path: Path) -> set[str]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return set(file.keys())
