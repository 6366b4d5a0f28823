"""What the scheduler has counted since it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import msgspec
import numpy as np

from .arrays import Int32
from .messages import EngineLoad
from .plan import StepPlan, StepResult

RECENT = 0.05  # share of the newest step in what is a mean of the latest ones


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
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    verify_steps: int = 0
    verify_step_seconds: float = 0.0
    draft_length: float = 0.0

    def mixed_step(self, plan: StepPlan, result: StepResult, target_s: float) -> None:
        """A step had decodes and prefill; `target_s` 0 = it was not to be shorter."""
        seconds = result.device_seconds
        self.mixed_steps += 1
        self.mixed_steps_late += bool(target_s) and seconds > target_s
        self.mixed_prefill_tokens += plan.num_tokens - plan.num_decode_rows
        self.mixed_step_seconds += seconds
        self.mixed_expected_seconds += plan.expected_seconds

    def looked_for_drafts(self, plan: StepPlan, result: StepResult) -> None:
        """A step had room for drafts."""
        assert plan.drafts is not None
        assert result.drafted is not None
        self.draft_seconds += result.draft_seconds
        number, rows = int(result.drafted.sum()), int(np.count_nonzero(plan.drafts))
        if number:
            self.verify_steps += 1
            self.verify_step_seconds += result.device_seconds
        if rows:
            self.draft_length += RECENT * (number / rows - self.draft_length)

    def verified(self, drafted: Int32, accepted: Int32) -> None:
        """Rows verified `drafted` (n,) tokens, of which the first `accepted` (n,) were right."""
        self.num_drafts += int(np.count_nonzero(drafted))
        self.num_draft_tokens += int(drafted.sum())
        self.num_accepted_tokens += int(accepted.sum())
        reached = np.bincount(accepted, minlength=1)[1:]  # [i]: rows that accepted exactly i + 1
        self.accepted_at += [0] * (reached.size - len(self.accepted_at))
        for position, count in enumerate(reached[::-1].cumsum()[::-1].tolist()):
            self.accepted_at[position] += count

    def fill(self, load: EngineLoad) -> EngineLoad:
        """`load` with these counts in it."""
        return msgspec.structs.replace(load, **asdict(self))
