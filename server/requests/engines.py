"""What a front end knows of each engine, and what follows from that for requests."""

from __future__ import annotations

import time
from collections.abc import Sequence as Ordered
from typing import Literal, NamedTuple, TypeAlias

from ...scheduler.messages import EngineInfo, EngineLoad, EngineState
from .outstanding import Outstanding

Availability: TypeAlias = Literal["loading", "ready", "restarting", "failed", "draining"]
SILENCE_LIMIT_S = 30.0  # statuses come every second between steps; a long step delays them


class Condition(NamedTuple):
    """Can requests be served? `detail` says how far a start is, or why not."""

    state: Availability
    detail: str


class Engine:
    """What is known of one engine; `identity` is None while none of its incarnations lives."""

    __slots__ = (
        "assigned",
        "detail",
        "engine_id",
        "identity",
        "incarnation",
        "info",
        "load",
        "retired",
        "seen_at",
        "state",
    )

    def __init__(self, engine_id: int) -> None:
        self.engine_id = engine_id
        self.incarnation: int | None = None
        self.identity: bytes | None = None
        self.state: EngineState = "loading"
        self.detail = ""
        self.info: EngineInfo | None = None
        self.load = EngineLoad()
        self.assigned: dict[int, Outstanding] = {}
        self.retired: set[int] = set()
        self.seen_at = 0.0

    def retire(self) -> list[Outstanding]:
        """Its present incarnation is gone; returns the sequences it had."""
        if self.incarnation is not None:
            self.retired.add(self.incarnation)
        self.incarnation = None
        self.identity = None
        orphans = list(self.assigned.values())
        self.assigned = {}
        return orphans


def condition(engines: Ordered[Engine], *, was_ready: bool) -> Condition:
    """Of the whole family; `was_ready` tells a restart from the first start."""
    ready = [engine for engine in engines if engine.state == "ready"]
    if ready:
        silence_s = time.monotonic() - max(engine.seen_at for engine in ready)
        if silence_s < SILENCE_LIMIT_S:
            return Condition("ready", "")
        return Condition("restarting", f"no word from the engine for {silence_s:.0f} s")
    if engines and all(engine.state == "failed" for engine in engines):
        return Condition("failed", next(engine.detail for engine in engines))
    detail = next((engine.detail for engine in engines if engine.detail), "")
    return Condition("restarting" if was_ready else "loading", detail or "waiting for the engine")
