"""One engine from its parts: runner, scheduler, KV event publisher and the loop that joins them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from ..scheduler.kv_publisher import start_publisher
from ..scheduler.messages import EngineConfig
from ..scheduler.scheduler import Scheduler
from .build import Built, create_runner
from .build_encoder import create_encoder_runner
from .core import EngineCore
from .encoder_config import is_encoder
from .errors import ConfigurationError
from .grammar.store import GrammarStore, open_compiler
from .link import FrontEndLink
from .model_config import read_raw_config
from .parallel.grid import grid_of

__all__ = ["ConfigurationError", "assemble"]


def assemble(
    config: EngineConfig,
    *,
    incarnation: int,
    link: FrontEndLink,
    progress: Callable[[str, float], None],
    imports_s: float,
) -> EngineCore:
    """A loaded and warm engine, ready to `run`; `imports_s` is how long its process took to come here.

    Raises ConfigurationError with one line for the user when options, checkpoint and machine do not go together.
    """
    try:
        publisher = start_publisher(config.kv_events, config.engine_id)
    except ValueError as error:
        raise ConfigurationError(f"--kv-events-config: {error}") from None
    try:
        built = create(config, progress)
    except BaseException:
        if publisher is not None:
            publisher.close()
        raise
    scheduler = Scheduler(built.scheduler_config, events=publisher)
    grid = grid_of(config)
    assert scheduler.num_slots <= built.runner.num_slots, "the device has a row for every slot"
    return EngineCore(
        engine_id=config.engine_id,
        incarnation=incarnation,
        info=replace(built.info, startup_seconds={"imports": imports_s, **built.info.startup_seconds}),
        link=link,
        scheduler=scheduler,
        runner=built.runner,
        publisher=publisher,
        grammars=grammar_store(config, built.info.vocab_size, link),
        async_scheduling=config.async_scheduling,
        num_stages=grid.stages,
        # Ranks that a step failed on are not where the others are: the replica starts again.
        can_retry=grid.size == 1,
    )


def grammar_store(config: EngineConfig, vocab_size: int, link: FrontEndLink) -> GrammarStore[tuple[int, int]]:
    """Nothing of it is loaded before the engine is ready, and idle or asked for a grammar."""
    tokenizer_dir = None if config.tokenizer_dir is None else Path(config.tokenizer_dir)
    return GrammarStore(
        lambda: open_compiler(tokenizer_dir, vocab_size),
        capacity_bytes=config.grammar_cache_bytes,
        wake=link.wake,
    )


def create(config: EngineConfig, progress: Callable[[str, float], None]) -> Built:
    """The runner for the kind of model that config.json describes. Raises ConfigurationError."""
    raw, where = read_raw_config(config.model_dir, config.hf_overrides)
    if is_encoder(raw, where):
        grid = grid_of(config)
        if grid.size > 1:
            raise ConfigurationError(
                f"--tensor-parallel-size {grid.tensor} and --pipeline-parallel-size {grid.stages}: {where} describes an "
                "encoder, which runs on one device: leave them at 1"
            )
        return create_encoder_runner(config, raw, where, progress)
    return create_runner(config, progress)
