"""What every generating endpoint does before its own work: body, model, readiness, and then sequences for its prompts."""

from __future__ import annotations

import logging
import time
from array import array
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from starlette.types import Receive, Scope

from ...scheduler.messages import EngineInfo
from ..requests.generation import Generation
from ..requests.sequence import Failure, Sequence, Sink
from ..services import Services
from .body import decode, read_body, refuse_duplicates
from .errors import ApiError, bad_request, from_failure, shown, unavailable
from .protocol import GenerationRequest
from .sampling import check_vocabulary, choice_seed
from .streams import Envelope

log = logging.getLogger(__name__)

REQUEST_ID = "penstock.request_id"
PRIORITY_HEADER = b"x-vllm-priority"
RESTART_RETRY_S = 5.0
T = TypeVar("T")


async def read_request(
    services: Services,
    scope: Scope,
    receive: Receive,
    decoder: msgspec.json.Decoder[T],
    names: tuple[str, ...],
) -> T:
    """The body as a Struct whose fields are `names`. Raises 400 and 413."""
    body = await read_body(scope, receive, services.config.max_request_bytes)
    request = decode(decoder, body)
    refuse_duplicates(body, names)
    if log.isEnabledFor(logging.DEBUG):
        unknown = sorted(set(msgspec.json.decode(body)) - set(names))
        if unknown:
            log.debug("passed over unknown fields: %s", ", ".join(shown(name) for name in unknown))
    return request


def check_model(services: Services, model: str | None) -> str:
    """The name under which the reply goes out. Raises a 404 for a model that is not served."""
    names = services.config.served_model_names
    if model is None:
        return names[0]
    if model not in names:
        raise ApiError(
            404, f"model: {shown(model)} does not exist here, served: {', '.join(names)}", param="model"
        )
    return model


def check_serving(services: Services, num_sequences: int) -> EngineInfo:
    """Can new requests be taken? During an engine's restart they wait, within the bound of its queue."""
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
    """Lower runs first; the body's field wins over the header."""
    if request.priority is not None:
        return request.priority
    for name, value in scope["headers"]:
        if name == PRIORITY_HEADER:
            try:
                priority = int(value)
            except ValueError:
                priority = 1 << 31
            if not -(1 << 31) <= priority < 1 << 31:
                raise bad_request("X-Vllm-Priority", "expected a whole number of 32 bits")
            return priority
    return 0


def envelope(services: Services, scope: Scope, prefix: str, kind: str, model: str) -> Envelope:
    return Envelope(
        id=f"{prefix}-{scope[REQUEST_ID]}",
        object=kind,
        created=int(time.time()),
        model=model,
        system_fingerprint=services.fingerprint,
    )


class Prompt(msgspec.Struct, frozen=True):
    """One prompt: its tokens, and its text where the client gave one."""

    tokens: array[int]
    text: str | None = None


def add_sequences(
    services: Services,
    generation: Generation,
    scope: Scope,
    request: GenerationRequest,
    prompt: Prompt,
    info: EngineInfo,
    sinks: list[Sink],
) -> int:
    """One sequence a sink for `prompt`; returns its max_tokens. Raises 400 for a prompt that the model cannot take."""
    if not prompt.tokens:
        raise bad_request("prompt", "must not be empty")
    if prompt.text is None:
        check_vocabulary("prompt", prompt.tokens, info.vocab_size)
    params, own_seed = services.sampling.resolve(request, len(prompt.tokens), info)
    seed = services.sampling.seed() if own_seed is None else own_seed
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    priority = request_priority(scope, request)
    generation.log_as = scope[REQUEST_ID] if services.config.log_requests else None
    if params.max_tokens == 0:
        params = replace(params, max_tokens=1)
        generation.counts_output = False
    for choice, sink in enumerate(sinks):
        generation.sequences.append(
            Sequence(
                request_id=services.link.new_id(),
                prompt=prompt.tokens,
                sampling=replace(params, seed=choice_seed(seed, choice)),
                detokenizer=services.tokenizer.detokenization.start(
                    prompt.tokens, skip_special_tokens=request.skip_special_tokens is not False
                ),
                sink=sink,
                metrics=services.metrics,
                stop=stop,
                include_stop=bool(request.include_stop_str_in_output),
                named_stop_ids=frozenset(request.stop_token_ids or ()),
                priority=priority,
                cache_salt=request.cache_salt or "",
            )
        )
    return params.max_tokens
