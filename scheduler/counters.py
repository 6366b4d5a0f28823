"""What the scheduler has counted since it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import msgspec

from .messages import EngineLoad
from .plan import StepPlan


@dataclass(slots=True)
class Counters:
    """Names and meanings as in `messages.EngineLoad`."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_prompt_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    mixed_steps: int = 0
    mixed_steps_late: int = 0
    mixed_prefill_tokens: int = 0
    mixed_step_seconds: float = 0.0
    mixed_expected_seconds: float = 0.0

    def mixed_step(self, plan: StepPlan, seconds: float, target_s: float) -> None:
        """A step that had decodes and prefill took `seconds`; `target_s` 0 = it was not to be shorter."""
        self.mixed_steps += 1
        self.mixed_steps_late += bool(target_s) and seconds > target_s
        self.mixed_prefill_tokens += plan.num_tokens - plan.num_decode_rows
        self.mixed_step_seconds += seconds
        self.mixed_expected_seconds += plan.expected_seconds

    def fill(self, load: EngineLoad) -> EngineLoad:
        """`load` with these counts in it."""
        return msgspec.structs.replace(load, **asdict(self))
