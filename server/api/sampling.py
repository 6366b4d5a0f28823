"""Request fields to `SamplingParams`: defaults filled in, limits of the model applied, contradictions refused."""

from __future__ import annotations

import random
from typing import Any

from ...scheduler.messages import EngineInfo, SamplingParams
from ..generation_defaults import GenerationDefaults
from ..limits import LimitOptions
from .errors import ApiError, bad_request, shown
from .limits import check_limits
from .protocol import (
    HONOURED_IN_CHAT,
    NEUTRAL,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Refused,
)
from .token_rules import check_token_rules

GREEDY_BELOW = 1e-5
SEED_BITS = 63
SEED_MASK = (1 << SEED_BITS) - 1


class SeedSource:
    """Seeds for requests that bring none: fresh entropy, or a repeatable sequence if the server has a seed."""

    def __init__(self, seed: int | None, frontend_id: int) -> None:
        self._random = random.Random() if seed is None else random.Random(f"{seed}/{frontend_id}")

    def draw(self) -> int:
        return self._random.getrandbits(SEED_BITS)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a prompt: the request's own for the first, well spread ones for the others.

    The mixing step is SplitMix64 (Steele, Lea, Flood 2014).
    """
    seed &= SEED_MASK
    if choice == 0:
        return seed
    mixed = (seed + choice * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) & SEED_MASK


class Sampling:
    """Checks requests and resolves their sampling. One for the life of the front end."""

    def __init__(
        self,
        *,
        defaults: GenerationDefaults,
        eos_token_ids: list[int],
        seeds: SeedSource,
        limits: LimitOptions,
    ) -> None:
        self._defaults = defaults
        self._eos = eos_token_ids
        self._seeds = seeds
        self._limits = limits

    def check(self, request: GenerationRequest) -> None:
        """All that can be said before the prompt is known. Raises a 400."""
        refuse_unsupported(request)
        check_limits(self._limits, request)
        check_token_rules(self._limits, request)
        refuse_contradictions(request)
        n = request.n or 1
        if request.best_of not in (None, n):
            raise bad_request(
                "best_of", f"must equal n ({n}) or be left out, ranking choices is not supported"
            )
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options", "is only allowed with stream = true")
        if isinstance(request, ChatRequest):
            if request.top_logprobs is not None and not request.logprobs:
                raise bad_request("top_logprobs", "needs logprobs = true")
            given = (request.max_tokens, request.max_completion_tokens)
            if None not in given and given[0] != given[1]:
                raise bad_request(
                    "max_completion_tokens", f"contradicts max_tokens: {given[1]} and {given[0]}"
                )

    def resolve(
        self, request: GenerationRequest, num_prompt_tokens: int, info: EngineInfo
    ) -> tuple[SamplingParams, int | None]:
        """What the engine is told (but for the seed of each choice) and the seed the client chose, if it did."""
        defaults = self._defaults
        max_tokens = self._max_tokens(request, num_prompt_tokens, info)
        min_tokens = request.min_tokens or 0
        if min_tokens > max_tokens:
            raise bad_request("min_tokens", f"{min_tokens} is more than max_tokens, {max_tokens}")
        bias = request.logit_bias or {}
        check_vocabulary("logit_bias", bias, info.vocab_size)
        stop_ids = request.stop_token_ids or []
        check_vocabulary("stop_token_ids", stop_ids, info.vocab_size)
        temperature = first_given(request.temperature, defaults.temperature, 1.0)
        top_k = first_given(request.top_k, defaults.top_k, 0)
        logprobs, prompt_logprobs = wanted_logprobs(request)
        params = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_p=first_given(request.top_p, defaults.top_p, 1.0),
            top_k=max(0, top_k),
            min_p=first_given(request.min_p, defaults.min_p, 0.0),
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=first_given(request.repetition_penalty, defaults.repetition_penalty, 1.0),
            logit_bias=bias,
            stop_token_ids=sorted({*stop_ids, *([] if request.ignore_eos else self._eos)}),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        return params, request.seed

    def seed(self) -> int:
        return self._seeds.draw()

    def _max_tokens(self, request: GenerationRequest, num_prompt_tokens: int, info: EngineInfo) -> int:
        """How much may be generated. Raises a 400 with both numbers if prompt and output do not fit the context."""
        context = info.max_model_len
        room = context - num_prompt_tokens
        prompt = "messages" if isinstance(request, ChatRequest) else "prompt"
        wanted = getattr(request, "max_completion_tokens", None)
        name = "max_tokens" if wanted is None else "max_completion_tokens"
        wanted = request.max_tokens if wanted is None else wanted
        echo_only = isinstance(request, CompletionRequest) and bool(request.echo) and wanted == 0
        if room < 1:
            raise ApiError(
                400,
                f"{prompt}: the prompt has {num_prompt_tokens} tokens and this model's context holds {context}, "
                "output included: shorten the prompt",
                param=prompt,
            )
        if wanted is None:
            return min(room, self._defaults.max_new_tokens or room)
        if echo_only:
            return 0
        if wanted == 0:
            raise bad_request(name, "must be at least 1 (0 is for echo in /v1/completions)")
        if wanted > room:
            raise bad_request(
                name,
                f"this model's context holds {context} tokens, but the prompt has {num_prompt_tokens} and {wanted} "
                f"more are asked for: at most {room} fit",
            )
        return wanted


def wanted_logprobs(request: GenerationRequest) -> tuple[int, int]:
    """(alternatives a output token, alternatives a prompt token); -1 = none asked for."""
    prompt = -1 if request.prompt_logprobs is None else request.prompt_logprobs
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else -1, prompt
    if isinstance(request, CompletionRequest) and request.logprobs is not None:
        return request.logprobs, max(prompt, request.logprobs) if request.echo else prompt
    return -1, prompt


def refuse_contradictions(request: GenerationRequest) -> None:
    """A 400 for wishes of which one could not be granted beside the other."""
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request("prompt_logprobs", "are part of whole answers only: leave stream out")
    if request.truncate_prompt_tokens == 0:
        raise bad_request(
            "truncate_prompt_tokens", "must be -1 (what fits) or at least 1: a prompt is needed"
        )
    if request.truncation_side is not None and request.truncate_prompt_tokens is None:
        raise bad_request("truncation_side", "needs truncate_prompt_tokens")
    if request.priority is not None and request.service_tier in ("flex", "priority"):
        raise bad_request(
            "service_tier", f"{shown(request.service_tier)} is a priority too: leave priority out"
        )


def first_given(*values: Any) -> Any:
    """The first that is not None; the last is the default."""
    return next(value for value in values if value is not None)


def check_vocabulary(name: str, tokens: Any, vocab_size: int) -> None:
    """A 400 if one of `tokens` is no token of this model."""
    if tokens:
        largest = max(tokens)
        if largest >= vocab_size:
            raise bad_request(name, f"token {largest} is outside the vocabulary of {vocab_size} tokens")


def refuse_unsupported(request: GenerationRequest) -> None:
    """A 400 for every field whose wish could only be ignored."""
    honoured = HONOURED_IN_CHAT if isinstance(request, ChatRequest) else ()
    for name in Refused.__struct_fields__:
        if name in honoured:
            continue
        value = getattr(request, name)
        if value is None or value is False or value in ({}, []) or value == NEUTRAL.get(name):
            continue
        raise not_supported(name, value)


def not_supported(name: str, value: object) -> ApiError:
    return bad_request(
        name, f"{shown(value)} is not supported yet by this server; a wish that it would ignore is refused"
    )
