"""What the ranks of a replica say to each other beside tensors: msgpack by msgspec, arrays as raw little-endian bytes.

The leader binds one PAIR socket for each follower in the family's private directory. A follower makes no decision: it
gets every step's plan, bound to where its rows stand and with its drafts, and of new requests only what it needs to
compute their keys and values.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ...scheduler.arrays import Int32
from ...scheduler.messages import EngineConfig, PoolingParams, SamplingParams
from ...scheduler.plan import PageUpdates, StepPlan
from ...spec.verify import Drafts
from ..bound import Bound
from ..new_slot import NewSlot


class RankConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the process of a follower is told at its start, as JSON."""

    engine: EngineConfig
    rank: int
    endpoint: str  # of the leader's socket for this rank
    store: str  # path of the file in which the ranks find each other
    parent: int  # process id of the leader


# ------------------------------------------------------------------------------------------------ follower -> leader

EXIT_BAD_CONFIGURATION = 2  # status of a follower that has said `Failed`


class Offer(Struct, frozen=True, tag="offer"):
    """This rank's values, to be told to all."""

    values: list[int]


class Failed(Struct, frozen=True, tag="failed"):
    """This rank cannot work with its configuration; the message is one line for the user."""

    message: str


# ------------------------------------------------------------------------------------------------ leader -> follower


class Values(Struct, frozen=True, tag="values"):
    """What each rank offered, by rank."""

    values: list[list[int]]


class NewRequest(Struct, frozen=True, array_like=True):
    """A request in a new slot; `tokens` int32. Sampling is the leader's alone, but all ranks take part in scoring
    prompts."""

    slot: int
    tokens: bytes
    num_prompt_tokens: int
    prompt_logprobs: int
    pooling: PoolingParams | None


class Step(Struct, frozen=True, tag="step"):
    """A `StepPlan` whose rows stand where it says. Arrays int32, but `sample` one byte a row; `pages` are slots, indexes
    and pages of each KV group, `drafts` how many each row has and which, if any has."""

    step: int
    slots: bytes
    starts: bytes
    lens: bytes
    sample: bytes
    num_decode_rows: int
    num_tokens: int
    inits: list[NewRequest]
    pages: list[tuple[bytes, bytes, bytes]]
    left: list[int]
    decode_tokens: bytes | None
    drafts: tuple[bytes, bytes] | None


class Stop(Struct, frozen=True, tag="stop"):
    """No step will come any more."""


ToLeader: TypeAlias = Offer | Failed
ToFollower: TypeAlias = Values | Step | Stop

encode = msgspec.msgpack.Encoder().encode
decode_to_leader = msgspec.msgpack.Decoder(ToLeader).decode
decode_to_follower = msgspec.msgpack.Decoder(ToFollower).decode


def step_of(plan: StepPlan, new: list[NewSlot], bound: Bound | None) -> Step:
    """What followers are told of `plan`; `bound` has its drafts, if there are any."""
    assert plan.drafts is None, "a plan with room for drafts is bound before others hear of it"
    return Step(
        step=plan.step,
        slots=raw(plan.slots),
        starts=raw(plan.starts),
        lens=raw(plan.lens),
        sample=plan.sample.astype(np.uint8).tobytes(),
        num_decode_rows=plan.num_decode_rows,
        num_tokens=plan.num_tokens,
        inits=[
            NewRequest(
                each.slot,
                raw(each.tokens),
                each.num_prompt_tokens,
                each.sampling.prompt_logprobs,
                each.pooling,
            )
            for each in new
        ],
        pages=[(raw(each.slots), raw(each.indexes), raw(each.pages)) for each in plan.pages],
        left=plan.left,
        decode_tokens=None if plan.decode_tokens is None else raw(plan.decode_tokens),
        drafts=None if bound is None else (raw(bound.drafts.counts), raw(bound.drafts.tokens)),
    )


def plan_of(step: Step) -> tuple[StepPlan, list[NewSlot], Bound | None]:
    """What a follower runs. Its new slots draw nothing: the sampled token is the leader's to choose."""
    plan = StepPlan(
        step=step.step,
        slots=int32(step.slots),
        starts=int32(step.starts),
        lens=int32(step.lens),
        sample=np.frombuffer(step.sample, np.uint8).astype(np.bool_),
        num_decode_rows=step.num_decode_rows,
        num_tokens=step.num_tokens,
        pages=[PageUpdates(*map(int32, each)) for each in step.pages],
        left=step.left,
        decode_tokens=None if step.decode_tokens is None else int32(step.decode_tokens),
    )
    new = [
        NewSlot(
            each.slot,
            int32(each.tokens),
            each.num_prompt_tokens,
            SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=each.prompt_logprobs),
            each.pooling,
            grammar=None,
            cache_salt="",
            prediction=None,
        )
        for each in step.inits
    ]
    bound = None
    if step.drafts is not None:
        bound = Bound(plan, np.arange(len(plan.slots)), Drafts(*map(int32, step.drafts)))
    return plan, new, bound


def raw(array: npt.NDArray[Any]) -> bytes:
    return array.astype("<i4", copy=False).tobytes()


def int32(data: bytes) -> Int32:
    """A copy that may be written to, as torch wants it."""
    return np.frombuffer(data, "<i4").astype(np.int32)
