"""Drafting heads from their files, row by row and head by head in float64: what a head's checkpoint means, said once more.

Shares no code with the engine. The target is a transformers model.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def rotated(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """One head (head_dim,): pairs (i, i + head_dim / 2) turned as complex numbers."""
    half = len(x) // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half, dtype=torch.float64), angles)
    return torch.cat((turned.real, turned.imag))


@dataclass
class Layer:
    """One decoder layer over a growing list of rows, keys and values kept per row."""

    weights: dict[str, torch.Tensor]
    config: dict[str, Any]
    theta: float

    def __post_init__(self) -> None:
        self.keys: list[list[torch.Tensor]] = []
        self.values: list[list[torch.Tensor]] = []

    def project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out = self.weights[f"{name}.weight"] @ x
        bias = self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias

    def heads(self, name: str, x: torch.Tensor) -> list[torch.Tensor]:
        """The vectors of each head; queries and keys normed where the family does."""
        found = list(self.project(f"self_attn.{name}_proj", x).split(self.config["head_dim"]))
        weight = self.weights.get(f"self_attn.{name}_norm.weight")
        return (
            found if weight is None else [norm(head, weight, self.config["rms_norm_eps"]) for head in found]
        )

    def attend(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """A new row behind those that there are; what attention adds to it."""
        self.keys.append([rotated(head, position, self.theta) for head in self.heads("k", x)])
        self.values.append(self.heads("v", x))
        queries = [rotated(head, position, self.theta) for head in self.heads("q", x)]
        group = len(queries) // len(self.keys[-1])
        mixed = []
        for index, query in enumerate(queries):
            scores = torch.stack([query @ keys[index // group] for keys in self.keys]) / math.sqrt(len(query))
            weights = scores.softmax(dim=0)
            mixed.append(sum(w * v[index // group] for w, v in zip(weights, self.values, strict=True)))
        return self.project("self_attn.o_proj", torch.cat(mixed))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gated = silu(self.project("mlp.gate_proj", x)) * self.project("mlp.up_proj", x)
        return self.project("mlp.down_proj", gated)

    def forget(self, rows: int) -> None:
        del self.keys[rows:], self.values[rows:]


class Target:
    """Greedy decoding of a transformers model, and its states."""

    def __init__(self, model: PreTrainedModel, model_dir: Path) -> None:
        self.model = model
        self.config = json.loads((model_dir / "config.json").read_text())
        rope = self.config.get("rope_parameters") or self.config
        self.theta = float(rope.get("rope_theta", 10_000.0))
        self.embedding = model.get_input_embeddings().weight.detach().double()
        self.lm_head = model.get_output_embeddings().weight.detach().double()

    @torch.no_grad()
    def run(self, tokens: list[int]) -> tuple[list[int], list[torch.Tensor]]:
        """The first choice after every token, and (len(tokens), hidden_size) what enters each layer; the last is
        after the final norm."""
        out = self.model(torch.tensor([tokens]), output_hidden_states=True)
        return out.logits[0].argmax(dim=-1).tolist(), [state[0].double() for state in out.hidden_states]


class Eagle3:
    """A directory with config.json and model.safetensors of `LlamaForCausalLMEagle3`."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        self.target, self.tensors = target, tensors
        layer = {
            name.removeprefix("midlayer."): t for name, t in tensors.items() if name.startswith("midlayer.")
        }
        self.layer = Layer(layer, self.config, target.theta)
        self.aux = self.config["eagle_aux_hidden_state_layer_ids"]

    def row(self, token: int, state: torch.Tensor, position: int) -> torch.Tensor:
        eps, weights = self.config["rms_norm_eps"], self.layer.weights
        embedded = norm(self.target.embedding[token], weights["input_layernorm.weight"], eps)
        joined = torch.cat((embedded, norm(state, weights["hidden_norm.weight"], eps)))
        state = state + self.layer.attend(joined, position)
        return state + self.layer.mlp(norm(state, weights["post_attention_layernorm.weight"], eps))

    def read(self, states: list[torch.Tensor], row: int) -> torch.Tensor:
        return self.tensors["fc.weight"] @ torch.cat([states[index][row] for index in self.aux])

    def choice(self, state: torch.Tensor) -> int:
        logits = self.tensors["lm_head.weight"] @ norm(
            state, self.tensors["norm.weight"], self.config["rms_norm_eps"]
        )
        draft = int(logits.argmax())
        return draft + int(self.tensors["d2t"][draft])


class MTP:
    """`model.mtp_layers.0.*` of a checkpoint directory."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.config = {
            "head_dim": target.model.config.head_dim,
            **json.loads((folder / "config.json").read_text()),
        }
        prefix, tensors = "model.mtp_layers.0.", {}
        for path in folder.glob("*.safetensors"):
            tensors |= {
                name.removeprefix(prefix): t.double()
                for name, t in load_file(path).items()
                if name.startswith(prefix)
            }
        self.target, self.tensors = target, tensors
        self.layer = Layer(tensors, self.config, target.theta)

    def row(self, token: int, state: torch.Tensor, position: int) -> torch.Tensor:
        eps, weights = self.config["rms_norm_eps"], self.tensors
        embedding = self.target.embedding[token] if position else torch.zeros_like(state)
        both = (
            norm(state, weights["hidden_layernorm.weight"], eps),
            norm(embedding, weights["token_layernorm.weight"], eps),
        )
        x = weights["input_proj.weight"] @ torch.cat(both)
        x = x + self.layer.attend(norm(x, weights["input_layernorm.weight"], eps), position)
        x = x + self.layer.mlp(norm(x, weights["post_attention_layernorm.weight"], eps))
        return norm(x, weights["final_layernorm.weight"], eps)

    def read(self, states: list[torch.Tensor], row: int) -> torch.Tensor:
        return states[-1][row]

    def choice(self, state: torch.Tensor) -> int:
        return int((self.target.lm_head @ state).argmax())


def speculate(
    target: Target, head: Eagle3 | MTP, prompt: list[int], length: int, num_drafts: int
) -> list[int]:
    """Drafts and verifies until the text has `length` tokens; how many drafts each verification accepted.

    As an engine does it: the head's rows up to the newest known token are made from the target's states, those of
    the drafts are thrown away.
    """
    head.layer.forget(0)
    tokens = [*prompt, target.run(prompt)[0][-1]]
    accepted = []
    while len(tokens) < length:
        _, states = target.run(tokens[:-1])
        head.layer.forget(len(head.layer.keys))
        state = torch.zeros(0)
        for row in range(len(head.layer.keys), len(tokens) - 1):
            state = head.row(tokens[row + 1], head.read(states, row), row)
        known = len(head.layer.keys)
        drafts = [head.choice(state)]
        while len(drafts) < num_drafts:
            state = head.row(drafts[-1], state, len(tokens) + len(drafts) - 2)
            drafts.append(head.choice(state))
        head.layer.forget(known)
        choices, _ = target.run([*tokens, *drafts])
        choices = choices[len(tokens) - 1 :]
        right = 0
        while right < num_drafts and drafts[right] == choices[right]:
            right += 1
        kept = choices[: right + 1][: length - len(tokens)]
        accepted.append(min(right, len(kept)))
        tokens += kept
    return accepted
