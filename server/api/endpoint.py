"""What every generating endpoint does before its own work: body, model, readiness, and then sequences for its prompts."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from starlette.types import Receive, Scope

from ...scheduler.messages import EngineInfo, GrammarSpec, Task
from ..requests.draft_counts import DraftCounts
from ..requests.generation import Generation
from ..requests.pacing import Paced
from ..requests.sequence import Failure, Sequence, Sink
from ..services import Services
from .body import decode, read_body, refuse_duplicates, unknown_fields
from .caller import REQUEST_ID
from .errors import ApiError, bad_request, from_failure, shown, unavailable
from .protocol import GenerationRequest
from .sampling import check_vocabulary, choice_seed
from .streams import Envelope
from .token_rules import with_token_rules

log = logging.getLogger(__name__)

NAMELESS = (
    "dummy",
    "tgi",
)  # what Hugging Face's client sends, and its users write, where the server has one model
PRIORITY_HEADER = b"x-vllm-priority"
TIER_PRIORITY = {"priority": -10, "flex": 10}  # `auto`, `default` and `scale` are the default tier, 0
RESTART_RETRY_S = 5.0
TASK_PATHS: dict[Task, tuple[str, ...]] = {
    "generate": ("/v1/chat/completions", "/v1/completions"),
    "embed": ("/v1/embeddings",),
    "classify": ("/classify", "/v1/rerank"),
}
T = TypeVar("T")


async def read_request(
    services: Services,
    scope: Scope,
    receive: Receive,
    decoder: msgspec.json.Decoder[T],
    names: tuple[str, ...],
) -> T:
    """The body as a Struct whose fields are `names`. Raises 400 and 413."""
    body = await read_body(scope, receive, services.config.limits.max_request_bytes)
    request = decode(decoder, body)
    refuse_duplicates(body, names)
    if log.isEnabledFor(logging.DEBUG):
        unknown = unknown_fields(body, names)
        if unknown:
            log.debug("passed over unknown fields: %s", ", ".join(shown(name) for name in unknown))
    return request


def check_model(services: Services, model: str | None) -> str:
    """The name under which the reply goes out. Raises a 404 for a model that is not served."""
    names = services.config.served_model_names
    if model is None or (model in NAMELESS and model not in names):
        return names[0]
    if model not in names:
        raise ApiError(
            404, f"model: {shown(model)} does not exist here, served: {', '.join(names)}", param="model"
        )
    return model


def check_task(info: EngineInfo | None, *tasks: Task) -> None:
    """A 400 if the model does none of these; while none is loaded yet that cannot be told."""
    if info is None or any(task in info.tasks for task in tasks):
        return
    raise ApiError(
        400,
        f"this model cannot {' or '.join(tasks)}: it can {' and '.join(info.tasks)} "
        f"({', '.join(path for task in info.tasks for path in TASK_PATHS[task])})",
        param="model",
    )


def check_serving(services: Services, num_sequences: int, *tasks: Task) -> EngineInfo:
    """Can so many sequences for one of `tasks` be taken? Without a task they are to be generated.

    During an engine's restart they wait, within the bound of its queue.
    """
    if num_sequences:
        check_task(services.info, *(tasks or ("generate",)))
    state, detail = services.link.condition
    info = services.info
    if state in ("loading", "failed", "draining") or info is None:
        reason = {"failed": "engine_failed", "draining": "draining"}.get(state, "loading")
        services.metrics.sequence_refused(reason)
        raise unavailable(
            f"the server cannot take requests now ({state}): {detail}", close=state == "draining"
        )
    if state == "restarting" and services.link.num_parked + num_sequences > info.max_num_queued_reqs:
        services.metrics.sequence_refused("queue_full")
        raise from_failure(
            Failure(
                code="queue_full",
                message=f"the engine restarts and {services.link.num_parked} requests wait for it",
                retry_after_s=RESTART_RETRY_S,
                num_waiting=services.link.num_parked,
                queue_limit=info.max_num_queued_reqs,
            )
        )
    return info


def request_priority(scope: Scope, request: GenerationRequest) -> int:
    """Lower runs first; the body's field wins over the header, and that over the service tier."""
    if request.priority is not None:
        return request.priority
    headed = header_priority(scope)
    return TIER_PRIORITY.get(request.service_tier or "default", 0) if headed is None else headed


def header_priority(scope: Scope) -> int | None:
    """What the header of the queue's priority says; None without one. Raises a 400."""
    for name, value in scope["headers"]:
        if name == PRIORITY_HEADER:
            try:
                priority = int(value)
            except ValueError:
                priority = 1 << 31
            if not -(1 << 31) <= priority < 1 << 31:
                raise bad_request("X-Vllm-Priority", "expected a whole number of 32 bits")
            return priority
    return None


