"""`metrics` in an answer whose request asks for it (`return_metrics`): named as vLLM names them, over all choices."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

from ..requests.draft_counts import DraftCounts, summed
from ..requests.sequence import Sequence


def request_metrics(sequences: Several[Sequence]) -> dict[str, Any]:
    """Times in milliseconds, null where nothing came that has one: arrival to the first token, first token to last,
    the longest wait to be scheduled, the mean between tokens. `speculative_decoding` is there if the engine drafts."""
    begun = [sequence for sequence in sequences if sequence.first_at]
    ttft_s = generation_s = itl_s = None
    if begun:
        first = min(sequence.first_at for sequence in begun)
        ttft_s = first - min(sequence.arrival for sequence in begun)
        generation_s = max(sequence.last_at for sequence in begun) - first
        gaps = sum(len(sequence.output) - 1 for sequence in begun)
        if gaps > 0:
            itl_s = sum(sequence.last_at - sequence.first_at for sequence in begun) / gaps
    metrics: dict[str, Any] = {
        "time_to_first_token_ms": milliseconds(ttft_s),
        "generation_time_ms": milliseconds(generation_s),
        "queue_time_ms": milliseconds(max((sequence.queue_s for sequence in begun), default=None)),
        "mean_itl_ms": milliseconds(itl_s),
        "tokens_per_second": sum(len(sequence.output) for sequence in begun) / generation_s
        if generation_s
        else None,
    }
    drafts = summed(sequence.drafts for sequence in sequences if sequence.drafts is not None)
    if drafts.most:
        metrics["speculative_decoding"] = speculative_decoding(drafts)
    return metrics


def speculative_decoding(drafts: DraftCounts) -> dict[str, Any]:
    """`acceptance_histogram[n]` counts steps that accepted n drafts; steps without a draft count nowhere."""
    return {
        "mean_acceptance_length": drafts.mean_length,
        "draft_acceptance_rate": drafts.rate,
        "acceptance_histogram": drafts.accepted,
        "num_spec_steps": drafts.num_steps,
        "num_accepted_draft_tokens": drafts.num_accepted,
        "num_draft_tokens": drafts.drafted,
        "num_spec_tokens": drafts.most,
    }


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
