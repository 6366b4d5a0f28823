"""How large a step may be after the device ran out of memory: smaller at once, by and by as large as before."""

from __future__ import annotations

from .plan import StepPlan

MIN_PREFILL = 16  # tokens; a chunk of prefill is not cut below it
# Good steps after which the bounds double. A device that is short for good so loses one step in so many.
GROW_AFTER = 256


class StepBounds:
    """`prefill_tokens` of one step beside its decodes, `num_seqs` running at once; never more than was configured."""

    def __init__(self, max_num_batched_tokens: int, max_num_seqs: int) -> None:
        self._most = (max_num_batched_tokens, max_num_seqs)
        self.prefill_tokens, self.num_seqs = self._most
        self._good = 0  # steps since the bounds changed

    def shrink(self, plan: StepPlan, *, whole_prompts: bool = False) -> bool:
        """The device had no memory for this plan: the next ones are to take half of it. First of the prefill (of its
        prompts, where they cannot be cut), then of the rows. False if the plan is as small as one can be."""
        self._good = 0
        rows, prefill = len(plan.slots), int(plan.lens[plan.num_decode_rows :].sum())
        if whole_prompts:
            if rows == 1:
                return False
            self.prefill_tokens = prefill // 2
        elif prefill > MIN_PREFILL:
            self.prefill_tokens = max(MIN_PREFILL, prefill // 2)
        elif rows > 1:
            self.num_seqs = rows // 2
        else:
            return False
        return True

    def committed(self) -> None:
        """A step went well."""
        if (self.prefill_tokens, self.num_seqs) == self._most:
            return
        self._good += 1
        if self._good == GROW_AFTER:
            self._good = 0
            self.prefill_tokens = min(2 * self.prefill_tokens, self._most[0])
            self.num_seqs = min(2 * self.num_seqs, self._most[1])
