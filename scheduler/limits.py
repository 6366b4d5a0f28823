"""What a scheduler accepts: its configuration, and the refusals that carry their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .groups import KVGroup
from .kv_cache import KVCache
from .messages import Policy
from .requests import Request


class QueueFull(Exception):
    """The waiting queue is at its bound; carries `num_waiting` and `max_num_queued_reqs`."""

    def __init__(self, num_waiting: int, max_num_queued_reqs: int) -> None:
        super().__init__(
            f"{num_waiting} requests are waiting and the queue is bounded at {max_num_queued_reqs}: try again later"
        )
        self.num_waiting = num_waiting
        self.max_num_queued_reqs = max_num_queued_reqs


class RequestTooLong(Exception):
    """The request can never run; carries `num_tokens` it needs and the `limit` it breaks (tokens)."""

    def __init__(self, message: str, num_tokens: int, limit: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """`max_num_batched_tokens` bounds the tokens of one step and must hold a decode of every running request.

    A model without `groups` keeps nothing from one step to the next (an encoder): its prompts are not cut into chunks,
    so a step must hold the longest, and requests end with their prompt. `target_itl_ms` is how long a step that has
    decodes should take at most (milliseconds): chunks of prefill are cut to it; 0 = as many tokens as the step holds.
    `max_draft_tokens` is how many drafts the device may verify in a row. With `num_stages` > 1 as many steps are computed
    at once, by the stages of a pipeline: each decodes its share of the requests, and a request is in one of them at a time.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    groups: tuple[KVGroup, ...]
    policy: Policy = "fcfs"
    enable_prefix_caching: bool = True
    max_num_queued_reqs: int | None = None
    target_itl_ms: float = 0.0
    max_draft_tokens: int = 0
    num_stages: int = 1

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "page_size", "num_stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: "
                "a step must have room for one token of every running request"
            )
        if not self.groups and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_model_len {self.max_model_len}: "
                "without KV groups a prompt is computed in one step"
            )
        if not self.groups and self.enable_prefix_caching:
            raise ValueError("enable_prefix_caching needs KV groups")
        if not (self.target_itl_ms >= 0 and math.isfinite(self.target_itl_ms)):
            raise ValueError(
                f"target_itl_ms is {self.target_itl_ms}, it must be positive, or 0 for no target"
            )
        if self.max_draft_tokens < 0:
            raise ValueError(
                f"max_draft_tokens is {self.max_draft_tokens}, it must be positive, or 0 for none"
            )
        if self.max_draft_tokens and self.num_stages > 1:
            raise ValueError(
                f"max_draft_tokens is {self.max_draft_tokens} with {self.num_stages} stages: where a row stands must be "
                "known when its step is planned"
            )
        for group in self.groups:
            if group.num_pages < 1 or (group.kind == "sliding") != (group.window is not None):
                raise ValueError(
                    f"{group}: num_pages must be positive, and window set for sliding groups only"
                )
            if group.window is not None and group.window < 1:
                raise ValueError(f"{group}: window must be at least 1")


def refuse_what_never_fits(request: Request, config: SchedulerConfig, kv: KVCache) -> None:
    """Raises RequestTooLong for a request that breaks `max_model_len`, or even alone would not fit the page pools."""
    longest = config.max_model_len
    count, prompt = len(request.tokens), request.num_prompt_tokens
    if count > longest or (prompt == longest and request.sampling.max_tokens > 0):
        raise RequestTooLong(
            f"the prompt has {prompt} tokens and {count - prompt} more are given, the context length is "
            f"{longest} and must leave room for one more token",
            count,
            longest,
        )
    # the last token is drawn but never computed
    positions = max(count, request.token_limit(longest) - 1)
    for index, group in enumerate(config.groups):
        pages = kv.needed(index, positions)
        if pages > group.num_pages:
            raise RequestTooLong(
                f"{positions} positions need {pages} pages of {config.page_size} tokens, the KV cache has "
                f"{group.num_pages} pages ({group.kind}): shorten the prompt or lower max_tokens",
                positions,
                group.num_pages * config.page_size,
            )
