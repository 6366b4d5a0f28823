"""A training run on disk: weights, optimizer and place in the texts, so that a resumed run ends in the same bits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import ConfigurationError


def save(path: Path, head: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
    """All in one file, which replaces the last one in one piece. `facts` must be JSON."""
    tensors = {f"head.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    for name, parameter in head.named_parameters():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"run": json.dumps(facts)})
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path, head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the file's tensors into head and optimizer; its facts. Raises ConfigurationError if it is of another head."""
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["run"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"--resume: {path} cannot be read: {error}; begin again without it"
        ) from None
    for name, parameter in head.named_parameters():
        tensor = stored.get(f"head.{name}")
        if tensor is None or tensor.shape != parameter.shape:
            raise ConfigurationError(
                f"--resume: {path} is of another head (its {name} differs): begin again without it, or give the "
                "options of that run"
            )
        with torch.no_grad():
            parameter.copy_(tensor)
        prefix = f"optimizer.{name}."
        optimizer.state[parameter] = {
            # The count of steps stays on the host, as AdamW keeps it.
            key.removeprefix(prefix): value.to(parameter.device) if value.dim() else value
            for key, value in stored.items()
            if key.startswith(prefix)
        }
    return facts


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigurationError naming the first option that is not as it was."""
    for name, value in now.items():
        if before.get(name) != value:
            raise ConfigurationError(
                f"--resume: {path} was trained with {name} {before.get(name)}, now it is {value}: give the same, or "
                "begin again without --resume"
            )
