"""One engine from its parts: runner, scheduler, KV event publisher and the loop that joins them."""

from __future__ import annotations

from collections.abc import Callable

from ..scheduler.kv_publisher import start_publisher
from ..scheduler.messages import EngineConfig
from ..scheduler.scheduler import Scheduler
from .build import create_runner
from .core import EngineCore
from .errors import ConfigurationError
from .link import FrontEndLink

__all__ = ["ConfigurationError", "assemble"]


def assemble(
    config: EngineConfig, *, incarnation: int, link: FrontEndLink, progress: Callable[[str, float], None]
) -> EngineCore:
    """A loaded and warm engine, ready to `run`.

    Raises ConfigurationError with one line for the user when options, checkpoint and machine do not go together.
    """
    try:
        publisher = start_publisher(config.kv_events, config.engine_id)
    except ValueError as error:
        raise ConfigurationError(f"--kv-events-config: {error}") from None
    try:
        built = create_runner(config, progress)
    except BaseException:
        if publisher is not None:
            publisher.close()
        raise
    scheduler = Scheduler(built.scheduler_config, events=publisher)
    assert scheduler.num_slots <= built.runner.num_slots, "the device has a row for every slot"
    return EngineCore(
        engine_id=config.engine_id,
        incarnation=incarnation,
        info=built.info,
        link=link,
        scheduler=scheduler,
        runner=built.runner,
        publisher=publisher,
        async_scheduling=config.async_scheduling,
    )
