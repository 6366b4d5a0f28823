"""The frozen target: the engine's own model over whole texts, without a KV cache, and the states that heads read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from ...kernels.attention.interface import AttentionBackend, AttentionBatch, AttentionSpec, HostRows
from ...kernels.interface import Ops
from ...kernels.reference import TorchOps
from ...scheduler.messages import EngineConfig
from .. import kv_pool
from ..batch import ForwardBatch
from ..build import attention_spec
from ..choices import Choices, choose
from ..errors import ConfigurationError
from ..layers.decoder import Decoder
from ..layers.parts import Weights
from ..layers.rope import rope_table
from ..loading import load_ops, load_weights
from ..model_config import read_model_config
from ..models.config import ModelConfig
from ..models.registry import FAMILIES
from ..weights import DeclaredWeights, Names, Shape, checkpoint_files

UNUSED = ("score.", "model.mtp_layers.")


@dataclass(frozen=True, slots=True)
class TargetStates:
    """`features` (B, L, n * hidden_size): the wanted layers' inputs one after the other, or with no layers `final`.

    `final` (B, L, hidden_size) is after the final norm.
    """

    features: torch.Tensor
    final: torch.Tensor


class RowsAttention:
    """Causal attention within rows of equal length from position 0, their keys and values nowhere kept."""

    name = "rows"

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self._rows = 0
        self._mask: torch.Tensor | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """Every row has `max_len` tokens."""
        self._rows, length, window = batch.num_rows, batch.max_len, self.spec.window
        self._mask = None
        if window is not None and length > window:
            place = torch.arange(length, device=batch.positions.device)
            behind = place[:, None] - place
            self._mask = (behind >= 0) & (behind < window)

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        """(tokens, num_heads, head_dim) in q's dtype; the pages stay as they are."""
        q4, k4, v4 = (x.reshape(self._rows, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q4,
            k4,
            v4,
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=self.spec.scale,
            enable_gqa=self.spec.num_heads != self.spec.num_kv_heads,
        )
        return out.transpose(1, 2).reshape(q.shape)


class FrozenTarget:
    """A checkpoint of a family that the engine knows.

    `layer_tensors` are the tensors of one decoder layer, by their names below `model.layers.N.`. `embedding` and
    `lm_head` (vocab_size, hidden_size) and `norm` (hidden_size,) are plain tensors, the first two the same if tied.
    """

    def __init__(self, config: EngineConfig, max_length: int) -> None:
        """Raises ConfigurationError for whatever the engine would refuse too."""
        self.config: ModelConfig = read_model_config(config.model_dir)
        self.choices: Choices = choose(config, self.config)
        if self.config.head != "lm":
            raise ConfigurationError(
                f"--model {config.model_dir}: {self.config.architecture} has no output head: name a ...ForCausalLM"
            )
        self.cos_sin = rope_table(self.config, max_length, self.choices.device)
        groups = kv_pool.group_layers(self.config, max_length)
        self._attention: list[AttentionBackend] = [
            RowsAttention(attention_spec(config, self.config, self.choices, window))
            for window in groups.windows
        ]
        family = FAMILIES[self.config.architecture]

        def make(weights: Weights, ops: Ops) -> Decoder:
            return family.model(self.config, weights, ops, self._attention, groups.of_layer, self.cos_sin)

        declared = DeclaredWeights(self.choices.dtype)
        make(declared, TorchOps())
        self._last = f"model.layers.{self.config.num_layers - 1}."
        self.layer_tensors: dict[str, Shape] = {
            name.removeprefix(self._last): shape
            for name, shape in declared.shapes.items()
            if name.startswith(self._last)
        }
        ops = load_ops(config.attention_backend, self.choices, lambda phase, fraction: None)
        self._model, _ = load_weights(
            config, self.choices, make, ops, Names("model.", unused=UNUSED), lambda fraction: None
        )
        plain = self.tensors(config.model_dir, {name for name in declared.shapes if outside_layers(name)})
        self.embedding, self.norm = plain["model.embed_tokens.weight"], plain["model.norm.weight"]
        self.lm_head = plain.get("lm_head.weight", self.embedding)

    @staticmethod
    def longest(config: EngineConfig, asked: int) -> int:
        """Tokens of the longest text that both the model and `asked` allow."""
        return min(asked, read_model_config(config.model_dir).derived_max_model_len)

    @property
    def device(self) -> torch.device:
        return self.choices.device

    def last_layer(self, model_dir: str) -> dict[str, torch.Tensor]:
        """The weights of the last decoder layer, by their names below `model.layers.N.`."""
        found = self.tensors(model_dir, {self._last + name for name in self.layer_tensors})
        return {name.removeprefix(self._last): tensor for name, tensor in found.items()}

    def tensors(self, model_dir: str, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors of the checkpoint as they are there, on the device."""
        found = read_tensors(model_dir, set(names))
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    @torch.no_grad()
    def states(self, tokens: torch.Tensor, aux_layers: Sequence[int]) -> TargetStates:
        """tokens (B, L) int64 -> states; layer i of `aux_layers` gives what enters it (0: the embedding)."""
        rows, length = tokens.shape
        flat = tokens.reshape(-1).int()
        positions = torch.arange(length, dtype=torch.int32, device=tokens.device).repeat(rows)
        whole = AttentionBatch(
            num_rows=rows,
            num_tokens=len(flat),
            num_decode_rows=0,
            max_len=length,
            max_context=length,
            slots=torch.arange(rows, dtype=torch.int32),
            starts=torch.zeros(rows, dtype=torch.int32),
            q_start=torch.arange(rows + 1, dtype=torch.int32) * length,
            positions=positions,
            token_rows=torch.arange(rows, dtype=torch.int32).repeat_interleave(length),
            page_table=torch.empty((rows, 0), dtype=torch.int32),
            host=HostRows(
                slots=np.arange(rows, dtype=np.int32),
                starts=np.zeros(rows, np.int32),
                q_start=np.arange(rows + 1, dtype=np.int32) * np.int32(length),
            ),
        )
        for backend in self._attention:
            backend.plan(whole)
        model, nothing = self._model, torch.empty(0)
        batch = ForwardBatch(flat, positions, [whole], [(nothing, nothing)] * len(model.layers))
        assert model.embed is not None
        x, residual, taken = model.embed(flat), None, {}
        for index, layer in enumerate(model.layers):
            if index in aux_layers:
                taken[index] = x.clone() if residual is None else x + residual
            x, residual = layer(x, residual, batch)
        assert residual is not None
        final, _ = model.ops.add_rms_norm(x, residual, model.norm, self.config.rms_norm_eps)
        final = final.view(rows, length, -1)
        aux = [taken[index].view(rows, length, -1) for index in aux_layers]
        return TargetStates(torch.cat(aux, dim=-1) if aux else final, final)

    @torch.no_grad()
    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """(n, hidden_size) after the final norm -> (n, vocab_size) float32."""
        return self._model.logits(final.contiguous()).float()


def outside_layers(name: str) -> bool:
    return not name.startswith("model.layers.")


def read_tensors(model_dir: str, names: set[str]) -> dict[str, torch.Tensor]:
    """Those of `names` that the safetensors files of a checkpoint hold."""
    found = {}
    for path in checkpoint_files(Path(model_dir)):
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names.intersection(file.keys()):
                found[name] = file.get_tensor(name)
    return found
