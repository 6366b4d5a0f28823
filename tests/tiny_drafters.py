"""Random checkpoints of drafters for the tiny models, and what they must draft: plain torch, no cache, no pages.

The oracle counts entries as the papers do: entry i joins the state of position i with the embedding of token i + 1 (in
the m-th next-token layer, of token i + 1 + m), and stands at rotary position i.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE
from transformers import PreTrainedModel

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, EPS, THETA = 64, 96, 4, 2, 16, 1e-6, 10_000.0
DRAFT_VOCAB = 120
LAYER_CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "num_hidden_layers": 1,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "max_position_embeddings": 512,
    "vocab_size": VOCAB_SIZE,
    "torch_dtype": "float32",
}
Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def layer_shapes(name: str, *, reads: int = HIDDEN, qk_norm: bool = False, input_norm: bool = True) -> Shapes:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: Shapes = {
        f"{name}.self_attn.q_proj.weight": (q, reads),
        f"{name}.self_attn.k_proj.weight": (kv, reads),
        f"{name}.self_attn.v_proj.weight": (kv, reads),
        f"{name}.self_attn.o_proj.weight": (HIDDEN, q),
        f"{name}.post_attention_layernorm.weight": (HIDDEN,),
        f"{name}.mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{name}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{name}.mlp.down_proj.weight": (HIDDEN, INNER),
    }
    if input_norm:
        shapes[f"{name}.input_layernorm.weight"] = (HIDDEN,)
    if qk_norm:
        shapes |= {f"{name}.self_attn.{x}_norm.weight": (HEAD_DIM,) for x in "qk"}
    return shapes


def random_tensors(shapes: Shapes, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.2 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
    return tensors


def write(path: Path, config: dict[str, Any], tensors: Tensors) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors")


def make_eagle3(path: Path, seed: int = 5, *, aux: Sequence[int] = (0, 1, 2), **options: Any) -> Tensors:
    """A head as SpecForge writes it; `aux` are the layers whose outputs it reads."""
    shapes = layer_shapes("midlayer", reads=2 * HIDDEN) | {
        "midlayer.hidden_norm.weight": (HIDDEN,),
        "fc.weight": (HIDDEN, len(aux) * HIDDEN),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
    }
    tensors = random_tensors(shapes, seed)
    ids = (
        torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))[:DRAFT_VOCAB].sort().values
    )
    tensors["d2t"] = ids - torch.arange(DRAFT_VOCAB)
    tensors["t2d"] = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill_(0, ids, True)
    config = LAYER_CONFIG | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(aux), "use_aux_hidden_state": True},
    }
    write(path, config | options, tensors)
    return tensors


def make_eagle1(path: Path, seed: int = 6) -> Tensors:
    """A head as the first version's authors publish it, but for its container."""
    shapes = layer_shapes("layers.0", input_norm=False) | {"fc.weight": (HIDDEN, 2 * HIDDEN)}
    shapes["fc.bias"] = (HIDDEN,)
    tensors = random_tensors(shapes, seed)
    write(path, LAYER_CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, tensors)
    return tensors


def add_mtp(
    path: Path, num_layers: int, style: str = "mimo", seed: int = 7, *, qkv_bias: bool = False
) -> Tensors:
    """Next-token layers into the checkpoint at `path`: of Qwen3, or with `qkv_bias` of Qwen2."""
    shapes: Shapes = {}
    config_file = path / "config.json"
    config = json.loads(config_file.read_text())
    for number in range(num_layers):
        match style:
            case "mimo":
                name = f"model.mtp_layers.{number}"
                names = [f"{name}.{x}" for x in ("token_layernorm", "hidden_layernorm", "final_layernorm")]
                projection = f"{name}.input_proj"
            case "qwen":
                name = f"mtp.layers.{number}"
                names = ["mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"]
                projection = "mtp.fc"
            case _:
                name = f"model.layers.{config['num_hidden_layers'] + number}"
                names = [f"{name}.{x}" for x in ("enorm", "hnorm", "shared_head.norm")]
                projection = f"{name}.eh_proj"
        shapes |= layer_shapes(name, qk_norm=not qkv_bias) | {f"{each}.weight": (HIDDEN,) for each in names}
        if qkv_bias:
            widths = (HEADS, KV_HEADS, KV_HEADS)
            shapes |= {
                f"{name}.self_attn.{x}_proj.bias": (count * HEAD_DIM,)
                for x, count in zip("qkv", widths, strict=True)
            }
        shapes[f"{projection}.weight"] = (HIDDEN, 2 * HIDDEN)
    tensors = random_tensors(shapes, seed)
    config["num_nextn_predict_layers"] = num_layers
    config_file.write_text(json.dumps(config))
    save_file(load_file(path / "model.safetensors") | tensors, path / "model.safetensors")
    return tensors