def used_tier(scope: Scope, request: GenerationRequest) -> str | None:
    """The service tier that the reply names; None if the client did not speak of tiers."""
    if request.service_tier is None:
        return None
    headed = any(name == PRIORITY_HEADER for name, _ in scope["headers"])
    return "default" if headed or request.service_tier not in TIER_PRIORITY else request.service_tier


def envelope(
    services: Services,
    scope: Scope,
    prefix: str,
    kind: str,
    model: str,
    request: GenerationRequest | None = None,
) -> Envelope:
    return Envelope(
        id=f"{prefix}-{scope[REQUEST_ID]}",
        object=kind,
        created=int(time.time()),
        model=model,
        system_fingerprint=services.fingerprint,
        service_tier=None if request is None else used_tier(scope, request),
    )


class Prompt(msgspec.Struct, frozen=True):
    """One prompt: its tokens, and its text where the client gave one."""

    tokens: array[int]
    text: str | None = None


def truncated(request: GenerationRequest, prompt: Prompt, info: EngineInfo) -> Prompt:
    """At most `truncate_prompt_tokens` of it, -1 as many as leave room for the answer; the end is kept, or the start."""
    most = request.truncate_prompt_tokens
    if most is None:
        return prompt
    if most == -1:
        wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens or 1
        most = max(1, info.max_model_len - wanted)
    if len(prompt.tokens) <= most:
        return prompt
    return Prompt(prompt.tokens[:most] if request.truncation_side == "right" else prompt.tokens[-most:])


def add_sequences(
    services: Services,
    generation: Generation,
    scope: Scope,
    request: GenerationRequest,
    prompt: Prompt,
    info: EngineInfo,
    sinks: Iterable[Sink],
    *,
    paced: bool = True,
    grammar: GrammarSpec | None = None,
    visible_special: frozenset[str] = frozenset(),
    stop_ids: Iterable[int] = (),
    prediction: bytes = b"",
) -> int:
    """One sequence a sink for `prompt`; returns its max_tokens. Raises 400 for a prompt that the model cannot take.

    Unless `paced`, the sinks see to `stream_interval` themselves. `stop_ids` end the answer as EOS does.
    `prediction` (int32 tokens) is what it is expected to be.
    """
    if not prompt.tokens:
        raise bad_request("prompt", "must not be empty")
    if prompt.text is None:
        check_vocabulary("prompt", prompt.tokens, info.vocab_size)
    params, own_seed = services.sampling.resolve(request, len(prompt.tokens), info)
    params = with_token_rules(
        params,
        request,
        limits=services.config.limits,
        tokenizer=services.tokenizer,
        vocab_size=info.vocab_size,
        grammar=grammar,
    )
    params = replace(params, grammar=grammar)
    if stop_ids and not request.ignore_eos:
        params = replace(params, stop_token_ids=sorted({*params.stop_token_ids, *stop_ids}))
    seed = services.sampling.seed() if own_seed is None else own_seed
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    priority = request_priority(scope, request)
    cache_salt = services.isolation.salt(scope, request.cache_salt)
    generation.log_as = scope[REQUEST_ID] if services.config.log_requests else None
    if params.max_tokens == 0:
        params = replace(params, max_tokens=1)
        generation.counts_output = False
    interval = (request.stream_interval or 1) if paced and request.stream else 1
    for choice, sink in enumerate(sinks):
        pacer = Paced(sink, interval) if interval > 1 else None
        generation.sequences.append(
            Sequence(
                request_id=services.link.new_id(),
                prompt=prompt.tokens,
                sampling=replace(
                    params,
                    seed=choice_seed(seed, choice),
                    # The prompt's are the same for every choice; a whole answer takes them from the first.
                    prompt_logprobs=params.prompt_logprobs if choice == 0 or request.stream else -1,
                ),
                detokenizer=services.tokenizer.detokenization.start(
                    prompt.tokens,
                    skip_special_tokens=request.skip_special_tokens is not False,
                    visible_special=visible_special,
                ),
                sink=pacer or sink,
                metrics=services.metrics,
                stop=stop,
                include_stop=bool(request.include_stop_str_in_output),
                named_stop_ids=frozenset(request.stop_token_ids or ()),
                priority=priority,
                cache_salt=cache_salt,
                prediction=prediction,
            )
        )
        if request.return_metrics:
            generation.sequences[-1].drafts = DraftCounts(info.num_speculative_tokens)
        if pacer is not None:
            pacer.output = generation.sequences[-1].output
    return params.max_tokens
