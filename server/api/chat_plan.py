"""What every chat endpoint does before it generates: check, render, tokenise, constrain, choose how to take text apart."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.types import Scope

from ...scheduler.messages import EngineInfo, GrammarSpec
from ..parsing.call_ids import OPENAI, CallIds
from ..parsing.combine import AnswerParser
from ..parsing.interface import ReasoningFormat, ToolFormat
from ..requests.generation import Generation
from ..services import Services
from .chat_grammar import AnswerRules, answer_grammar, tool_format
from .conversation import render_async, wants_no_thinking
from .endpoint import Prompt, add_sequences, check_model, check_serving, check_task, truncated
from .errors import bad_request
from .grammar_check import check_grammar
from .parsed import ChatSink, ParsedSink
from .prediction import read_prediction
from .prompt_length import refuse_endless
from .protocol import ChatRequest
from .read_constraint import read_constraint
from .tool_choice import ToolUse, read_tool_use


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan:
    """A chat request that can be served. `model` is the name that the reply shows."""

    request: ChatRequest
    model: str
    prompt: Prompt
    info: EngineInfo
    prediction: array[int]  # what the answer is expected to be; empty: nothing is
    grammar: GrammarSpec | None = None
    new_parser: Callable[[], AnswerParser] | None = None  # None: the text is the answer
    visible_special: frozenset[str] = frozenset()  # special tokens that the parser must see
    stop_ids: frozenset[int] = frozenset()  # tokens that end an answer in the model's format
    call_ids: CallIds = OPENAI  # for calls that come without one
    named_call: bool = False  # the client named the function to call


async def plan_chat(services: Services, request: ChatRequest) -> ChatPlan:
    """Raises the API's errors: 400 for what cannot be done, 404 for the model, 503 where nothing can be served now."""
    model = check_model(services, request.model)
    services.sampling.check(request)
    use = read_tool_use(request)
    constraint = read_constraint(request, services.config.limits)
    check_task(services.info, "generate")  # before it is said that such a model has no chat template
    text = await render_async(services, request)
    info = check_serving(services, request.n or 1)
    if request.truncate_prompt_tokens is None:
        await refuse_endless(services, text, "messages")
    tokens = await services.tokenizer.encode_async(text, add_special_tokens=bool(request.add_special_tokens))
    if not tokens:
        raise bad_request("messages", "the chat template made an empty prompt of them")
    prediction = await read_prediction(services, request, info)
    formats = services.formats
    rules = AnswerRules(
        prompt=text, formats=formats, use=use, constraint=constraint, budget=thinking_budget(request)
    )
    grammar = answer_grammar(rules, limits=services.config.limits)
    if grammar is not None:
        param = (
            constraint.param
            if constraint is not None
            else "tools"
            if use.schemas
            else "thinking_token_budget"
        )
        await check_grammar(services.grammars, grammar, param)
    calls = tool_format(formats, use) if use.schemas else None
    used = [known for known in (formats.reasoning, calls) if known is not None]
    return ChatPlan(
        request=request,
        model=model,
        prompt=truncated(request, Prompt(tokens, text), info),
        info=info,
        prediction=prediction,
        grammar=grammar,
        new_parser=parser_of(text, formats.reasoning, calls, use, request) if used else None,
        visible_special=frozenset(name for known in used for name in known.markers),
        stop_ids=frozenset(
            services.tokenizer.special_ids[name]
            for known in used
            for name in known.stops
            if name in services.tokenizer.special_ids
        ),
        call_ids=OPENAI if calls is None else calls.call_ids,
        named_call=use.named,
    )


def parser_of(
    prompt: str,
    reasoning: ReasoningFormat | None,
    calls: ToolFormat | None,
    use: ToolUse,
    request: ChatRequest,
) -> Callable[[], AnswerParser]:
    return partial(
        AnswerParser,
        prompt,
        reasoning,
        calls,
        use.schemas,
        hide_reasoning=request.include_reasoning is False,
    )


def thinking_budget(request: ChatRequest) -> int | None:
    """The most tokens of thinking; None: as many as the model likes."""
    if wants_no_thinking(request):
        return 0
    budget = request.thinking_token_budget
    return None if budget == -1 else budget


def add_chat_sequences(
    services: Services, generation: Generation, scope: Scope, plan: ChatPlan, choices: Sequence[ChatSink]
) -> int:
    """One sequence for each choice; returns its max_tokens. Raises a 400 for a prompt that the model cannot take."""
    new_parser = plan.new_parser
    interval = (plan.request.stream_interval or 1) if plan.request.stream else 1
    parsed = (
        []
        if new_parser is None
        else [ParsedSink(choice, new_parser(), interval=interval) for choice in choices]
    )
    max_tokens = add_sequences(
        services,
        generation,
        scope,
        plan.request,
        plan.prompt,
        plan.info,
        parsed or choices,
        paced=new_parser is None,
        grammar=plan.grammar,
        visible_special=plan.visible_special,
        stop_ids=plan.stop_ids,
        prediction=plan.prediction.tobytes(),
    )
    for sequence, sink in zip(generation.sequences, parsed, strict=False):
        sink.follow(sequence)
    return max_tokens
