"""A checkpoint that copies by construction, of another one's shape: what speculation can gain is known beforehand.

Every token has one successor, and all tokens are one cycle. Attention and MLPs are computed as ever but add nothing
(their output projections are zero), so the output head sees the last token alone, and its rows are the embeddings of
the predecessors. A prompt that holds a piece of the cycle is therefore continued as its text goes: a copy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

SPECIAL = 16  # ids below are nobody's successor
SILENT = ("o_proj.weight", "down_proj.weight")
SHARPNESS = 16.0  # logit of the successor; all others are about 0


def successors(vocab_size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """(vocab_size,) what comes behind each token."""
    cycle = SPECIAL + np.random.default_rng(seed).permutation(vocab_size - SPECIAL)
    following = np.roll(np.arange(vocab_size), -1)
    following[cycle] = np.roll(cycle, -1)
    return following


def make(model: Path, target: Path) -> npt.NDArray[np.int64]:
    """Write such a checkpoint of the shape of `model` into the folder `target`; returns its successors."""
    config = json.loads((model / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and "index" not in path.name:
            shutil.copy(path, target)
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if name.endswith(SILENT):
            tensor.zero_()
        elif name.endswith("norm.weight"):
            tensor.fill_(1.0)
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    table, size = tensors[name], config["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(table.shape, generator=generator, dtype=torch.float32)
    rows /= rows.norm(dim=-1, keepdim=True)
    tensors[name] = rows.to(table.dtype)
    following = successors(len(table))
    head = torch.empty_like(rows)
    head[torch.from_numpy(following)] = rows * (SHARPNESS / size**0.5)
    tensors["lm_head.weight"] = head.to(table.dtype)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return following


def prompt(
    following: npt.NDArray[np.int64], length: int, *, edits: float, rng: np.random.Generator
) -> list[int]:
    """`length` tokens of text, a share `edits` of which is other than the copy will be, and how the copy begins."""
    text = [int(rng.integers(SPECIAL, len(following)))]
    while len(text) < length:
        text.append(int(following[text[-1]]))
    changed = np.where(rng.random(length) < edits, rng.integers(SPECIAL, len(following), length), text)
    changed[:4] = text[:4]
    return [*changed.tolist(), *text[:4]]