def copy_last_layer(path: Path) -> None:
    """A next-token layer into the Qwen3 checkpoint of one layer at `path` that is mostly right: it does with the token
    what the target does, but for what the target sees of position 0, which it does not."""
    tensors = load_file(path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = F.rms_norm(
        table, (HIDDEN,), eps=EPS
    )  # so that norms change nothing
    name = "model.mtp_layers.0"
    copies = {
        each.replace("model.layers.0", name): tensor
        for each, tensor in tensors.items()
        if each.startswith("model.layers.0.")
    }
    norms = {f"{name}.{each}_layernorm.weight": torch.ones(HIDDEN) for each in ("token", "hidden")}
    own = {
        f"{name}.input_proj.weight": torch.cat((torch.zeros(HIDDEN, HIDDEN), torch.eye(HIDDEN)), 1),
        f"{name}.final_layernorm.weight": tensors["model.norm.weight"],
    }
    config = json.loads((path / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    write(path, config, tensors | copies | norms | own)


# ------------------------------------------------------------------------------------------------------------- oracle


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def rotated(x: torch.Tensor) -> torch.Tensor:
    """x (T, heads, HEAD_DIM), row i at position i."""
    frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.arange(len(x))[:, None] * frequencies
    cos, sin = (torch.cat((f(angles), f(angles)), -1)[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def attended(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (F.linear(x, tensors[f"{name}.{y}_proj.weight"]).view(len(x), -1, HEAD_DIM) for y in "qkv")
    if f"{name}.q_norm.weight" in tensors:
        q, k = rms(q, tensors[f"{name}.q_norm.weight"]), rms(k, tensors[f"{name}.k_norm.weight"])
    q, k = rotated(q), rotated(k)
    k, v = (each.repeat_interleave(HEADS // KV_HEADS, 1) for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
    return F.linear(out, tensors[f"{name}.o_proj.weight"])


def fed_forward(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    gate, up = (F.linear(x, tensors[f"{name}.{y}_proj.weight"]) for y in ("gate", "up"))
    return F.linear(F.silu(gate) * up, tensors[f"{name}.down_proj.weight"])


@dataclass
class Oracle:
    """`entries(layer, embedded, states)` -> (what the next layer or step goes on from, logits), all entries at once."""

    target: PreTrainedModel
    num_layers: int
    features: Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
    entries: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ids: torch.Tensor | None = None

    @torch.no_grad()
    def misses(self, known: list[int], drafts: list[int]) -> list[float]:
        """By how much each of `drafts` behind the `known` tokens falls short of the best logit, given those before."""
        out = self.target.model(torch.tensor([known[:-1]]), output_hidden_states=True)
        tokens = torch.tensor(known + drafts)
        embedded = self.target.model.embed_tokens.weight[tokens]
        streams = [self.features([each[0] for each in out.hidden_states], out.last_hidden_state[0])]
        count = len(known) - 1
        misses = []
        for number, draft in enumerate(drafts):
            layer = min(number, self.num_layers - 1)
            if number < self.num_layers:
                states = streams[-1]
            else:  # on from its own
                states = torch.cat((states, streams[-1][-1:]))
            shift = layer + 1
            own, logits = self.entries(layer, embedded[shift : shift + len(states)], states)
            streams.append(own)
            best = logits[-1]
            place = draft
            if self.ids is not None:
                place = int((self.ids == draft).nonzero())
            misses.append(float(best.max() - best[place]))
        assert count > 0
        return misses


def eagle3_oracle(
    target: PreTrainedModel,
    tensors: Tensors,
    aux: Sequence[int] = (0, 1, 2),
    *,
    norm_before_residual: bool = False,
) -> Oracle:
    def features(hidden: Sequence[torch.Tensor], final: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.cat([hidden[each + 1] for each in aux], -1), tensors["fc.weight"])

    def entries(
        layer: int, embedded: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed = rms(states, tensors["midlayer.hidden_norm.weight"])
        both = torch.cat((rms(embedded, tensors["midlayer.input_layernorm.weight"]), normed), -1)
        x = (normed if norm_before_residual else states) + attended(tensors, "midlayer.self_attn", both)
        normed = rms(x, tensors["midlayer.post_attention_layernorm.weight"])
        x = x + fed_forward(tensors, "midlayer.mlp", normed)
        return x, F.linear(rms(x, tensors["norm.weight"]), tensors["lm_head.weight"])

    return Oracle(target, 1, features, entries, tensors["d2t"] + torch.arange(DRAFT_VOCAB))


def eagle1_oracle(target: PreTrainedModel, tensors: Tensors) -> Oracle:
    def entries(
        layer: int, embedded: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.linear(torch.cat((embedded, states), -1), tensors["fc.weight"], tensors["fc.bias"])
        x = x + attended(tensors, "layers.0.self_attn", x)
        normed = rms(x, tensors["layers.0.post_attention_layernorm.weight"])
        x = x + fed_forward(tensors, "layers.0.mlp", normed)
        return x, target.lm_head(x)

    return Oracle(target, 1, lambda hidden, final: final, entries)


def mtp_oracle(target: PreTrainedModel, tensors: Tensors, num_layers: int, style: str = "mimo") -> Oracle:
    def entries(
        layer: int, embedded: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        match style:
            case "mimo":
                name = f"model.mtp_layers.{layer}"
                enorm, hnorm, norm, projection = (
                    tensors[f"{name}.{each}.weight"]
                    for each in ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj")
                )
            case "qwen":
                name = f"mtp.layers.{layer}"
                enorm, hnorm, norm, projection = (
                    tensors[f"mtp.{each}.weight"]
                    for each in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", "fc")
                )
            case _:
                name = f"model.layers.{target.config.num_hidden_layers + layer}"
                enorm, hnorm, norm, projection = (
                    tensors[f"{name}.{each}.weight"]
                    for each in ("enorm", "hnorm", "shared_head.norm", "eh_proj")
                )
        if style != "qwen":
            embedded = embedded.clone()
            embedded[0] = 0
        both = [rms(embedded, enorm), rms(states, hnorm)]
        x = F.linear(torch.cat(both[::-1] if style == "mimo" else both, -1), projection)
        normed = rms(x, tensors[f"{name}.input_layernorm.weight"])
        x = x + attended(tensors, f"{name}.self_attn", normed)
        normed = rms(x, tensors[f"{name}.post_attention_layernorm.weight"])
        x = x + fed_forward(tensors, f"{name}.mlp", normed)
        normed = rms(x, norm)
        return (x if style == "deepseek" else normed), target.lm_head(normed)

    return Oracle(target, num_layers, lambda hidden, final: final, entries)


def deepseek_oracle(path: Path, whole: PreTrainedModel, seed: int = 8) -> Oracle:
    """Makes the last layer of the DeepSeek-V3 checkpoint at `path` (`whole`, in transformers) one for the next token,
    stored as DeepSeek does, copies of embedding and head beside it."""
    number = whole.config.num_hidden_layers - 1
    name = f"model.layers.{number}"
    shapes: Shapes = {f"{name}.{x}.weight": (HIDDEN,) for x in ("enorm", "hnorm", "shared_head.norm")}
    own = random_tensors(shapes | {f"{name}.eh_proj.weight": (HIDDEN, 2 * HIDDEN)}, seed)
    tensors = load_file(path / "model.safetensors")
    copies = {
        f"{name}.embed_tokens.weight": tensors["model.embed_tokens.weight"],
        f"{name}.shared_head.head.weight": tensors["lm_head.weight"],
    }
    config = json.loads((path / "config.json").read_text())
    write(path, config | {"num_hidden_layers": number, "num_nextn_predict_layers": 1}, tensors | copies | own)
    target = copy.deepcopy(whole)
    target.model.layers = target.model.layers[:number]
    target.config.num_hidden_layers = number
    layer = whole.model.layers[number]

    def entries(_: int, embedded: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = embedded.clone()
        embedded[0] = 0
        both = [rms(embedded, own[f"{name}.enorm.weight"]), rms(states, own[f"{name}.hnorm.weight"])]
        x = F.linear(torch.cat(both, -1), own[f"{name}.eh_proj.weight"])[None]
        positions = torch.arange(x.shape[1])[None]
        turns = whole.model.rotary_emb(x, positions)
        x = layer(x, attention_mask=None, position_ids=positions, position_embeddings=turns)
        x = (x[0] if isinstance(x, tuple) else x)[0]
        return x, whole.lm_head(rms(x, own[f"{name}.shared_head.norm.weight"]))

    return Oracle(target, 1, lambda hidden, final: final, entries)
