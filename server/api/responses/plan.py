"""What a response needs before it is made: the conversation behind it, the chat plan, the head of its object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Scope

from ...requests.generation import Generation
from ...services import Services
from ..blocks import Blocks
from ..chat_plan import ChatPlan, add_chat_sequences, plan_chat
from ..endpoint import check_model
from ..errors import ApiError, bad_request, shown
from ..field_names import fields_named
from ..isolation import tenant_of
from ..logprobs import chat_entries
from ..prompt_length import PromptTooLong
from .items import Item, stored_items
from .output import OutputItems, response_head, with_sampling
from .protocol import ResponsesRequest
from .store import StoredResponse, new_response_id
from .translate import chat_request, check, field_names


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsePlan:
    request: ResponsesRequest
    chat: ChatPlan
    head: dict[str, Any]
    history: list[Item]  # of the responses before it
    input: list[Item]
    tenant: str
    store: bool

    def stored(self, response: dict[str, Any]) -> StoredResponse:
        return StoredResponse(tenant=self.tenant, response=response, history=self.history, input=self.input)


async def plan_chat_of(
    services: Services, request: ResponsesRequest, tenant: str
) -> tuple[ChatPlan, list[Item], list[Item]]:
    """(plan, history, own input). Raises the API's errors."""
    check(request)
    check_model(services, request.model)
    history = await history_of(services, request, tenant)
    own = stored_items(request.input if request.input is not None else [])
    with fields_named(field_names(request)):
        if request.truncation == "auto":
            chat = await plan_truncated(services, request, [*history, *own], len(history))
        else:
            chat = await plan_chat(services, chat_request(request, [*history, *own], len(history)))
    return chat, history, own


async def plan_response(services: Services, request: ResponsesRequest, tenant: str) -> ResponsePlan:
    """Raises the API's errors."""
    enabled = services.response_store.enabled
    if not enabled and (request.store or request.background):
        name = "background" if request.background else "store"
        raise bad_request(
            name, "this server stores no responses: start it with --responses-store-size above 0"
        )
    chat, history, own = await plan_chat_of(services, request, tenant)
    store = enabled and request.store is not False
    return ResponsePlan(
        request=request,
        chat=chat,
        head=response_head(request, id=new_response_id(), model=chat.model, store=store),
        history=history,
        input=own,
        tenant=tenant,
        store=store,
    )


async def history_of(services: Services, request: ResponsesRequest, tenant: str) -> list[Item]:
    """The conversation up to the previous response."""
    previous = request.previous_response_id
    if previous is None:
        return []
    stored = await services.response_store.get(previous, tenant)
    if stored is None:
        raise not_found(previous, "previous_response_id")
    if stored.unfinished:
        raise bad_request("previous_response_id", f"{shown(previous)} is not finished yet")
    return stored.conversation


def not_found(id: str, param: str | None = None) -> ApiError:
    what = f"there is no response {shown(id)}: it was not stored, is deleted, or has been forgotten since"
    return ApiError(404, f"{param}: {what}" if param else what, param=param)


async def plan_truncated(
    services: Services, request: ResponsesRequest, items: list[Item], first_own: int
) -> ChatPlan:
    """`truncation: auto`: as few items dropped from the beginning as make prompt and output fit the context.

    Where even the last item alone does not fit, the whole conversation's plan is returned, and refused later.
    """

    async def plan(dropped: int) -> ChatPlan | None:
        try:
            return await plan_chat(services, chat_request(request, items[dropped:], first_own - dropped))
        except PromptTooLong:
            return None

    def fits(plan: ChatPlan | None) -> bool:
        return (
            plan is not None
            and len(plan.prompt.tokens) + (request.max_output_tokens or 1) <= plan.info.max_model_len
        )

    whole = await plan(0)
    if whole is not None and fits(whole):
        return whole
    cuts = [index for index in range(1, len(items)) if items[index]["type"] != "function_call_output"]
    best, low, high = whole, 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        shorter = await plan(cuts[middle])
        if fits(shorter):
            best, high = shorter, middle
        else:
            low = middle + 1
    return await plan_chat(services, chat_request(request, items, first_own)) if best is None else best


@dataclass(frozen=True, slots=True)
class Prepared:
    """A response whose sequences wait to be submitted."""

    answer: Blocks
    items: OutputItems
    head: dict[str, Any]
    max_tokens: int


def prepare(services: Services, plan: ResponsePlan, generation: Generation, scope: Scope) -> Prepared:
    """Raises a 400 for a prompt that the model cannot take."""
    items = OutputItems(plan.request, partial(chat_entries, services.tokenizer))
    answer = Blocks(generation, plan.chat.call_ids.new)
    with fields_named(field_names(plan.request)):
        max_tokens = add_chat_sequences(services, generation, scope, plan.chat, [answer])
    return Prepared(answer, items, with_sampling(plan.head, generation), max_tokens)


def caller(services: Services, scope: Scope) -> str:
    """To whom responses belong: an API key, or everybody where the server demands none."""
    return tenant_of(scope) if services.config.api_keys else ""
