"""The log line of load and throughput that appears every ten seconds while requests run."""

from __future__ import annotations

import logging
import time

from ...scheduler.messages import EngineLoad, EngineStatus

log = logging.getLogger(__name__)

INTERVAL_S = 10.0


class StatsLine:
    """Fed with every engine status; keeps the last printed one of each engine to tell rates."""

    def __init__(self) -> None:
        self._printed: dict[int, tuple[int, float, EngineLoad]] = {}

    def on_status(self, status: EngineStatus) -> None:
        now = time.monotonic()
        incarnation, since, before = self._printed.get(status.engine_id, (0, 0.0, EngineLoad()))
        if incarnation != status.incarnation:
            self._printed[status.engine_id] = (status.incarnation, now, status.load)
            return
        if now - since < INTERVAL_S:
            return
        self._printed[status.engine_id] = (incarnation, now, status.load)
        load = status.load
        if load.num_running or load.num_waiting or load.generation_tokens != before.generation_tokens:
            drafts = status.info is not None and status.info.num_speculative_tokens > 0
            log.info("%s", describe(load, before, now - since, drafts=drafts))


def describe(load: EngineLoad, before: EngineLoad, seconds: float, *, drafts: bool = False) -> str:
    """What happened in `seconds`, with what became of `drafts`."""
    prompt = load.prompt_tokens - before.prompt_tokens
    cached = load.cached_prompt_tokens - before.cached_prompt_tokens
    line = (
        f"prompt {prompt / seconds:.1f} tok/s, "
        f"generation {(load.generation_tokens - before.generation_tokens) / seconds:.1f} tok/s, "
        f"running {load.num_running}, waiting {load.num_waiting}, KV cache {load.kv_usage:.1%}, "
        f"prefix hits {cached / prompt if prompt else 0.0:.1%}"
    )
    if not drafts:
        return line
    drafted = load.num_draft_tokens - before.num_draft_tokens
    accepted = load.num_accepted_tokens - before.num_accepted_tokens
    verified = load.num_drafts - before.num_drafts
    if not verified:
        return f"{line}, no drafts"
    return (
        f"{line}, drafts accepted {accepted / drafted:.1%}, acceptance length {1 + accepted / verified:.2f}"
    )
