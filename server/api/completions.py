"""`POST /v1/completions`: text or token prompts, one or many, each with `n` choices."""

from __future__ import annotations

from array import array
from functools import partial
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ...scheduler.messages import EngineInfo, GrammarSpec
from ..requests.generation import Generation
from ..requests.sequence import Sink, TokenLogprob
from ..services import Services
from .body import decode
from .collected import CollectedChoice, send_whole, wait_for_all
from .endpoint import Prompt, add_sequences, check_model, check_serving, envelope, read_request, truncated
from .errors import bad_request
from .grammar_check import check_grammar
from .limits import check_length
from .logprobs import CompletionLogprobs, joined, prompt_entries
from .prompt_length import refuse_endless
from .protocol import CompletionRequest, TokenId
from .read_constraint import read_constraint
from .request_metrics import request_metrics
from .streams import CompletionStreamedChoice, StreamedGeneration, send_stream

DECODER = msgspec.json.Decoder(CompletionRequest)
TEXT = msgspec.json.Decoder(str)
TEXTS = msgspec.json.Decoder(list[str])
TOKENS = msgspec.json.Decoder(list[TokenId])
TOKEN_LISTS = msgspec.json.Decoder(list[list[TokenId]])
MAX_SEQUENCES = 4096
WHITE = b" \t\r\n"


async def read_prompts(services: Services, request: CompletionRequest) -> list[Prompt]:
    """The prompt in any of its four forms, told apart by its first characters. Raises a 400."""
    raw = bytes(request.prompt).strip(WHITE)
    special = request.add_special_tokens is not False
    to_be_cut = request.truncate_prompt_tokens is not None
    if not raw.startswith(b"["):
        if not raw.startswith(b'"'):
            raise bad_request(
                "prompt", "expected a text, a list of texts, a list of token ids or a list of such lists"
            )
        return [await text_prompt(services, decode(TEXT, raw, "prompt"), special, to_be_cut=to_be_cut)]
    match raw[1:].lstrip(WHITE)[:1]:
        case b'"':
            texts = decode(TEXTS, raw, "prompt")
            check_length(services.config.limits, "prompt", texts, "max_prompts")
            return [await text_prompt(services, text, special, to_be_cut=to_be_cut) for text in texts]
        case b"[":
            lists = decode(TOKEN_LISTS, raw, "prompt")
            check_length(services.config.limits, "prompt", lists, "max_prompts")
            return [Prompt(array("i", tokens)) for tokens in lists]
        case b"]":
            raise bad_request("prompt", "must not be empty")
    return [Prompt(array("i", decode(TOKENS, raw, "prompt")))]


async def text_prompt(services: Services, text: str, special: bool, *, to_be_cut: bool = False) -> Prompt:
    """`to_be_cut`: it may be longer than the context. Raises a 400."""
    if not text:
        raise bad_request("prompt", "must not be empty")
    if not to_be_cut:
        await refuse_endless(services, text, "prompt")
    return Prompt(await services.tokenizer.encode_async(text, add_special_tokens=special), text)


