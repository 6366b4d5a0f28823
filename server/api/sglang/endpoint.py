"""`POST /generate` as SGLang has it: one object, a list where the body was a batch, or events with all text so far."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sized
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ....scheduler.messages import FinishReason
from ...http.events import DONE
from ...requests.draft_counts import DraftCounts
from ...requests.generation import ClientGone, Generation, GenerationFailed
from ...requests.sequence import Failure, TokenLogprob
from ...services import Services
from ...text.tokenizer import Tokenizer
from ..body import convert
from ..caller import REQUEST_ID
from ..collected import wait_for_all
from ..completions import MAX_SEQUENCES, text_prompt
from ..endpoint import Prompt, add_sequences, check_serving, read_request
from ..errors import bad_request, error_body, from_failure
from ..field_names import fields_named
from ..grammar_check import check_grammar
from ..limits import check_length
from ..logprobs import finite
from ..protocol import TokenId
from ..read_constraint import read_constraint
from ..streams import EventGeneration, send_stream
from ..tokenize import json_response
from .protocol import SamplingFields, SGLangRequest, as_completion, field_names, refuse, scored_from

DECODER = msgspec.json.Decoder(SGLangRequest)
encode = msgspec.json.Encoder().encode


class Answer:
    """A sink that keeps everything and, in a stream, writes what there is after every change."""

    def __init__(
        self, generation: Generation, index: int, request: SGLangRequest, services: Services
    ) -> None:
        self._generation = generation
        self._index = index
        self._request = request
        self._tokenizer: Tokenizer = services.tokenizer
        self._began = time.monotonic()
        self._texts: list[str] = []
        self._entries: list[TokenLogprob] = []
        self._prompt_entries: list[TokenLogprob] = []
        self.scored = self  # the prompt's log probabilities come with its first choice
        self._ending: dict[str, Any] | None = None

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        self._prompt_entries = entries

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self._texts.append(text)
        self._entries += logprobs or ()
        self._write()

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        sequence = self._generation.sequences[self._index]
        if reason == "stop":
            last = sequence.output[-1] if sequence.output else None
            self._ending = {"type": "stop", "matched": last if stop_reason is None else stop_reason}
        elif reason == "length":
            self._ending = {"type": "length", "length": sequence.sampling.max_tokens}
        else:
            self._ending = {"type": reason}
        self._write()
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)

    def _write(self) -> None:
        if isinstance(self._generation, Events):
            self._generation.events.push(b"data: " + encode(self.described()) + b"\n\n")

    def described(self) -> dict[str, Any]:
        """`{index, text, output_ids, meta_info}` as far as it has come."""
        sequence = self._generation.sequences[self._index]
        counted = self._generation.counts_output
        meta: dict[str, Any] = {
            "id": self._request.rid or f"{sequence.request_id:08x}",
            "finish_reason": self._ending,
            "prompt_tokens": len(sequence.prompt),
            "completion_tokens": len(sequence.output) if counted else 0,
            "cached_tokens": sequence.cached_tokens,
            "e2e_latency": time.monotonic() - self._began,
        }
        if sequence.drafts is not None:
            meta.update(drafted(sequence.drafts))
        if self._request.return_logprob:
            meta.update(self._logprobs(counted))
        return {
            "index": self._index,
            "text": "".join(self._texts) if counted else "",
            "output_ids": sequence.output.tolist() if counted else [],
            "meta_info": meta,
        }

    def _logprobs(self, counted: bool) -> dict[str, Any]:
        entries = self._entries if counted else []
        found: dict[str, Any] = {
            "output_token_logprobs": [self._triple(e.logprob, e.token_id) for e in entries]
        }
        top = bool(self._request.top_logprobs_num)
        if top:
            found["output_top_logprobs"] = [self._best(entry) for entry in entries]
        start = scored_from(self._request)
        if start is not None:
            prompt = self._generation.sequences[self._index].prompt
            scores = self.scored._prompt_entries
            scored = [self._triple(e.logprob, e.token_id) for e in scores]
            found["input_token_logprobs"] = [self._triple(None, prompt[0]), *scored][start:]
            if top:
                best: list[Any] = [None, *(self._best(entry) for entry in scores)]
                found["input_top_logprobs"] = best[start:]
        return found

    def _best(self, entry: TokenLogprob) -> list[Any]:
        return [self._triple(logprob, token) for token, logprob in entry.top]

    def _triple(self, logprob: float | None, token: int) -> tuple[float | None, int, str | None]:
        text = self._tokenizer.token_text(token) if self._request.return_text_in_logprobs else None
        return (None if logprob is None else finite(logprob), token, text)


class Events(EventGeneration):
    """A stream of answers as far as they have come; then `[DONE]`."""

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        if error is not None and not (isinstance(error, GenerationFailed) and self.started):
            self.events.close(error)
            return
        if isinstance(error, GenerationFailed):
            self.events.push(b"data: " + error_body(from_failure(error.failure)) + b"\n\n")
        self.events.push(DONE)
        self.events.close()


class Generate:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        names = SGLangRequest.__struct_fields__
        request = await read_request(services, scope, receive, DECODER, names)
        refuse(request)
        prompts, batch = await self._prompts(request)
        wanted = samplings(request, len(prompts))
        request.rid = request.rid or scope[REQUEST_ID]
        asked = [as_completion(request, fields, path) for fields, path in wanted]
        called = [field_names(request, path) for _, path in wanted]
        constraints = []
        for completion, names_there in zip(asked, called, strict=True):
            with fields_named(names_there):
                services.sampling.check(completion)
                constraints.append(read_constraint(completion, services.config.limits))
        choices = asked[0].n or 1
        if any((completion.n or 1) != choices for completion in asked):
            raise bad_request("sampling_params", "every prompt of a batch must have the same n")
        if len(prompts) * choices > MAX_SEQUENCES:
            raise bad_request(
                "sampling_params.n",
                f"{len(prompts)} prompts of {choices} choices are more than {MAX_SEQUENCES}",
            )
        info = check_serving(services, len(prompts) * choices)
        for constraint, names_there in zip(constraints, called, strict=True):
            if constraint is not None:
                with fields_named(names_there):
                    await check_grammar(services.grammars, constraint.spec, constraint.param)
        keep_alive_s = services.config.sse_keep_alive_s
        generation: Generation | Events
        if request.stream:
            generation = Events(services.link, services.metrics, choices, keep_alive_s=keep_alive_s)
        else:
            generation = Generation(services.link, services.metrics, choices)
        answers: list[Answer] = []
        max_tokens = 0
        for prompt, completion, constraint, names_there in zip(
            prompts, asked, constraints, called, strict=True
        ):
            sinks = [Answer(generation, len(answers) + n, request, services) for n in range(choices)]
            for sink in sinks:
                sink.scored = sinks[0]
            answers += sinks
            grammar = None if constraint is None else constraint.spec
            with fields_named(names_there):
                added = add_sequences(
                    services, generation, scope, completion, prompt, info, sinks, grammar=grammar
                )
            max_tokens = max(max_tokens, added)
        if info.num_speculative_tokens:
            for sequence in generation.sequences:
                sequence.drafts = DraftCounts(info.num_speculative_tokens)
        if isinstance(generation, Events):
            await send_stream(generation, scope, receive, send, max_tokens=max_tokens)
        elif await wait_for_all(generation, receive, max_tokens=max_tokens):
            described = [answer.described() for answer in answers]
            single = not batch and choices == 1
            await json_response(described[0] if single else described)(scope, receive, send)

    async def _prompts(self, request: SGLangRequest) -> tuple[list[Prompt], bool]:
        """The prompts, and whether the body was a batch. Raises a 400."""
        if (request.text is None) == (request.input_ids is None):
            raise bad_request("text", "either text or input_ids is required, and not both")
        if request.input_ids is not None:
            batch = isinstance(next(iter(request.input_ids), None), list)
            if batch:
                decoded = convert(request.input_ids, list[list[TokenId]], "input_ids")
            else:
                decoded = [convert(request.input_ids, list[TokenId], "input_ids")]
            self._check_count("input_ids", decoded)
            return [Prompt(array("i", tokens)) for tokens in decoded], batch
        texts = [request.text] if isinstance(request.text, str) else request.text or []
        if not texts:
            raise bad_request("text", "must not be empty")
        self._check_count("text", texts)
        with fields_named({"prompt": "text"}):
            prompts = [await text_prompt(self._services, text, True) for text in texts]
        return prompts, isinstance(request.text, list)

    def _check_count(self, name: str, prompts: Sized) -> None:
        check_length(self._services.config.limits, name, prompts, "max_prompts")


def drafted(drafts: DraftCounts) -> dict[str, Any]:
    """SGLang's words for what became of the drafts; a step without a draft is no verify step here."""
    return {
        "spec_verify_ct": drafts.num_steps,
        "spec_accept_length": drafts.mean_length or 1.0,
        "spec_accept_rate": drafts.rate or 0.0,
        "spec_num_correct_drafts": drafts.num_accepted,
        "spec_num_proposed_drafts": drafts.drafted,
        "spec_correct_drafts_histogram": drafts.accepted,
    }


def samplings(request: SGLangRequest, count: int) -> list[tuple[SamplingFields, str]]:
    """For each of `count` prompts how to continue it, and where the client wrote that. Raises a 400."""
    given = request.sampling_params or SamplingFields()
    if isinstance(given, SamplingFields):
        return [(given, "sampling_params")] * count
    if len(given) != count:
        raise bad_request(
            "sampling_params", f"{len(given)} of them for {count} prompts: give one, or one for each"
        )
    return [(fields, f"sampling_params[{index}]") for index, fields in enumerate(given)]
