"""`POST /generate`, `/generate_stream` and `/`, and `GET /info`: what `huggingface_hub.InferenceClient` calls."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....scheduler.messages import GrammarSpec
from ...requests.generation import Generation
from ...services import Services
from ..collected import wait_for_all
from ..completions import text_prompt
from ..endpoint import Prompt, add_sequences, check_serving, read_request, truncated
from ..field_names import fields_named
from ..grammar_check import check_grammar
from ..protocol import CompletionRequest
from ..read_constraint import read_constraint
from ..streams import send_stream
from ..tokenize import json_response
from .answers import Collected, Streamed, TokenEvents, Tokens, drawn_with
from .protocol import Parameters, TGIRequest, as_completion, field_names

DECODER = msgspec.json.Decoder(TGIRequest)


class Generate:
    """An ASGI endpoint. Paths differ in what they do with `stream`, and `/` wraps a whole answer in a list."""

    def __init__(
        self, services: Services, *, always_stream: bool = False, never_stream: bool = False
    ) -> None:
        self._services = services
        self._always_stream = always_stream
        self._never_stream = never_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        names = TGIRequest.__struct_fields__
        request = await read_request(services, scope, receive, DECODER, names)
        wanted = request.parameters or Parameters()
        stream = self._always_stream or (bool(request.stream) and not self._never_stream)
        completion = as_completion(request, stream=stream, config=services.config)
        with fields_named(field_names(wanted)):
            await self._serve(request, wanted, completion, scope, receive, send)

    async def _serve(
        self,
        request: TGIRequest,
        wanted: Parameters,
        completion: CompletionRequest,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        services.sampling.check(completion)
        constraint = read_constraint(completion, services.config.limits)
        info = check_serving(services, 1)
        grammar = None if constraint is None else constraint.spec
        if constraint is not None:
            await check_grammar(services.grammars, constraint.spec, constraint.param)
        whole = await text_prompt(services, request.inputs, True, to_be_cut=wanted.truncate is not None)
        prompt = truncated(completion, whole, info)
        prefix = request.inputs if wanted.return_full_text else ""
        tokens = Tokens(services.tokenizer, alternatives=bool(wanted.top_n_tokens))
        if completion.stream:
            generation = TokenEvents(
                services.link, services.metrics, keep_alive_s=services.config.sse_keep_alive_s
            )
            sink = Streamed(generation, tokens, prefix=prefix)
            max_tokens = add_sequences(
                services, generation, scope, completion, prompt, info, [sink], grammar=grammar
            )
            await send_stream(generation, scope, receive, send, max_tokens=max_tokens)
            return
        answer = await self._whole(completion, wanted, prompt, prefix, tokens, grammar, scope, receive)
        if answer is not None:
            listed = not self._never_stream
            await json_response([answer] if listed else answer)(scope, receive, send)

    async def _whole(
        self,
        completion: CompletionRequest,
        wanted: Parameters,
        prompt: Prompt,
        prefix: str,
        tokens: Tokens,
        grammar: GrammarSpec | None,
        scope: Scope,
        receive: Receive,
    ) -> dict[str, Any] | None:
        """The answer; None if the client left before it was complete."""
        services = self._services
        info = check_serving(services, 1)
        generation = Generation(services.link, services.metrics, 1)
        sink = Collected(generation)
        max_tokens = add_sequences(
            services, generation, scope, completion, prompt, info, [sink], grammar=grammar
        )
        if not await wait_for_all(generation, receive, max_tokens=max_tokens):
            return None
        answer: dict[str, Any] = {"generated_text": prefix + "".join(sink.texts)}
        if not (wanted.details or wanted.decoder_input_details):
            return answer
        (sequence,) = generation.sequences
        prefill = tokens.prompt(prompt.tokens.tolist(), sink.prompt_entries)
        answer["details"] = {
            "finish_reason": sink.reason,
            "generated_tokens": len(sequence.output),
            "seed": drawn_with(sequence),
            "prefill": prefill if wanted.decoder_input_details else [],
            "tokens": [tokens.describe(entry, text) for entry, text in sink.tokens],
        }
        if tokens.alternatives:
            answer["details"]["top_tokens"] = [tokens.top(entry) for entry, _ in sink.tokens]
        return answer


class Info:
    """`GET /info`: the model and the limits, in TGI's words."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, http: Request) -> Response:
        services, limits = self._services, self._services.config.limits
        info = check_serving(services, 0)
        return json_response(
            {
                "model_id": services.config.served_model_names[0],
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "model_dtype": info.dtype,
                "model_device_type": info.device,
                "max_concurrent_requests": info.max_num_seqs + info.max_num_queued_reqs,
                "max_best_of": 1,
                "max_stop_sequences": limits.max_stop_strings,
                "max_input_tokens": info.max_model_len - 1,
                "max_total_tokens": info.max_model_len,
                "max_batch_total_tokens": info.num_pages * info.page_size,
                "max_client_batch_size": 1,
                "validation_workers": services.config.num_frontends,
                "router": "penstock",
                "version": services.version,
                "sha": None,
                "docker_label": None,
            }
        )
