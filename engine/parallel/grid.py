"""Where each rank of a replica stands: which part of every layer it has, and which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...scheduler.messages import EngineConfig
from ..errors import ConfigurationError
from ..models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Grid:
    """`stages` runs of consecutive layers, each shared out between `tensor` ranks: rank = stage * tensor + place in
    the stage. The first rank of the last stage leads: it has the scheduler, and the logits come together there."""

    tensor: int
    stages: int

    @property
    def size(self) -> int:
        return self.tensor * self.stages

    @property
    def leader(self) -> int:
        return (self.stages - 1) * self.tensor

    @property
    def followers(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.leader]


def grid_of(config: EngineConfig) -> Grid:
    return Grid(config.tensor_parallel_size, config.pipeline_parallel_size)


def layers_of(stage: int, stages: int, num_layers: int) -> range:
    """Layers are dealt out evenly; earlier stages take what is left over, for the last one has the output head too."""
    each, more = divmod(num_layers, stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def local_config(config: ModelConfig, tensor: int) -> ModelConfig:
    """The model as the attention and the KV cache of one rank see it. Where there are fewer KV heads than ranks, several
    ranks have the same one."""
    return replace(
        config, num_heads=config.num_heads // tensor, num_kv_heads=max(1, config.num_kv_heads // tensor)
    )


def refuse_what_does_not_divide(grid: Grid, config: ModelConfig) -> None:
    """Raises ConfigurationError if the model cannot be shared out like this."""
    problems = list(obstacles(config, grid.tensor))
    if problems:
        possible = [
            size for size in range(1, config.num_heads + 1) if not any(True for _ in obstacles(config, size))
        ]
        raise ConfigurationError(
            f"--tensor-parallel-size {grid.tensor}: {' and '.join(problems)}: use {listing(possible)}"
        )
    if grid.stages > config.num_layers:
        raise ConfigurationError(
            f"--pipeline-parallel-size {grid.stages}: the model has {config.num_layers} layers and every stage needs "
            f"one: use {config.num_layers} or less"
        )


def obstacles(config: ModelConfig, tensor: int) -> Iterator[str]:
    """What of the model does not divide between `tensor` ranks. The vocabulary does: it is padded."""
    if tensor > 1 and config.latent is not None:
        yield "its latent attention is not shared out between ranks yet"
        return
    if config.num_heads % tensor:
        yield f"{config.num_heads} attention heads do not divide by it"
    if config.num_kv_heads % tensor and tensor % config.num_kv_heads:
        yield f"{config.num_kv_heads} KV heads neither divide by it nor it by them"
    if config.intermediate_size % tensor:
        yield f"intermediate_size {config.intermediate_size} does not divide by it"


def refuse_too_few_devices(grid: Grid, num_devices: int) -> None:
    """Raises ConfigurationError; `num_devices` are the GPUs that torch sees."""
    if grid.size > num_devices:
        raise ConfigurationError(
            f"--tensor-parallel-size {grid.tensor} times --pipeline-parallel-size {grid.stages} needs {grid.size} GPUs, "
            f"torch sees {num_devices} here: lower one of them"
        )


def listing(sizes: list[int]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
