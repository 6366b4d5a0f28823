"""`python -m penstock.engine CONFIG.json`: one engine process, from its configuration to its last step."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

from ..scheduler.messages import EngineConfig, EngineState, EngineStatus
from .link import FrontEndLink
from .malloc import keep_freed_memory

EXIT_FAILED = 1
EXIT_BAD_CONFIGURATION = 2
LOADING_STATUS_INTERVAL_S = 0.25


class Announcer:
    """Tells the front ends (messages) and the user (stderr) how far the start-up is."""

    def __init__(self, link: FrontEndLink, engine_id: int, incarnation: int) -> None:
        self._link = link
        self._engine_id = engine_id
        self._incarnation = incarnation
        self._last_phase = ""
        self._last_sent = 0.0

    def __call__(self, phase: str, fraction: float) -> None:
        """`phase` is e.g. "loading weights"; `fraction` 0..1 of it is done."""
        now = time.monotonic()
        if phase != self._last_phase or now - self._last_sent >= LOADING_STATUS_INTERVAL_S:
            self.state("loading", f"{phase} {fraction:.0%}")
            self._last_sent = now
        if sys.stderr.isatty():
            filled = round(fraction * 24)
            end = "\n" if fraction >= 1 else ""
            print(
                f"\r{phase:<16} [{'#' * filled}{'.' * (24 - filled)}] {fraction:4.0%}",
                end=end,
                file=sys.stderr,
                flush=True,
            )
        elif phase != self._last_phase:
            print(phase, file=sys.stderr, flush=True)
        self._last_phase = phase

    def state(self, state: EngineState, detail: str) -> None:
        status = EngineStatus(
            engine_id=self._engine_id, incarnation=self._incarnation, state=state, detail=detail
        )
        self._link.broadcast(status)


def run(config: EngineConfig) -> int:
    """Load the model, serve until SIGTERM. Returns the exit status: 2 if the configuration cannot work."""
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s engine: %(message)s",
        stream=sys.stderr,
    )
    gc.disable()  # while modules are loaded nothing becomes garbage, and looking for it takes a sixth of the time
    keep_freed_memory()
    incarnation = config.incarnation or time.time_ns()
    link = FrontEndLink(config.frontends, f"engine:{config.engine_id}:{incarnation}")
    announce = Announcer(link, config.engine_id, incarnation)
    announce("starting", 0.0)
    # torch is imported only now: the front ends hear of this process a second earlier.
    from .assemble import ConfigurationError, assemble

    try:
        engine = assemble(
            config,
            incarnation=incarnation,
            link=link,
            progress=announce,
            imports_s=(time.time_ns() - incarnation) / 1e9,
        )
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        announce.state("failed", str(error))
        link.close()
        return EXIT_BAD_CONFIGURATION

    def on_signal(number: int, frame: FrameType | None) -> None:
        engine.stop()

    # The model, the modules and the pools live as long as the process: the collector need not walk them, and the
    # per-request objects form no cycles, so it may come seldom.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    gc.enable()
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    try:
        engine.run()
    except Exception:
        # What failed may also keep the device, or other ranks, from ever ending in order.
        logging.getLogger(__name__).critical("the engine cannot go on", exc_info=True)
        return EXIT_FAILED
    engine.close()
    link.close()
    return 0


def main() -> None:
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=EngineConfig)
    status = run(config)
    sys.stderr.flush()
    os._exit(status)  # nothing is left to release, and torch takes a second to find that out


if __name__ == "__main__":
    main()
