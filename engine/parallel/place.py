"""This process among the ranks of its replica, and what becomes different by that."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ...kernels.interface import Ops, Recorder
from ...scheduler.messages import EngineConfig
from ..choices import Choices
from ..models.config import ModelConfig
from .grid import grid_of, refuse_too_few_devices, refuse_what_does_not_divide
from .leader import lead
from .ranks import Ranks

log = logging.getLogger(__name__)


def take_place(
    config: EngineConfig, model_config: ModelConfig, choices: Choices, ranks: Ranks | None
) -> tuple[Ranks | None, Choices]:
    """Its rank, and what it runs on. The other ranks are started here if it leads. Raises ConfigurationError."""
    grid = grid_of(config)
    if grid.size == 1:
        return None, choices
    on_gpus = choices.device.type == "cuda"
    if ranks is None:
        refuse_what_does_not_divide(grid, model_config)
        if on_gpus:
            refuse_too_few_devices(grid, torch.cuda.device_count())
        ranks = lead(config)
    if on_gpus:
        choices = replace(choices, device=torch.device("cuda", ranks.rank))
    if choices.capture_sizes and not records(choices, ranks):
        log.info("every step runs without a recording, as it has exchanges between processes")
        choices = replace(choices, capture_sizes=())
    return ranks, choices


def records(choices: Choices, ranks: Ranks | None) -> bool:
    """A recording holds kernels alone, and on a CPU collectives are none; nor does one hold the hand-over from stage to
    stage."""
    return ranks is None or (choices.device.type == "cuda" and ranks.grid.stages == 1)


def recorder_of(config: EngineConfig, choices: Choices, ops: Ops, ranks: Ranks | None) -> Recorder | None:
    return ops.recorder() if records(choices, ranks) and not config.enforce_eager else None