class Completions:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, CompletionRequest.__struct_fields__)
        model = check_model(services, request.model)
        services.sampling.check(request)
        constraint = read_constraint(request, services.config.limits)
        prompts = await read_prompts(services, request)
        num_sequences = len(prompts) * (request.n or 1)
        if num_sequences > MAX_SEQUENCES:
            raise bad_request(
                "n", f"{len(prompts)} prompts of {request.n} choices are more than {MAX_SEQUENCES}"
            )
        info = check_serving(services, num_sequences)
        prompts = [truncated(request, prompt, info) for prompt in prompts]
        grammar = None if constraint is None else constraint.spec
        if constraint is not None:
            await check_grammar(services.grammars, constraint.spec, constraint.param)
        if request.stream:
            await self._stream(request, prompts, info, grammar, model, scope, receive, send)
        else:
            await self._answer(request, prompts, info, grammar, model, scope, receive, send)

    def _echo(self, request: CompletionRequest, prompt: Prompt) -> str | None:
        """The text that comes before the generated one; None without `echo`."""
        if not request.echo:
            return None
        if prompt.text is not None:
            return prompt.text
        skip = request.skip_special_tokens is not False
        return self._services.tokenizer.decode(prompt.tokens.tolist(), skip_special_tokens=skip)

    def _logprobs(self, request: CompletionRequest, prompt: Prompt) -> CompletionLogprobs | None:
        if request.logprobs is None:
            return None
        start = partial(
            self._services.tokenizer.detokenization.start,
            skip_special_tokens=request.skip_special_tokens is not False,
        )
        return CompletionLogprobs(
            self._services.tokenizer,
            start,
            prompt.tokens,
            echo=bool(request.echo),
            as_ids=bool(request.return_tokens_as_token_ids),
        )

    async def _stream(
        self,
        request: CompletionRequest,
        prompts: list[Prompt],
        info: EngineInfo,
        grammar: GrammarSpec | None,
        model: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        n = request.n or 1
        generation = StreamedGeneration(
            services.link,
            services.metrics,
            n,
            envelope=envelope(services, scope, "cmpl", "text_completion", model, request),
            request=request,
            keep_alive_s=services.config.sse_keep_alive_s,
        )
        max_tokens = 0
        for number, prompt in enumerate(prompts):
            echo = self._echo(request, prompt)
            sinks: list[Sink] = [
                CompletionStreamedChoice(
                    generation,
                    number * n + choice,
                    echo=echo,
                    hide_output=request.max_tokens == 0,
                    logprobs=self._logprobs(request, prompt),
                )
                for choice in range(n)
            ]
            max_tokens = max(
                max_tokens,
                add_sequences(services, generation, scope, request, prompt, info, sinks, grammar=grammar),
            )
        await send_stream(generation, scope, receive, send, max_tokens=max_tokens)

    async def _answer(
        self,
        request: CompletionRequest,
        prompts: list[Prompt],
        info: EngineInfo,
        grammar: GrammarSpec | None,
        model: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        n = request.n or 1
        generation = Generation(services.link, services.metrics, n)
        choices: list[tuple[Prompt, CollectedChoice]] = []
        max_tokens = 0
        for prompt in prompts:
            gathered = [CollectedChoice(generation) for _ in range(n)]
            choices += [(prompt, choice) for choice in gathered]
            sampled = add_sequences(
                services, generation, scope, request, prompt, info, [*gathered], grammar=grammar
            )
            max_tokens = max(max_tokens, sampled)
        if await wait_for_all(generation, receive, max_tokens=max_tokens):
            head = envelope(services, scope, "cmpl", "text_completion", model, request)
            described = [
                self._describe(request, prompt, choice, choices[index - index % n][1].prompt_entries, index)
                for index, (prompt, choice) in enumerate(choices)
            ]
            if request.return_token_ids:
                for described_choice, sequence in zip(described, generation.sequences, strict=True):
                    described_choice["prompt_token_ids"] = sequence.prompt.tolist()
                    described_choice["token_ids"] = (
                        sequence.output.tolist() if generation.counts_output else []
                    )
            more = {"metrics": request_metrics(generation.sequences)} if request.return_metrics else None
            await send_whole(head, described, generation, scope, receive, send, more=more)

    def _describe(
        self,
        request: CompletionRequest,
        prompt: Prompt,
        choice: CollectedChoice,
        scored: list[TokenLogprob],
        index: int,
    ) -> dict[str, Any]:
        """`scored`: the log probabilities of the prompt, which came with its first choice."""
        echo = self._echo(request, prompt)
        echo_only = request.max_tokens == 0
        pieces = []
        describing = self._logprobs(request, prompt)
        if describing is not None:
            if echo is not None:
                most = request.logprobs
                pieces.append(describing.prompt([entry._replace(top=entry.top[:most]) for entry in scored]))
            if not echo_only:
                pieces.append(describing.output(choice.entries))
        described = {
            "index": index,
            "text": (echo or "") + ("" if echo_only else choice.whole_text),
            "logprobs": None if describing is None else joined(pieces),
            "finish_reason": "length" if echo_only else choice.finish_reason,
            "stop_reason": None if echo_only else choice.stop_reason,
            "matched_stop": None if echo_only else choice.stop_reason,
        }
        if request.prompt_logprobs is not None:
            described["prompt_logprobs"] = prompt_entries(
                self._services.tokenizer, scored, request.prompt_logprobs
            )
        return described
